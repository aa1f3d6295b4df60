//! Others' quantised folders, seen as folders of ours: nothing is converted, and codes are read where they lie.

mod affine;
mod floats;
mod folder;
mod levels;
mod method;
mod sparse;
mod weight;

pub use folder::{as_ours, method_of};
pub use method::{Method, Scheme};
