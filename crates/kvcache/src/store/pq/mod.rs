//! Product quantisation: MILLION (Wang et al., 2025).

mod code;
mod form;
#[cfg(test)]
mod tests;

pub(super) use form::stage;
pub use form::PqCache;
pub use code::Codebooks;
pub(crate) use code::PqCode;
