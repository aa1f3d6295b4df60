//! What a training loop calls: schedules, masks, groups of variables, gates. No model and no autograd is needed.
//!
//! Everything here is an operator, a step or a projection on plain arrays and slices that the trainer owns; where a
//! loss goes through it, it comes with its gradient. The axes:
//! - [`Schedule`]: a number that changes with the step (a sparsity, a decay, what is left of masked weights), and
//!   [`StructureDecay`], a pattern that does;
//! - [`MaskedWeight`]: a weight and its support, and the passes through it; [`BlockSums`] is a cheap bypass beside it;
//! - [`Groups`]: variables that go together ([`graph`] finds them), how much they matter ([`Salience`]), and what leads
//!   them to 0: [`Envelope`], [`HalfSpace`], [`Forgetting`], [`Cric`];
//! - [`Gate`]: a factor with parameters, how much of it is there, and gradients of both: [`HardConcrete`],
//!   [`Bottleneck`], [`Threshold`], [`Annealed`]; [`Size`] is what a model with such gates takes, [`Lagrangian`] and
//!   [`Budget`] hold it to a target; [`HybridIdentity`] moves what a gate will shut out into what stays;
//! - [`TurboVbi`]: supports that cluster, by Bayes.

mod bypass;
mod cric;
mod envelope;
mod forgetting;
mod gate;
pub mod graph;
mod groups;
mod half_space;
mod hybrid;
mod masked;
mod schedule;
mod size;
mod turbo_vbi;

pub use bypass::BlockSums;
pub use cric::Cric;
pub use envelope::Envelope;
pub use forgetting::{Forgetting, Salience};
pub use gate::{
    Annealed, Annealing, Bottleneck, Gate, HardConcrete, LearnedThreshold, Sloped, Threshold,
    export,
};
pub use groups::Groups;
pub use half_space::{HalfSpace, redundant};
pub use hybrid::{HybridGradients, HybridIdentity, IdentityLoss, fold_rms_norm, keep_inputs};
pub use masked::{MaskedWeight, StructureDecay};
pub use schedule::{Curve, Schedule};
pub use size::{Budget, GateSet, Lagrangian, Share, Size};
pub use turbo_vbi::{Gamma, MarkovChain, TurboFit, TurboVbi};
