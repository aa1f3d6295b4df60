//! Product quantisation: MILLION (Wang et al., 2025).

mod code;
mod form;
#[cfg(test)]
mod tests;

pub use code::Codebooks;
pub(crate) use code::PqCode;
pub use form::PqCache;
pub(super) use form::stage;
