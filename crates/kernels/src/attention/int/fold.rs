//! Scales folded into queries or weights, and those as integers.

use super::super::elem::Elem;
use super::super::{Wide, ask_all};
use super::{LANES, Page};
use crate::simd::wide::LEVELS;

/// Floats that are made integers together.
const BLOCK: usize = 4 * LANES;

/// Two planes of [`BLOCK`] floats: each is `step * (256 * high + low)`.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Planes {
    high: [[i8; LANES]; 4],
    low: [[i8; LANES]; 4],
}

impl Planes {
    const ZERO: Self = Self { high: [[0; LANES]; 4], low: [[0; LANES]; 4] };

    /// Fours of both planes.
    #[inline(always)]
    pub(super) fn fours(&self) -> (&[[i8; 4]; 16], &[[i8; 4]; 16]) {
        (fours(&self.high), fours(&self.low))
    }
}

#[inline(always)]
fn fours(plane: &[[i8; LANES]; 4]) -> &[[i8; 4]; 16] {
    plane.as_flattened().as_chunks().0.first_chunk().expect("64 bytes")
}

/// Buffers of one caller, used for page after page.
#[derive(Debug, Default)]
pub struct Work {
    /// Numbers of a row of grids, in whole blocks.
    width: usize,
    /// `[group][width]`, the tails 0; so are the minima.
    scales: Vec<f32>,
    mins: Vec<f32>,
    /// The largest magnitude of the scales at each place of a row.
    most: Vec<f32>,
    /// Queries or weights, padded.
    x: Vec<f32>,
    /// `[group][block][query]`, or `[block][query]` of what has no scales.
    planes: Vec<Planes>,
    /// What the minima of each group add: `[query][group]`, padded to fours.
    offsets: Vec<f32>,
    steps: [f32; 4],
}

/// Sums that are added across lanes together.
const FOUR: usize = 4;

impl Work {
    #[inline(always)]
    fn room(&mut self, width: usize, groups: usize) {
        self.width = width.next_multiple_of(BLOCK);
        self.scales.resize(groups * self.width, 0.0);
        self.mins.resize(groups * self.width, 0.0);
        self.most.resize(self.width, 0.0);
        self.most.fill(0.0);
    }

    /// Groups of the grids.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        self.scales.len() / self.width
    }

    /// Blocks of a row.
    #[inline(always)]
    pub(super) fn blocks(&self) -> usize {
        self.width / BLOCK
    }

    #[inline(always)]
    pub(super) fn planes(&self) -> &[Planes] {
        &self.planes
    }

    #[inline(always)]
    pub(super) fn step(&self, query: usize) -> f32 {
        self.steps[query]
    }

    #[inline(always)]
    pub(super) fn offset(&self, query: usize, group: usize) -> f32 {
        self.offsets[query * self.groups().next_multiple_of(FOUR) + group]
    }

    /// 16 scales and 16 minima of a group.
    #[inline(always)]
    pub(super) fn grids(&self, group: usize, chunk: usize) -> [&[f32; LANES]; 2] {
        let at = group * self.width + chunk * LANES;
        [&self.scales, &self.mins].map(|grids| grids[at..].first_chunk().expect("16 numbers"))
    }

    /// Takes grids `[token / group][channel]`.
    #[inline(always)]
    pub(super) fn widen_channels<L: Wide, E: Elem>(
        &mut self,
        l: L,
        page: Page<'_>,
        next: Page<'_>,
        dim: usize,
        tokens: usize,
    ) {
        let (groups, stride) = (tokens / page.group, dim * E::SIZE);
        self.room(dim, groups);
        for g in 0..groups {
            ask_all(next.scales, g * stride, stride);
            ask_all(next.mins, g * stride, stride);
            let (scales, mins) =
                (&page.scales[g * stride..][..stride], &page.mins[g * stride..][..stride]);
            for c in 0..dim / LANES {
                self.take::<L, E>(
                    l,
                    g,
                    c,
                    &scales[c * LANES * E::SIZE..],
                    &mins[c * LANES * E::SIZE..],
                );
            }
            let mut rest = [[0u8; 4 * LANES]; 2];
            let from = dim / LANES * LANES * E::SIZE;
            if from < stride {
                rest[0][..stride - from].copy_from_slice(&scales[from..]);
                rest[1][..stride - from].copy_from_slice(&mins[from..]);
                self.take::<L, E>(l, g, dim / LANES, &rest[0], &rest[1]);
            }
            let from = g * self.width + dim.next_multiple_of(LANES);
            self.scales[from..(g + 1) * self.width].fill(0.0);
            self.mins[from..(g + 1) * self.width].fill(0.0);
        }
    }

    /// Takes grids `[token / 16][channel / group][token % 16]`.
    #[inline(always)]
    pub(super) fn widen_tokens<L: Wide, E: Elem>(
        &mut self,
        l: L,
        page: Page<'_>,
        next: Page<'_>,
        tokens: usize,
    ) {
        let groups = page.dim / page.group;
        self.room(tokens, groups);
        for c in 0..tokens / LANES {
            for g in 0..groups {
                let at = (c * groups + g) * LANES * E::SIZE;
                ask_all(next.scales, at, LANES * E::SIZE);
                ask_all(next.mins, at, LANES * E::SIZE);
                self.take::<L, E>(l, g, c, &page.scales[at..], &page.mins[at..]);
            }
        }
        for g in 0..groups {
            let from = g * self.width + tokens;
            self.scales[from..(g + 1) * self.width].fill(0.0);
            self.mins[from..(g + 1) * self.width].fill(0.0);
        }
    }

    /// Takes 16 scales and minima.
    #[inline(always)]
    fn take<L: Wide, E: Elem>(
        &mut self,
        l: L,
        group: usize,
        chunk: usize,
        scales: &[u8],
        mins: &[u8],
    ) {
        let at = group * self.width + chunk * LANES;
        let scale = E::load(l, scales);
        l.store(self.scales[at..].first_chunk_mut().expect("16 numbers"), scale);
        let most: &mut [f32; LANES] =
            self.most[chunk * LANES..].first_chunk_mut().expect("16 numbers");
        let larger = l.max_abs(l.load(most), scale);
        l.store(most, larger);
        let to = self.mins[at..].first_chunk_mut().expect("16 numbers");
        l.store(to, E::load(l, mins));
    }

    /// Makes planes of `x` times the scales of each group, and sums of the products with the minima.
    #[inline(always)]
    pub(super) fn fold<L: Wide, const Q: usize>(&mut self, l: L, x: [&[f32]; Q]) {
        let (width, groups, blocks) = (self.width, self.groups(), self.blocks());
        self.pad(x);
        self.planes.resize(groups * blocks * Q, Planes::ZERO);
        let padded = groups.next_multiple_of(FOUR);
        self.offsets.resize(Q * padded, 0.0);
        for q in 0..Q {
            let x = self.x[q * width..][..width].as_chunks::<LANES>().0;
            let mut largest = l.splat(0.0);
            for (x, most) in x.iter().zip(self.most.as_chunks::<LANES>().0) {
                largest = l.max_abs(largest, l.mul(l.load(x), l.load(most)));
            }
            let (step, factor) = step(l, largest);
            self.steps[q] = step;
            let factor = l.splat(factor);
            for four in (0..groups).step_by(FOUR) {
                let mut offsets = [l.splat(0.0); FOUR];
                for (g, offset) in (four..groups).zip(&mut offsets) {
                    let scales = self.scales[g * width..][..width].as_chunks::<LANES>().0;
                    let mins = self.mins[g * width..][..width].as_chunks::<LANES>().0;
                    let x = x.as_chunks::<4>().0.iter();
                    let grids = scales.as_chunks::<4>().0.iter().zip(mins.as_chunks::<4>().0);
                    for (b, (x, (scales, mins))) in x.zip(grids).enumerate() {
                        let mut folded = [l.splat(0.0); 4];
                        for i in 0..4 {
                            let x = l.load(&x[i]);
                            folded[i] = l.mul(l.mul(x, l.load(&scales[i])), factor);
                            *offset = l.mul_add(x, l.load(&mins[i]), *offset);
                        }
                        let to = &mut self.planes[(g * blocks + b) * Q + q];
                        l.planes4(folded, &mut to.high, &mut to.low);
                    }
                }
                self.offsets[q * padded + four..][..FOUR].copy_from_slice(&l.sum4(offsets));
            }
        }
    }

    /// Makes planes of `x` itself.
    #[inline(always)]
    pub(super) fn split<L: Wide, const Q: usize>(&mut self, l: L, x: [&[f32]; Q], width: usize) {
        let tokens = std::mem::replace(&mut self.width, width.next_multiple_of(BLOCK));
        self.pad(x);
        let (width, blocks) = (self.width, self.blocks());
        self.planes.resize(blocks * Q, Planes::ZERO);
        for q in 0..Q {
            let x = self.x[q * width..][..width].as_chunks::<LANES>().0;
            let mut largest = l.splat(0.0);
            for x in x {
                largest = l.max_abs(largest, l.load(x));
            }
            let (step, factor) = step(l, largest);
            self.steps[q] = step;
            let factor = l.splat(factor);
            for (b, x) in x.as_chunks::<4>().0.iter().enumerate() {
                let mut parts = [l.splat(0.0); 4];
                for i in 0..4 {
                    parts[i] = l.mul(l.load(&x[i]), factor);
                }
                let to = &mut self.planes[b * Q + q];
                l.planes4(parts, &mut to.high, &mut to.low);
            }
        }
        self.width = tokens;
    }

    #[inline(always)]
    fn pad<const Q: usize>(&mut self, x: [&[f32]; Q]) {
        self.x.resize(Q * self.width, 0.0);
        for (to, x) in self.x.chunks_exact_mut(self.width).zip(x) {
            to[..x.len()].copy_from_slice(x);
            to[x.len()..].fill(0.0);
        }
    }
}

/// The step of planes whose largest magnitude is in a lane of `largest`, and what numbers are multiplied by.
#[inline(always)]
fn step<L: Wide>(l: L, largest: L::F) -> (f32, f32) {
    let step = l.largest(largest) / LEVELS;
    (step, if step > 0.0 { 1.0 / step } else { 0.0 })
}
