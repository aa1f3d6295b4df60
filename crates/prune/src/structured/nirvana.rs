//! NIRVANA (Ai, Wei, Chen, He: "NIRVANA: Structured Pruning Reimagined for Large Language Models Compression", 2025).

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::stats::{Needs, Supply};
use tensorpress_tensor::{Error, Result, Usable};

use super::unit::by_unit;
use super::{Allocation, Part, Repair, Score, Structured, Track};

/// Σ |w ∂f/∂w| over all weights of a unit, its writers' rows and its reader's columns: what the function moves, to first
/// order, when the unit goes, with each weight's part counted by itself, as under Adam's signs.
///
/// Gradients are supplied ([`Supply::GRADIENT`]): of the sum of output logits in the paper; the pipeline finds those of a
/// loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sensitivity;

impl Score for Sensitivity {
    fn needs(&self) -> Needs {
        Needs::supplied(Supply::GRADIENT)
    }

    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let mut scores = vec![0.0; part.units];
        let mut add = |products: Array2<f32>| {
            for (score, unit) in scores.iter_mut().zip(products.rows()) {
                *score += unit.iter().map(|p| f64::from(p.abs())).sum::<f64>();
            }
        };
        let weight = part.weight()?;
        match part.supplied(Supply::GRADIENT, part.reader(), weight.view(), Par::Rayon)? {
            Usable::Yes(gradient) => add(by_unit((weight * gradient).t(), part.units)),
            Usable::No(reason) => return Ok(Usable::No(reason)),
        }
        for (spec, weight) in part.writers()? {
            match part.supplied(Supply::GRADIENT, spec, weight.view(), Par::Rayon)? {
                Usable::Yes(gradient) => add(by_unit((weight * gradient).view(), part.units)),
                Usable::No(reason) => return Ok(Usable::No(reason)),
            }
        }
        Track::by_scores(&scores).map(Usable::Yes)
    }
}

/// NIRVANA: one threshold for all groups of heads and one for all channels of the model, `balance` between them, and widths
/// that are a multiple of 8. Without gradients: by norms, and said.
///
/// ```
/// use tensorpress_prune::structured::nirvana;
/// use tensorpress_tensor::stage::canonical;
///
/// let text = canonical("nirvana", &mut nirvana())?;
/// assert_eq!(text, "nirvana(sparsity=0.2, balance=1.0, multiple=8, heads=true)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn nirvana() -> Structured<Sensitivity> {
    let threshold = Allocation::Threshold { balance: 1.0 };
    Structured::new(NAME, Sensitivity, threshold, Repair::None).with_multiple(8)
}

const NAME: &str = "nirvana";

pub(super) fn stage() -> Row<WeightPart> {
    let about =
        "removes the heads and channels whose weights times gradients are least in the whole model";
    Row::rewrite(NAME, about, nirvana)
}

/// The `number` samples on which a pruned model's outputs are nearest to the original's, ascending: by the mean over tokens
/// of KL(original ‖ pruned), from logits `[tokens, vocabulary]` of each sample. Of equal ones the first. In f64.
///
/// # Errors
/// `ShapeMismatch` unless samples have logits of one shape in both; `Numerical` for a divergence that is no number.
pub fn least_divergent(
    original: &[ArrayView2<'_, f32>],
    pruned: &[ArrayView2<'_, f32>],
    number: usize,
) -> Result<Vec<usize>> {
    let alike = original.iter().zip(pruned).all(|(a, b)| a.dim() == b.dim());
    if original.len() != pruned.len() || !alike {
        return Err(Error::shape("logits of other samples"));
    }
    let mut divergences = Vec::with_capacity(original.len());
    for (sample, (a, b)) in original.iter().zip(pruned).enumerate() {
        let tokens = a.rows().into_iter().zip(b.rows());
        let divergence = tokens
            .map(|(a, b)| {
                let (a, b) = (log_softmax(a.iter()), log_softmax(b.iter()));
                a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>()
            })
            .sum::<f64>()
            / a.nrows().max(1) as f64;
        if !divergence.is_finite() {
            return Err(Error::numerical(format!(
                "the divergence of sample {sample} is {divergence}"
            )));
        }
        divergences.push(divergence);
    }
    let mut order: Vec<usize> = (0..divergences.len()).collect();
    order.sort_by(|a, b| divergences[*a].total_cmp(&divergences[*b]).then(a.cmp(b)));
    order.truncate(number);
    order.sort_unstable();
    Ok(order)
}

fn log_softmax<'a>(logits: impl Iterator<Item = &'a f32> + Clone) -> Vec<f64> {
    let most = logits.clone().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
    let sum: f64 = logits.clone().map(|v| (f64::from(*v) - most).exp()).sum();
    logits.map(|v| f64::from(*v) - most - sum.ln()).collect()
}
