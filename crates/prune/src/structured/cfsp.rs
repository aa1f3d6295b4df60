//! CFSP (Wang, Ma, Wang, Chen et al.: "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine
//! Activation Information", COLING 2025).

use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::stage::{Keys, Row, WeightPart};
use tensorpress_tensor::stats::{Moments, Needs};
use tensorpress_tensor::{Result, Usable};

use super::{Allocation, Module, Part, Repair, Score, Structured, Track};

/// What weights are divided by before they are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalised {
    /// The sum over a neuron's own weights in the matrix, as the released code does. A neuron's sum is then 1 whatever its
    /// weights are: what is left of the score is the norm of its activations.
    #[default]
    Neuron,
    /// The sum over all neurons for each output, or input.
    Outputs,
}

/// A neuron's mean over rows of |W_down| ‖X_j‖, |W_up| and |W_gate|, normalised each, times ‖X_j‖, where X_j is what it
/// puts out over the calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Activated {
    /// What weights are divided by.
    pub normalised: Normalised,
}

impl Activated {
    /// Sets what weights are divided by.
    #[must_use]
    pub fn with_normalised(mut self, normalised: Normalised) -> Self {
        self.normalised = normalised;
        self
    }

    /// The mean of a matrix's absolute values `[rows, neurons]`, normalised.
    fn share(self, weight: &Array2<f64>) -> Vec<f64> {
        let rows = weight.nrows().max(1) as f64;
        let over = |sum: f64| if sum > 0.0 { sum } else { 1.0 };
        match self.normalised {
            Normalised::Neuron => {
                let sums = weight.sum_axis(Axis(0));
                sums.iter().map(|sum| sum / over(*sum) / rows).collect()
            }
            Normalised::Outputs => {
                let sums = weight.sum_axis(Axis(1)).mapv(over).insert_axis(Axis(1));
                ((weight / &sums).sum_axis(Axis(0)) / rows).to_vec()
            }
        }
    }
}

impl Score for Activated {
    fn needs(&self) -> Needs {
        Needs::MOMENTS
    }

    fn modules(&self) -> &'static [Module] {
        &[Module::Channels]
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let kinds = [("neuron", Normalised::Neuron), ("outputs", Normalised::Outputs)];
        keys.choice("normalised", &mut self.normalised, &kinds, "what weights are divided by")
    }

    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let moments = match part.statistic::<Moments>()? {
            Usable::Yes(moments) => moments,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let norms = moments.l2_norm();
        let wide = |weight: &Array2<f32>| weight.mapv(|w| f64::from(w.abs()));
        let mut scores = self.share(&(wide(&part.weight()?) * &norms));
        for (_, weight) in part.writers()? {
            let more = self.share(&wide(&weight).reversed_axes());
            scores.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        scores.iter_mut().zip(&norms).for_each(|(score, norm)| *score *= norm);
        Track::by_scores(&scores).map(Usable::Yes)
    }
}

/// CFSP: each block keeps a share of its neurons by a sigmoid of the angle that it turns its states by; nothing is
/// repaired.
///
/// The released code sums angles over 128 sequences of 1,024 tokens and divides by 10⁴: with their mean that is a steepness
/// of 13.1072.
///
/// ```
/// use tensorpress_prune::structured::cfsp;
/// use tensorpress_tensor::stage::canonical;
///
/// let text = canonical("cfsp", &mut cfsp().with_sparsity(0.1))?;
/// assert_eq!(text, "cfsp(sparsity=0.1, steepness=13.1072, multiple=128, normalised=neuron)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn cfsp() -> Structured<Activated> {
    let shares = Allocation::Sigmoid { steepness: 13.1072 };
    Structured::new(NAME, Activated::default(), shares, Repair::None).with_multiple(128)
}

const NAME: &str = "cfsp";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes the channels of least activation; blocks that turn their hidden states more keep more";
    Row::rewrite(NAME, about, cfsp)
}
