use tensorpress_tensor::node::{Dense, Masked};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Group, Method, Node, Result, Select, Selection,
};

use crate::pattern::Pattern;
use crate::saliency::{InputNorm, Magnitude, Saliency};

/// Keeps the most salient weights as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Pruner<S> {
    /// What matters.
    pub saliency: S,
    /// The shape of what stays.
    pub pattern: Pattern,
}

impl<S: Saliency> Pruner<S> {
    /// Prunes by this saliency to this pattern.
    #[must_use]
    pub fn new(saliency: S, pattern: Pattern) -> Self {
        Self { saliency, pattern }
    }
}

impl<S: Saliency> Knobs for Pruner<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.pattern.knobs(keys)
    }
}

pub(crate) fn stages() -> [Row<WeightPart>; 2] {
    [
        Row::select(
            Magnitude.id(),
            "keeps the largest weights of each row; needs no calibration",
            || magnitude(Pattern::default()),
        ),
        Row::select(
            InputNorm.id(),
            "keeps the weights that are largest times the norm of their input",
            || wanda(Pattern::default()),
        ),
    ]
}

/// Magnitude pruning.
///
/// ```
/// use tensorpress_prune::{Pattern, magnitude};
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = magnitude(Pattern::unstructured(0.5)).compress(weight.view(), &Calibration::none(64))?;
/// assert!(decode(&made.node)?.iter().filter(|w| **w == 0.0).count() >= 16 * 32);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn magnitude(pattern: Pattern) -> Pruner<Magnitude> {
    Pruner::new(Magnitude, pattern)
}

/// Wanda (Sun et al., 2024): magnitude times input norm.
///
/// ```
/// use tensorpress_prune::{Pattern, wanda};
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = wanda(Pattern::nm(2, 4)).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert!(decode(&made.node)?.iter().filter(|w| **w == 0.0).count() >= 16 * 32);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn wanda(pattern: Pattern) -> Pruner<InputNorm> {
    Pruner::new(InputNorm, pattern)
}

impl<S: Saliency> Method for Pruner<S> {
    fn id(&self) -> &'static str {
        self.saliency.id()
    }

    fn needs(&self) -> Needs {
        self.saliency.needs()
    }
}

impl<S: Saliency> Select for Pruner<S> {
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
        self.pattern.check(group.channels()?)?;
        let select = |target: &tensorpress_tensor::Target<'_>| {
            target.check_finite()?;
            let weight = target.kept_weight();
            let scores = self.saliency.scores(weight.view(), &group.calibration)?;
            let (scores, reason) = scores.or_else(|_| weight.mapv(f32::abs));
            let fallback = reason.map(|reason| format!("{reason}: pruned by magnitude instead"));
            Ok(Selection { mask: self.pattern.select(scores.view())?, weight: None, fallback })
        };
        group.targets.iter().map(|t| select(t).in_tensor(t.name)).collect()
    }
}

impl<S: Saliency> Compress for Pruner<S> {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(self, group)
    }
}

/// What a selector keeps, in the stored type of the weights: the entries of the support alone.
///
/// # Errors
/// Those of the selector.
pub fn prune_group(selector: &dyn Select, mut group: Group<'_>) -> Result<CompressedGroup<Masked>> {
    let selections = selector.select_group(&mut group)?;
    let layers = group.targets.iter().zip(selections).map(|(target, selection)| {
        let Selection { mask, weight, fallback } = selection;
        let dense = match &weight {
            Some(weight) => Dense::from_f32(weight.view(), target.dtype),
            None => Dense::from_f32(target.weight, target.dtype),
        };
        let node = Masked::new(mask, dense?.boxed()).in_tensor(target.name)?;
        Ok(Compressed::new(node).with_fallback(fallback))
    });
    Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
}
