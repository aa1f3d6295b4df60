use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{Error, Result};

use super::{Gate, Sloped, finite, positive, sigmoid};

/// The gate of VTrans (Dutta, Gupta, Agarwal, "VTrans: Accelerating Transformer Compression with Variational
/// Information Bottleneck based Pruning", 2024, after VIBNet: Dai et al., 2018): z ~ N(μ, σ²), parameters μ and ln σ².
///
/// What passes it is bounded by ½ ln(1 + μ² / σ²) nats, which is trained down; where little does, it goes: it stays
/// while μ² / σ² is above the threshold. Its presence, for constraints on the size, is μ² / (μ² + σ²), which is 1 -
/// e^(-2 rate).
///
/// ```
/// use tensorpress_prune::train::{Bottleneck, Gate};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let gate = Bottleneck::new(1.0, -2.0)?;
/// assert!((gate.rate().value - 0.5 * (1.0 + 2f64.exp()).ln()).abs() < 1e-12);
/// assert!(gate.keeps() && !Bottleneck::new(0.1, 0.0)?.keeps());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bottleneck {
    mean: f64,
    log_variance: f64,
    threshold: f64,
}

impl Bottleneck {
    /// Of this μ and ln σ², with a threshold of 1.
    ///
    /// # Errors
    /// `InvalidArgument` for a mean that is not finite, and a ln σ² beyond -200 to 200.
    pub fn new(mean: f64, log_variance: f64) -> Result<Self> {
        finite("mean", mean)?;
        if !(-200.0..=200.0).contains(&log_variance) {
            return Err(Error::invalid(format!(
                "log_variance = {log_variance}: allowed are -200 to 200"
            )));
        }
        Ok(Self { mean, log_variance, threshold: 1.0 })
    }

    /// Sets the μ² / σ² above which it stays.
    ///
    /// # Errors
    /// `InvalidArgument` unless it is above 0.
    pub fn with_threshold(mut self, threshold: f64) -> Result<Self> {
        self.threshold = positive("threshold", threshold)?;
        Ok(self)
    }

    /// ln(μ² / σ²), -∞ for μ = 0.
    fn log_ratio(&self) -> f64 {
        2.0 * self.mean.abs().ln() - self.log_variance
    }

    /// ½ ln(1 + μ² / σ²), nats: the KL term of the bottleneck.
    #[must_use]
    pub fn rate(&self) -> Sloped {
        let x = self.log_ratio();
        // ln(1 + eˣ) without overflow.
        let value = 0.5 * (x.max(0.0) + (-x.abs()).exp().ln_1p());
        let p = sigmoid(x);
        let by_mean = if self.mean == 0.0 { 0.0 } else { p / self.mean };
        Sloped { value, slope: [by_mean, -0.5 * p] }
    }
}

impl Gate for Bottleneck {
    fn sample(&self, seed: u64, at: u64) -> Sloped {
        let off = (0.5 * self.log_variance).exp() * gaussian(seed, at);
        Sloped { value: self.mean + off, slope: [1.0, 0.5 * off] }
    }

    fn value(&self) -> f64 {
        self.mean
    }

    fn presence(&self) -> Sloped {
        let p = sigmoid(self.log_ratio());
        let both = p * (1.0 - p);
        let by_mean = if self.mean == 0.0 { 0.0 } else { 2.0 * both / self.mean };
        Sloped { value: p, slope: [by_mean, -both] }
    }

    fn keeps(&self) -> bool {
        self.log_ratio() > self.threshold.ln()
    }
}
