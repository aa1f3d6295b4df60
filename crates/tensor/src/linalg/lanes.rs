//! Walsh-Hadamard transforms of lanes: what a matrix's rows are to its columns.

use crate::Result;

/// x := H x over `lane`s: x is cut into lanes of consecutive values, a power of two of them, and value i of all lanes is
/// transformed by the +-1 Walsh-Hadamard matrix, for each i. Not normalised. Natural order, as [`super::hadamard`].
///
/// # Panics
/// Unless the number of lanes is a power of two.
pub fn hadamard_lanes(x: &mut [f32], lane: usize) {
    let lanes = x.len() / lane.max(1);
    let made = hadamard_lanes_of(x, lane, lanes.max(1), &mut |_| Ok(()));
    made.expect("nothing can fail");
}

/// [`hadamard_lanes`] of lanes that `make` fills, `leaf` lanes at a time and in their order, as late as can be: they are
/// still in the cache when they are first transformed.
///
/// # Errors
/// Those of `make`.
///
/// # Panics
/// Unless the numbers of lanes are powers of two.
pub fn hadamard_lanes_of(
    x: &mut [f32],
    lane: usize,
    leaf: usize,
    make: &mut dyn FnMut(&mut [f32]) -> Result<()>,
) -> Result<()> {
    let lanes = x.len() / lane.max(1);
    if x.is_empty() {
        return Ok(());
    }
    let fits = lanes.is_power_of_two() && lanes * lane == x.len() && leaf.is_power_of_two();
    assert!(fits, "{} values in lanes of {lane}, {leaf} at a time", x.len());
    if lanes <= leaf {
        make(x)?;
        transform(x, lane);
        return Ok(());
    }
    let parts = (lanes / leaf).min(8);
    for part in x.chunks_exact_mut(lanes / parts * lane) {
        hadamard_lanes_of(part, lane, leaf, make)?;
    }
    combine_any(x, parts);
    Ok(())
}

/// Depth first, so that what fits in a cache is done there.
fn transform(x: &mut [f32], lane: usize) {
    let lanes = x.len() / lane;
    if lanes <= 1 {
        return;
    }
    let parts = lanes.min(8);
    if lanes > parts {
        x.chunks_exact_mut(x.len() / parts).for_each(|part| transform(part, lane));
    }
    combine_any(x, parts);
}

fn combine_any(x: &mut [f32], parts: usize) {
    match parts {
        2 => combine::<2>(x),
        4 => combine::<4>(x),
        8 => combine::<8>(x),
        _ => {}
    }
}

/// Values taken together of each part.
const WIDE: usize = 16;

/// Butterflies between R equal parts of x.
fn combine<const R: usize>(x: &mut [f32]) {
    let n = x.len() / R;
    let mut rest = x;
    let mut parts: [&mut [f32]; R] = std::array::from_fn(|_| {
        let (part, later) = std::mem::take(&mut rest).split_at_mut(n);
        rest = later;
        part
    });
    let wide = n - n % WIDE;
    for i in (0..wide).step_by(WIDE) {
        let mut v: [[f32; WIDE]; R] =
            std::array::from_fn(|r| parts[r][i..i + WIDE].try_into().expect("WIDE values"));
        butterflies(&mut v);
        for (part, v) in parts.iter_mut().zip(&v) {
            part[i..i + WIDE].copy_from_slice(v);
        }
    }
    for i in wide..n {
        let mut v: [[f32; 1]; R] = std::array::from_fn(|r| [parts[r][i]]);
        butterflies(&mut v);
        for (part, v) in parts.iter_mut().zip(&v) {
            part[i] = v[0];
        }
    }
}

#[inline(always)]
fn butterflies<const W: usize, const R: usize>(v: &mut [[f32; W]; R]) {
    let mut half = 1;
    while half < R {
        for i in (0..R).filter(|i| i & half == 0) {
            for k in 0..W {
                let (a, b) = (v[i][k], v[i + half][k]);
                (v[i][k], v[i + half][k]) = (a + b, a - b);
            }
        }
        half *= 2;
    }
}
