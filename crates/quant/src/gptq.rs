mod column_levels;
mod gptaq;
mod rule;

use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::grid::Affine;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::{Index, Side, Transformed};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stage::{Auto, Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Node, Result, Target,
    Usable, kernels,
};

pub use column_levels::ColumnLevels;
pub use gptaq::Gptaq;

use crate::{Granularity, GridSpec, GroupedAffine, Rtn};
use rule::GptqRule;

/// GPTQ (Frantar et al., 2023): columns are rounded one after another, and each rounding error is spread over the
/// columns still to come, weighted by the inverse Gram matrix of the inputs.
///
/// Never fails on singular or missing statistics: damping grows until the matrix can be factored, and a layer
/// that saw no token falls back to [`Rtn`] and says so.
///
/// ```
/// use tensorpress_quant::{Gptq, GridSpec};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Gptq::new(GridSpec::new(3, 32)).with_act_order(true).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Gptq {
    /// Bits, granularity and grid.
    pub grid: GridSpec,
    /// Decide columns in the order of falling input energy. Costs a stored permutation where groups follow that
    /// order. Default false.
    pub act_order: bool,
    /// Fit all groups before the sweep, in the stored order of columns; with `act_order` no permutation is stored
    /// then. Default false.
    pub static_groups: bool,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
    /// Columns between two updates of the rest of the matrix. By default 128, or a smaller group, so that its grid is
    /// fitted to the weights as they stand when it begins.
    pub block: Auto<usize>,
}

/// Columns of a block where groups are no shorter.
const LONGEST_BLOCK: usize = 128;

impl Default for Gptq {
    fn default() -> Self {
        Self {
            grid: GridSpec::default(),
            act_order: false,
            static_groups: false,
            damp: 0.01,
            block: Auto::Auto,
        }
    }
}

impl Gptq {
    /// GPTQ on the given grid.
    #[must_use]
    pub fn new(grid: GridSpec) -> Self {
        Self { grid, ..Self::default() }
    }

    /// Decides columns in the order of falling input energy.
    #[must_use]
    pub fn with_act_order(mut self, act_order: bool) -> Self {
        self.act_order = act_order;
        self
    }

    /// Fits all groups before the sweep.
    #[must_use]
    pub fn with_static_groups(mut self, static_groups: bool) -> Self {
        self.static_groups = static_groups;
        self
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets the columns between two updates of the rest.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = Auto::Set(block);
        self
    }

    /// Groups are fitted when their block begins: no block is longer than a group, unless that would make it tiny.
    fn own_block(&self) -> usize {
        match self.grid.granularity {
            Granularity::Group(group) if (16..LONGEST_BLOCK).contains(&group) => group,
            _ => LONGEST_BLOCK,
        }
    }

    fn check(&self) -> Result<()> {
        if !self.damp.is_finite() || self.damp < 0.0 {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        if self.block == Auto::Set(0) {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        Ok(())
    }

    /// Sweeps one target with the shared inverse factor.
    fn quantize(
        &self,
        target: &Target<'_>,
        prepared: &Prepared,
        par: Par,
    ) -> Result<Box<dyn Node>> {
        target.check_finite()?;
        let dense = target.kept_weight();
        let (rows, cols) = dense.dim();
        let grid =
            self.grid.family(kernels::abs_max(dense.as_slice().expect("standard layout")))?;
        let group = self.grid.group_of(cols);
        let mut rule =
            GptqRule::new(grid, group, rows, cols, target.mask, prepared.order.as_deref());
        if self.static_groups || self.grid.granularity == Granularity::Tensor {
            rule.fit_all(dense.view(), self.grid.per_tensor(), par);
        }
        let mut weight = match &prepared.order {
            Some(order) => dense.select(Axis(1), order),
            None => dense.into_owned(),
        };
        for &dead in &prepared.dead {
            weight.column_mut(dead).fill(0.0);
        }
        let block = self.block.or(self.own_block());
        let swept = prepared.sweep(target, weight, block, &mut rule, par)?;
        drop(swept.weight);
        let params = if self.grid.per_tensor() { vec![rule.param(0, 0)] } else { rule.params() };
        // Groups that follow the order of decision keep it, with a permutation around them; all others go back.
        let grouped_in_order = !self.static_groups
            && matches!(self.grid.granularity, Granularity::Group(_))
            && group < cols;
        match &prepared.order {
            Some(order) if grouped_in_order => {
                let codes = swept.codes.as_slice().expect("standard layout");
                let node = GroupedAffine::on_grids(&grid, [rows, cols], group, codes, &params)?;
                let index = order.iter().map(|c| *c as u32).collect();
                let permutation = Arc::new(Index::new(index, cols)?);
                Ok(Box::new(Transformed::new(Side::In, permutation, Box::new(node))?))
            }
            order => {
                let codes = match order {
                    Some(order) => in_original_order(swept.codes.view(), order),
                    None => swept.codes,
                };
                let codes = codes.as_slice().expect("standard layout");
                Ok(Box::new(GroupedAffine::on_grids(&grid, [rows, cols], group, codes, &params)?))
            }
        }
    }
}

fn in_original_order(codes: ArrayView2<'_, u8>, order: &[usize]) -> Array2<u8> {
    let mut original = Array2::zeros(codes.dim());
    for (mut to, from) in original.rows_mut().into_iter().zip(codes.rows()) {
        from.iter().zip(order).for_each(|(code, c)| to[*c] = *code);
    }
    original
}

impl Knobs for Gptq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.grid.knobs(keys)?;
        let about = "columns in the order of falling input energy";
        keys.flag("act_order", &mut self.act_order, about)?;
        let about = "all groups are fitted before the first column is rounded";
        keys.flag("static_groups", &mut self.static_groups, about)?;
        let about = "added to the diagonal, as a fraction of its mean";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        let about =
            "columns between two updates of the rest: 128, or the group where that is 16 to 127";
        let own = self.own_block();
        keys.auto("block", &mut self.block, own, 1..=1 << 16, about)
    }
}

pub(crate) fn gptaq_stage() -> Row<WeightPart> {
    gptaq::stage()
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "gptq",
        "rounds column by column and spreads each error over the columns still to come",
        Gptq::default,
    )
}

impl Method for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.grid)
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }
}

impl Compress for Gptq {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let prepared = Prepared::new(&mut group, f64::from(self.damp), self.act_order)?;
        let par = group.par;
        let layers = group.targets.iter().map(|target| {
            let (node, note): (Box<dyn Node>, _) = match &prepared {
                Usable::Yes(prepared) => (
                    self.quantize(target, prepared, par).in_tensor(target.name)?,
                    prepared.note.clone(),
                ),
                Usable::No(reason) => {
                    let node = Rtn::new(self.grid).round(target, par)?;
                    (Box::new(node), Some(format!("{reason}: rounded to nearest instead")))
                }
            };
            Ok(Compressed { bias: None, fallback: note, node })
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

/// Columns of a group.
pub(crate) fn columns_of(group: usize, size: usize, cols: usize) -> Range<usize> {
    group * size..((group + 1) * size).min(cols)
}

/// The neutral grid of padding rows.
pub(crate) const PADDING: Affine = Affine { scale: 1.0, zero: 0.0 };
