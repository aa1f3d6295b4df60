//! How many units each block loses.

mod levels;
mod shares;
mod threshold;

use tensorpress_tensor::{Error, Result};

use super::{Module, Track};
use crate::pattern::count;

pub use levels::{Latency, search_coefficients};
pub use shares::{sigmoid_shares, softmax_shares};

/// What allocations know of a module of a block.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Units {
    /// In which order its units go, and what each costs.
    pub track: Track,
    /// Weights that go with a unit.
    pub weights: u64,
    /// As many stay as are a multiple of this, or all.
    pub multiple: usize,
}

impl Units {
    /// Units of so many weights each, of which any number may stay.
    #[must_use]
    pub fn new(track: Track, weights: u64) -> Self {
        Self { track, weights, multiple: 1 }
    }

    /// Sets what the number of those that stay is a multiple of.
    #[must_use]
    pub fn with_multiple(mut self, multiple: usize) -> Self {
        self.multiple = multiple.max(1);
        self
    }

    fn count(&self) -> usize {
        self.track.order.len()
    }

    /// How many go when this share is to go: rounded down; to the nearest multiple, where there is one to keep to. At least
    /// one stays.
    fn gone(&self, share: f64) -> usize {
        let units = self.count();
        let gone = count(units, share.clamp(0.0, 1.0));
        let kept = match self.multiple {
            1 => units - gone,
            multiple => {
                let kept = units as f64 * (1.0 - share.clamp(0.0, 1.0));
                ((kept / multiple as f64 + 1e-9).round() as usize).max(1) * multiple
            }
        };
        units - kept.clamp(1, units)
    }

    /// Numbers that may stay, falling from all: at most [`LEVELS`] or so.
    fn levels(&self) -> Vec<usize> {
        let units = self.count();
        let stride = units.div_ceil(LEVELS).next_multiple_of(self.multiple);
        let below = (1..).map(|i| i * stride).take_while(|kept| *kept < units);
        let mut levels: Vec<usize> = below.collect();
        levels.reverse();
        levels.insert(0, units);
        levels
    }
}

/// Levels of a module that dynamic programming chooses from.
const LEVELS: usize = 128;

/// What allocations know of a block.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Judged {
    /// Its modules in the order of [`Module::ALL`]: nothing where no unit may go.
    pub modules: [Option<Units>; 2],
    /// How far it turns its hidden states, where that is known.
    pub influence: Option<f64>,
    /// Weights of all its linear layers.
    pub weights: u64,
}

impl Judged {
    /// A block of so many weights, of which nothing may go yet.
    #[must_use]
    pub fn new(weights: u64) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Says what may go of a module.
    #[must_use]
    pub fn with_units(mut self, module: Module, units: Units) -> Self {
        self.modules[place(module)] = Some(units);
        self
    }

    /// Says how far it turns its hidden states.
    #[must_use]
    pub fn with_influence(mut self, influence: Option<f64>) -> Self {
        self.influence = influence;
        self
    }

    fn movable(&self) -> u64 {
        self.modules.iter().flatten().map(|units| units.weights * units.count() as u64).sum()
    }
}

fn place(module: Module) -> usize {
    usize::from(module == Module::Channels)
}

/// How what is to go is shared out among the blocks.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Allocation {
    /// The same share of the units everywhere.
    Uniform,
    /// A share to keep by a sigmoid of how far a block turns its states (CFSP): 1 / (1 + exp(-steepness (d - mean d))),
    /// over its mean, times the mean share to keep; drawn towards the mean where more than all would be kept.
    Sigmoid {
        /// How much distances count.
        steepness: f64,
    },
    /// Shares that go of L x mean x softmax(-s / epsilon), s the blocks' influence (MoDeGPT): what is more than a
    /// block can lose goes to the others in proportion.
    Softmax {
        /// The temperature: large ones make all blocks alike.
        epsilon: f64,
    },
    /// The least costly steps of the whole model, by what they lose for a weight that goes; heads and channels have a
    /// threshold each.
    Threshold {
        /// The share of heads that goes over the share of channels that goes.
        balance: f64,
    },
    /// For each module of each block a level, so that the sum of relative errors is least within the budget, by dynamic
    /// programming (ZipLM). Errors are relative to what a module loses with all its units.
    Levels {
        /// What levels cost. Weights, if absent.
        latency: Option<Latency>,
        /// What each block's errors count. All 1, if empty.
        coefficients: Vec<f64>,
    },
}

impl Allocation {
    /// It wants to know how far blocks turn their hidden states.
    #[must_use]
    pub fn needs_states(&self) -> bool {
        matches!(self, Self::Sigmoid { .. } | Self::Softmax { .. })
    }

    /// How many units of each module of each block go, never all of a module. `sparsity` is the fraction that goes of the
    /// weights of all blocks (of their time, with a [`Latency`]); where some modules lose nothing, the others lose more.
    ///
    /// # Errors
    /// `InvalidArgument` where the fraction cannot go, saying what can; for a latency that is too short, and for
    /// coefficients that are not one a block, finite and 0 or more.
    pub fn settle(&self, sparsity: f64, blocks: &[Judged]) -> Result<Vec<[usize; 2]>> {
        let each = |shares: Vec<f64>| {
            let gone = |(block, share): (&Judged, f64)| {
                block.modules.each_ref().map(|units| units.as_ref().map_or(0, |u| u.gone(share)))
            };
            blocks.iter().zip(shares).map(gone).collect()
        };
        if sparsity == 0.0 {
            return Ok(vec![[0; 2]; blocks.len()]);
        }
        Ok(match self {
            Self::Uniform => each(vec![mean_share(sparsity, blocks)?; blocks.len()]),
            Self::Sigmoid { steepness } => {
                let mean = mean_share(sparsity, blocks)?;
                let kept = sigmoid_shares(&shares::influences(blocks), *steepness, 1.0 - mean);
                each(kept.iter().map(|kept| 1.0 - kept).collect())
            }
            Self::Softmax { epsilon } => {
                let mean = mean_share(sparsity, blocks)?;
                each(softmax_shares(&shares::influences(blocks), *epsilon, mean))
            }
            Self::Threshold { balance } => threshold::threshold(sparsity, *balance, blocks)?,
            Self::Levels { latency, coefficients } => {
                levels::levels(sparsity, latency.as_ref(), coefficients, blocks)?
            }
        })
    }
}

/// The share of the units that may go that has to go, so that `sparsity` of all weights does.
///
/// # Errors
/// `InvalidArgument` if that is all of them or more.
pub(super) fn mean_share(sparsity: f64, blocks: &[Judged]) -> Result<f64> {
    let all: u64 = blocks.iter().map(|block| block.weights).sum();
    let movable: u64 = blocks.iter().map(Judged::movable).sum();
    share_of(sparsity, movable, all)
}

pub(super) fn share_of(sparsity: f64, movable: u64, all: u64) -> Result<f64> {
    let most = movable as f64 / all.max(1) as f64;
    if sparsity == 0.0 || sparsity < most {
        return Ok(if sparsity == 0.0 { 0.0 } else { sparsity / most });
    }
    Err(Error::invalid(format!(
        "sparsity = {sparsity}: allowed are 0 to below {most:.3}, the share of the weights that units have"
    )))
}
