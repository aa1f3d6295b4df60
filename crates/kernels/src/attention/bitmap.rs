//! Rows of which only some entries are stored: a bit for each entry, and the values of the set bits one after another.
//!
//! A row is spread out in registers, once for every four queries, and in segments of up to 128 entries; sums are added
//! across lanes four at a time. While a page is read, the next one is asked for.

use crate::FloatType;

use super::elem::{Elem, with_elem};
use super::{LANES, Scores, Weights, Wide, ask, ask_all, stamp};

/// Values that must lie behind the last one, because so many are read at a time.
pub const SLACK: usize = 2 * LANES;

/// Queries that share a pass, and sums that are added across lanes together.
const FOUR: usize = 4;

/// Rows of one page.
#[derive(Debug, Clone, Copy)]
pub struct Bitmaps<'a> {
    /// Type of the values.
    pub dtype: FloatType,
    /// Masks of a row, of 16 entries each.
    pub chunks: usize,
    /// `[token][chunk]`
    pub masks: &'a [u16],
    /// Where the values of a row begin, counted in values.
    pub starts: &'a [u32],
    /// Values of all rows, and [`SLACK`].
    pub values: &'a [u8],
}

/// Orders the entries of a row (whole chunks) as the kernels take queries and give sums: entries of bf16 are spread 32 at a
/// time, the even ones first.
pub fn arrange(dtype: FloatType, row: &mut [f32]) {
    reorder(dtype, row, |i| (i % LANES) * 2 + i / LANES);
}

/// Undoes [`arrange`].
pub fn restore(dtype: FloatType, row: &mut [f32]) {
    reorder(dtype, row, |i| i / 2 + (i % 2) * LANES);
}

fn reorder(dtype: FloatType, row: &mut [f32], from: impl Fn(usize) -> usize) {
    if dtype == FloatType::Bf16 {
        for pair in row.as_chunks_mut::<{ 2 * LANES }>().0 {
            let before = *pair;
            *pair = std::array::from_fn(|i| before[from(i)]);
        }
    }
}

/// `N` chunks of a row from chunk `first` on: masks, and where the values of each begin.
struct Row<'a, const N: usize> {
    masks: &'a [u16; N],
    values: &'a [u8],
    at: [usize; N],
}

impl<'a, const N: usize> Row<'a, N> {
    #[inline(always)]
    fn new<E: Elem>(masks: &'a [u16], start: u32, values: &'a [u8], first: usize) -> Self {
        let mut end = start as usize * E::SIZE;
        if first > 0 {
            for mask in &masks[..first] {
                end += mask.count_ones() as usize * E::SIZE;
            }
        }
        let masks: &[u16; N] = masks[first..].first_chunk().expect("N chunks");
        let mut at = [end; N];
        for i in (0..N).step_by(2) {
            // Two at a time makes a chain of half the length.
            at[i] = end;
            let mut both = masks[i].count_ones();
            if i + 1 < N {
                at[i + 1] = end + both as usize * E::SIZE;
                both = (u32::from(masks[i]) | u32::from(masks[i + 1]) << 16).count_ones();
            }
            end += both as usize * E::SIZE;
        }
        // One check for the segment: places ascend, and `end` is not before the last.
        assert!(end + SLACK * E::SIZE <= values.len(), "values and their slack");
        Self { masks, values, at }
    }

    #[inline(always)]
    fn values<E: Elem>(&self, i: usize) -> &[u8] {
        // SAFETY: `new` saw that `SLACK` values lie behind every place.
        unsafe { self.values.get_unchecked(self.at[i]..self.at[i] + SLACK * E::SIZE) }
    }

    /// All entries, arranged.
    #[inline(always)]
    fn spread<L: Wide, E: Elem>(&self, l: L) -> [L::F; N] {
        let mut out = [l.splat(0.0); N];
        if E::PAIRED && N > 1 {
            for i in (0..N).step_by(2) {
                let mask = u32::from(self.masks[i]) | u32::from(self.masks[i + 1]) << 16;
                [out[i], out[i + 1]] = E::spread_pair(l, mask, self.values::<E>(i));
            }
        } else {
            for i in 0..N {
                out[i] = E::spread(l, self.masks[i], self.values::<E>(i));
            }
        }
        out
    }
}

impl<'a> Bitmaps<'a> {
    /// Masks and first value of each row.
    #[inline(always)]
    fn rows(&self) -> impl Iterator<Item = (&'a [u16], u32)> + use<'a> {
        self.masks.chunks_exact(self.chunks).zip(self.starts.iter().copied())
    }

    /// Asks for what stands at the same place of the next page.
    #[inline(always)]
    fn ahead(next: Option<Self>, start: u32, t: usize) {
        if let Some(next) = next {
            // Two lines whatever the row takes: a loop would be a branch that nobody can foresee.
            ask_all(next.values, start as usize * next.dtype.size(), 128);
            ask(next.masks.as_ptr().wrapping_add(t * next.chunks).cast());
        }
    }
}

/// Calls `$call` with each segment of a row: `N` chunks from `first` on.
macro_rules! segments {
    ($chunks:expr, ($($most:literal)*), $first:ident, $N:ident => $call:expr) => {
        match $chunks {
            // Rows of one segment, where the compiler sees that it is the first.
            $($most => {
                const $N: usize = $most;
                let $first = 0;
                $call
            })*
            chunks => {
                let mut $first = 0;
                $(while chunks - $first >= $most {
                    const $N: usize = $most;
                    $call;
                    $first += $N;
                })*
            }
        }
    };
}

stamp! {
    /// `out[i][t] = queries[i] . row t` for arranged queries.
    pub fn bitmap_dots(
        rows: Bitmaps<'_>, queries: &[f32], out: Scores<'_>, next: Option<Bitmaps<'_>>,
    ) = dots_body
}

#[inline(always)]
fn dots_body<L: Wide>(
    l: L,
    rows: Bitmaps<'_>,
    queries: &[f32],
    mut out: Scores<'_>,
    next: Option<Bitmaps<'_>>,
) {
    with_elem!(rows.dtype, E => segments!(rows.chunks, (8 4 2 1), first, N => {
        dots::<L, E, N>(l, rows, first, queries, &mut out, next.filter(|_| first == 0));
    }));
}

#[inline(always)]
fn dots<L: Wide, E: Elem, const N: usize>(
    l: L,
    rows: Bitmaps<'_>,
    first: usize,
    queries: &[f32],
    out: &mut Scores<'_>,
    next: Option<Bitmaps<'_>>,
) {
    let dim = rows.chunks * LANES;
    let n = queries.len() / dim;
    let fours = n / FOUR * FOUR;
    let segment = |i: usize| -> &[[f32; LANES]; N] {
        queries[i * dim + first * LANES..].as_chunks().0.first_chunk().expect("N chunks")
    };
    for i in (0..fours).step_by(FOUR) {
        let q: [_; FOUR] = std::array::from_fn(|j| segment(i + j));
        for (t, (masks, start)) in rows.rows().enumerate() {
            Bitmaps::ahead(next, start, t);
            let row = Row::<N>::new::<E>(masks, start, rows.values, first).spread::<L, E>(l);
            let mut sums = [l.splat(0.0); FOUR];
            for j in 0..FOUR {
                sums[j] = dot::<L, N>(l, row, load(l, q[j]));
            }
            for (j, sum) in l.sum4(sums).into_iter().enumerate() {
                let to = &mut out.row(i + j)[t];
                *to = if first == 0 { sum } else { *to + sum };
            }
        }
    }
    for i in fours..n {
        let q = load(l, segment(i));
        for (t, ((masks, start), to)) in rows.rows().zip(out.row(i)).enumerate() {
            Bitmaps::ahead(next, start, t);
            let row = Row::<N>::new::<E>(masks, start, rows.values, first).spread::<L, E>(l);
            let sum = l.sum(dot::<L, N>(l, row, q));
            *to = if first == 0 { sum } else { *to + sum };
        }
    }
}

#[inline(always)]
fn load<L: Wide, const N: usize>(l: L, q: &[[f32; LANES]; N]) -> [L::F; N] {
    let mut out = [l.splat(0.0); N];
    for c in 0..N {
        out[c] = l.load(&q[c]);
    }
    out
}

#[inline(always)]
fn dot<L: Wide, const N: usize>(l: L, row: [L::F; N], q: [L::F; N]) -> L::F {
    let mut sums = [l.splat(0.0); 2];
    for c in 0..N {
        sums[c % 2] = l.mul_add(row[c], q[c], sums[c % 2]);
    }
    l.add(sums[0], sums[1])
}

stamp! {
    /// `out[i] += sum over t of weights[i][t] * row t`, `out` arranged.
    pub fn bitmap_mix(
        rows: Bitmaps<'_>, weights: Weights<'_>, out: &mut [f32], next: Option<Bitmaps<'_>>,
    ) = mix_body
}

#[inline(always)]
fn mix_body<L: Wide>(
    l: L,
    rows: Bitmaps<'_>,
    weights: Weights<'_>,
    out: &mut [f32],
    next: Option<Bitmaps<'_>>,
) {
    let dim = rows.chunks * LANES;
    for (i, out) in out.chunks_mut(FOUR * dim).enumerate() {
        let i = FOUR * i;
        let next = next.filter(|_| i == 0);
        with_elem!(rows.dtype, E => if out.len() == FOUR * dim {
            segments!(rows.chunks, (4 2 1), first, N => {
                let next = next.filter(|_| first == 0);
                mix::<L, E, N, FOUR>(l, rows, first, weights, i, out, next);
            });
        } else {
            for (j, out) in out.chunks_mut(dim).enumerate() {
                segments!(rows.chunks, (8 4 2 1), first, N => {
                    let next = next.filter(|_| first + j == 0);
                    mix::<L, E, N, 1>(l, rows, first, weights, i + j, out, next);
                });
            }
        });
    }
}

/// The sums of `Q` queries from query `i` on, in registers.
#[inline(always)]
fn mix<L: Wide, E: Elem, const N: usize, const Q: usize>(
    l: L,
    rows: Bitmaps<'_>,
    first: usize,
    weights: Weights<'_>,
    i: usize,
    out: &mut [f32],
    next: Option<Bitmaps<'_>>,
) {
    let weights: [&[f32]; Q] = std::array::from_fn(|q| weights.row(i + q));
    let mut sums = [[l.splat(0.0); N]; Q];
    for (t, (masks, start)) in rows.rows().enumerate() {
        Bitmaps::ahead(next, start, t);
        let row = Row::<N>::new::<E>(masks, start, rows.values, first).spread::<L, E>(l);
        for q in 0..Q {
            let w = l.splat(weights[q][t]);
            for c in 0..N {
                sums[q][c] = l.mul_add(row[c], w, sums[q][c]);
            }
        }
    }
    for (out, sums) in out.chunks_mut(rows.chunks * LANES).zip(sums) {
        let out = out[first * LANES..][..N * LANES].as_chunks_mut::<LANES>().0;
        for (out, sum) in out.iter_mut().zip(sums) {
            let sum = l.add(l.load(out), sum);
            l.store(out, sum);
        }
    }
}
