//! Scalar products with keys.

use super::super::{Line, Wide, ask, ask_all};
use super::{LANES, Page, Planes, Sums, Work, add, each_block, page_kernel, rows};
use crate::Isa;

page_kernel! {
    /// `out[i][t] = q[i] . key t` for keys whose groups are runs of tokens, a scale for each channel:
    /// grids `[token / group][channel]`. Rows of `out` are whole groups.
    fn by_channel_dots(q) = widen_channels, by_channel, by_channel_body
}

#[inline(always)]
fn by_channel<L: Wide, const BITS: usize>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    queries: usize,
    out: &mut [f32],
    work: &mut Work,
) {
    let tokens = out.len() / queries;
    each_block!(L, queries, i, Q => {
        work.fold::<L, Q>(l, rows::<Q>(q, i, page.dim), (i == 0).then_some(next));
        // What was asked for once is on its way.
        let ahead = if i == 0 { next.lines } else { page.lines }.as_ptr();
        let out = &mut out[i * tokens..][..Q * tokens];
        match L::ISA {
            Isa::Avx512 if Q == 1 => channels::<L, BITS, Q, 2, 2>(l, page, ahead, out, tokens, work),
            Isa::Avx512 => channels::<L, BITS, Q, 2, 1>(l, page, ahead, out, tokens, work),
            _ if Q == 1 => channels::<L, BITS, Q, 2, 1>(l, page, ahead, out, tokens, work),
            _ => channels::<L, BITS, Q, 1, 1>(l, page, ahead, out, tokens, work),
        }
    });
}

#[inline(always)]
fn channels<L: Wide, const BITS: usize, const Q: usize, const P: usize, const S: usize>(
    l: L,
    page: Page<'_>,
    ahead: *const Line,
    out: &mut [f32],
    tokens: usize,
    work: &Work,
) {
    let (per, blocks) = (page.dim.div_ceil(32 / BITS), work.blocks());
    for g in 0..tokens / page.group {
        let planes = &work.planes()[g * blocks * Q..][..blocks * Q];
        let (mut panel, end) = (g * (page.group / LANES), (g + 1) * (page.group / LANES));
        let finish = Finish { work, group: g, tokens };
        while panel + P <= end {
            let sums = panels_dot::<L, BITS, Q, P, S>(l, page.lines, ahead, panel, per, planes);
            finish.put(l, sums, panel, out);
            panel += P;
        }
        while panel < end {
            let sums = panels_dot::<L, BITS, Q, 1, S>(l, page.lines, ahead, panel, per, planes);
            finish.put(l, sums, panel, out);
            panel += 1;
        }
    }
}

/// Where the products of a group go, and what they still lack.
struct Finish<'a> {
    work: &'a Work,
    group: usize,
    tokens: usize,
}

impl Finish<'_> {
    #[inline(always)]
    fn put<L: Wide, const Q: usize, const P: usize, const S: usize>(
        &self,
        l: L,
        sums: [Sums<L, Q, S>; P],
        panel: usize,
        out: &mut [f32],
    ) {
        for q in 0..Q {
            let (step, offset) = (self.work.step(q), self.work.offset(q, self.group));
            for p in 0..P {
                let to = out[q * self.tokens + (panel + p) * LANES..].first_chunk_mut();
                let value = l.mul_add(sums[p].value(l, q), l.splat(step), l.splat(offset));
                l.store(to.expect("whole panels"), value);
            }
        }
    }
}

/// Products of `P` panels of `per` lines from panel `first` on with the planes of `Q` queries. While they are read, the
/// same lines of what comes next are asked for.
#[inline(always)]
fn panels_dot<L: Wide, const BITS: usize, const Q: usize, const P: usize, const S: usize>(
    l: L,
    lines: &[Line],
    ahead: *const Line,
    first: usize,
    per: usize,
    planes: &[Planes],
) -> [Sums<L, Q, S>; P] {
    let lines: [&[Line]; P] = std::array::from_fn(|p| &lines[(first + p) * per..][..per]);
    let (fields, mut sums) = (8 / BITS, [Sums::zero(l); P]);
    let mut ahead = ahead.wrapping_add(first * per);
    for (b, planes) in planes.as_chunks::<Q>().0.iter().enumerate() {
        let from = b * (16 / fields);
        for i in from..per.min(from + 16 / fields) {
            let lines: [&Line; P] = std::array::from_fn(|p| &lines[p][i]);
            for p in 0..P {
                ask(ahead.wrapping_add(p * per).cast());
            }
            ahead = ahead.wrapping_add(1);
            add::<L, BITS, Q, S, P>(l, &mut sums, lines, planes, i * fields);
        }
    }
    sums
}

page_kernel! {
    /// `out[i][t] = q[i] . key t` for keys whose groups are runs of channels, a scale for each token:
    /// grids `[token / 16][channel / group][token % 16]`. Rows of `out` are whole panels.
    fn by_token_dots(q) = widen_keys, by_token, by_token_body
}

impl Work {
    #[inline(always)]
    fn widen_keys<L: Wide, E: super::super::elem::Elem>(
        &mut self,
        l: L,
        page: Page<'_>,
        _dim: usize,
        tokens: usize,
    ) {
        self.widen_tokens::<L, E>(l, page, tokens);
    }
}

#[inline(always)]
fn by_token<L: Wide, const BITS: usize>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    q: &[f32],
    queries: usize,
    out: &mut [f32],
    work: &mut Work,
) {
    let tokens = out.len() / queries;
    ask_all(next.scales, 0, next.scales.len());
    ask_all(next.mins, 0, next.mins.len());
    each_block!(L, queries, i, Q => {
        let q = rows::<Q>(q, i, page.dim);
        work.split::<L, Q>(l, q, page.dim);
        let ahead = if i == 0 { next.lines } else { page.lines }.as_ptr();
        tokens_dots::<L, BITS, Q>(l, page, ahead, q, &mut out[i * tokens..][..Q * tokens], work);
    });
}

#[inline(always)]
fn tokens_dots<L: Wide, const BITS: usize, const Q: usize>(
    l: L,
    page: Page<'_>,
    ahead: *const Line,
    q: [&[f32]; Q],
    out: &mut [f32],
    work: &Work,
) {
    let (group, per, fields) = (page.group, 32 / BITS, 8 / BITS);
    let (lines_of_panel, tokens) = (page.dim.div_ceil(per), out.len() / Q);
    for g in 0..page.dim / group {
        let mut sums = [0.0f32; Q];
        for (sum, q) in sums.iter_mut().zip(q) {
            *sum = q[g * group..][..group].iter().sum();
        }
        let (from, to) = (g * group / per, ((g + 1) * group).div_ceil(per));
        for p in 0..tokens / LANES {
            let lines = &page.lines[p * lines_of_panel..][..lines_of_panel];
            let mut dots = Sums::<L, Q, 1>::zero(l);
            for (i, line) in lines.iter().enumerate().take(to).skip(from) {
                ask(ahead.wrapping_add(p * lines_of_panel + i).cast());
                let four = i * fields;
                let planes = work.planes()[four / 16 * Q..].first_chunk().expect("Q queries");
                dots.add::<BITS>(l, line, planes, four);
            }
            let [scales, mins] = work.grids(g, p);
            for i in 0..Q {
                let out: &mut [f32; LANES] =
                    out[i * tokens + p * LANES..].first_chunk_mut().expect("whole panels");
                let dot = l.mul(dots.value(l, i), l.splat(work.step(i)));
                let before = if g == 0 { l.splat(0.0) } else { l.load(out) };
                let total = l.mul_add(dot, l.load(scales), before);
                let total = l.mul_add(l.splat(sums[i]), l.load(mins), total);
                l.store(out, total);
            }
        }
    }
}
