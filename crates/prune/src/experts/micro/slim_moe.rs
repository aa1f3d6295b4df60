//! SlimMoE (Li, Liang, Zhang et al.: "SlimMoE: Structured Compression of Large MoE Models via Expert Slimming and
//! Distillation", 2025).

use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::stats::{Needs, Supply};
use tensorpress_tensor::{Error, Result, Usable};

use super::{Choice, MicroScore, OneExpert, SlimExperts};

/// |Σ w ∂L/∂w| over all weights of a micro-expert, rows of gate and up and the column of down: what the loss moves, to first
/// order, when all of it goes at once. Weights whose parts cancel leave nothing, where a sum of |w ∂L/∂w| would keep them.
///
/// Gradients are supplied ([`Supply::GRADIENT`]): of the divergence from the teacher's largest logits in the paper; the
/// pipeline finds those of the usual loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightLoss;

impl MicroScore for WeightLoss {
    fn needs(&self) -> Needs {
        Needs::supplied(Supply::GRADIENT)
    }

    fn needs_experts(&self) -> bool {
        false
    }

    fn scores(&self, expert: &OneExpert<'_>) -> Result<Usable<Vec<f64>>> {
        let mut sums = vec![0.0; expert.width()];
        for spec in expert.linears() {
            let weight = expert.weight(spec)?;
            let gradient = match expert.supplied(Supply::GRADIENT, spec, &weight)? {
                Usable::Yes(gradient) => gradient,
                Usable::No(reason) => return Ok(Usable::No(reason)),
            };
            let mut products = weight.mapv(f64::from);
            products.zip_mut_with(&gradient, |w, g| *w *= f64::from(*g));
            expert.add_up(spec, &products, &mut sums);
        }
        if sums.iter().all(|sum| *sum == 0.0) {
            return Ok(Usable::no("no token reached it"));
        }
        Ok(Usable::Yes(sums.into_iter().map(f64::abs).collect()))
    }
}

/// SlimMoE's cut: of every expert as many micro-experts go, those that the loss moves least by.
///
/// ```
/// use tensorpress_prune::experts::micro::slim_moe;
/// use tensorpress_tensor::stage::canonical;
///
/// assert_eq!(canonical("slim_moe", &mut slim_moe())?, "slim_moe(sparsity=0.25)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn slim_moe() -> SlimExperts<WeightLoss> {
    SlimExperts::new(NAME, WeightLoss, Choice::Expert)
}

/// How wide experts are behind each of so many stages from a width to a smaller one: each stage keeps the same share of what
/// there is. Between two, the caller distils.
///
/// ```
/// use tensorpress_prune::experts::micro::stages;
///
/// assert_eq!(stages(6400, 400, 2)?, [1600, 400]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` for widths that do not fall, a width of 0, and for no stage.
pub fn stages(from: usize, to: usize, steps: usize) -> Result<Vec<usize>> {
    if to == 0 || to > from || steps == 0 {
        return Err(Error::invalid(format!(
            "from = {from}, to = {to}, steps = {steps}: allowed are widths of 1 and more, the second not above the first, and 1 step and more"
        )));
    }
    let share = (to as f64 / from as f64).ln() / steps as f64;
    let width = |step: usize| match step == steps {
        true => to,
        false => ((from as f64 * (share * step as f64).exp()).round() as usize).clamp(to, from),
    };
    Ok((1..=steps).map(width).collect())
}

const NAME: &str = "slim_moe";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes as many channels of every expert, those that the loss moves least by";
    Row::rewrite(NAME, about, slim_moe)
}
