//! Code of others that runs compiled for an instruction set: the column sweep, whose rules are generic.

use crate::Isa;
use crate::simd::wide::LANES;
use crate::simd::{Wide, stamp};

/// What a sweep does over and over, on the instruction set it runs with.
pub trait Columns: Copy {
    /// `columns[k] += error * u[k]` for all k. Written by hand: left alone, LLVM turns the loop over columns into gathers and
    /// scatters, 50 times slower.
    fn spread(self, columns: &mut [[f32; LANES]], error: &[f32; LANES], u: &[f32]);
}

impl<S: Wide> Columns for S {
    #[inline(always)]
    fn spread(self, columns: &mut [[f32; LANES]], error: &[f32; LANES], u: &[f32]) {
        let error = self.load(error);
        for (column, u) in columns.iter_mut().zip(u) {
            let sum = self.mul_add(error, self.splat(*u), self.load(column));
            self.store(column, sum);
        }
    }
}

/// A computation whose loops should be compiled for an instruction set.
pub trait Swept {
    /// What it gives.
    type Output;
    /// Runs it; should be `#[inline(always)]`, as should be what it calls.
    fn run(self, columns: impl Columns) -> Self::Output;
}

/// Runs a computation on the set that [`Isa::detect`] names.
pub fn sweep<K: Swept>(work: K) -> K::Output {
    // Not on NEON: what was computed on such a CPU stays as it was, rounded as the portable code does.
    let isa = Some(Isa::detect()).filter(|isa| *isa != Isa::Neon);
    sweep_on(isa.unwrap_or(Isa::Generic), work)
}

stamp! {
    /// [`sweep`] on a chosen instruction set; the portable code where this CPU lacks it.
    pub fn sweep_on<K: Swept>(work: K) -> K::Output = sweep_body
}

#[inline(always)]
fn sweep_body<S: Wide, K: Swept>(s: S, work: K) -> K::Output {
    work.run(s)
}
