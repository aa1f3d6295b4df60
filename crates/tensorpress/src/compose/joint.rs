use tensorpress_prune::{Grid, SparseGpt, magnitude};
use tensorpress_quant::{Granularity, GridSpec, GroupedAffine, Rtn};
use tensorpress_tensor::node::Masked;
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Node, Result, Target,
    Usable, kernels,
};

use super::Then;

/// SparseGPT that also rounds: mask and codes are chosen in one sweep (Frantar and Alistarh, 2023, section 3.5), so that
/// the columns still to come make good for both errors at once.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct JointSparseGpt {
    /// What goes.
    pub prune: SparseGpt,
    /// What the rest is rounded to. A group's grid is fitted when the block with its first column begins.
    pub grid: GridSpec,
}

impl JointSparseGpt {
    /// Prunes by `prune` and rounds to `grid` at once.
    #[must_use]
    pub fn new(prune: SparseGpt, grid: GridSpec) -> Self {
        Self { prune, grid }
    }

    fn one(
        &self,
        target: &Target<'_>,
        prepared: &Prepared,
        group: &Group<'_>,
    ) -> Result<Compressed> {
        target.check_finite()?;
        let [rows, cols] = [target.weight.nrows(), target.weight.ncols()];
        let dense = target.kept_weight();
        let family = self.grid.family(kernels::abs_max(dense.as_slice().expect("contiguous")))?;
        let size = self.grid.group_of(cols);
        let grid = Grid { family, group: size };
        let pruned = self.prune.sweep(target, prepared, Some(grid), group.par)?;
        let codes = pruned.codes.as_slice().expect("standard layout");
        let node = GroupedAffine::on_grids(&family, [rows, cols], size, codes, &pruned.grids)?;
        let node = Masked::new(pruned.mask, node.boxed())?;
        Ok(Compressed::new(node).boxed().with_fallback(prepared.note.clone()))
    }
}

impl Method for JointSparseGpt {
    fn id(&self) -> &'static str {
        "sparsegpt"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }
}

impl Compress for JointSparseGpt {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        self.prune.pattern.check(group.channels()?)?;
        if self.grid.granularity == Granularity::Tensor {
            return Err(Error::unsupported("one grid for a whole matrix in SparseGPT's sweep"));
        }
        let prepared = match Prepared::new(&mut group, f64::from(self.prune.damp), false)? {
            Usable::Yes(prepared) => prepared,
            Usable::No(reason) => {
                let plain = Then::new(magnitude(self.prune.pattern), Rtn::new(self.grid));
                let mut result = plain.compress_group(group)?;
                for layer in &mut result.layers {
                    let note = "pruned by magnitude and rounded to nearest instead";
                    layer.fallback = Some(format!("{reason}: {note}"));
                }
                return Ok(result);
            }
        };
        let one = |target: &Target<'_>| self.one(target, &prepared, &group).in_tensor(target.name);
        let layers = group.targets.iter().map(one).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}
