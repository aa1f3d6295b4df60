//! Scalar products with keys.

use super::super::elem::Elem;
use super::super::{Line, Wide, ask, ask_all};
use super::{FOUR, LANES, Page, Work, line_dot, page_kernel};

/// Products of `P` key panels' lines with the planes from channel `first` on. While they are read, the same lines of the
/// next page are asked for.
#[inline(always)]
fn panels_dot<L: Wide, const BITS: usize, const P: usize>(
    l: L,
    lines: [&[Line]; P],
    next: *const u8,
    work: &Work,
    first: usize,
) -> [L::F; P] {
    let (mut high, mut low) = ([l.zero(); P], [l.zero(); P]);
    let fields = 8 / BITS;
    let (h, w) = work.fours(first);
    let n = lines[0].len();
    for (i, (h, w)) in h.chunks_exact(fields).zip(w.chunks_exact(fields)).enumerate().take(n) {
        for p in 0..P {
            ask(next.wrapping_add(64 * (p * n + i)));
            line_dot::<L, BITS>(l, &lines[p][i], h, w, (&mut high[p], &mut low[p]));
        }
    }
    let mut values = [l.splat(0.0); P];
    for p in 0..P {
        values[p] = work.value(l, high[p], low[p]);
    }
    values
}

page_kernel! {
    /// `out[t] = q . key t` for keys whose groups are runs of tokens, a scale for each channel:
    /// grids `[token / group][channel]`. `out` is whole groups.
    fn by_channel_dots(q) = by_channel, by_channel_body
}

#[inline(always)]
fn by_channel<L: Wide, E: Elem, const BITS: usize>(
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
            ask_all(next.scales, g * stride, stride);
            ask_all(next.mins, g * stride, stride);
            let (scales, mins) =
                (&page.scales[g * stride..][..stride], &page.mins[g * stride..][..stride]);
            let x = &mut work.x[g * padded..][..padded];
            (*offset, largest) = fold::<L, E>(l, q, scales, mins, x, largest);
        }
        work.offsets[four..four + FOUR].copy_from_slice(&l.sum4(offsets));
    }
    work.split(l, largest);
    let per = dim.div_ceil(32 / BITS);
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
fn fold<L: Wide, E: Elem>(
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
        offset = l.mul_add(q, E::load(l, &mins[at..]), offset);
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

page_kernel! {
    /// `out[t] = q . key t` for keys whose groups are runs of channels, a scale for each token:
    /// grids `[token / 16][channel / group][token % 16]`. `out` is whole panels.
    fn by_token_dots(q) = by_token, by_token_body
}

#[inline(always)]
fn by_token<L: Wide, E: Elem, const BITS: usize>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    let (dim, group, per) = (page.dim, page.group, 32 / BITS);
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
            ask_all(next.scales, at, LANES * E::SIZE);
            ask_all(next.mins, at, LANES * E::SIZE);
            let from = p * lines_of_panel + g * group / per;
            let lines = &page.lines[from..][..((g + 1) * group).div_ceil(per) - g * group / per];
            let ahead = next.lines.as_ptr().wrapping_add(from).cast();
            let [dot] = panels_dot::<L, BITS, 1>(l, [lines], ahead, work, g * group);
            total = l.mul_add(dot, E::load(l, &page.scales[at..]), total);
            total = l.mul_add(l.splat(work.offsets[g]), E::load(l, &page.mins[at..]), total);
        }
        l.store(out, total);
    }
}
