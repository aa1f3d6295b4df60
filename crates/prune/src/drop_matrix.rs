//! Nothing is left: the last level of whatever shares a budget among matrices.

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Group, Method, Node, Result};

/// Drops a whole matrix: it is 0, stored as a product of rank 0, which takes no bytes and no time.
///
/// Within a budget, a sublayer whose output matrix goes (attention, a feed-forward network, an expert) goes as a whole.
///
/// ```
/// use tensorpress_prune::DropMatrix;
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, Storage, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_elem((3, 4), 1.0_f32);
/// let made = DropMatrix.compress(weight.view(), &Calibration::none(4))?;
/// assert_eq!(decode(&made.node)?, Array2::<f32>::zeros((3, 4)));
/// assert_eq!(Storage::of(&made.node)?.bits(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropMatrix;

impl DropMatrix {
    /// A matrix `[out, in]` of zeros, which takes no bytes.
    ///
    /// # Errors
    /// None that is known: those of its factors.
    pub fn zeros([rows, cols]: [usize; 2], dtype: DType) -> Result<Product> {
        let side = |shape| Dense::from_f32(Array2::zeros(shape).view(), dtype);
        Product::new(side((rows, 0))?.boxed(), side((0, cols))?.boxed())
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "drop",
        "leaves nothing of a matrix; a level for targets: what takes more than it gives goes",
        DropMatrix::default,
    )
}

impl Knobs for DropMatrix {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

impl Method for DropMatrix {
    fn id(&self) -> &'static str {
        "drop"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn drops(&self) -> bool {
        true
    }
}

impl Compress for DropMatrix {
    type Node = Product;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Product>> {
        group.each(|target| {
            target.check_finite()?;
            Self::zeros(target.weight.dim().into(), target.dtype)
        })
    }
}
