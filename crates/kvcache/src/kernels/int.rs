//! Panels of integer codes.
//!
//! *Keys*: 16 tokens a panel, one a lane; a line holds `32 / bits` channels, four to a field of `bits` bits of each
//! lane's bytes. *Values*: 16 channels a panel, one a lane; a line holds `32 / bits` tokens in the same way. The float
//! side of a product, with the scale of its group folded in, becomes two planes of int8 (15 bits and a sign), so that
//! products are exact to 3e-5 of the largest term.

use tensorpress_tensor::DType;

use super::lanes::{Elem, Lanes, Line, with_elem};
use super::{LANES, stamp};

/// Most channels of a head, and most tokens of a page.
pub(crate) const MAX_DIM: usize = 512;

/// Codes of one page.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub(crate) bits: u32,
    pub(crate) dim: usize,
    pub(crate) lines: &'a [Line],
}

/// Scales and minima of the groups of one page, as little-endian floats.
#[derive(Clone, Copy)]
pub(crate) struct Grids<'a> {
    pub(crate) dtype: DType,
    /// Tokens (by channel) or channels (by token) that share a scale.
    pub(crate) group: usize,
    pub(crate) scales: &'a [u8],
    pub(crate) mins: &'a [u8],
}

/// Floats as `step * (128 * high + low)`.
struct Planes {
    high: [i8; MAX_DIM],
    low: [i8; MAX_DIM],
    step: f32,
}

/// The largest integer that two planes hold on both sides of zero.
const LEVELS: f32 = 16_256.0;

impl Planes {
    const EMPTY: Self = Self { high: [0; MAX_DIM], low: [0; MAX_DIM], step: 0.0 };

    /// Takes `x`, whose length is a multiple of 16.
    #[inline(always)]
    fn fill<L: Lanes>(&mut self, l: L, x: &[f32]) {
        let (chunks, _) = x.as_chunks::<LANES>();
        let mut largest = l.splat(0.0);
        for chunk in chunks {
            largest = l.max_abs(largest, l.load(chunk));
        }
        let largest = l.largest(largest);
        self.step = largest / LEVELS;
        let factor = l.splat(if self.step > 0.0 { 1.0 / self.step } else { 0.0 });
        let high = self.high.as_chunks_mut::<LANES>().0;
        let low = self.low.as_chunks_mut::<LANES>().0;
        for ((x, high), low) in chunks.iter().zip(high).zip(low) {
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
        let sum = l.fma(l.to_floats(high), l.splat(128.0), l.to_floats(low));
        l.mul(sum, l.splat(self.step))
    }
}

#[inline(always)]
fn mask(bits: u32) -> u8 {
    (255u32 >> (8 - bits)) as u8
}

/// Products of one key panel's lines with the planes from channel `first` on.
#[inline(always)]
fn panel_dot<L: Lanes, const BITS: u32>(
    l: L,
    lines: &[Line],
    planes: &Planes,
    first: usize,
) -> (L::I, L::I) {
    let (mut high, mut low) = (l.zero_i(), l.zero_i());
    let fields = (8 / BITS) as usize;
    let (h, w) = planes.fours(first);
    for ((line, h), w) in lines.iter().zip(h.chunks_exact(fields)).zip(w.chunks_exact(fields)) {
        l.prefetch((&raw const *line).cast::<u8>().wrapping_add(4096));
        let v = l.line(line);
        for i in 0..fields {
            let codes = l.bits(v, i as u32 * BITS, mask(BITS));
            high = l.dot::<BITS>(high, codes, h[i]);
            low = l.dot::<BITS>(low, codes, w[i]);
        }
    }
    (high, low)
}

stamp! {
    /// `out[t] = q . key t` for keys whose groups are runs of tokens, a scale for each channel:
    /// grids `[token / group][channel]`. `out` is whole groups.
    fn by_channel_dots(codes: Codes<'_>, grids: Grids<'_>, q: &[f32], out: &mut [f32]) = by_channel_body
}

#[inline(always)]
fn by_channel_body<L: Lanes>(l: L, codes: Codes<'_>, grids: Grids<'_>, q: &[f32], out: &mut [f32]) {
    with_elem!(grids.dtype, E => match codes.bits {
        2 => by_channel::<L, E, 2>(l, codes, grids, q, out),
        4 => by_channel::<L, E, 4>(l, codes, grids, q, out),
        _ => by_channel::<L, E, 8>(l, codes, grids, q, out),
    });
}

#[inline(always)]
fn by_channel<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    codes: Codes<'_>,
    grids: Grids<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let dim = codes.dim;
    let lines_of_panel = dim.div_ceil((32 / BITS) as usize);
    let mut x = [0.0f32; MAX_DIM];
    let mut planes = Planes::EMPTY;
    let stride = dim * E::SIZE;
    let panels = grids.group / LANES;
    for (g, out) in out.chunks_exact_mut(grids.group).enumerate() {
        let scales = &grids.scales[g * stride..][..stride];
        let mins = &grids.mins[g * stride..][..stride];
        let offset = fold::<L, E>(l, q, scales, mins, &mut x);
        planes.fill(l, &x[..dim.next_multiple_of(LANES)]);
        for (p, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let lines = &codes.lines[(g * panels + p) * lines_of_panel..][..lines_of_panel];
            let (high, low) = panel_dot::<L, BITS>(l, lines, &planes, 0);
            l.store(out, l.add(planes.value(l, high, low), l.splat(offset)));
        }
    }
}

/// `x = q * scales`; gives `q . mins`.
#[inline(always)]
fn fold<L: Lanes, E: Elem>(l: L, q: &[f32], scales: &[u8], mins: &[u8], x: &mut [f32]) -> f32 {
    let (chunks, rest) = q.as_chunks::<LANES>();
    let mut offset = l.splat(0.0);
    for ((i, q), x) in chunks.iter().enumerate().zip(x.as_chunks_mut::<LANES>().0) {
        let q = l.load(q);
        let at = i * LANES * E::SIZE;
        l.store(x, l.mul(q, E::load(l, &scales[at..])));
        offset = l.fma(q, E::load(l, &mins[at..]), offset);
    }
    let mut offset = l.sum(offset);
    for i in q.len() - rest.len()..q.len() {
        x[i] = q[i] * E::one(&scales[i * E::SIZE..]);
        offset += q[i] * E::one(&mins[i * E::SIZE..]);
    }
    offset
}

stamp! {
    /// `out[t] = q . key t` for keys whose groups are runs of channels, a scale for each token:
    /// grids `[token / 16][channel / group][token % 16]`. `out` is whole panels.
    fn by_token_dots(codes: Codes<'_>, grids: Grids<'_>, q: &[f32], out: &mut [f32]) = by_token_body
}

#[inline(always)]
fn by_token_body<L: Lanes>(l: L, codes: Codes<'_>, grids: Grids<'_>, q: &[f32], out: &mut [f32]) {
    with_elem!(grids.dtype, E => match codes.bits {
        2 => by_token::<L, E, 2>(l, codes, grids, q, out),
        4 => by_token::<L, E, 4>(l, codes, grids, q, out),
        _ => by_token::<L, E, 8>(l, codes, grids, q, out),
    });
}

#[inline(always)]
fn by_token<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    codes: Codes<'_>,
    grids: Grids<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, group) = (codes.dim, grids.group);
    let per = (32 / BITS) as usize;
    let lines_of_panel = dim.div_ceil(per);
    let groups = dim / group;
    let mut x = [0.0f32; MAX_DIM];
    x[..dim].copy_from_slice(q);
    let mut planes = Planes::EMPTY;
    planes.fill(l, &x[..dim.next_multiple_of(LANES)]);
    let mut sums = [0.0f32; MAX_DIM];
    for (sum, q) in sums.iter_mut().zip(q.chunks_exact(group)) {
        *sum = q.iter().sum();
    }
    for (p, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let panel = &codes.lines[p * lines_of_panel..][..lines_of_panel];
        let mut total = l.splat(0.0);
        for g in 0..groups {
            let at = (p * groups + g) * LANES * E::SIZE;
            let lines = &panel[g * group / per..((g + 1) * group).div_ceil(per)];
            let (high, low) = panel_dot::<L, BITS>(l, lines, &planes, g * group);
            let dot = planes.value(l, high, low);
            total = l.fma(dot, E::load(l, &grids.scales[at..]), total);
            total = l.fma(l.splat(sums[g]), E::load(l, &grids.mins[at..]), total);
        }
        l.store(out, total);
    }
}

stamp! {
    /// `out += sum over t of weights[t] * value t` for values whose groups are runs of channels, a scale for each
    /// token: grids `[token / 16][channel / group][token % 16]`. At most [`MAX_DIM`] tokens.
    fn by_token_mix(codes: Codes<'_>, grids: Grids<'_>, weights: &[f32], out: &mut [f32]) = mix_body
}

#[inline(always)]
fn mix_body<L: Lanes>(l: L, codes: Codes<'_>, grids: Grids<'_>, weights: &[f32], out: &mut [f32]) {
    with_elem!(grids.dtype, E => match codes.bits {
        2 => mix::<L, E, 2>(l, codes, grids, weights, out),
        4 => mix::<L, E, 4>(l, codes, grids, weights, out),
        _ => mix::<L, E, 8>(l, codes, grids, weights, out),
    });
}

#[inline(always)]
fn mix<L: Lanes, E: Elem, const BITS: u32>(
    l: L,
    codes: Codes<'_>,
    grids: Grids<'_>,
    weights: &[f32],
    out: &mut [f32],
) {
    let (dim, group) = (codes.dim, grids.group);
    let groups = dim / group;
    let blocks = weights.len().div_ceil(LANES);
    let mut w = [0.0f32; MAX_DIM];
    w[..weights.len()].copy_from_slice(weights);
    let mut x = [0.0f32; MAX_DIM];
    let mut planes = Planes::EMPTY;
    let token_lines = weights.len().div_ceil((32 / BITS) as usize);
    let panels = dim.div_ceil(LANES);
    for g in 0..groups {
        let mut offset = l.splat(0.0);
        for b in 0..blocks {
            let at = (b * groups + g) * LANES * E::SIZE;
            let w = l.load(&w.as_chunks().0[b]);
            l.store(&mut x.as_chunks_mut().0[b], l.mul(w, E::load(l, &grids.scales[at..])));
            offset = l.fma(w, E::load(l, &grids.mins[at..]), offset);
        }
        let offset = l.sum(offset);
        planes.fill(l, &x[..blocks * LANES]);
        let mut p = g * group / LANES;
        let end = ((g + 1) * group).div_ceil(LANES);
        let columns = Columns { lines: codes.lines, panels, token_lines, offset };
        p = columns.mix::<L, BITS, 8>(l, &planes, p, end, out);
        p = columns.mix::<L, BITS, 2>(l, &planes, p, end, out);
        columns.mix::<L, BITS, 1>(l, &planes, p, end, out);
    }
}

/// Lines of a page of values, and what to add to the panels of a group.
struct Columns<'a> {
    lines: &'a [Line],
    panels: usize,
    token_lines: usize,
    offset: f32,
}

impl Columns<'_> {
    /// Blocks of `N` panels from `p` on; gives the next panel.
    #[inline(always)]
    fn mix<L: Lanes, const BITS: u32, const N: usize>(
        &self,
        l: L,
        planes: &Planes,
        mut p: usize,
        end: usize,
        out: &mut [f32],
    ) -> usize {
        let fields = (8 / BITS) as usize;
        while p + N <= end {
            let (mut high, mut low) = ([l.zero_i(); N], [l.zero_i(); N]);
            let (hs, ws) = planes.fours(0);
            let lines = self.lines.chunks_exact(self.panels).take(self.token_lines);
            for ((lines, h), w) in lines.zip(hs.chunks_exact(fields)).zip(ws.chunks_exact(fields)) {
                let lines: &[Line; N] = lines[p..].first_chunk().expect("N panels");
                for (i, line) in lines.iter().enumerate() {
                    l.prefetch((&raw const *line).cast::<u8>().wrapping_add(4096));
                    let v = l.line(line);
                    for f in 0..fields {
                        let codes = l.bits(v, f as u32 * BITS, mask(BITS));
                        high[i] = l.dot::<BITS>(high[i], codes, h[f]);
                        low[i] = l.dot::<BITS>(low[i], codes, w[f]);
                    }
                }
            }
            for i in 0..N {
                let sum = l.add(planes.value(l, high[i], low[i]), l.splat(self.offset));
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
