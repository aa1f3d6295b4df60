//! KVQuant (Hooper et al., 2024).

mod code;
mod form;
mod levels;
#[cfg(test)]
mod tests;

pub(super) use form::stage;
pub use form::KvQuant;
pub(crate) use code::{NuqCode, Vectors};
pub(crate) use levels::nearest;
pub use levels::{KvLevels, Levels, normal_levels};
