//! Probability models over exact integers: what is written depends on them bit for bit, so none computes in floats
//! while coding.

mod table;

pub use table::{Counts, PROB_BITS, PROB_TOTAL, Table};
