//! Weighted sums of values.

use super::super::{Line, Wide, ask};
use super::{LANES, Page, Planes, Sums, Work, add, each_block, page_kernel, rows};
use crate::Isa;

page_kernel! {
    /// `out[i] += sum over t of weights[i][t] * value t` for values whose groups are runs of channels, a scale for each
    /// token: grids `[token / 16][channel / group][token % 16]`. Rows of `weights` are whole panels of tokens, 0 behind
    /// the last.
    fn by_token_mix(weights) = widen_values, mix, mix_body
}

impl Work {
    #[inline(always)]
    fn widen_values<L: Wide, E: super::super::elem::Elem>(
        &mut self,
        l: L,
        page: Page<'_>,
        tokens: usize,
        _dim: usize,
    ) {
        self.widen_tokens::<L, E>(l, page, tokens);
    }
}

#[inline(always)]
fn mix<L: Wide, const BITS: usize>(
    l: L,
    page: Page<'_>,
    next: Page<'_>,
    weights: &[f32],
    queries: usize,
    out: &mut [f32],
    work: &mut Work,
) {
    let (tokens, dim) = (weights.len() / queries, page.dim);
    each_block!(L, queries, i, Q => {
        work.fold::<L, Q>(l, rows::<Q>(weights, i, tokens), (i == 0).then_some(next));
        // What was asked for once is on its way.
        let ahead = if i == 0 { next.lines } else { page.lines }.as_ptr();
        let (out, columns) = (&mut out[i * dim..][..Q * dim], Columns { page, ahead, tokens, work });
        let mut p = 0;
        match (L::ISA, Q) {
            (Isa::Avx512, 1) => p = columns.mix::<L, BITS, Q, 8>(l, p, out),
            (Isa::Avx512, 2) => p = columns.mix::<L, BITS, Q, 4>(l, p, out),
            _ => {}
        }
        if Q == 1 || L::ISA == Isa::Avx512 {
            p = columns.mix::<L, BITS, Q, 2>(l, p, out);
        }
        columns.mix::<L, BITS, Q, 1>(l, p, out);
    });
}

/// A page of values, and the planes of its weights.
struct Columns<'a> {
    page: Page<'a>,
    ahead: *const Line,
    tokens: usize,
    work: &'a Work,
}

impl Columns<'_> {
    /// As many blocks of `N` panels as there are from `p` on; gives the next panel.
    #[inline(always)]
    fn mix<L: Wide, const BITS: usize, const Q: usize, const N: usize>(
        &self,
        l: L,
        mut p: usize,
        out: &mut [f32],
    ) -> usize {
        let (dim, work) = (self.page.dim, self.work);
        let panels = dim.div_ceil(LANES);
        while p + N <= panels {
            let group: [usize; N] = std::array::from_fn(|i| (p + i) * LANES / self.page.group);
            let sums = if group[0] == group[N - 1] {
                self.sums::<L, BITS, Q, N, true>(l, p, group)
            } else {
                self.sums::<L, BITS, Q, N, false>(l, p, group)
            };
            for q in 0..Q {
                let step = l.splat(work.step(q));
                for i in 0..N {
                    let offset = l.splat(work.offset(q, group[i]));
                    let sum = l.mul_add(sums[i].value(l, q), step, offset);
                    let out = &mut out[q * dim..][..dim][(p + i) * LANES..];
                    if let Some(out) = out.first_chunk_mut::<LANES>() {
                        let sum = l.add(l.load(out), sum);
                        l.store(out, sum);
                    } else {
                        let mut lanes = [0.0; LANES];
                        l.store(&mut lanes, sum);
                        out.iter_mut().zip(lanes).for_each(|(out, v)| *out += v);
                    }
                }
            }
            p += N;
        }
        p
    }

    /// Sums of `N` panels from `p` on, which are in these groups, or all in the first (`SAME`).
    #[inline(always)]
    fn sums<L: Wide, const BITS: usize, const Q: usize, const N: usize, const SAME: bool>(
        &self,
        l: L,
        p: usize,
        group: [usize; N],
    ) -> [Sums<L, Q, 1>; N] {
        let (fields, panels) = (8 / BITS, self.page.dim.div_ceil(LANES));
        let row = self.work.blocks() * Q;
        let planes: [&[Planes]; N] =
            std::array::from_fn(|i| &self.work.planes()[group[i] * row..][..row]);
        // Planes of tokens, four bytes at a time; those behind the last token are 0.
        let token_lines = (self.tokens / (4 * fields)).min(self.page.lines.len() / panels);
        let lines = &self.page.lines[..token_lines * panels];
        let mut sums = [Sums::<L, Q, 1>::zero(l); N];
        let mut ahead = self.ahead.wrapping_add(p);
        for (b, lines) in lines.chunks(16 / fields * panels).enumerate() {
            let planes: [&[Planes; Q]; N] =
                std::array::from_fn(|i| planes[i][b * Q..].first_chunk().expect("Q queries"));
            for (k, lines) in lines.chunks_exact(panels).enumerate() {
                let lines: &[Line; N] = lines[p..].first_chunk().expect("N panels");
                for i in 0..N {
                    ask(ahead.wrapping_add(i).cast());
                }
                if SAME {
                    let lines = std::array::from_fn(|i| &lines[i]);
                    add::<L, BITS, Q, 1, N>(l, &mut sums, lines, planes[0], k * fields);
                } else {
                    for i in 0..N {
                        sums[i].add::<BITS>(l, &lines[i], planes[i], k * fields);
                    }
                }
                ahead = ahead.wrapping_add(panels);
            }
        }
        sums
    }
}
