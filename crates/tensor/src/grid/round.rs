use super::{Affine, GridSpec};
use crate::error::Result;
use crate::kernels;
use crate::linalg::Par;
use crate::method::Target;
use crate::node::GroupedAffine;

impl GridSpec {
    /// Each weight that may be kept becomes the nearest level of its group's grid.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument` for an impossible grid.
    pub fn round(&self, target: &Target<'_>, par: Par) -> Result<GroupedAffine> {
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let all = weight.as_slice().expect("standard layout");
        let grid = self.family(kernels::abs_max(all))?;
        let group = self.group_of(cols);
        let groups = cols.div_ceil(group);
        let whole = self.per_tensor().then(|| grid.fit(all));
        let mut codes = vec![0u8; rows * cols];
        let mut params = vec![Affine { scale: 1.0, zero: 0.0 }; rows * groups];
        let round_row = |((w, codes), params): ((&[f32], &mut [u8]), &mut [Affine])| {
            for ((w, codes), p) in w.chunks(group).zip(codes.chunks_mut(group)).zip(params) {
                *p = whole.unwrap_or_else(|| grid.fit(w));
                kernels::quantize_affine(w, p.scale, p.zero, grid.max_code() as u8, codes);
            }
        };
        if rows * cols > 0 {
            let rows = all.chunks(cols).zip(codes.chunks_mut(cols)).zip(params.chunks_mut(groups));
            par.for_each(rows, round_row);
        }
        if let Some(whole) = whole {
            params = vec![whole];
        }
        GroupedAffine::on_grids(&grid, [rows, cols], group, &codes, &params)
    }
}
