//! What several files of tests share.
#![allow(dead_code)]

use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tokencomp::TokenMap;

pub fn values(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Values around a few shared directions: some tokens are alike.
pub fn clustered(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let directions = values(7, cols, seed + 1000);
    let mut x = values(rows, cols, seed) * 0.4;
    for (t, mut row) in x.rows_mut().into_iter().enumerate() {
        row += &directions.row((t * t + t / 3 + seed as usize) % 7);
    }
    x
}

/// A cosine, in f64.
pub fn cosine(x: ArrayView2<'_, f32>, a: usize, b: usize) -> f64 {
    let dot = |a: usize, b: usize| {
        x.row(a).iter().zip(x.row(b)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let square = dot(a, a) * dot(b, b);
    if square > 0.0 { dot(a, b) / square.sqrt() } else { 0.0 }
}

/// The tokens that a map keeps.
pub fn kept(map: &TokenMap) -> Vec<usize> {
    (0..map.sources()).filter(|token| map.target(*token).is_some()).collect()
}

/// Places in `scores` from the largest down, the first of equals.
pub fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order
}

/// As many as the largest remainders give, where no bound binds.
pub fn remainders(weights: &[f64], total: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let quotas: Vec<f64> = weights.iter().map(|w| w / sum * total as f64).collect();
    let mut found: Vec<usize> = quotas.iter().map(|q| *q as usize).collect();
    let left = total - found.iter().sum::<usize>();
    let fractions: Vec<f64> = quotas.iter().map(|q| q - q.floor()).collect();
    ranked(&fractions)[..left].iter().for_each(|i| found[*i] += 1);
    found
}

#[track_caller]
pub fn assert_near(ours: ArrayView2<'_, f32>, slow: ArrayView2<'_, f32>, within: f32) {
    assert_eq!(ours.dim(), slow.dim());
    let apart = ours.iter().zip(slow).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= within, "{apart}");
}
