//! Leaves: nodes that hold codes. A [`Format`] says what the codes stand for; a [`Leaf`] of it does the rest.
//!
//! To add a format: its parameters, the children it needs beside the codes, and how a row is decoded; then one line in
//! the registry, `registry.add_node(MyFormat::ID, Leaf::<MyFormat>::read_from)`.

mod additive;
mod affine;
mod bitshift;
mod child;
mod format;
mod levels;
mod node;
mod pyramid;
mod steps;
mod vectors;

pub use additive::{Additive, AdditiveFormat};
pub use affine::{AffineFormat, GroupedAffine, NestedAffine, NestedFormat};
pub use bitshift::{BitshiftFormat, BitshiftTrellis};
pub use child::{Child, Encoding, Slot};
pub use format::{Format, Fused};
pub use levels::{Blocks, KnownLevels, LevelFormat, LevelTable, Tables};
pub use node::{Beside, Leaf};
pub use pyramid::{Pyramid, PyramidFormat};
pub use steps::{StepFormat, Steps};
pub use vectors::KnownVectors;
