//! Narrower layers: how wide a network is to be before anything is trained.
//!
//! | programme | chooses | of |
//! |---|---|---|
//! | [`Genetic`] | one level of each of several genes, by any fitness | Compressor |
//! | [`Space`] | vocabulary, layers and widths of a transformer of a size, by it | Compressor |
//! | [`synflow`] | densities of layers, by the flow through their weights' magnitudes | SynFlow |
//! | [`crop`] | channels of layers, shared across joins, by densities | PreCropping |

mod architecture;
mod crop;
mod genetic;
mod synflow;

pub use architecture::{Architecture, Space};
pub use crop::{Between, Group, crop};
pub use genetic::Genetic;
pub use synflow::{Flow, flows, synflow};
