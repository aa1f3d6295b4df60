//! Caches as streams of few bytes, to load rather than to compute (CacheGen, Liu et al., SIGCOMM 2024).
//!
//! A [`Chunk`] of a text's tokens is quantised by token ([`Bins`]), coded with a table for each layer and channel
//! ([`Tables`]), and written at several [`Level`]s; a [`Deadline`] picks for each chunk the best one that still arrives in
//! time. Nothing here attends: what comes back are keys and values to append to a cache.

mod chunk;
mod coder;
mod deadline;
mod level;
mod symbols;
mod table;
mod wire;

pub use chunk::{Chunk, Profile};
pub use coder::{decode_symbols, encode_symbols};
pub use deadline::{Choice, Deadline};
pub use level::Level;
pub use symbols::Bins;
pub use table::{Table, Tables};
