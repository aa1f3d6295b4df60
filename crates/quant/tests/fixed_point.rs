//! AdaPT's PushDown: the smallest words by a slow search, laws, bad input, real layers.

use tensorpress_quant::{AdaPt, FixedPoint, gradient_diversity};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, array};
use tensorpress_tensor::node::{decode, to_bytes};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Layer;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Compress, ErrorKind, Group, Node, Registry, Storage, Target};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// The divergence as the definition says it: bins one by one, rounding by a search among all levels.
fn slow_divergence(w: &Array2<f32>, word: u32, fraction: i32, bins: usize) -> f64 {
    let half = 1i64 << (word - 1);
    let step = 2f64.powi(-fraction);
    let levels: Vec<f64> = (-half..half).map(|code| code as f64 * step).collect();
    let round = |x: f64| {
        let at = levels.partition_point(|level| *level < x);
        let near = [at.saturating_sub(1), at.min(levels.len() - 1)].map(|i| levels[i]);
        if (near[0] - x).abs() < (near[1] - x).abs() { near[0] } else { near[1] }
    };
    let values: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let edge = |i: usize| low + (high - low) * i as f64 / bins as f64;
    let share = |i: usize, values: &[f64]| {
        let inside = |v: &&f64| (i == 0 || **v >= edge(i)) && (i + 1 == bins || **v < edge(i + 1));
        (values.iter().filter(inside).count() as f64 + 0.5)
            / (values.len() as f64 + 0.5 * bins as f64)
    };
    let rounded: Vec<f64> = values.iter().map(|v| round(*v)).collect();
    (0..bins)
        .map(|i| (share(i, &values), share(i, &rounded)))
        .map(|(p, q)| p * (p / q).log2() * std::f64::consts::LN_2)
        .sum()
}

#[test]
fn words_are_the_shortest() {
    for (seed, size) in [(1, 1.0f32), (2, 0.03), (3, 37.0)] {
        let w = matrix(16, 20, seed) * size;
        for (bound, bins) in [(0.5, 20), (0.05, 30), (0.3, 60)] {
            let adapt = AdaPt::default().with_divergence(bound).with_resolution(bins);
            let (format, divergence) = adapt.push_down(w.view()).unwrap();
            let own = slow_divergence(&w, format.word.into(), format.fraction.into(), bins);
            assert!((own - divergence).abs() < 1e-9, "{format:?}: {divergence}, {own}");
            assert!(divergence < bound);
            // No shorter word that holds all weights does.
            let largest = w.iter().fold(0f64, |m, w| m.max(f64::from(w.abs())));
            for word in 2..u32::from(format.word) {
                let holds = |fraction: &i32| 2f64.powi(word as i32 - 1 - fraction) >= largest;
                let fraction = (-20..40).rev().find(holds).unwrap();
                let shorter = slow_divergence(&w, word, fraction, bins);
                assert!(shorter >= bound, "{word} bits: {shorter} < {bound}, chosen {format:?}");
            }
        }
    }
}

#[test]
fn formats_round_to_nearest() {
    let format = FixedPoint { word: 4, fraction: 2 };
    for (x, rounded) in [(0.3, 0.25), (0.375, 0.5), (9.0, 1.75), (-9.0, -2.0), (-0.1, 0.0)] {
        assert_eq!(format.round(x), rounded, "{x}");
    }
    assert_eq!(FixedPoint { word: 3, fraction: -4 }.round(100.0), 48.0);
}

#[test]
fn diversity_is_that_of_the_definition() {
    let (a, b) = (array![[1.0f32, 0.0]], array![[0.0f32, 2.0]]);
    assert_eq!(gradient_diversity(&[a.view(), b.view()]).unwrap(), 1.0);
    assert_eq!(gradient_diversity(&[a.view(), a.view(), a.view()]).unwrap(), 1.0 / 3.0);
    let back = &a * -1.0;
    assert_eq!(gradient_diversity(&[a.view(), back.view()]).unwrap(), f64::INFINITY);
    let none = Array2::<f32>::zeros((1, 2));
    assert_eq!(gradient_diversity(&[none.view()]).unwrap(), 1.0);
    let kind = |g: &[tensorpress_tensor::ndarray::ArrayView2<'_, f32>]| {
        gradient_diversity(g).unwrap_err().kind()
    };
    assert_eq!(kind(&[]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[a.view(), a.t()]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[array![[f32::NAN]].view()]), ErrorKind::Numerical);
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 37), (20, 64)] {
        for bound in [0.5, 1e-7] {
            let w = matrix(rows, cols, 4);
            let adapt = AdaPt::default().with_divergence(bound).with_resolution(1000);
            let node = adapt.compress(w.view(), &Calibration::none(cols)).unwrap().node;
            let (format, _) = adapt.push_down(w.view()).unwrap();
            let row = (cols * usize::from(format.word)).div_ceil(8) * 8;
            let zero = usize::from(format.word).div_ceil(8) * 8;
            assert_eq!(Storage::of(&node).unwrap().bits(), (rows * row + zero + 32) as u64);
            for (d, w) in decode(&node).unwrap().iter().zip(&w) {
                assert_eq!(*d, format.round(*w));
            }
            check_node(node.boxed(), &Registry::default(), 1e-4);
        }
    }
    let made = AdaPt::default().compress(matrix(6, 20, 5).view(), &Calibration::none(20)).unwrap();
    check_damage(&made.node, &Registry::default());
}

#[test]
fn bad_numbers_are_refused_and_flat_ones_fit() {
    let mut w = matrix(8, 12, 6);
    let none = Calibration::none(12);
    for (case, w) in [
        Array2::zeros((8, 12)),
        Array2::from_elem((8, 12), -0.3),
        Array2::from_shape_fn((8, 12), |(r, _)| r as f32),
        w.mapv(|w| w * 1e37),
        w.mapv(|w| w * 1e-37),
        Array2::from_shape_fn((8, 12), |(r, c)| if r + c == 0 { 1e30 } else { 1e-30 }),
    ]
    .into_iter()
    .enumerate()
    {
        let made = AdaPt::default().compress(w.view(), &none).unwrap();
        assert!(decode(&made.node).unwrap().iter().all(|w| w.is_finite()), "case {case}");
    }
    let fine = AdaPt::default().with_divergence(1e-12).with_resolution(1 << 16);
    let made = fine.compress(matrix(60, 60, 7).view(), &Calibration::none(60)).unwrap();
    assert!(made.fallback.unwrap().contains("16 bits"));
    let kind = |adapt: AdaPt| adapt.compress(w.view(), &none).unwrap_err().kind();
    let plain = AdaPt::default();
    for bad in [
        plain.with_divergence(0.0),
        plain.with_divergence(f64::NAN),
        plain.with_resolution(1),
        plain.with_resolution(1 << 20),
    ] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument);
    }
    w[[2, 3]] = f32::NAN;
    let error = AdaPt::default().compress(w.view(), &none).unwrap_err();
    assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("[2, 3]"));
}

#[test]
fn real_layers() {
    let Some(folder) = data::find("golden/weights") else { return };
    for name in ["l2_query", "l2_ffn_up", "l2_ffn_down"] {
        let layer = Layer::read(&folder, name);
        let none = Calibration::none(layer.weight.ncols());
        let mut before = f64::INFINITY;
        for bound in [0.1, 0.01, 0.001] {
            let adapt = AdaPt::default().with_divergence(bound);
            let (format, divergence) = adapt.push_down(layer.weight.view()).unwrap();
            let node = adapt.compress(layer.weight.view(), &none).unwrap().node;
            let error = layer.output_error(decode(&node).unwrap().view());
            println!(
                "{name}: below {bound}: {} bits, {} behind the point, divergence {divergence:.5}, output error {error:.5}",
                format.word, format.fraction
            );
            assert!(divergence < bound && error <= 1.001 * before);
            before = error;
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (a, b) = (matrix(40, 64, 8), matrix(24, 64, 9));
    let run = |par: Par| {
        let mut group = Group::single(Target::new("a", a.view()), Calibration::none(64));
        group.targets.push(Target::new("b", b.view()));
        group.par = par;
        let made = AdaPt::default().compress_group(group).unwrap();
        made.layers.iter().map(|layer| to_bytes(&layer.node).unwrap()).collect::<Vec<_>>()
    };
    assert!(run(Par::Seq) == run(Par::Rayon));
}
