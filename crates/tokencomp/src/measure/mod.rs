//! How much of a context a compressed one holds: mutual information, measured in three ways.
//!
//! [`gaussian`] takes both as jointly normal and asks their covariances: for states of many channels. [`ksg`] asks distances
//! alone, and needs few dimensions and many samples. [`language`] asks a language model: how much shorter it says the answer,
//! or the context itself, once it has read what was kept. All in nats.

mod ksg;
mod language;
mod normal;

pub use ksg::ksg;
pub use language::language;
pub use normal::gaussian;
