//! ZipLM (Kurtic, Frantar, Alistarh: "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023).

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::stats::{Gram, Needs};
use tensorpress_tensor::{Result, Usable};

use super::{Allocation, Part, Repair, Score, Structured, Track, surgeon};

/// The optimal brain surgeon on whole units ([`surgeon`]): each step is judged after all before it, with what stays made
/// good for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Surgeon;

impl Score for Surgeon {
    fn needs(&self) -> Needs {
        Needs::GRAM
    }

    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        match part.statistic::<Gram>()? {
            Usable::No(reason) => Ok(Usable::No(reason)),
            Usable::Yes(gram) => {
                surgeon(part.weight()?.view(), gram.view(), part.width, part.damp, Par::Rayon)
            }
        }
    }
}

/// ZipLM: heads and channels go one by one, the cheapest first, what stays makes good for them, and levels are chosen over
/// the model. Costs are weights; with [`Allocation::Levels`] of a [`Latency`](super::Latency) they are what the caller
/// measured, and `sparsity` = 1 - 1 / speed-up.
///
/// ```
/// use tensorpress_prune::structured::{Allocation, Latency, ziplm};
///
/// let latency = Latency::new(vec![10, 15, 20], vec![5; 64]);
/// let levels = Allocation::Levels { latency: Some(latency), coefficients: Vec::new() };
/// let twice_as_fast = ziplm().with_sparsity(0.5).with_allocation(levels);
/// assert!(twice_as_fast.check().is_ok() && ziplm().with_sparsity(1.0).check().is_err());
/// ```
#[must_use]
pub fn ziplm() -> Structured<Surgeon> {
    let levels = Allocation::Levels { latency: None, coefficients: Vec::new() };
    Structured::new(NAME, Surgeon, levels, Repair::LeastSquares)
}

const NAME: &str = "ziplm";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes heads and channels one by one, makes good for each by all that stay, and chooses how many go of \
                 each block by dynamic programming";
    Row::rewrite(NAME, about, ziplm)
}
