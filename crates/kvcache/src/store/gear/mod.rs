//! GEAR (Kang et al., 2024).

mod code;
mod form;
#[cfg(test)]
mod tests;

pub(super) use form::stage;
pub use form::Gear;
pub(crate) use code::GearCode;
