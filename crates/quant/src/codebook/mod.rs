//! Codebooks of vectors.

mod clusters;

pub use clusters::{Clusters, cluster};
pub(crate) use clusters::{assign, lloyd, means, seeds};
