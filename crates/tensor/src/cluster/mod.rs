//! K-means: of numbers, solved exactly, and of vectors, from a random start.

mod levels;
mod vectors;

pub use levels::optimal_levels;
pub use vectors::{Clusters, assign, cluster, entropy, lloyd, means, seeds};
