//! Walsh-Hadamard transforms of lanes: what a matrix's rows are to its columns.

use crate::kernels;

/// x := H x over `lane`s: x is cut into lanes of consecutive values, a power of two of them, and value i of all lanes is
/// transformed by the +-1 Walsh-Hadamard matrix, for each i. Not normalised. Natural order, as [`super::hadamard`].
///
/// # Panics
/// Unless the number of lanes is a power of two.
pub fn hadamard_lanes(x: &mut [f32], lane: usize) {
    kernels::hadamard_lanes(x, lane);
}
