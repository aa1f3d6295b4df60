//! Leaves: nodes whose weights are codes, levels and scales rather than other nodes' products and sums.

mod grouped;

pub use grouped::{GroupedAffine, Zeros};
