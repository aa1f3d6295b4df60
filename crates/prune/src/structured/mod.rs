//! Structured pruning: whole heads and channels go, and what is left is a smaller dense model.
//!
//! A method is a score ([`Score`]: in which order the units of a [`Module`] go, and what each costs, a [`Track`]) x an
//! [`Allocation`] (how many go where) x a [`Repair`] of what stays. [`Structured`] is their composition, and a
//! [`Rewrite`](tensorpress_tensor::Rewrite):
//!
//! | | score | allocation | repair |
//! |---|---|---|---|
//! | [`ziplm`] | optimal brain surgeon on units | levels by dynamic programming | least squares |
//! | [`cfsp`] | normalised weights times activation | sigmoid of the angle a block turns by | none |
//! | [`modegpt`] | ridge leverage | softmax of influence | least squares |
//! | [`intra_fusion`] | norms | the same everywhere | optimal transport |
//! | [`prunenet`] | distribution of singular values | the same everywhere | none |
//! | [`nirvana`] | weights times gradients | a threshold each for heads and channels | none |
//! | [`udfc`] | norms | the same everywhere | least squares without data |
//!
//! Pieces around models that the caller runs: [`taylor_importance`], [`similarity_entropy`] and [`adaptive_widths`] (AMP),
//! [`Relevance`] and [`remove_lowest`] (LRP), [`search_coefficients`] (ZipLM), [`value_output`] and [`query_key`] (MoDeGPT).
//!
//! Units of attention are whole groups: a key and value head with all query heads that read it.

mod allocation;
mod amp;
mod cfsp;
mod emd;
mod influence;
mod intra_fusion;
mod lrp;
mod modegpt;
mod nirvana;
mod prunenet;
mod repair;
mod rewrite;
mod score;
mod surgeon;
mod track;
mod transport;
mod udfc;
mod unit;
mod ziplm;

use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Gram;
use tensorpress_tensor::{Error, Result};

pub use allocation::{
    Allocation, Judged, Latency, Units, search_coefficients, sigmoid_shares, softmax_shares,
};
pub use amp::{adaptive_widths, similarity_entropy, taylor_importance};
pub use cfsp::{Activated, Normalised, cfsp};
pub use emd::transport_plan;
pub use influence::{angular_distance, influence};
pub use intra_fusion::intra_fusion;
pub use lrp::{Judge, Relevance, remove_lowest, target_relevance};
pub use modegpt::{Leverage, ValueOutput, leverages, modegpt, query_key, value_output};
pub use nirvana::{Sensitivity, least_divergent, nirvana};
pub use prunenet::{Spectrum, kolmogorov_smirnov, log_gradient, prunenet};
pub use repair::Repair;
pub use score::{Norms, Score};
pub use surgeon::{least_squares, surgeon};
pub use track::Track;
pub use transport::{Norm, Transport};
pub use udfc::{scale_corrections, udfc};
pub(crate) use unit::can_lose_heads;
pub use unit::{Module, Part};
pub use ziplm::{Surgeon, ziplm};

/// Removes heads and channels.
///
/// Never fails on missing or singular statistics: units are then judged by their norms, what stays is left as it is, and
/// both are said in a note. At least one unit of every module stays.
///
/// ```
/// use tensorpress_prune::ChannelMetric;
/// use tensorpress_prune::structured::{Allocation, Repair, Structured};
///
/// // FLAP's score, the same share everywhere, and least squares in the place of its bias.
/// let mine = Structured::new("mine", ChannelMetric::Wifv, Allocation::Uniform, Repair::LeastSquares)
///     .with_sparsity(0.3)
///     .with_heads(false)
///     .with_multiple(64);
/// assert!(mine.check().is_ok() && mine.with_damp(-1.0).check().is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Structured<S> {
    id: &'static str,
    /// Fraction that goes of the weights of all blocks (of their time, where a [`Latency`] is given), 0 to below 1; rounded
    /// down to whole units of each block where the allocation is a share.
    pub sparsity: f64,
    /// In which order units go.
    pub score: S,
    /// How many go where.
    pub allocation: Allocation,
    /// What is done to what stays.
    pub repair: Repair,
    /// As many channels of a block stay as are a multiple of this, or all.
    pub multiple: usize,
    /// Heads go too, where the score judges them. Default true.
    pub heads: bool,
    /// What is added to the diagonal of matrices that are solved with, as a fraction of its mean.
    pub damp: f64,
}

impl<S: Score> Structured<S> {
    /// A composition under a name: a fifth goes.
    #[must_use]
    pub fn new(id: &'static str, score: S, allocation: Allocation, repair: Repair) -> Self {
        let (sparsity, multiple, heads, damp) = (0.2, 1, true, 0.01);
        Self { id, sparsity, score, allocation, repair, multiple, heads, damp }
    }

    /// Sets the fraction that goes.
    #[must_use]
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets how many go where.
    #[must_use]
    pub fn with_allocation(mut self, allocation: Allocation) -> Self {
        self.allocation = allocation;
        self
    }

    /// Sets what is done to what stays.
    #[must_use]
    pub fn with_repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// Sets what the number of channels that stay is a multiple of.
    #[must_use]
    pub fn with_multiple(mut self, multiple: usize) -> Self {
        self.multiple = multiple;
        self
    }

    /// Sets whether heads go too.
    #[must_use]
    pub fn with_heads(mut self, heads: bool) -> Self {
        self.heads = heads;
        self
    }

    /// Sets the damping.
    #[must_use]
    pub fn with_damp(mut self, damp: f64) -> Self {
        self.damp = damp;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, value: f64, allowed: &str| {
            Err(Error::invalid(format!("{what} = {value}: allowed are {allowed}")))
        };
        if !(0.0..1.0).contains(&self.sparsity) {
            return refuse("sparsity", self.sparsity, "0 to below 1, for something must stay");
        }
        if !(self.damp.is_finite() && self.damp >= 0.0) {
            return refuse("damp", self.damp, "0 and more");
        }
        if self.multiple == 0 {
            return refuse("multiple", 0.0, "1 and more");
        }
        let positive = |v: f64| v.is_finite() && v > 0.0;
        match self.allocation {
            Allocation::Sigmoid { steepness } if !(steepness.is_finite() && steepness >= 0.0) => {
                refuse("steepness", steepness, "0 and more")
            }
            Allocation::Softmax { epsilon } if !positive(epsilon) => {
                refuse("epsilon", epsilon, "more than 0")
            }
            Allocation::Threshold { balance } if !(balance.is_finite() && balance >= 0.0) => {
                refuse("balance", balance, "0 and more")
            }
            _ => self.score.check(),
        }
    }
}

impl<S: Score> Knobs for Structured<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "fraction of the weights of all blocks that goes, below 1";
        keys.float("sparsity", &mut self.sparsity, 0.0..=1.0, about)?;
        match &mut self.allocation {
            Allocation::Sigmoid { steepness } => {
                keys.float(
                    "steepness",
                    steepness,
                    0.0..=1e6,
                    "how much distances of blocks count",
                )?;
            }
            Allocation::Softmax { epsilon } => {
                keys.float("epsilon", epsilon, 1e-6..=1e6, "large ones make all blocks alike")?;
            }
            Allocation::Threshold { balance } => {
                let about = "share of heads that goes over the share of channels";
                keys.float("balance", balance, 0.0..=1e3, about)?;
            }
            Allocation::Uniform | Allocation::Levels { .. } => {}
        }
        let about = "what the number of channels that stay is a multiple of";
        keys.int("multiple", &mut self.multiple, 1..=1 << 16, about)?;
        if self.score.modules().contains(&Module::Attention) {
            keys.flag("heads", &mut self.heads, "heads go too")?;
        }
        if self.repair.is_damped() || self.score.needs().has::<Gram>() {
            let about = "added to the diagonal, as a fraction of its mean";
            keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        }
        if let Repair::Transport(transport) = &mut self.repair {
            transport.knobs(keys)?;
        }
        self.score.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        Structured::check(self)
    }
}

/// All stages of this module.
pub(crate) fn stages() -> Vec<Row<WeightPart>> {
    vec![
        ziplm::stage(),
        cfsp::stage(),
        modegpt::stage(),
        intra_fusion::stage(),
        udfc::stage(),
        prunenet::stage(),
        nirvana::stage(),
    ]
}
