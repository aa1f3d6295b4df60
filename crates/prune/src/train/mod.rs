//! What a training loop calls: schedules and masks. No model and no autograd is needed.
//!
//! Everything here is an operator, a step or a projection on plain arrays that the trainer owns; where a loss goes
//! through it, it comes with its gradient. The axes:
//! - [`Schedule`]: a number that changes with the step (a sparsity, a decay, what is left of masked weights), and
//!   [`StructureDecay`], a pattern that does;
//! - [`MaskedWeight`]: a weight and its support, and the passes through it; [`BlockSums`] is a cheap bypass beside it.

mod bypass;
mod masked;
mod schedule;

pub use bypass::BlockSums;
pub use masked::{MaskedWeight, StructureDecay};
pub use schedule::{Curve, Schedule};
