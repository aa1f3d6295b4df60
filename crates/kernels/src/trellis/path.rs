//! The path nearest to given weights: Viterbi's algorithm over all states, around a circle.
//!
//! A path is followed from the last weight of a tile to the first: each state is the one before shifted by `bits`, and new
//! bits below. States that differ in their highest `bits` bits alone have the same successors, so that costs are kept for
//! each *shared* rest: a step takes, for each rest, the least over the `2^bits` states that have it. Costs are integers whose
//! lowest bits say which of those it came from, and all instruction sets find the same path.

use std::sync::OnceLock;

use super::{STATE, TILE, trellis_value};
use crate::simd::{Simd, stamp};
use crate::{Isa, Par};

/// Rests that are looked at together.
const WIDE: usize = 16;
/// Tiles whose paths are searched together: they read one table.
const TOGETHER: usize = 2;
/// Cost of what is not allowed: no path that is costs so much.
const FORBIDDEN: u32 = 1 << 30;
/// Times a weight's bits: how far around the end of a tile the search for where its circle closes looks.
const AROUND: usize = 80;

/// A trellis, and its values where the search reads them.
#[derive(Debug)]
pub(crate) struct Code {
    /// Bits of a state.
    state: u32,
    /// Bits of a weight.
    bits: u32,
    /// Values are multiplied by a power of two, so that the lowest `bits` bits of squared distances, (t - v)² = t² - 2tv + v²,
    /// are those of t².
    shift: u32,
    /// For each [`WIDE`] rests, for each choice of the highest bits, the values of those states times `1 << shift`; the upper
    /// half of each lane is 0.
    values: Vec<u32>,
}

impl Code {
    /// A trellis of `1 << state` states, `state` being at least twice the bits.
    pub(crate) fn new(state: u32, bits: u32) -> Self {
        let some = if bits < 3 { 2 } else { 3 };
        assert!(state >= 2 * bits && state - bits >= some, "trellis: {bits} bits of {state}");
        let shift = (bits - 1).clamp(1, 5);
        let rests = 1u32 << (state - bits);
        // As many as a step looks at together.
        let wide = match bits {
            _ if rests >= WIDE as u32 => WIDE as u32,
            1 | 2 => 4,
            _ => 8,
        };
        let mut values = Vec::with_capacity(1 << state);
        for first in (0..rests).step_by(wide as usize) {
            for high in 0..1 << bits {
                for rest in first..first + wide {
                    let value = trellis_value((rest | high << (state - bits)) as u16) << shift;
                    values.push(value as u32 & 0xFFFF);
                }
            }
        }
        Self { state, bits, shift, values }
    }

    /// The one of 2^16 states.
    fn of(bits: u32) -> &'static Self {
        static CODES: [OnceLock<Code>; 8] = [const { OnceLock::new() }; 8];
        CODES[bits as usize - 1].get_or_init(|| Self::new(STATE, bits))
    }

    fn rests(&self) -> usize {
        1 << (self.state - self.bits)
    }

    /// A number of units as the search takes it: within what states reach, and so that squared distances end in bits that
    /// depend on it alone.
    fn target(&self, units: f32) -> i32 {
        let step = (1u32 << self.bits.saturating_sub(6)) as f32;
        let scaled = units * (1 << self.shift) as f32 / step;
        let most = (510 << self.shift) as f32 / step;
        let scaled = if scaled.is_nan() { 0.0 } else { scaled.clamp(-most, most) };
        scaled.round() as i32 * step as i32
    }
}

/// The codes of tiles of 256 weights (see [`TRELLIS_TILE`](super::TRELLIS_TILE)) whose values are near to `targets`, numbers in
/// units of [`trellis_value`]: the path of least squared error among those that begin, and end, where a search around the
/// end of the tile found it best for circles to close. Bit-identical on every instruction set and for any number of threads,
/// among which the tiles are shared; a tile's path depends on nothing but it.
///
/// NaN counts as 0, what is out of reach as the outermost value.
///
/// # Panics
///
/// Unless `bits` is 1 to 8 and `targets` and `codes` have the same length, whole tiles.
pub fn trellis_encode(bits: u32, targets: &[f32], codes: &mut [u8], par: Par) {
    trellis_encode_on(Isa::detect(), bits, targets, codes, par);
}

/// [`trellis_encode`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn trellis_encode_on(isa: Isa, bits: u32, targets: &[f32], codes: &mut [u8], par: Par) {
    assert!((1..=8).contains(&bits), "trellis: {bits} bits");
    encode_code(isa, Code::of(bits), TILE, targets, codes, par);
}

/// [`trellis_encode`] by any code, in circles of `len`.
pub(crate) fn encode_code(
    isa: Isa,
    code: &Code,
    len: usize,
    targets: &[f32],
    codes: &mut [u8],
    par: Par,
) {
    assert_eq!(targets.len(), codes.len(), "trellis: targets and codes");
    assert!(targets.len().is_multiple_of(len), "trellis: whole tiles");
    assert!(len * code.bits as usize >= code.state as usize, "trellis: a path too short");
    let some = TOGETHER * len;
    let tiles = targets.chunks(some).zip(codes.chunks_mut(some));
    par.for_each_init(tiles, Search::default, |search, (targets, codes)| {
        search.circles(isa, code, len, targets, codes);
    });
}

/// Memory of a search.
#[derive(Debug, Default)]
struct Search {
    costs: [Costs; TOGETHER],
    /// For each step and each rest, in its lowest bits, the highest ones of the state that is best for it.
    back: [Vec<u8>; TOGETHER],
    targets: [Vec<i32>; TOGETHER],
}

/// What paths cost at the least, by the rest of their last state: before a step, and after it.
#[derive(Debug, Default)]
struct Costs {
    now: Vec<u32>,
    next: Vec<u32>,
}

impl Search {
    fn circles(&mut self, isa: Isa, code: &Code, len: usize, targets: &[f32], codes: &mut [u8]) {
        let tiles = targets.len() / len;
        for (to, i) in self.targets.iter_mut().zip(0..) {
            to.clear();
            // A tile alone is searched twice.
            let tile = &targets[i.min(tiles - 1) * len..][..len];
            to.extend(tile.iter().map(|units| code.target(*units)));
        }
        // Where the circle closes: the best way around the end of the tile, from the middle of a stretch to both sides.
        let around = (AROUND / code.bits as usize).min(len / 2).max(1);
        let positions = (0..around).rev().chain((len - around..len).rev());
        let ends = self.run(isa, code, positions, None);
        let closes: [usize; TOGETHER] = std::array::from_fn(|i| {
            let mut rest = ends[i];
            for step in (around..2 * around).rev() {
                rest = self.state(code, i, step, rest) >> code.bits;
            }
            rest
        });
        self.run(isa, code, (0..len).rev(), Some(closes));
        let low = (1 << code.bits) - 1;
        for (i, codes) in codes.chunks_mut(len).enumerate() {
            let mut rest = closes[i];
            for (step, code_at) in codes.iter_mut().enumerate().map(|(p, c)| (len - 1 - p, c)) {
                let state = self.state(code, i, step, rest);
                *code_at = (state & low) as u8;
                rest = state >> code.bits;
            }
        }
    }

    /// The state of a step, from its rest.
    fn state(&self, code: &Code, tile: usize, step: usize, rest: usize) -> usize {
        let high = self.back[tile][step * code.rests() + rest] as usize & ((1 << code.bits) - 1);
        rest | high << (code.state - code.bits)
    }

    /// Goes through positions, from any state or from those with a rest; returns the best rests at the end.
    fn run(
        &mut self,
        isa: Isa,
        code: &Code,
        positions: impl Iterator<Item = usize> + Clone,
        start: Option<[usize; TOGETHER]>,
    ) -> [usize; TOGETHER] {
        let rests = code.rests();
        let steps = positions.clone().count();
        let first = positions.clone().next().unwrap_or(0);
        for (i, (costs, back)) in self.costs.iter_mut().zip(&mut self.back).enumerate() {
            let tags = Tags::new(code, self.targets[i][first]);
            let allowed = |rest: usize| start.is_none_or(|start| start[i] == rest);
            let cost = |rest| if allowed(rest) { 0 } else { FORBIDDEN };
            costs.now.clear();
            costs.now.extend((0..rests).map(|rest| cost(rest) | tags.of(rest)));
            costs.next.resize(rests, 0);
            back.resize(back.len().max(steps * rests), 0);
        }
        let mut ahead = positions.clone().skip(1);
        for (step, p) in positions.enumerate() {
            let then = ahead.next();
            let [a, b] = &mut self.costs;
            let [back_a, back_b] = &mut self.back;
            let here = step * rests..(step + 1) * rests;
            let ways = [
                Way::new(code, &self.targets[0], p, then, a, &mut back_a[here.clone()]),
                Way::new(code, &self.targets[1], p, then, b, &mut back_b[here]),
            ];
            step_on(isa, code, ways);
            for costs in &mut self.costs {
                std::mem::swap(&mut costs.now, &mut costs.next);
            }
        }
        std::array::from_fn(|i| {
            let costs = self.costs[i].now.iter().zip(0..);
            costs.min_by_key(|(cost, _)| **cost).map_or(0, |(_, rest)| rest)
        })
    }
}

/// The lowest bits of costs: so that those of the sum with the squared distance of the next step are the highest bits of the
/// state that the rest is of, which are the highest bits of the rest as well.
#[derive(Clone, Copy, Debug)]
struct Tags {
    /// What the squared distance adds to the lowest bits.
    square: u32,
    mask: u32,
    shift: u32,
}

impl Tags {
    fn new(code: &Code, target: i32) -> Self {
        let mask = (1 << code.bits) - 1;
        // The rest of a state, read as one before the next step, has its own highest bits.
        let shift = code.state - 2 * code.bits;
        Self { square: (target * target) as u32 & mask, mask, shift }
    }

    #[inline(always)]
    fn of(self, rest: usize) -> u32 {
        ((rest as u32 >> self.shift).wrapping_sub(self.square)) & self.mask
    }
}

/// A step of one tile.
#[derive(Debug)]
struct Way<'a> {
    target: i32,
    tags: Tags,
    now: &'a [u32],
    next: &'a mut [u32],
    back: &'a mut [u8],
}

impl<'a> Way<'a> {
    fn new(
        code: &Code,
        targets: &[i32],
        at: usize,
        then: Option<usize>,
        costs: &'a mut Costs,
        back: &'a mut [u8],
    ) -> Self {
        let tags = Tags::new(code, then.map_or(0, |then| targets[then]));
        Self { target: targets[at], tags, now: &costs.now, next: &mut costs.next, back }
    }
}

stamp! {
    /// A step of some tiles.
    fn step_on(code: &Code, ways: [Way<'_>; TOGETHER]) = step_body
}

#[inline(always)]
fn step_body<S: Simd>(_: S, code: &Code, ways: [Way<'_>; TOGETHER]) {
    #[cfg(target_arch = "x86_64")]
    if S::ISA == Isa::Avx512 && code.state == STATE {
        // SAFETY: the token proves the features.
        unsafe { x86::step(code, ways) };
        return;
    }
    for way in ways {
        match (code.rests() >= WIDE, code.bits) {
            (true, 1) => rests::<WIDE, 1>(code, way),
            (true, 2) => rests::<WIDE, 2>(code, way),
            (true, 3) => rests::<WIDE, 3>(code, way),
            (true, 4) => rests::<WIDE, 4>(code, way),
            (true, 5) => rests::<WIDE, 5>(code, way),
            (true, 6) => rests::<WIDE, 6>(code, way),
            (true, 7) => rests::<WIDE, 7>(code, way),
            (true, _) => rests::<WIDE, 8>(code, way),
            // Small codes, which tests try.
            (false, 1) => rests::<4, 1>(code, way),
            (false, 2) => rests::<4, 2>(code, way),
            (false, _) => rests::<8, 3>(code, way),
        }
    }
}

/// A step of `K` bits, `W` rests together.
#[inline(always)]
fn rests<const W: usize, const K: u32>(code: &Code, way: Way<'_>) {
    assert!(code.bits == K && way.now.len().is_multiple_of(W), "trellis: a step of {K} bits");
    // Rests of the states before that have one choice of the highest bits.
    let before = way.now.len() >> K;
    let mut values = code.values.as_chunks::<W>().0.iter();
    let blocks = way.next.as_chunks_mut::<W>().0.iter_mut().zip(way.back.as_chunks_mut::<W>().0);
    for (i, (next, back)) in blocks.enumerate() {
        let mut least = [u32::MAX; W];
        for (high, values) in (0..1usize << K).zip(&mut values) {
            // States with these highest bits and rest `r` come after those whose rest is `r >> K` and these bits above.
            let now = &way.now[high * before + ((i * W) >> K)..][..(W >> K).max(1)];
            for l in 0..W {
                let distance = way.target - i32::from(values[l] as u16 as i16);
                let cost = now[l >> K].wrapping_add((distance * distance) as u32);
                least[l] = least[l].min(cost);
            }
        }
        for l in 0..W {
            back[l] = least[l] as u8;
            next[l] = (least[l] & !way.tags.mask) + way.tags.of(i * W + l);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Code, TOGETHER, WIDE, Way};
    use crate::simd::avx512;

    avx512! {
        pub(super) fn step(code: &Code, ways: [Way<'_>; TOGETHER]) {
            match code.bits {
                1 => step_of::<1>(code, ways),
                2 => step_of::<2>(code, ways),
                3 => step_of::<3>(code, ways),
                4 => step_of::<4>(code, ways),
                5 => step_of::<5>(code, ways),
                6 => step_of::<6>(code, ways),
                7 => step_of::<7>(code, ways),
                _ => step_of::<8>(code, ways),
            }
        }
    }

    avx512! {
        /// The costs of 16 rests from `rest` on, shifted by `K` bits: `2^K` in a row are of one.
        #[inline]
        fn shared<const K: u32>(now: &[u32], at: usize) -> __m512i {
            let now = &now[at..at + (WIDE >> K).max(1)];
            // SAFETY: so many costs lie in the slice.
            unsafe {
                match K {
                    1 => {
                        let which =
                            _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
                        let eight = _mm256_loadu_si256(now.as_ptr().cast());
                        _mm512_permutexvar_epi32(which, _mm512_castsi256_si512(eight))
                    }
                    2 => {
                        let which =
                            _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
                        let four = _mm_loadu_si128(now.as_ptr().cast());
                        _mm512_permutexvar_epi32(which, _mm512_castsi128_si512(four))
                    }
                    3 => _mm512_mask_set1_epi32(
                        _mm512_set1_epi32(now[0] as i32),
                        0xFF00,
                        now[1] as i32,
                    ),
                    _ => _mm512_set1_epi32(now[0] as i32),
                }
            }
        }
    }

    avx512! {
        fn step_of<const K: u32>(code: &Code, ways: [Way<'_>; TOGETHER]) {
            let rests = 1usize << (super::STATE - K);
            assert!(code.values.len() == rests << K && code.bits == K);
            let [a, b] = ways;
            let fits = |way: &Way<'_>| {
                way.now.len() == rests && way.next.len() == rests && way.back.len() == rests
            };
            assert!(fits(&a) && fits(&b), "trellis: lengths of a step");
            let targets = [&a, &b].map(|way| _mm512_set1_epi32(way.target & 0xFFFF));
            let squares = [&a, &b].map(|way| _mm512_set1_epi32(way.tags.square as i32));
            let mask = _mm512_set1_epi32((1 << K) - 1);
            let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let above = _mm_cvtsi32_si128(a.tags.shift as i32);
            let mut values = code.values.as_chunks::<WIDE>().0.iter();
            for rest in (0..rests).step_by(WIDE) {
                let mut least = [_mm512_set1_epi32(-1); TOGETHER];
                for (high, values) in (0..1usize << K).zip(&mut values) {
                    // SAFETY: there are 16 values.
                    let values = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                    let at = (high * rests + rest) >> K;
                    let costs = [shared::<K>(a.now, at), shared::<K>(b.now, at)];
                    for i in 0..TOGETHER {
                        // The upper halves are 0.
                        let distance = _mm512_sub_epi16(targets[i], values);
                        let cost = _mm512_dpwssd_epi32(costs[i], distance, distance);
                        least[i] = _mm512_min_epu32(least[i], cost);
                    }
                }
                let tags = _mm512_srl_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(rest as i32)), above);
                let to = [
                    (a.next[rest..].as_mut_ptr(), a.back[rest..].as_mut_ptr()),
                    (b.next[rest..].as_mut_ptr(), b.back[rest..].as_mut_ptr()),
                ];
                for (i, (next, back)) in to.into_iter().enumerate() {
                    let tags = _mm512_and_si512(_mm512_sub_epi32(tags, squares[i]), mask);
                    let cost = _mm512_or_si512(_mm512_andnot_si512(mask, least[i]), tags);
                    // SAFETY: 16 lie in each slice from `rest` on, whose lengths are multiples of that.
                    unsafe {
                        _mm512_storeu_si512(next.cast(), cost);
                        _mm_storeu_si128(back.cast(), _mm512_cvtepi32_epi8(least[i]));
                    }
                }
            }
        }
    }
}
