//! Rows of which only some entries are stored: a bit for each entry, and the values of the set bits one after another.

use tensorpress_tensor::DType;

use super::lanes::{Elem, Lanes, with_elem};
use super::{LANES, stamp};

/// Values that must lie behind the last one, because 16 are read at a time.
pub(crate) const SLACK: usize = LANES;

stamp! {
    /// `out[t] = q . row t`; row t has the masks `[t * (q.len() / 16)..]` and its values from `starts[t]` on.
    /// `q.len()` is a multiple of 16.
    fn bitmap_dots(
        dtype: DType, masks: &[u16], starts: &[u32], values: &[u8], q: &[f32], out: &mut [f32],
    ) = dots_body
}

#[inline(always)]
fn dots_body<L: Lanes>(
    l: L,
    dtype: DType,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    q: &[f32],
    out: &mut [f32],
) {
    with_elem!(dtype, E => match q.len() / LANES {
        2 => dots::<L, E, 2>(l, masks, starts, values, q, out),
        4 => dots::<L, E, 4>(l, masks, starts, values, q, out),
        8 => dots::<L, E, 8>(l, masks, starts, values, q, out),
        _ => dots_of_any_length::<L, E>(l, masks, starts, values, q, out),
    });
}

/// Where the values of a row's `N` chunks begin; 16 can be read from each place.
struct Row<'a, const N: usize> {
    values: &'a [u8],
    at: [usize; N],
}

impl<'a, const N: usize> Row<'a, N> {
    #[inline(always)]
    fn new<L: Lanes, E: Elem>(l: L, masks: &[u16], start: u32, values: &'a [u8]) -> Self {
        let mut at = [0; N];
        let mut next = start as usize * E::SIZE;
        l.prefetch(values.as_ptr().wrapping_add(next + 2048));
        l.prefetch(values.as_ptr().wrapping_add(next + 2048 + 64));
        for (at, mask) in at.iter_mut().zip(masks) {
            *at = next;
            next += mask.count_ones() as usize * E::SIZE;
        }
        // One check for the row: places ascend, and `next` is not before the last.
        assert!(next + LANES * E::SIZE <= values.len(), "values and their slack");
        Self { values, at }
    }

    #[inline(always)]
    fn values<L: Lanes, E: Elem>(&self, l: L, i: usize) -> L::F {
        // SAFETY: `new` saw that 16 values lie behind every place.
        E::load(l, unsafe { self.values.get_unchecked(self.at[i]..self.at[i] + LANES * E::SIZE) })
    }
}

#[inline(always)]
fn dots<L: Lanes, E: Elem, const N: usize>(
    l: L,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    q: &[f32],
    out: &mut [f32],
) {
    let q: &[[f32; LANES]; N] = q.as_chunks().0.first_chunk().expect("N chunks");
    for ((masks, start), out) in masks.chunks_exact(N).zip(starts).zip(out) {
        let row = Row::<N>::new::<L, E>(l, masks, *start, values);
        let mut sums = [l.splat(0.0); 2];
        for i in 0..N {
            let v = l.expand(masks[i], row.values::<L, E>(l, i));
            sums[i % 2] = l.fma(v, l.load(&q[i]), sums[i % 2]);
        }
        *out = l.sum(l.add(sums[0], sums[1]));
    }
}

#[inline(always)]
fn dots_of_any_length<L: Lanes, E: Elem>(
    l: L,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    q: &[f32],
    out: &mut [f32],
) {
    let q = q.as_chunks::<LANES>().0;
    for ((masks, start), out) in masks.chunks_exact(q.len()).zip(starts).zip(out) {
        let mut at = *start as usize * E::SIZE;
        let mut sum = l.splat(0.0);
        for (mask, q) in masks.iter().zip(q) {
            sum = l.fma(l.expand(*mask, E::load(l, &values[at..])), l.load(q), sum);
            at += mask.count_ones() as usize * E::SIZE;
        }
        *out = l.sum(sum);
    }
}

stamp! {
    /// `out += sum over t of weights[t] * row t`, rows as in [`bitmap_dots`]; `out.len()` is a multiple of 16.
    fn bitmap_mix(
        dtype: DType, masks: &[u16], starts: &[u32], values: &[u8], weights: &[f32], out: &mut [f32],
    ) = mix_body
}

#[inline(always)]
fn mix_body<L: Lanes>(
    l: L,
    dtype: DType,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    weights: &[f32],
    out: &mut [f32],
) {
    with_elem!(dtype, E => match out.len() / LANES {
        2 => mix_in_registers::<L, E, 2>(l, masks, starts, values, weights, out),
        4 => mix_in_registers::<L, E, 4>(l, masks, starts, values, weights, out),
        8 => mix_in_registers::<L, E, 8>(l, masks, starts, values, weights, out),
        _ => mix_in_memory::<L, E>(l, masks, starts, values, weights, out),
    });
}

#[inline(always)]
fn mix_in_registers<L: Lanes, E: Elem, const N: usize>(
    l: L,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    weights: &[f32],
    out: &mut [f32],
) {
    let out = out.as_chunks_mut::<LANES>().0;
    let mut sums = [l.splat(0.0); N];
    for ((masks, start), w) in masks.chunks_exact(N).zip(starts).zip(weights) {
        let row = Row::<N>::new::<L, E>(l, masks, *start, values);
        let w = l.splat(*w);
        for i in 0..N {
            sums[i] = l.fma(l.expand(masks[i], row.values::<L, E>(l, i)), w, sums[i]);
        }
    }
    for i in 0..N {
        let sum = l.add(l.load(&out[i]), sums[i]);
        l.store(&mut out[i], sum);
    }
}

#[inline(always)]
fn mix_in_memory<L: Lanes, E: Elem>(
    l: L,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    weights: &[f32],
    out: &mut [f32],
) {
    let out = out.as_chunks_mut::<LANES>().0;
    for ((masks, start), w) in masks.chunks_exact(out.len()).zip(starts).zip(weights) {
        let mut at = *start as usize * E::SIZE;
        for (mask, out) in masks.iter().zip(&mut *out) {
            let v = l.expand(*mask, E::load(l, &values[at..]));
            let sum = l.fma(v, l.splat(*w), l.load(out));
            l.store(out, sum);
            at += mask.count_ones() as usize * E::SIZE;
        }
    }
}
