mod fisher;

use std::collections::BTreeMap;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Mask, Masked};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, Context, Error, Group, Method, Result, Select, Selection, Target,
    Usable,
};

use crate::obc::repair;
use crate::pattern::{Pattern, Scope};
use crate::pruner::{magnitude, prune_group};

pub use fisher::BlockFisher;

/// oBERT (Kurtic et al., "The Optimal BERT Surgeon", 2022, arXiv 2203.07259): second-order pruning by the loss itself.
///
/// To second order, zeroing the weights Q of a matrix whose others adapt costs ½ w_Qᵀ ((F⁻¹)_QQ)⁻¹ w_Q (eq. 5), where F
/// is the empirical Fisher matrix of the loss in blocks of neighbours ([`BlockFisher`]). That is the saliency of a
/// block of the pattern (1 x C: of all C together; else of each weight). What goes, goes at once, and all that stays of
/// a Fisher block makes good for all that went of it: w -= F⁻¹_:Q ((F⁻¹)_QQ)⁻¹ w_Q (eq. 6).
///
/// The matrices' Fisher matrices are the caller's: gradients of single samples come out of a trainer, and no pipeline
/// hands them on. A matrix without one, or with one whose damping is lost in rounding, is pruned by magnitude, and says
/// so.
///
/// ```
/// use tensorpress_prune::{BlockFisher, Obert, Pattern};
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((4, 8), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let gradients = Array2::from_shape_fn((64, 32), |(t, i)| ((t * 13 + i * 5) % 17) as f32 - 8.0);
/// let fisher = BlockFisher::from_gradients(gradients.view(), [4, 8], 16, 1e-7, Par::Seq)?;
/// let method = Obert::new(Pattern::unstructured(0.5)).with_fisher("weight", fisher);
/// let made = method.compress(weight.view(), &Calibration::none(8))?;
/// assert!(decode(&made.node)?.iter().filter(|w| **w == 0.0).count() >= 16);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Obert {
    /// The shape of what stays.
    pub pattern: Pattern,
    /// By the names of the matrices.
    pub fishers: BTreeMap<String, BlockFisher>,
}

/// Half of the entries, wherever they cost least, and no Fisher matrix yet.
impl Default for Obert {
    fn default() -> Self {
        Self::new(Pattern::Unstructured { sparsity: 0.5, scope: Scope::Matrix })
    }
}

impl Obert {
    /// To this pattern.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, fishers: BTreeMap::new() }
    }

    /// Adds the Fisher matrix of the matrix of this name.
    #[must_use]
    pub fn with_fisher(mut self, name: impl Into<String>, fisher: BlockFisher) -> Self {
        self.fishers.insert(name.into(), fisher);
        self
    }

    /// The saliency of each weight `[out, in]`: ½ w_Qᵀ ((F⁻¹)_QQ)⁻¹ w_Q, shared out evenly among the weights of Q.
    ///
    /// # Errors
    /// `InvalidArgument` for blocks of several outputs, or such that are not whole parts of the rows and of the Fisher
    /// blocks; `ShapeMismatch`; `InsufficientData` if not all samples were added; `Numerical` if the damping is lost in
    /// rounding.
    pub fn saliency(
        &self,
        weight: ArrayView2<'_, f32>,
        fisher: &BlockFisher,
    ) -> Result<Array2<f64>> {
        self.pattern.check(weight.ncols())?;
        fisher.check(weight.dim())?;
        let width = match self.pattern {
            Pattern::Block { rows: 1, cols, .. }
                if weight.ncols().is_multiple_of(cols) && fisher.block().is_multiple_of(cols) =>
            {
                cols
            }
            Pattern::Block { rows, cols, .. } => {
                return Err(Error::invalid(format!(
                    "blocks of {rows} x {cols} in {} inputs and Fisher blocks of {}: allowed are those of 1 output \
                     that divide both",
                    weight.ncols(),
                    fisher.block()
                )));
            }
            _ => 1,
        };
        let mut scores = Array2::zeros(weight.dim());
        let flat: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        let mut places = scores.iter_mut();
        for (at, part) in flat.chunks(width).enumerate() {
            let cost = 0.5 * fisher.cost(at * width, part)?;
            places.by_ref().take(width).for_each(|place| *place = cost / width as f64);
        }
        Ok(scores)
    }

    /// Prunes matrices with their Fisher matrices to one budget: with a pattern over the whole matrix
    /// ([`Scope::Matrix`]) or of blocks, what costs least goes, wherever it is; other patterns hold in each. Entries
    /// outside a mask go first and for nothing. Returns the supports, and the weights made good.
    ///
    /// # Errors
    /// As [`Obert::saliency`], naming the tensor; `Numerical` for weights that are not finite.
    pub fn prune(
        &self,
        layers: &[(&Target<'_>, &BlockFisher)],
        par: Par,
    ) -> Result<Vec<(Mask, Array2<f32>)>> {
        let scored = layers.iter().map(|(target, fisher)| {
            target.check_finite()?;
            self.saliency(target.kept_weight().view(), fisher).in_tensor(target.name)
        });
        let mut scores: Vec<Array2<f64>> = scored.collect::<Result<_>>()?;
        // Into the range of f32, in which patterns compare.
        let most = scores.iter().flatten().copied().fold(0.0, f64::max);
        let scale = if most > 0.0 && most.is_finite() { 1.0 / most } else { 1.0 };
        scores.iter_mut().for_each(|of| of.mapv_inplace(|s| s * scale));
        let supports = self.supports(&scores)?;
        let repaired = layers.iter().zip(supports).map(|((target, fisher), mut keep)| {
            let mut weight = target.kept_weight().into_owned();
            for ((row, col), keep) in keep.indexed_iter_mut() {
                *keep &= target.mask.is_none_or(|mask| mask.keeps(row, col));
            }
            fisher.each_block(&mut weight, &keep, par, repair).in_tensor(target.name)?;
            Ok((Mask::from_bools(keep.view()), weight))
        });
        repaired.collect()
    }

    /// What stays of each matrix.
    fn supports(&self, scores: &[Array2<f64>]) -> Result<Vec<Array2<bool>>> {
        let bools = |mask: &Mask, dim| Array2::from_shape_fn(dim, |(r, c)| mask.keeps(r, c));
        // All as one row of units that stay or go.
        let (sparsity, width) = match self.pattern {
            Pattern::Unstructured { sparsity, scope: Scope::Matrix } => (sparsity, 1),
            Pattern::Block { sparsity, cols, .. } => (sparsity, cols),
            pattern => {
                let one = |scores: &Array2<f64>| {
                    let mask = pattern.select(scores.mapv(|s| s as f32).view())?;
                    Ok(bools(&mask, scores.dim()))
                };
                return scores.iter().map(one).collect();
            }
        };
        let units: Vec<f32> =
            scores.iter().flat_map(|of| of.iter().step_by(width).map(|s| *s as f32)).collect();
        let row = ArrayView2::from_shape((1, units.len()), &units).expect("one row");
        let mask = Pattern::unstructured(sparsity).select(row)?;
        let mut before = 0;
        let part = |of: &Array2<f64>| {
            let start = before;
            before += of.len() / width;
            let cols = of.ncols();
            Array2::from_shape_fn(of.dim(), |(r, c)| mask.keeps(0, start + (r * cols + c) / width))
        };
        Ok(scores.iter().map(part).collect())
    }
}

impl Method for Obert {
    fn id(&self) -> &'static str {
        "obert"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Select for Obert {
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
        self.pattern.check(group.channels()?)?;
        let mut by_magnitude = magnitude(self.pattern).select_group(group)?;
        for (target, selection) in group.targets.iter().zip(&mut by_magnitude) {
            let pruned = match self.fishers.get(target.name) {
                Some(fisher) => Usable::of(self.prune(&[(target, fisher)], group.par))?,
                None => Usable::no("no Fisher matrix of it"),
            };
            match pruned {
                Usable::Yes(mut pruned) => {
                    let (mask, weight) = pruned.remove(0);
                    *selection = Selection { mask, weight: Some(weight), fallback: None };
                }
                Usable::No(reason) => {
                    let reason = format!("{reason}: pruned by magnitude instead");
                    selection.fallback = Some(reason);
                }
            }
        }
        Ok(by_magnitude)
    }
}

impl Compress for Obert {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(self, group)
    }
}
