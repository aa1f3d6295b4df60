//! Activations as integers of 16 bits, in the order in which tiles meet them.

use super::values::Pair;
use super::{MEAN, SIDE};
use crate::Isa;
use crate::panels::{Grid, round_body};
use crate::simd::{Simd, stamp};

/// Pairs of tiles whose activations share a scale.
pub(super) const PAIRS: usize = 8;
/// Activations that share a scale.
pub(super) const CHUNK: usize = 2 * PAIRS * SIDE;

/// Activations of a chunk: level times scale.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Chunk {
    /// Of columns in two tiles side by side: the level in the first in the low half of a lane.
    pub(super) levels: [[u32; SIDE]; PAIRS],
    /// What takes the mean of the sums of bytes off, by lane.
    pub(super) start: [i32; SIDE],
    pub(super) scale: f32,
}

/// Activations `[tokens, chunks]`.
pub(crate) type Inputs = Vec<Chunk>;

impl Chunk {
    const ZERO: Self = Self { levels: [[0; SIDE]; PAIRS], start: [0; SIDE], scale: 0.0 };
}

/// Rounds `x [tokens, cols]`: NaN and infinity make the scale of their chunk NaN.
pub(super) fn prepare_on(isa: Isa, x: &[f32], cols: usize, to: &mut Inputs) {
    to.clear();
    for chunk in x.chunks(cols.max(1)).flat_map(|x| x.chunks(CHUNK)) {
        to.push(Chunk::ZERO);
        if let Some(to) = to.last_mut() {
            round_on(isa, chunk, to);
        }
    }
}

stamp! {
    /// Rounds up to a chunk.
    fn round_on(x: &[f32], to: &mut Chunk) = round
}

#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], to: &mut Chunk) {
    let mut levels = [0i32; CHUNK];
    let Grid { scale, .. } = round_body(s, x, 2, &mut levels);
    to.scale = scale;
    for (pair, levels) in to.levels.iter_mut().zip(levels.as_chunks::<{ 2 * SIDE }>().0) {
        for l in 0..SIDE {
            let (first, second) = (levels[l], levels[SIDE + l]);
            pair[l] = first as u32 & 0xFFFF | (second as u32) << 16;
            to.start[l] -= MEAN * (first + second);
        }
    }
}

/// The values of two tiles times levels, added to what `sums` holds.
#[inline(always)]
pub(super) fn add_products(sums: &mut [i32; SIDE], values: &[u32; SIDE], levels: &[u32; SIDE]) {
    for l in 0..SIDE {
        let [v, x] = [values[l], levels[l]];
        // Values are never negative, levels are.
        sums[l] +=
            (v & 0xFFFF) as i32 * i32::from(x as u16 as i16) + (v >> 16) as i32 * (x as i32 >> 16);
    }
}

/// As [`add_products`], of all rows and pairs, and added to `totals` by row and lane.
#[inline(always)]
pub(super) fn dots(values: &[Pair], x: &Chunk, totals: &mut [[f32; SIDE]; SIDE]) {
    for (r, totals) in totals.iter_mut().enumerate() {
        let mut sums = x.start;
        for (pair, levels) in values.iter().zip(&x.levels) {
            add_products(&mut sums, &pair.0[r], levels);
        }
        for l in 0..SIDE {
            totals[l] += x.scale * sums[l] as f32;
        }
    }
}
