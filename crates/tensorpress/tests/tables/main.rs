//! The tables of docs/benchmarks on real models, and what must hold between their rows.

mod baseline;
mod blocks;
mod coded_grids;
mod composition;
mod kv;
mod protocol;
