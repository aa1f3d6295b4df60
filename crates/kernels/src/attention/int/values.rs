//! Weighted sums of values.

use super::super::elem::Elem;
use super::super::{Line, Wide, ask, ask_all};
use super::{FOUR, LANES, Page, Work, line_dot, page_kernel};

page_kernel! {
    /// `out += sum over t of weights[t] * value t` for values whose groups are runs of channels, a scale for each
    /// token: grids `[token / 16][channel / group][token % 16]`. `weights` is whole panels of tokens, 0 behind the last.
    fn by_token_mix(weights) = mix, mix_body
}

#[inline(always)]
fn mix<L: Wide, E: Elem, const BITS: usize>(
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
                ask_all(next.scales, at, LANES * E::SIZE);
                ask_all(next.mins, at, LANES * E::SIZE);
                let w = l.load(w);
                let product = l.mul(w, E::load(l, &page.scales[at..]));
                l.store(x, product);
                largest = l.max_abs(largest, product);
                *offset = l.mul_add(w, E::load(l, &page.mins[at..]), *offset);
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
    fn mix<L: Wide, const BITS: usize, const N: usize>(
        &self,
        l: L,
        mut p: usize,
        out: &mut [f32],
    ) -> usize {
        let (fields, panels) = (8 / BITS, self.page.dim.div_ceil(LANES));
        // Planes of tokens, four bytes at a time; those behind the last token are 0.
        let (h, w) = self.work.fours(0);
        let token_lines = (self.tokens / (4 * fields)).min(self.page.lines.len() / panels);
        while p + N <= panels {
            let group: [usize; N] = std::array::from_fn(|i| (p + i) * LANES / self.page.group);
            let (mut high, mut low) = ([l.zero(); N], [l.zero(); N]);
            for t in 0..token_lines {
                let lines: &[Line; N] =
                    self.page.lines[t * panels + p..].first_chunk().expect("N panels");
                for i in 0..N {
                    ask(self.next.lines.as_ptr().wrapping_add(t * panels + p + i).cast());
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
