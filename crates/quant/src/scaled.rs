//! Input channels scaled up before a method, and back inside the product.

use std::sync::Arc;

use tensorpress_tensor::carry::{Keep, carry};
use tensorpress_tensor::node::{Map, Scale};
use tensorpress_tensor::{CompressedGroup, DType, Group, Node, Result};

/// Solves the group on W diag(scale): 1/scale goes into what stands before the matrices, where the group offers it (each scale
/// is then moved to where that is exact), else it is stored (and counted) as f16, or f32 where that cannot hold it.
pub(crate) fn solve_scaled<N: Node + 'static>(
    group: Group<'_>,
    mut scale: Vec<f32>,
    solve: impl FnOnce(Group<'_>) -> Result<CompressedGroup<N>>,
) -> Result<CompressedGroup> {
    let folded = group.fold.map(|fold| fold.make_exact(&mut scale));
    let (map, keep) = match folded {
        Some(_) => (Scale::dividing(scale)?, Keep::Folded),
        // What is stored is 1/s, rounded; the scale that goes with it is its reciprocal.
        None => {
            let back: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
            let half = Scale::new(back.clone(), DType::F16);
            (half.or_else(|_| Scale::new(back, DType::F32))?, Keep::Stored)
        }
    };
    let map: Arc<dyn Map> = Arc::new(map);
    let solved = carry(group, &map, keep, solve)?;
    Ok(CompressedGroup { folded, ..solved })
}
