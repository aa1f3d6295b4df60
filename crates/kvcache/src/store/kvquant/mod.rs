//! KVQuant (Hooper et al., 2024).

mod code;
mod form;
mod levels;
#[cfg(test)]
mod tests;

pub(crate) use code::{NuqCode, Vectors};
pub use form::KvQuant;
pub(super) use form::stage;
pub(crate) use levels::nearest;
pub use levels::{KvLevels, Levels, normal_levels};
