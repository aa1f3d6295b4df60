use tensorpress_tensor::{Error, Result};

use super::{Gate, Sloped, finite, sigmoid};

/// How PAT's mask hardens with the step s (Liu et al., "PAT: Pruning-Aware Tuning for Large Language Models", 2024): M
/// = σ(τ w) + β of a logit w, with τ = 1 / (1 - ln s / ln s₀) before the milestone s₀ and 1e6 from there on, β = ½ - s
/// / s₀ in the first half and 0 from there on.
///
/// Logits start at 0, where all factors are 1 at first, and end at 0 or 1.
///
/// ```
/// use tensorpress_prune::train::{Annealing, Gate};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let annealing = Annealing::new(1000)?;
/// let at = |step, logit| annealing.gate(step, logit).map(|gate| gate.sample(0, 0).value);
/// assert_eq!(at(0, 0.0)?, 1.0);
/// assert_eq!((at(1000, -0.5)?, at(1000, 0.5)?), (0.0, 1.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Annealing {
    milestone: u64,
}

impl Annealing {
    /// With this milestone s₀ (the paper: a third of all steps).
    ///
    /// # Errors
    /// `InvalidArgument` for less than 2.
    pub fn new(milestone: u64) -> Result<Self> {
        match milestone {
            0 | 1 => {
                let message = format!("milestone = {milestone}: allowed are 2 and more");
                Err(Error::invalid(message))
            }
            _ => Ok(Self { milestone }),
        }
    }

    /// τ at this step; step 0 counts as 1.
    #[must_use]
    pub fn temperature(&self, step: u64) -> f64 {
        if step >= self.milestone {
            return 1e6;
        }
        1.0 / (1.0 - (step.max(1) as f64).ln() / (self.milestone as f64).ln())
    }

    /// β at this step.
    #[must_use]
    pub fn offset(&self, step: u64) -> f64 {
        (0.5 - step as f64 / self.milestone as f64).max(0.0)
    }

    /// The gate of a logit at this step.
    ///
    /// # Errors
    /// `InvalidArgument` for a logit that is not finite.
    pub fn gate(&self, step: u64, logit: f64) -> Result<Annealed> {
        finite("logit", logit)?;
        let (temperature, offset) = (self.temperature(step), self.offset(step));
        Ok(Annealed { logit, temperature, offset })
    }

    /// The penalty that leads to `target` channels, |target - Σ 1(w >= 0)|, and its gradient by each logit, straight
    /// through the step.
    #[must_use]
    pub fn active(logits: &[f64], target: usize) -> (f64, f64) {
        let active = logits.iter().filter(|w| **w >= 0.0).count();
        let off = active as f64 - target as f64;
        (off.abs(), if off == 0.0 { 0.0 } else { off.signum() })
    }
}

/// A gate of [`Annealing`]: its parameter is the logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Annealed {
    logit: f64,
    temperature: f64,
    offset: f64,
}

impl Gate for Annealed {
    fn sample(&self, _: u64, _: u64) -> Sloped {
        let Sloped { value, slope } = self.presence();
        Sloped { value: value + self.offset, slope }
    }

    fn value(&self) -> f64 {
        1.0
    }

    fn presence(&self) -> Sloped {
        let p = sigmoid(self.temperature * self.logit);
        Sloped { value: p, slope: [self.temperature * p * (1.0 - p), 0.0] }
    }

    fn keeps(&self) -> bool {
        self.logit >= 0.0
    }
}
