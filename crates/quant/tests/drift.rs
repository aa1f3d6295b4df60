//! Drift correction against a plain solution in f64, what it is for, and what it does without statistics.

use tensorpress_quant::{Drift, GridSpec, Rtn};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::stats::{Batch, Calibration, Collector, CrossGram, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, ErrorKind, Group, Method, Result, Target,
};

type Matrix = Array2<f64>;

/// Keeps what it is given.
#[derive(Debug, Clone, Copy, Default)]
struct Keep;

impl Method for Keep {
    fn id(&self) -> &'static str {
        "keep"
    }
    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for Keep {
    type Node = Dense;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
        let keep = |t: &Target<'_>| Dense::from_f32(t.weight, DType::F32).map(Compressed::new);
        Ok(CompressedGroup::new(group.targets.iter().map(keep).collect::<Result<_>>()?))
    }
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Original inputs, and what compressed layers before made of them: noise, and a part that is lost in each channel.
fn streams(tokens: usize, channels: usize) -> [Array2<f32>; 2] {
    let raw = random(tokens, channels, 1);
    let original = Array2::from_shape_fn((tokens, channels), |(t, c)| {
        (1 + c % 5) as f32 * (raw[[t, c]] + 0.7 * raw[[t, (c + 1) % channels]])
    });
    let noise = random(tokens, channels, 2);
    let compressed = Array2::from_shape_fn((tokens, channels), |(t, c)| {
        let kept = if c % 3 == 0 { 0.8 } else { 1.05 };
        kept * original[[t, c]] + 0.3 * noise[[t, c]] + 0.1 * original[[t, (c + 4) % channels]]
    });
    [original, compressed]
}

fn calibration(original: &Array2<f32>, compressed: &Array2<f32>) -> Calibration {
    let needs = Needs::GRAM | Needs::of::<CrossGram>();
    let mut collector = Collector::new(compressed.ncols(), needs, 0);
    let batch = Batch::new(compressed.view()).with_original(original.view());
    collector.update_all(&batch, Par::Seq);
    collector.finish()
}

/// B A⁻¹ by elimination of the rows of (A | Bᵀ), A symmetric.
fn over(b: &Matrix, a: &Matrix) -> Matrix {
    let (n, rows) = (a.nrows(), b.nrows());
    let mut left = a.clone();
    let mut right = b.t().to_owned();
    for i in 0..n {
        let pivot =
            (i..n).max_by(|x, y| left[[*x, i]].abs().total_cmp(&left[[*y, i]].abs())).unwrap();
        for k in 0..n {
            left.swap([i, k], [pivot, k]);
        }
        for k in 0..rows {
            right.swap([i, k], [pivot, k]);
        }
        for r in (0..n).filter(|r| *r != i) {
            let factor = left[[r, i]] / left[[i, i]];
            for k in 0..n {
                left[[r, k]] -= factor * left[[i, k]];
            }
            for k in 0..rows {
                right[[r, k]] -= factor * right[[i, k]];
            }
        }
    }
    Matrix::from_shape_fn((rows, n), |(r, c)| right[[c, r]] / left[[c, c]])
}

fn relative(a: &Matrix, b: &Matrix) -> f64 {
    let size = |m: &Matrix| m.iter().map(|v| v * v).sum::<f64>().sqrt();
    size(&(a - b)) / size(b)
}

fn moved(drift: Drift<Keep>, weight: &Array2<f32>, seen: &Calibration) -> Matrix {
    let made = drift.compress(weight.view(), seen).unwrap();
    assert_eq!(made.fallback, None);
    decode(&*made.node).unwrap().mapv(f64::from)
}

#[test]
fn it_moves_weights_by_its_formula() {
    for (rows, cols, tokens) in [(7, 24, 200), (1, 1, 5), (3, 40, 90)] {
        let [original, compressed] = streams(tokens, cols);
        let (weight, seen) = (random(rows, cols, 3), calibration(&original, &compressed));
        let [x, hat, w] = [&original, &compressed, &weight].map(|m| m.mapv(f64::from));
        let (a, c) = (hat.t().dot(&hat), x.t().dot(&hat));
        for (strength, damp) in [(0.5, 0.01), (1.0, 0.01), (1.0, 0.3)] {
            let mut damped = a.clone();
            let mut diagonal = a.diag().to_vec();
            diagonal.sort_by(f64::total_cmp);
            for d in damped.diag_mut() {
                *d = *d * (1.0 + damp) + 1e-4 * diagonal[cols / 2];
            }
            let shift = over(&w.dot(&(&c - &a)), &damped);
            let expected = &w + &(shift * strength);
            let drift = Drift::new(Keep).with_strength(strength as f32).with_damp(damp as f32);
            let far = relative(&moved(drift, &weight, &seen), &expected);
            assert!(far < 2e-4, "{rows} x {cols}, strength {strength}: {far}");
        }
    }
}

#[test]
fn all_of_it_is_the_best_there_is() {
    let [original, compressed] = streams(400, 24);
    let (weight, seen) = (random(9, 24, 3), calibration(&original, &compressed));
    let [x, hat, w] = [&original, &compressed, &weight].map(|m| m.mapv(f64::from));
    let error =
        |made: &Matrix| (hat.dot(&made.t()) - x.dot(&w.t())).iter().map(|e| e * e).sum::<f64>();
    let full = Drift::new(Keep).with_strength(1.0).with_damp(0.0);
    let best = moved(full, &weight, &seen);
    let half = moved(full.with_strength(0.5), &weight, &seen);
    assert!(error(&best) < error(&half) && error(&half) < error(&w));
    for i in 0..20 {
        let off = random(9, 24, 10 + i).mapv(|v| f64::from(v) * 1e-2);
        assert!(error(&(&best + &off)) > error(&best));
    }
    // A method behind it rounds what it moved.
    let grid = GridSpec::new(8, 8);
    let made =
        Drift::new(Rtn::new(grid)).with_strength(1.0).compress(weight.view(), &seen).unwrap();
    let plain = Rtn::new(grid).compress(weight.view(), &seen).unwrap();
    let of = |node: &dyn tensorpress_tensor::Node| decode(node).unwrap().mapv(f64::from);
    assert!(error(&of(&*made.node)) < 0.5 * error(&of(&plain.node)));
}

#[test]
fn without_statistics_it_leaves_weights_alone_and_says_so() {
    let weight = random(4, 8, 3);
    let drift = Drift::new(Keep);
    let [original, compressed] = streams(60, 8);
    let nan = {
        let mut nan = original.clone();
        nan[[3, 2]] = f32::NAN;
        calibration(&nan, &compressed)
    };
    let only_gram = Calibration::from_samples(compressed.clone(), Par::Seq);
    let zero = Array2::zeros((60, 8));
    for seen in [Calibration::none(8), only_gram, nan, calibration(&original, &zero)] {
        let made = drift.compress(weight.view(), &seen).unwrap();
        assert_eq!(decode(&*made.node).unwrap(), weight);
        assert!(made.fallback.unwrap().contains("no correction of drift"));
    }
    // A channel that is always 0 behind compressed layers says nothing of its weights.
    let mut dead = compressed.clone();
    dead.column_mut(5).fill(0.0);
    let made = drift.compress(weight.view(), &calibration(&original, &dead)).unwrap();
    let made = decode(&*made.node).unwrap();
    assert_eq!(made.column(5), weight.column(5));
    assert!(made.iter().all(|w| w.is_finite()));
    // None of it is nothing.
    let seen = calibration(&original, &compressed);
    let made = drift.with_strength(0.0).compress(weight.view(), &seen).unwrap();
    assert_eq!(decode(&*made.node).unwrap(), weight);
}

#[test]
fn bad_input_is_an_error() {
    let [original, compressed] = streams(60, 8);
    let seen = calibration(&original, &compressed);
    let mut weight = random(4, 8, 3);
    for bad in [f32::NAN, -1.0] {
        let strength = Drift::new(Keep).with_strength(bad).compress(weight.view(), &seen);
        let damp = Drift::new(Keep).with_damp(bad).compress(weight.view(), &seen);
        for refused in [strength, damp] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }
    weight[[1, 2]] = f32::INFINITY;
    let refused = Drift::new(Keep).compress(weight.view(), &seen).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::Numerical, Some("weight")));
}
