//! Every instruction set of this CPU against the portable code, and that against f64 sums in plain loops.

use super::*;
use crate::Isa;
use crate::tests::{FLOATS, Random, store};

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.unit() as f32 - 0.5).collect()
}

fn near(a: &[f32], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((f64::from(*a) - b).abs() <= tolerance, "{what}: {i}: {a} against {b}");
    }
}

#[test]
fn floats() {
    for dtype in FLOATS {
        for (dim, tokens) in [(1, 1), (8, 3), (16, 5), (33, 7), (128, 20), (200, 9)] {
            let (bytes, rows) = store(dtype, &noise(dim * tokens, 1));
            several(&rows, dim, |isa, q, w, scores, mixed| {
                let (stride, first, len) = (tokens, 0, tokens);
                let out = Scores { data: scores, stride, first, len };
                float_dots(isa, dtype, &bytes, dim, q, out);
                let weights = Weights { data: w, stride, first, len };
                float_mix(isa, dtype, &bytes, dim, weights, mixed);
            });
        }
    }
}

/// Checks a kernel with 1 to 6 queries on every instruction set: it fills the scores `[queries, tokens]`, and adds to the
/// sums `[queries, dim]`.
fn several(rows: &[f32], dim: usize, kernel: impl Fn(Isa, &[f32], &[f32], &mut [f32], &mut [f32])) {
    let tokens = rows.len() / dim;
    for n in [1, 3, 4, 6] {
        let (q, w) = (noise(n * dim, 2), noise(n * tokens, 3));
        for isa in Isa::available() {
            let (mut scores, mut mixed) = (vec![f32::NAN; n * tokens], vec![1.0; n * dim]);
            kernel(isa, &q, &w, &mut scores, &mut mixed);
            for i in 0..n {
                let what = format!("{isa} {dim} x {tokens}, query {i} of {n}");
                let w = &w[i * tokens..][..tokens];
                let (dots, mut mix) = reference(rows, dim, &q[i * dim..][..dim], w);
                mix.iter_mut().for_each(|m| *m += 1.0);
                near(&scores[i * tokens..][..tokens], &dots, 1e-5, &what);
                near(&mixed[i * dim..][..dim], &mix, 1e-5, &what);
            }
        }
    }
}

fn reference(rows: &[f32], dim: usize, q: &[f32], w: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut mix = vec![0.0; dim];
    let dots = rows
        .chunks(dim)
        .zip(w)
        .map(|(row, w)| {
            row.iter().zip(&mut mix).for_each(|(x, m)| *m += f64::from(*x) * f64::from(*w));
            row.iter().zip(q).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        })
        .collect();
    (dots, mix)
}

#[test]
fn softmax_of_any_length() {
    for n in [1, 2, 15, 16, 17, 100] {
        let mut x: Vec<f32> = noise(n, 4).iter().map(|x| 30.0 * x).collect();
        if n > 2 {
            x[1] = f32::NEG_INFINITY;
        }
        let exact: Vec<f64> = x.iter().map(|x| (0.3 * f64::from(*x)).exp()).collect();
        let sum: f64 = exact.iter().sum();
        let exact: Vec<f64> = exact.iter().map(|e| e / sum).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            softmax(isa, &mut y, 0.3);
            near(&y, &exact, 1e-6, &format!("{isa} {n}"));
        }
    }
    let mut nothing = [f32::NEG_INFINITY; 20];
    softmax(Isa::detect(), &mut nothing, 1.0);
    assert_eq!(nothing, [0.0; 20]);
}

#[test]
fn softcap_of_any_length() {
    for n in [1, 15, 16, 17, 100] {
        let x: Vec<f32> = noise(n, 5).iter().map(|x| 400.0 * x).collect();
        let exact: Vec<f64> =
            x.iter().map(|x| 30.0 * (0.25 * f64::from(*x) / 30.0).tanh()).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            softcap(isa, &mut y, 0.25, 30.0);
            near(&y, &exact, 2e-5, &format!("{isa} {n}"));
        }
    }
}

#[test]
fn bitmaps() {
    for dtype in FLOATS {
        for (chunks, tokens) in [(1, 3), (2, 5), (3, 4), (4, 9), (8, 20), (13, 6)] {
            let dim = chunks * LANES;
            let mut random = Random(7);
            let masks: Vec<u16> = (0..chunks * tokens)
                .map(|i| if i == 0 { !0 } else { (random.unit() * 65536.0) as u16 })
                .collect();
            let (mut rows, mut values, mut starts) = (vec![0.0; dim * tokens], vec![], vec![]);
            for t in 0..tokens {
                starts.push(values.len() as u32);
                for c in 0..dim {
                    if masks[t * chunks + c / 16] >> (c % 16) & 1 == 1 {
                        let v = store(dtype, &[random.unit() as f32 - 0.5]).1[0];
                        rows[t * dim + c] = v;
                        values.push(v);
                    }
                }
            }
            values.extend([0.0; SLACK]);
            let (bytes, _) = store(dtype, &values);
            several(&rows, dim, |isa, q, w, scores, mixed| {
                let mut q = q.to_vec();
                q.chunks_mut(dim).for_each(|q| arrange(dtype, q));
                let page =
                    Bitmaps { dtype, chunks, masks: &masks, starts: &starts, values: &bytes };
                let (stride, first, len) = (tokens, 0, tokens);
                let out = Scores { data: scores, stride, first, len };
                bitmap_dots(isa, page, &q, out, Some(page));
                mixed.chunks_mut(dim).for_each(|m| arrange(dtype, m));
                let weights = Weights { data: w, stride, first, len };
                bitmap_mix(isa, page, weights, mixed, None);
                mixed.chunks_mut(dim).for_each(|m| restore(dtype, m));
            });
        }
    }
}
