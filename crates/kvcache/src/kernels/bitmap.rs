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
        _ => dots::<L, E, 0>(l, masks, starts, values, q, out),
    });
}

/// `N` = chunks of a row, 0 where it is any number.
#[inline(always)]
fn dots<L: Lanes, E: Elem, const N: usize>(
    l: L,
    masks: &[u16],
    starts: &[u32],
    values: &[u8],
    q: &[f32],
    out: &mut [f32],
) {
    let chunks = if N == 0 { q.len() / LANES } else { N };
    let q = &q.as_chunks::<LANES>().0[..chunks];
    for ((masks, start), out) in masks.chunks_exact(chunks).zip(starts).zip(out) {
        let mut at = *start as usize * E::SIZE;
        l.prefetch(values.as_ptr().wrapping_add(at + 2048));
        l.prefetch(values.as_ptr().wrapping_add(at + 2048 + 64));
        let mut sums = [l.splat(0.0); 2];
        for i in 0..chunks {
            let v = l.expand(masks[i], E::load(l, &values[at..]));
            sums[i % 2] = l.fma(v, l.load(&q[i]), sums[i % 2]);
            at += masks[i].count_ones() as usize * E::SIZE;
        }
        *out = l.sum(l.add(sums[0], sums[1]));
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
        let mut at = *start as usize * E::SIZE;
        l.prefetch(values.as_ptr().wrapping_add(at + 2048));
        l.prefetch(values.as_ptr().wrapping_add(at + 2048 + 64));
        let w = l.splat(*w);
        for i in 0..N {
            let v = l.expand(masks[i], E::load(l, &values[at..]));
            sums[i] = l.fma(v, w, sums[i]);
            at += masks[i].count_ones() as usize * E::SIZE;
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
