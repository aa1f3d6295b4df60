//! GEAR (Kang et al., 2024).

mod code;
mod form;
#[cfg(test)]
mod tests;

pub(crate) use code::GearCode;
pub use form::Gear;
pub(super) use form::stage;
