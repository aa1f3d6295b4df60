//! What a block is worth.

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::rewrite::{BlockView, ModelLayout, Outputs, SharedInput};
use tensorpress_tensor::stats::{Needs, Supply};
use tensorpress_tensor::{ErrorKind, Result, Target, Tensor, Usable};

use crate::structured::influence;

/// What a block is judged by; the lowest go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BlockScore {
    /// How far it turns its hidden states, [`influence`] (Men et al.: "ShortGPT: Layers in Large Language Models are More
    /// Redundant Than You Expect", 2024).
    #[default]
    Influence,
    /// The blocks behind it: the last goes first, and the head follows what is left (Lu et al.: "Reassessing Layer Pruning
    /// in LLMs: New Insights and Methods", 2024, "reverse-order"). Reads no calibration.
    Last,
    /// E ‖logits' - logits‖² without it, [`logit_change`] (Zhang et al.: "LAPTOP-Diff", 2024), which takes a pass through all
    /// later blocks for each.
    Output,
    /// Σ |w| over its matrices. Reads no calibration.
    Magnitude,
    /// Σ |w ∂L/∂w| over its matrices, of gradients that are supplied ([`Supply::GRADIENT`]).
    Taylor,
}

impl BlockScore {
    pub(super) const NAMES: [(&'static str, Self); 5] = [
        ("influence", Self::Influence),
        ("last", Self::Last),
        ("output", Self::Output),
        ("magnitude", Self::Magnitude),
        ("taylor", Self::Taylor),
    ];

    /// Scores of several blocks make sense as a sum.
    pub(super) fn adds_up(self) -> bool {
        self != Self::Last
    }

    pub(super) fn needs(self) -> Needs {
        match self {
            Self::Taylor => Needs::supplied(Supply::GRADIENT),
            _ => Needs::NONE,
        }
    }

    pub(super) fn inputs(self) -> &'static [SharedInput] {
        if self == Self::Taylor { &SharedInput::ALL } else { &[] }
    }

    /// That of a block, 0 and more.
    pub(super) fn of(self, model: &ModelLayout, block: &BlockView<'_>) -> Result<Usable<f64>> {
        let layout = block.layout();
        let mut sum = 0.0;
        match self {
            Self::Influence => {
                let found = block.states().and_then(influence);
                // A mean of cosines may be a rounding error above 1.
                return Ok(some(found, "hidden states").map(|found| found.max(0.0)));
            }
            Self::Last => return Ok(Usable::Yes((model.blocks.len() - 1 - layout.block) as f64)),
            Self::Output => {
                let (Some(outputs), Some(head)) = (block.outputs(), &model.head) else {
                    return Ok(some(None, "outputs"));
                };
                let head = block.tensor(&head.name)?;
                return Ok(some(logit_change(outputs, &head)?, "outputs"));
            }
            Self::Magnitude => {
                for spec in &layout.linears {
                    sum += absolute(block.matrix(&spec.name)?.view());
                }
            }
            Self::Taylor => {
                for spec in &layout.linears {
                    let weight = block.matrix(&spec.name)?;
                    let none =
                        || Usable::no(format!("no {} was supplied", Supply::GRADIENT.name()));
                    let Some(seen) = block.input(spec.input) else { return Ok(none()) };
                    let target = Target::new(&spec.name, weight.view());
                    match seen.supplied(Supply::GRADIENT, &target, Par::Rayon) {
                        Err(e) if e.kind() == ErrorKind::MissingCalibration => return Ok(none()),
                        found => match Usable::of(found)? {
                            Usable::Yes(gradient) => sum += absolute((weight * gradient).view()),
                            Usable::No(reason) => return Ok(Usable::No(reason)),
                        },
                    }
                }
            }
        }
        Ok(match sum.is_finite() {
            true => Usable::Yes(sum),
            false => Usable::no("its score is not finite"),
        })
    }
}

fn some(found: Option<f64>, what: &str) -> Usable<f64> {
    let none = || Usable::no(format!("no token with finite {what}"));
    found.filter(|found| found.is_finite()).map_or_else(none, Usable::Yes)
}

fn absolute(matrix: ArrayView2<'_, f32>) -> f64 {
    matrix.iter().map(|w| f64::from(w.abs())).sum()
}

/// E ‖W (x' - x)‖², the mean over tokens of the squared change of all logits, where x is what the head's matrix W
/// `[vocabulary, width]` reads, before a factor or a cap of the logits; nothing if no token has finite outputs. Logits are
/// never made: it is tr(W S Wᵀ) / tokens, S the second moments of the changes. In f64.
///
/// # Errors
/// `ShapeMismatch` where W reads another width; `Unsupported` if it is not of floats.
pub fn logit_change(outputs: Outputs<'_>, head: &dyn Tensor) -> Result<Option<f64>> {
    const ROWS: usize = 512;
    let width = outputs.reference.ncols();
    let [vocab, columns] = head.matrix_shape();
    if columns != width {
        let message = format!("a head that reads {columns} channels of outputs of {width}");
        return Err(tensorpress_tensor::Error::shape(message));
    }
    let (mut moments, mut tokens) = (Array2::<f64>::zeros((width, width)), 0);
    outputs.for_each_chunk(|reference, changed| {
        let change = &changed - &reference;
        linalg::gram_lower(change.view(), moments.view_mut(), true, Par::Rayon);
        tokens += change.nrows();
    });
    if tokens == 0 {
        return Ok(None);
    }
    linalg::mirror_lower(moments.view_mut());
    let (mut rows, mut sum) = (vec![0.0f32; ROWS.min(vocab) * width], 0.0);
    for first in (0..vocab).step_by(ROWS) {
        let last = (first + ROWS).min(vocab);
        let rows = &mut rows[..(last - first) * width];
        head.read_rows(first..last, rows)?;
        let band = ArrayView2::from_shape((last - first, width), rows).expect("rows of this width");
        let band = band.mapv(f64::from);
        let mut product = Array2::zeros(band.dim());
        linalg::matmul(band.view(), moments.view(), product.view_mut(), false, Par::Rayon);
        sum += (band * product).sum();
    }
    // A sum of squares, but for rounding.
    Ok(Some(sum.max(0.0) / tokens as f64))
}
