//! ZipCache (He et al., 2024).

mod code;
mod form;
mod split;
#[cfg(test)]
mod tests;

pub use code::Norm;
pub(crate) use code::Separable;
pub use form::ZipCache;
pub(super) use form::stage;
pub use split::{join_split, split_codes};
