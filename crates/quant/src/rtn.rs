use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Group, Method, Result, Target, kernels,
};

use crate::grouped::GroupedAffine;
use crate::spec::GridSpec;
use tensorpress_tensor::grid::Affine;

/// Round to nearest: each weight becomes the nearest level of its group's grid. Needs no calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Rtn {
    /// Bits, granularity and grid.
    pub grid: GridSpec,
}

impl Rtn {
    /// Rounding on the given grid.
    #[must_use]
    pub fn new(grid: GridSpec) -> Self {
        Self { grid }
    }

    /// Rounds one matrix.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument` for an impossible grid.
    pub fn round(&self, target: &Target<'_>, par: Par) -> Result<GroupedAffine> {
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let all = weight.as_slice().expect("standard layout");
        let grid = self.grid.family(kernels::abs_max(all))?;
        let group = self.grid.group_of(cols);
        let groups = cols.div_ceil(group);
        let whole = self.grid.per_tensor().then(|| grid.fit(all));
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

impl Method for Rtn {
    fn id(&self) -> &'static str {
        "rtn"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for Rtn {
    type Node = GroupedAffine;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        let round = |t: &Target<'_>| Ok(Compressed::new(self.round(t, group.par)?));
        Ok(CompressedGroup::new(group.targets.iter().map(round).collect::<Result<_>>()?))
    }
}
