//! The tables of docs/benchmarks on real models, and what must hold between their rows.

mod baseline;
mod coded_grids;
mod blocks;
mod composition;
mod kv;
mod protocol;
