use tensorpress_tensor::grid::{Granularity, GridSpec};
use tensorpress_tensor::node::{GroupedAffine, Masked};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Node, Result, Select,
    Selection, Target, Usable, kernels,
};

use crate::pruner::magnitude;
use crate::sparsegpt::{Grid, SparseGpt};

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

impl JointSparseGpt {
    /// What is done where the statistics cannot be used: pruned by magnitude, then rounded to nearest.
    fn plain(&self, mut group: Group<'_>, reason: &str) -> Result<CompressedGroup> {
        let selections = magnitude(self.prune.pattern).select_group(&mut group)?;
        let round = |(target, selection): (&Target<'_>, Selection)| {
            let kept = Target { mask: Some(&selection.mask), ..target.clone() };
            let node = self.grid.round(&kept, group.par).in_tensor(target.name)?;
            let node = Masked::new(selection.mask, node.boxed()).in_tensor(target.name)?;
            let note = format!("{reason}: pruned by magnitude and rounded to nearest instead");
            Ok(Compressed::new(node).boxed().with_fallback(Some(note)))
        };
        let layers = group.targets.iter().zip(selections).map(round).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}

impl Method for JointSparseGpt {
    fn id(&self) -> &'static str {
        "sparsegpt"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.grid)
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
                return self.plain(group, &reason);
            }
        };
        let one = |target: &Target<'_>| self.one(target, &prepared, &group).in_tensor(target.name);
        let layers = group.targets.iter().map(one).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}
