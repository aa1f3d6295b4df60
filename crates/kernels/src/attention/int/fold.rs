//! Scales folded into queries or weights, and those as integers.

use std::ops::Range;

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

/// 16 floats in one cache line: half of what is read as 16 floats from anywhere else is in two.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);
}

/// Buffers of one caller, used for page after page.
#[derive(Debug, Default)]
pub struct Work {
    /// Chunks of 16 numbers of a row of grids, in whole blocks.
    width: usize,
    /// `[group][width]`, the tails 0; so are the minima.
    scales: Vec<Lanes>,
    mins: Vec<Lanes>,
    /// The largest magnitude of the scales at each place of a row.
    most: Vec<Lanes>,
    /// Queries or weights, padded.
    x: Vec<Lanes>,
    /// The same in steps, before scales.
    scaled: Vec<Lanes>,
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
        self.width = width.div_ceil(BLOCK) * 4;
        self.scales.resize(groups * self.width, Lanes::ZERO);
        self.mins.resize(groups * self.width, Lanes::ZERO);
        self.most.resize(self.width, Lanes::ZERO);
        self.most.fill(Lanes::ZERO);
    }

    /// Groups of the grids.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        self.scales.len() / self.width
    }

    /// Blocks of a row.
    #[inline(always)]
    pub(super) fn blocks(&self) -> usize {
        self.width / 4
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
        let at = group * self.width + chunk;
        [&self.scales[at].0, &self.mins[at].0]
    }

    /// Takes grids `[token / group][channel]`.
    #[inline(always)]
    pub(super) fn widen_channels<L: Wide, E: Elem>(
        &mut self,
        l: L,
        page: Page<'_>,
        dim: usize,
        tokens: usize,
    ) {
        let (groups, stride) = (tokens / page.group, dim * E::SIZE);
        self.room(dim, groups);
        let (chunk, size) = (LANES * E::SIZE, dim % LANES * E::SIZE);
        for g in 0..groups {
            let row = [page.scales, page.mins].map(|grids| &grids[g * stride..][..stride]);
            self.take::<L, E>(l, g, 0..dim / LANES, row, chunk);
            if size > 0 {
                let mut rest = [[0u8; 4 * LANES]; 2];
                for (rest, row) in rest.iter_mut().zip(row) {
                    rest[..size].copy_from_slice(&row[stride - size..]);
                }
                let at = dim / LANES;
                self.take::<L, E>(l, g, at..at + 1, [&rest[0], &rest[1]], chunk);
            }
            self.clear(g, dim.div_ceil(LANES));
        }
    }

    /// Takes grids `[token / 16][channel / group][token % 16]`.
    #[inline(always)]
    pub(super) fn widen_tokens<L: Wide, E: Elem>(&mut self, l: L, page: Page<'_>, tokens: usize) {
        let groups = page.dim / page.group;
        self.room(tokens, groups);
        let chunk = LANES * E::SIZE;
        let bytes = tokens / LANES * groups * chunk;
        assert!(page.scales.len().min(page.mins.len()) >= bytes, "grids of all tokens");
        for g in 0..groups {
            let grids = [page.scales, page.mins].map(|grids| &grids[g * chunk..]);
            self.take::<L, E>(l, g, 0..tokens / LANES, grids, groups * chunk);
            self.clear(g, tokens / LANES);
        }
    }

    /// Takes these chunks of 16 scales and minima of a group, which lie `step` bytes apart.
    #[inline(always)]
    fn take<L: Wide, E: Elem>(
        &mut self,
        l: L,
        group: usize,
        chunks: Range<usize>,
        [scales, mins]: [&[u8]; 2],
        step: usize,
    ) {
        let most = &mut self.most[chunks.clone()];
        let row = group * self.width;
        let [to_scales, to_mins] =
            [&mut self.scales, &mut self.mins].map(|grids| &mut grids[row..][chunks.clone()]);
        let from = scales.chunks(step).zip(mins.chunks(step));
        let to = to_scales.iter_mut().zip(to_mins).zip(most);
        for ((scales, mins), ((to_scales, to_mins), most)) in from.zip(to) {
            let scale = E::load(l, scales);
            l.store(&mut to_scales.0, scale);
            let larger = l.max_abs(l.load(&most.0), scale);
            l.store(&mut most.0, larger);
            l.store(&mut to_mins.0, E::load(l, mins));
        }
    }

    /// What lies behind so many chunks of a group counts for nothing.
    #[inline(always)]
    fn clear(&mut self, group: usize, from: usize) {
        let row = group * self.width..(group + 1) * self.width;
        self.scales[row.clone()][from..].fill(Lanes::ZERO);
        self.mins[row][from..].fill(Lanes::ZERO);
    }

    /// Makes planes of `x` times the scales of each group, and sums of the products with the minima. Meanwhile the grids
    /// of `next` are asked for, a few lines at a time: what misses waits behind all that was asked for at once.
    #[inline(always)]
    pub(super) fn fold<L: Wide, const Q: usize>(
        &mut self,
        l: L,
        x: [&[f32]; Q],
        next: Option<Page<'_>>,
    ) {
        let (width, groups, blocks) = (self.width, self.groups(), self.blocks());
        self.pad(x);
        self.planes.resize(groups * blocks * Q, Planes::ZERO);
        self.scaled.resize(Q * width, Lanes::ZERO);
        let padded = groups.next_multiple_of(FOUR);
        self.offsets.resize(Q * padded, 0.0);
        for q in 0..Q {
            let x = &self.x[q * width..][..width];
            let mut largest = l.splat(0.0);
            for (x, most) in x.iter().zip(&self.most) {
                largest = l.max_abs(largest, l.mul(l.load(&x.0), l.load(&most.0)));
            }
            let (step, factor) = step(l, largest);
            self.steps[q] = step;
            let factor = l.splat(factor);
            for (x, scaled) in x.iter().zip(&mut self.scaled[q * width..]) {
                l.store(&mut scaled.0, l.mul(l.load(&x.0), factor));
            }
        }
        let [x, scaled] = [&self.x, &self.scaled].map(|x| {
            let x = x.as_chunks::<4>().0;
            std::array::from_fn::<_, Q, _>(|q| &x[q * blocks..][..blocks])
        });
        let next = next.map_or([&[][..]; 2], |next| [next.scales, next.mins]);
        let each = next[0].len().div_ceil((groups * blocks).max(1)).next_multiple_of(64);
        let mut asked = 0;
        let grids = self.scales.chunks_exact(width).zip(self.mins.chunks_exact(width));
        let planes = self.planes.chunks_exact_mut(blocks * Q);
        let mut sums = [[l.splat(0.0); FOUR]; Q];
        for (g, ((scales, mins), planes)) in grids.zip(planes).enumerate() {
            let [scales, mins] = [scales, mins].map(|x| x.as_chunks::<4>().0);
            let (scales, mins) = (&scales[..blocks], &mins[..blocks]);
            let planes = &mut planes.as_chunks_mut::<Q>().0[..blocks];
            let mut offsets = [l.splat(0.0); Q];
            for b in 0..blocks {
                next.into_iter().for_each(|next| ask_all(next, asked, each));
                asked += each;
                // Read once for all queries.
                let (mut scale, mut min) = ([l.splat(0.0); 4], [l.splat(0.0); 4]);
                for i in 0..4 {
                    (scale[i], min[i]) = (l.load(&scales[b][i].0), l.load(&mins[b][i].0));
                }
                for q in 0..Q {
                    let mut folded = [l.splat(0.0); 4];
                    for i in 0..4 {
                        folded[i] = l.mul(l.load(&scaled[q][b][i].0), scale[i]);
                        offsets[q] = l.mul_add(l.load(&x[q][b][i].0), min[i], offsets[q]);
                    }
                    let to = &mut planes[b][q];
                    l.planes4(folded, &mut to.high, &mut to.low);
                }
            }
            for q in 0..Q {
                sums[q][g % FOUR] = offsets[q];
            }
            if g % FOUR == FOUR - 1 || g + 1 == groups {
                for q in 0..Q {
                    let to = q * padded + g / FOUR * FOUR;
                    self.offsets[to..][..FOUR].copy_from_slice(&l.sum4(sums[q]));
                }
            }
        }
    }

    /// Makes planes of `x` itself.
    #[inline(always)]
    pub(super) fn split<L: Wide, const Q: usize>(&mut self, l: L, x: [&[f32]; Q], width: usize) {
        let tokens = std::mem::replace(&mut self.width, width.div_ceil(BLOCK) * 4);
        self.pad(x);
        let (width, blocks) = (self.width, self.blocks());
        self.planes.resize(blocks * Q, Planes::ZERO);
        for q in 0..Q {
            let x = &self.x[q * width..][..width];
            let mut largest = l.splat(0.0);
            for x in x {
                largest = l.max_abs(largest, l.load(&x.0));
            }
            let (step, factor) = step(l, largest);
            self.steps[q] = step;
            let factor = l.splat(factor);
            for (b, x) in x.as_chunks::<4>().0.iter().enumerate() {
                let mut parts = [l.splat(0.0); 4];
                for i in 0..4 {
                    parts[i] = l.mul(l.load(&x[i].0), factor);
                }
                let to = &mut self.planes[b * Q + q];
                l.planes4(parts, &mut to.high, &mut to.low);
            }
        }
        self.width = tokens;
    }

    #[inline(always)]
    fn pad<const Q: usize>(&mut self, x: [&[f32]; Q]) {
        self.x.resize(Q * self.width, Lanes::ZERO);
        for (to, x) in self.x.chunks_exact_mut(self.width).zip(x) {
            to.fill(Lanes::ZERO);
            let (chunks, rest) = x.as_chunks();
            to.iter_mut().zip(chunks).for_each(|(to, x)| to.0 = *x);
            if let Some(to) = to.get_mut(chunks.len()) {
                to.0[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

/// The step of planes whose largest magnitude is in a lane of `largest`, and what numbers are multiplied by.
#[inline(always)]
fn step<L: Wide>(l: L, largest: L::F) -> (f32, f32) {
    let step = l.largest(largest) / LEVELS;
    (step, if step > 0.0 { 1.0 / step } else { 0.0 })
}
