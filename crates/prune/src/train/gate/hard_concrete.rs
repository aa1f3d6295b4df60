use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::SplitMix;

use super::{Gate, Sloped, finite, sigmoid};

/// The temperature, and the ends to which the concrete variable is stretched (Louizos et al., 2018).
const BETA: f64 = 2.0 / 3.0;
const ENDS: [f64; 2] = [-0.1, 1.1];

/// The hard-concrete gate (Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization",
/// 2018), as Compresso uses it on heads, units and hidden dimensions (Guo et al., "Compresso: Structured Pruning with
/// Collaborative Prompting Learns Compact Large Language Models", 2023).
///
/// With u uniform: s = σ((ln u - ln(1 - u) + log α) / β), stretched to γ to ζ, and cut to 0 to 1: with a chance it is 0
/// exactly, and yet has a gradient. The expected L0 norm is P(z > 0) = σ(log α - β ln(-γ / ζ)). β = 2/3, γ = -0.1, ζ =
/// 1.1.
///
/// ```
/// use tensorpress_prune::train::{Gate, HardConcrete};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let gate = HardConcrete::new(1.0)?;
/// assert!((0.0..=1.0).contains(&gate.sample(7, 0).value));
/// assert!(gate.keeps() && gate.presence().value > 0.9);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HardConcrete {
    log_alpha: f64,
}

impl HardConcrete {
    /// Of this log α, its only parameter.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not finite.
    pub fn new(log_alpha: f64) -> Result<Self> {
        finite("log_alpha", log_alpha).map(|log_alpha| Self { log_alpha })
    }
}

impl Gate for HardConcrete {
    fn sample(&self, seed: u64, at: u64) -> Sloped {
        // Never 0 or 1.
        let u = ((SplitMix::new(seed).at(at) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let s = sigmoid((u.ln() - (-u).ln_1p() + self.log_alpha) / BETA);
        let stretched = ENDS[0] + s * (ENDS[1] - ENDS[0]);
        let inside = stretched > 0.0 && stretched < 1.0;
        let slope = if inside { (ENDS[1] - ENDS[0]) * s * (1.0 - s) / BETA } else { 0.0 };
        Sloped { value: stretched.clamp(0.0, 1.0), slope: [slope, 0.0] }
    }

    fn value(&self) -> f64 {
        (ENDS[0] + sigmoid(self.log_alpha) * (ENDS[1] - ENDS[0])).clamp(0.0, 1.0)
    }

    fn presence(&self) -> Sloped {
        let p = sigmoid(self.log_alpha - BETA * (-ENDS[0] / ENDS[1]).ln());
        Sloped { value: p, slope: [p * (1.0 - p), 0.0] }
    }

    /// It is there more often than not.
    fn keeps(&self) -> bool {
        self.presence().value > 0.5
    }
}
