//! Panels of integer codes.
//!
//! *Keys*: 16 tokens a panel, one a lane; a line holds `32 / bits` channels, four to a field of `bits` bits of each
//! lane's bytes. *Values*: 16 channels a panel, one a lane; a line holds `32 / bits` tokens in the same way. The float
//! side of a product, with the scale of its group folded in, becomes two planes of int8 (16 bits), so that
//! products are exact to 2e-5 of the largest term.

use tensorpress_tensor::DType;

use super::lanes::{Elem, LEVELS, Lanes, Line, with_elem};
use super::{LANES, stamp};

/// Most channels of a head, and most tokens of a page.
pub(crate) const MAX_DIM: usize = 512;

/// Codes of one page, and the scales and minima of their groups as little-endian floats.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    pub(crate) bits: u32,
    pub(crate) dim: usize,
    pub(crate) lines: &'a [Line],
    pub(crate) dtype: DType,
    /// Tokens (by channel) or channels (by token) that share a scale.
    pub(crate) group: usize,
    pub(crate) scales: &'a [u8],
    pub(crate) mins: &'a [u8],
}

/// Buffers of one caller, used for page after page: floats as `step * (256 * high + low)`.
#[derive(Default)]
pub(crate) struct Work {
    x: Vec<f32>,
    high: Vec<i8>,
    low: Vec<i8>,
    /// What the minima of each group add.
    offsets: Vec<f32>,
    step: f32,
}

impl Work {
    /// Makes room for `n` floats (a multiple of 16) and `groups` offsets.
    #[inline(always)]
    fn room(&mut self, n: usize, groups: usize) {
        self.x.resize(n, 0.0);
        self.high.resize(n, 0);
        self.low.resize(n, 0);
        self.offsets.resize(groups.next_multiple_of(FOUR), 0.0);
    }

    /// Makes planes of the floats, none of which is larger than a lane of `largest`.
    #[inline(always)]
    fn split<L: Lanes>(&mut self, l: L, largest: L::F) {
        self.step = l.largest(largest) / LEVELS;
        let factor = l.splat(if self.step > 0.0 { 1.0 / self.step } else { 0.0 });
        let high = self.high.as_chunks_mut::<LANES>().0;
        let low = self.low.as_chunks_mut::<LANES>().0;
        for ((x, high), low) in self.x.as_chunks::<LANES>().0.iter().zip(high).zip(low) {
            l.planes(l.mul(l.load(x), factor), high, low);
        }
    }

    /// Fours of both planes from entry `first` on.
    #[inline(always)]
    fn fours(&self, first: usize) -> (&[[i8; 4]], &[[i8; 4]]) {
        (self.high[first..].as_chunks().0, self.low[first..].as_chunks().0)
    }

    /// What the two integer sums stand for.
    #[inline(always)]
    fn value<L: Lanes>(&self, l: L, high: L::I, low: L::I) -> L::F {
        let sum = l.fma(l.to_floats(high), l.splat(256.0), l.to_floats(low));
        l.mul(sum, l.splat(self.step))
    }
}

/// Sums that are added across lanes together.
const FOUR: usize = 4;

#[inline(always)]
fn mask(bits: u32) -> u8 {
    (255u32 >> (8 - bits)) as u8
}

/// Adds the products of one line with fours of both planes.
#[inline(always)]
fn line_dot<L: Lanes, const BITS: u32>(
    l: L,
    line: &Line,
    h: &[[i8; 4]],
    w: &[[i8; 4]],
    (high, low): (&mut L::I, &mut L::I),
) {
    let v = l.line(line);
    for i in 0..(8 / BITS) as usize {
        let codes = l.bits(v, i as u32 * BITS, mask(BITS));
        *high = l.dot::<BITS>(*high, codes, h[i]);
        *low = l.dot::<BITS>(*low, codes, w[i]);
    }
}

/// Products of `P` key panels' lines with the planes from channel `first` on. While they are read, the same lines of the
/// next page are asked for.
#[inline(always)]
fn panels_dot<L: Lanes, const BITS: u32, const P: usize>(
    l: L,
    lines: [&[Line]; P],
    next: *const u8,
    work: &Work,
    first: usize,
) -> [L::F; P] {
    let (mut high, mut low) = ([l.zero_i(); P], [l.zero_i(); P]);
    let fields = (8 / BITS) as usize;
    let (h, w) = work.fours(first);
    let n = lines[0].len();
    for (i, (h, w)) in h.chunks_exact(fields).zip(w.chunks_exact(fields)).enumerate().take(n) {
        for p in 0..P {
            l.prefetch(next.wrapping_add(64 * (p * n + i)));
            line_dot::<L, BITS>(l, &lines[p][i], h, w, (&mut high[p], &mut low[p]));
        }
    }
    let mut values = [l.splat(0.0); P];
    for p in 0..P {
        values[p] = work.value(l, high[p], low[p]);
    }
    values
}

stamp! {
    /// `out[t] = q . key t` for keys whose groups are runs of tokens, a scale for each channel:
    /// grids `[token / group][channel]`. `out` is whole groups. `next` is the page that will be read after this one.
    fn by_channel_dots(page: Page<'_>, next: Page<'_>, q: &[f32], out: &mut [f32], work: &mut Work) = by_channel_body
}

#[inline(always)]
fn by_channel_body<L: Lanes>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    with_elem!(page.dtype, E => match page.bits {
        2 => by_channel::<L, E, 2>(l, page, next, q, out, work),
        4 => by_channel::<L, E, 4>(l, page, next, q, out, work),
        _ => by_channel::<L, E, 8>(l, page, next, q, out, work),
    });
}

#[inline(always)]
fn by_channel<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    let (dim, group) = (page.dim, page.group);
    let padded = dim.next_multiple_of(LANES);
    let groups = out.len() / group;
    work.room(groups * padded, groups);
    let mut largest = l.splat(0.0);
    let stride = dim * E::SIZE;
    for four in (0..groups).step_by(FOUR) {
        let mut offsets = [l.splat(0.0); FOUR];
        for (g, offset) in (four..groups).zip(&mut offsets) {
            l.ahead(next.scales, g * stride, stride);
            l.ahead(next.mins, g * stride, stride);
            let (scales, mins) =
                (&page.scales[g * stride..][..stride], &page.mins[g * stride..][..stride]);
            let x = &mut work.x[g * padded..][..padded];
            (*offset, largest) = fold::<L, E>(l, q, scales, mins, x, largest);
        }
        work.offsets[four..four + FOUR].copy_from_slice(&l.sum4(offsets));
    }
    work.split(l, largest);
    let per = dim.div_ceil((32 / BITS) as usize);
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let offset = l.splat(work.offsets[g]);
        let mut line = g * (group / LANES) * per;
        let mut panels = out.as_chunks_mut::<LANES>().0;
        while let [a, b, rest @ ..] = panels {
            let lines = &page.lines[line..][..2 * per];
            let ahead = next.lines.as_ptr().wrapping_add(line).cast();
            let (one, two) = lines.split_at(per);
            let sums = panels_dot::<L, BITS, 2>(l, [one, two], ahead, work, g * padded);
            l.store(a, l.add(sums[0], offset));
            l.store(b, l.add(sums[1], offset));
            (panels, line) = (rest, line + 2 * per);
        }
        if let [a] = panels {
            let ahead = next.lines.as_ptr().wrapping_add(line).cast();
            let lines = &page.lines[line..][..per];
            let [sum] = panels_dot::<L, BITS, 1>(l, [lines], ahead, work, g * padded);
            l.store(a, l.add(sum, offset));
        }
    }
}

/// `x = q * scales`; gives lanes of `q . mins`, and the largest magnitudes of `x` or before.
#[inline(always)]
fn fold<L: Lanes, E: Elem>(
    l: L,
    q: &[f32],
    scales: &[u8],
    mins: &[u8],
    x: &mut [f32],
    mut largest: L::F,
) -> (L::F, L::F) {
    let mut offset = l.splat(0.0);
    let (chunks, rest) = q.as_chunks::<LANES>();
    let (to, tail) = x.as_chunks_mut::<LANES>().0.split_at_mut(chunks.len());
    for ((i, q), x) in chunks.iter().enumerate().zip(to) {
        let (q, at) = (l.load(q), i * LANES * E::SIZE);
        let product = l.mul(q, E::load(l, &scales[at..]));
        l.store(x, product);
        largest = l.max_abs(largest, product);
        offset = l.fma(q, E::load(l, &mins[at..]), offset);
    }
    if let [tail] = tail {
        let (mut lanes, from) = ([0.0; LANES], chunks.len() * LANES);
        for (i, q) in rest.iter().enumerate() {
            tail[i] = q * E::one(&scales[(from + i) * E::SIZE..]);
            lanes[i] = q * E::one(&mins[(from + i) * E::SIZE..]);
        }
        tail[rest.len()..].fill(0.0);
        largest = l.max_abs(largest, l.load(tail));
        offset = l.add(offset, l.load(&lanes));
    }
    (offset, largest)
}

stamp! {
    /// `out[t] = q . key t` for keys whose groups are runs of channels, a scale for each token:
    /// grids `[token / 16][channel / group][token % 16]`. `out` is whole panels.
    fn by_token_dots(page: Page<'_>, next: Page<'_>, q: &[f32], out: &mut [f32], work: &mut Work) = by_token_body
}

#[inline(always)]
fn by_token_body<L: Lanes>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    with_elem!(page.dtype, E => match page.bits {
        2 => by_token::<L, E, 2>(l, page, next, q, out, work),
        4 => by_token::<L, E, 4>(l, page, next, q, out, work),
        _ => by_token::<L, E, 8>(l, page, next, q, out, work),
    });
}

#[inline(always)]
fn by_token<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    let (dim, group, per) = (page.dim, page.group, (32 / BITS) as usize);
    let (lines_of_panel, groups) = (dim.div_ceil(per), dim / group);
    work.room(dim.next_multiple_of(LANES), groups);
    work.x.fill(0.0);
    work.x[..dim].copy_from_slice(q);
    let mut largest = l.splat(0.0);
    for x in work.x.as_chunks::<LANES>().0 {
        largest = l.max_abs(largest, l.load(x));
    }
    work.split(l, largest);
    for (sum, q) in work.offsets.iter_mut().zip(q.chunks_exact(group)) {
        *sum = q.iter().sum();
    }
    for (p, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut total = l.splat(0.0);
        for g in 0..groups {
            let at = (p * groups + g) * LANES * E::SIZE;
            l.ahead(next.scales, at, LANES * E::SIZE);
            l.ahead(next.mins, at, LANES * E::SIZE);
            let from = p * lines_of_panel + g * group / per;
            let lines = &page.lines[from..][..((g + 1) * group).div_ceil(per) - g * group / per];
            let ahead = next.lines.as_ptr().wrapping_add(from).cast();
            let [dot] = panels_dot::<L, BITS, 1>(l, [lines], ahead, work, g * group);
            total = l.fma(dot, E::load(l, &page.scales[at..]), total);
            total = l.fma(l.splat(work.offsets[g]), E::load(l, &page.mins[at..]), total);
        }
        l.store(out, total);
    }
}

stamp! {
    /// `out += sum over t of weights[t] * value t` for values whose groups are runs of channels, a scale for each
    /// token: grids `[token / 16][channel / group][token % 16]`. `weights` is whole panels of tokens, 0 behind the last.
    fn by_token_mix(page: Page<'_>, next: Page<'_>, weights: &[f32], out: &mut [f32], work: &mut Work) = mix_body
}

#[inline(always)]
fn mix_body<L: Lanes>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    weights: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    with_elem!(page.dtype, E => match page.bits {
        2 => mix::<L, E, 2>(l, page, next, weights, out, work),
        4 => mix::<L, E, 4>(l, page, next, weights, out, work),
        _ => mix::<L, E, 8>(l, page, next, weights, out, work),
    });
}

#[inline(always)]
fn mix<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    weights: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    let (groups, tokens) = (page.dim / page.group, weights.len());
    work.room(groups * tokens, groups);
    let mut largest = l.splat(0.0);
    for four in (0..groups).step_by(FOUR) {
        let mut offsets = [l.splat(0.0); FOUR];
        for (g, offset) in (four..groups).zip(&mut offsets) {
            let x = work.x[g * tokens..][..tokens].as_chunks_mut::<LANES>().0;
            for ((b, w), x) in weights.as_chunks::<LANES>().0.iter().enumerate().zip(x) {
                let at = (b * groups + g) * LANES * E::SIZE;
                l.ahead(next.scales, at, LANES * E::SIZE);
                l.ahead(next.mins, at, LANES * E::SIZE);
                let w = l.load(w);
                let product = l.mul(w, E::load(l, &page.scales[at..]));
                l.store(x, product);
                largest = l.max_abs(largest, product);
                *offset = l.fma(w, E::load(l, &page.mins[at..]), *offset);
            }
        }
        work.offsets[four..four + FOUR].copy_from_slice(&l.sum4(offsets));
    }
    work.split(l, largest);
    let columns = Columns { page, next, tokens, work };
    let mut p = columns.mix::<L, BITS, 8>(l, 0, out);
    p = columns.mix::<L, BITS, 2>(l, p, out);
    columns.mix::<L, BITS, 1>(l, p, out);
}

/// A page of values, and the planes of its weights.
struct Columns<'a> {
    page: Page<'a>,
    next: Page<'a>,
    tokens: usize,
    work: &'a Work,
}

impl Columns<'_> {
    /// As many blocks of `N` panels as there are from `p` on; gives the next panel.
    #[inline(always)]
    fn mix<L: Lanes, const BITS: u32, const N: usize>(
        &self,
        l: L,
        mut p: usize,
        out: &mut [f32],
    ) -> usize {
        let (fields, panels) = ((8 / BITS) as usize, self.page.dim.div_ceil(LANES));
        // Planes of tokens, four bytes at a time; those behind the last token are 0.
        let (h, w) = self.work.fours(0);
        let token_lines = (self.tokens / (4 * fields)).min(self.page.lines.len() / panels);
        while p + N <= panels {
            let group: [usize; N] = std::array::from_fn(|i| (p + i) * LANES / self.page.group);
            let (mut high, mut low) = ([l.zero_i(); N], [l.zero_i(); N]);
            for t in 0..token_lines {
                let lines: &[Line; N] =
                    self.page.lines[t * panels + p..].first_chunk().expect("N panels");
                for i in 0..N {
                    l.prefetch(self.next.lines.as_ptr().wrapping_add(t * panels + p + i).cast());
                    let at = group[i] * self.tokens / 4 + t * fields;
                    let (h, w) = (&h[at..][..fields], &w[at..][..fields]);
                    line_dot::<L, BITS>(l, &lines[i], h, w, (&mut high[i], &mut low[i]));
                }
            }
            for i in 0..N {
                let offset = l.splat(self.work.offsets[group[i]]);
                let sum = l.add(self.work.value(l, high[i], low[i]), offset);
                let out = &mut out[(p + i) * LANES..];
                if let Some(out) = out.first_chunk_mut::<LANES>() {
                    let sum = l.add(l.load(out), sum);
                    l.store(out, sum);
                } else {
                    let mut lanes = [0.0; LANES];
                    l.store(&mut lanes, sum);
                    out.iter_mut().zip(lanes).for_each(|(out, v)| *out += v);
                }
            }
            p += N;
        }
        p
    }
}
