use tensorpress_tensor::{Error, Result};

use super::{Gate, Sloped, finite, positive, sigmoid};

/// A filter's gate under a threshold: σ((score - threshold) / temperature), parameters score and threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    score: f64,
    of: LearnedThreshold,
}

impl Gate for Threshold {
    /// The soft mask; nothing is random.
    fn sample(&self, _: u64, _: u64) -> Sloped {
        let LearnedThreshold { threshold, temperature } = self.of;
        let value = sigmoid((self.score - threshold) / temperature);
        let slope = value * (1.0 - value) / temperature;
        Sloped { value, slope: [slope, -slope] }
    }

    fn value(&self) -> f64 {
        1.0
    }

    fn presence(&self) -> Sloped {
        self.sample(0, 0)
    }

    fn keeps(&self) -> bool {
        self.score > self.of.threshold
    }
}

/// The threshold of a layer, learned (LAPP: Zhai et al., "LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs
/// from Scratch", 2023): filters whose importance is below it fade, and the task's loss and a budget
/// ([`super::super::Budget`]) move it, so that each layer finds its own ratio.
///
/// ```
/// use tensorpress_prune::train::{Gate, LearnedThreshold};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let layer = LearnedThreshold::new(0.5, 0.1)?;
/// let gates = layer.gates(&[0.2, 0.5, 0.9])?;
/// let mask: Vec<f64> = gates.iter().map(|gate| gate.sample(0, 0).value).collect();
/// assert!(mask[0] < 0.1 && mask[1] == 0.5 && mask[2] > 0.9);
/// // A loss that falls with the mask lowers the threshold.
/// assert!(layer.gradient(&gates, &[-1.0; 3])? > 0.0);
/// assert_eq!(layer.ratio(&gates), 1.0 / 3.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearnedThreshold {
    threshold: f64,
    temperature: f64,
}

impl LearnedThreshold {
    /// With a soft mask of this temperature, in the units of the scores.
    ///
    /// # Errors
    /// `InvalidArgument` for a threshold that is not finite, and a temperature that is not above 0.
    pub fn new(threshold: f64, temperature: f64) -> Result<Self> {
        finite("threshold", threshold)?;
        Ok(Self { threshold, temperature: positive("temperature", temperature)? })
    }

    /// The gates of the layer's filters.
    ///
    /// # Errors
    /// `InvalidArgument` for a score that is not finite.
    pub fn gates(&self, scores: &[f64]) -> Result<Vec<Threshold>> {
        let gate = |score: &f64| Ok(Threshold { score: finite("score", *score)?, of: *self });
        scores.iter().map(gate).collect()
    }

    /// The gradient of a loss by the threshold, from that by the mask.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn gradient(&self, gates: &[Threshold], by_mask: &[f64]) -> Result<f64> {
        if gates.len() != by_mask.len() {
            let (gates, mask) = (gates.len(), by_mask.len());
            return Err(Error::shape(format!("gradients of {mask} mask entries of {gates} gates")));
        }
        Ok(gates.iter().zip(by_mask).map(|(gate, by)| by * gate.sample(0, 0).slope[1]).sum())
    }

    /// The share of the filters that stay.
    #[must_use]
    pub fn ratio(&self, gates: &[Threshold]) -> f64 {
        gates.iter().filter(|gate| gate.keeps()).count() as f64 / gates.len().max(1) as f64
    }
}
