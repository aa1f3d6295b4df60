//! Activations as integers of 16 bits, in the order in which tiles meet them.

use super::values::Pair;
use super::{MEAN, SIDE};
use crate::Isa;
use crate::panels::{Grid, round_body};
use crate::simd::{Simd, stamp};

/// Sums of a row: of the columns whose number has the same remainder.
pub(super) const LANES: usize = SIDE / 2;
/// [`LANES`] of each row of a tile.
pub(crate) type Totals = [[f32; LANES]; SIDE];
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
    /// What takes the mean of the sums of bytes off.
    pub(super) start: [i32; LANES],
    pub(super) scale: f32,
}

/// Activations `[tokens, chunks]`.
pub(crate) type Inputs = Vec<Chunk>;

impl Chunk {
    const ZERO: Self = Self { levels: [[0; SIDE]; PAIRS], start: [0; LANES], scale: 0.0 };
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
            to.start[l % LANES] -= MEAN * (first + second);
        }
    }
}

/// Values of pairs times activations, added to `totals`.
#[inline(always)]
pub(super) fn dots(values: &[Pair], x: &Chunk, totals: &mut Totals) {
    for (r, totals) in totals.iter_mut().enumerate() {
        let mut sums = x.start;
        for (pair, levels) in values.iter().zip(&x.levels) {
            for (l, (v, x)) in pair.0[r].iter().zip(levels).enumerate() {
                // Values are never negative, levels are.
                let first = (v & 0xFFFF) as i32 * i32::from(*x as u16 as i16);
                sums[l % LANES] += first + (v >> 16) as i32 * (*x as i32 >> 16);
            }
        }
        for l in 0..LANES {
            totals[l] += x.scale * sums[l] as f32;
        }
    }
}
