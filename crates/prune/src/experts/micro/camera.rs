//! CAMERA (Xu, Han, Zhang et al.: "CAMERA: Multi-Matrix Joint Compression for MoE Models via Micro-Expert Redundancy
//! Analysis", 2025).

use tensorpress_tensor::ndarray::Axis;
use tensorpress_tensor::stage::{Keys, Row, WeightPart};
use tensorpress_tensor::{Error, Result, Usable};

use super::{Choice, MicroScore, OneExpert, SlimExperts};

/// ((1 - a) Σ (g φ)² + a max (g φ)²) ‖w‖² over the tokens of the expert, with their factors g: the energy that a
/// micro-expert sends along its column w of down. One that no token reached has 0.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Energy {
    /// a: what the largest token counts beside the sum of all, 0 to 1. Default 0.9, as in the official run.
    pub peak: f64,
}

impl Default for Energy {
    fn default() -> Self {
        Self { peak: 0.9 }
    }
}

impl Energy {
    /// Sets what the largest token counts.
    #[must_use]
    pub fn with_peak(mut self, peak: f64) -> Self {
        self.peak = peak;
        self
    }
}

impl MicroScore for Energy {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "what the largest token counts beside the sum of all";
        keys.float("peak", &mut self.peak, 0.0..=1.0, about)
    }

    fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.peak) {
            true => Ok(()),
            false => Err(Error::invalid(format!("peak = {}: allowed are 0 to 1", self.peak))),
        }
    }

    fn scores(&self, expert: &OneExpert<'_>) -> Result<Usable<Vec<f64>>> {
        let (tokens, seen) = match expert.seen() {
            Usable::Yes(seen) => seen,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        if tokens == 0 {
            return Ok(Usable::Yes(vec![0.0; expert.width()]));
        }
        let down = expert.weight(expert.down())?;
        let lengths = down.mapv(|w| f64::from(w) * f64::from(w)).sum_axis(Axis(0));
        let scores = lengths.iter().zip(seen).map(|(length, seen)| {
            ((1.0 - self.peak) * seen.weighted + self.peak * seen.peak * seen.peak) * length
        });
        Ok(Usable::Yes(scores.collect()))
    }
}

/// CAMERA-P: the micro-experts of least energy of all experts of a block go.
///
/// ```
/// use tensorpress_prune::experts::micro::camera;
/// use tensorpress_tensor::stage::canonical;
///
/// assert_eq!(canonical("camera", &mut camera())?, "camera(sparsity=0.25, peak=0.9)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn camera() -> SlimExperts<Energy> {
    SlimExperts::new(NAME, Energy::default(), Choice::Block)
}

const NAME: &str = "camera";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes the channels of least energy of all experts of a block";
    Row::rewrite(NAME, about, camera)
}
