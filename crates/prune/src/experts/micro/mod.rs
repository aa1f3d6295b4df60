//! Experts become narrower: micro-experts go, of which an expert is the sum.
//!
//! Micro-expert k of an expert is row k of its gate and up and column k of its down: it adds φ_k w_k to what the expert makes
//! of a token, φ = act(gate x) (up x), w its column. A method is a score of them ([`MicroScore`]) x who competes with whom
//! ([`Choice`]):
//!
//! | | score | choice |
//! |---|---|---|
//! | [`camera`] | energy: how much is sent along w_k | all of a block |
//! | [`heapr`] | loss to second order at the expert's output | all of the model |
//! | [`slim_moe`] | loss to first order in the weights | those of one expert |
//!
//! [`bands`] ranks them for mixed precision, and [`stages`] says how wide experts are on the way to a width.

mod bands;
mod camera;
mod choice;
mod heapr;
mod rewrite;
mod score;
mod slim_moe;

use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::{Error, Result};

pub use bands::bands;
pub use camera::{Energy, camera};
pub use choice::{Choice, Rival};
pub use heapr::{OutputLoss, heapr};
pub use score::{MicroScore, OneExpert};
pub use slim_moe::{WeightLoss, slim_moe, stages};

/// Removes micro-experts.
///
/// Never fails on statistics or gradients that are missing or cannot be used: micro-experts are then judged by their norms,
/// and a note says so. At least one of every expert stays. Experts that lie in one stack stay as wide as each other: a
/// block keeps as many as the choice leaves it, rounded up to the same number of each, the best of each.
///
/// ```
/// use tensorpress_prune::experts::micro::{Choice, Energy, SlimExperts};
///
/// // CAMERA's score, by which micro-experts of all blocks compete.
/// let mine = SlimExperts::new("mine", Energy::default(), Choice::Model).with_sparsity(0.4);
/// assert!(mine.check().is_ok() && mine.with_sparsity(1.0).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SlimExperts<S> {
    id: &'static str,
    /// Fraction of the micro-experts that goes, 0 to below 1; rounded down, where they compete.
    pub sparsity: f64,
    /// What a micro-expert is judged by.
    pub score: S,
    /// Who competes with whom.
    pub choice: Choice,
}

impl<S: MicroScore> SlimExperts<S> {
    /// A composition under a name: a quarter goes.
    #[must_use]
    pub fn new(id: &'static str, score: S, choice: Choice) -> Self {
        Self { id, sparsity: 0.25, score, choice }
    }

    /// Sets the fraction that goes.
    #[must_use]
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets what a micro-expert is judged by.
    #[must_use]
    pub fn with_score(mut self, score: S) -> Self {
        self.score = score;
        self
    }

    /// Sets who competes with whom.
    #[must_use]
    pub fn with_choice(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::invalid(format!(
                "sparsity = {}: allowed are 0 to below 1, for something must stay",
                self.sparsity
            )));
        }
        self.score.check()
    }
}

impl<S: MicroScore> Knobs for SlimExperts<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "fraction of the channels inside experts that goes, below 1";
        keys.float("sparsity", &mut self.sparsity, 0.0..=1.0, about)?;
        self.score.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        SlimExperts::check(self)
    }
}

pub(super) fn rows() -> Vec<Row<WeightPart>> {
    vec![camera::stage(), heapr::stage(), slim_moe::stage()]
}
