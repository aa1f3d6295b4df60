//! Inputs rounded before products: levels by a slow reference, laws, and what cannot be rounded.

#![cfg(feature = "testing")]

use std::sync::Arc;

use ndarray::{Array2, array};
use serde_json::json;
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::node::{
    Dense, InputRounding, Mask, Masked, RoundedInputs, Scale, Side, Sum, Transformed,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Accum, DType, ErrorKind, Node, Registry, Scratch, Storage, ndarray};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn dense(rows: usize, cols: usize, seed: u64) -> Box<dyn Node> {
    Dense::from_f32(matrix(rows, cols, seed).view(), DType::F32).unwrap().boxed()
}

/// The nearest of all levels, found by trying every one.
fn nearest(x: f64, scale: f64, bits: u8) -> f64 {
    let most = (1i32 << (bits - 1)) - 1;
    let levels = (-most..=most).map(|code| f64::from(code) * scale);
    levels.min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).unwrap()
}

#[test]
fn products_are_those_of_the_nearest_levels() {
    let (x, w) = (matrix(9, 40, 1), matrix(7, 40, 2));
    for bits in 2..=8 {
        let most = f64::from((1i32 << (bits - 1)) - 1);
        for fixed in [None, Some(1.5f32)] {
            let rounding = match fixed {
                None => InputRounding::by_token(bits).unwrap(),
                Some(range) => InputRounding::fixed(bits, range).unwrap(),
            };
            let node = RoundedInputs::new(rounding, dense(7, 40, 2));
            let mut y = Array2::zeros((9, 7));
            node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut Scratch::new(Par::Seq))
                .unwrap();
            for ((t, r), got) in y.indexed_iter() {
                let largest = x.row(t).iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
                let scale = fixed.map_or(largest, f64::from) / most;
                let exact: f64 = (0..40)
                    .map(|c| nearest(x[[t, c]].into(), scale, bits) * f64::from(w[[r, c]]))
                    .sum();
                assert!((f64::from(*got) - exact).abs() < 1e-4, "{bits} bits: {got}, {exact}");
            }
        }
    }
}

#[test]
fn nodes_obey_the_laws() {
    let registry = Registry::default();
    let dynamic = InputRounding::by_token(8).unwrap();
    let fixed = InputRounding::fixed(8, 0.5).unwrap();
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (3, 7), (17, 33), (16, 64)] {
        for rounding in [dynamic, fixed] {
            let node = RoundedInputs::new(rounding, dense(rows, cols, 3));
            let range = u64::from(rounding.range().is_some());
            assert_eq!(Storage::of(&node).unwrap().bits(), 32 * ((rows * cols) as u64 + range));
            // Steps of a fixed range say nothing of small inputs: products have a test of their own.
            check_node(node.boxed(), &registry, if rounding == fixed { 1e6 } else { 2e-2 });
        }
    }
    let mask = Mask::from_bools(Array2::from_shape_fn((9, 20), |(r, c)| (r + c) % 3 > 0).view());
    let masked = Masked::new(mask, RoundedInputs::new(fixed, dense(9, 20, 4)).boxed()).unwrap();
    check_damage(&masked, &registry);
    check_node(masked.boxed(), &registry, 1e6);
    // Whoever decodes once and for all is told.
    let rounded = || RoundedInputs::new(dynamic, dense(4, 6, 5)).boxed();
    let scale = Arc::new(Scale::new(vec![2.0; 6], DType::F32).unwrap());
    let inside = Sum::new(vec![
        dense(4, 6, 6),
        Transformed::new(Side::In, scale, rounded()).unwrap().boxed(),
    ]);
    assert!(!inside.unwrap().boxed().is_linear() && dense(4, 6, 6).is_linear());
    // A file says what no rounding is.
    for (json, source) in [(json!(9), json!(false)), (json!(8), json!(true))] {
        let json = json!({"node": "rounded_inputs.v1", "bits": json, "static": source,
            "inner": {"node": "known_levels.v1", "name": "nf4"}});
        let none = std::collections::BTreeMap::new();
        assert!(registry.read(&json, "w", &none).is_err());
    }
}

#[test]
fn bad_numbers_are_refused_or_stay_bad() {
    let kind = |made: tensorpress_tensor::Result<InputRounding>| made.unwrap_err().kind();
    for bits in [0, 1, 9, 255] {
        assert_eq!(kind(InputRounding::by_token(bits)), ErrorKind::InvalidArgument);
    }
    for range in [-1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(kind(InputRounding::fixed(8, range)), ErrorKind::InvalidArgument);
    }
    let x = array![[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0], [1e-45, 0.0], [9.0, -1.0]];
    let mut y = Array2::zeros(x.dim());
    InputRounding::by_token(8).unwrap().round(x.view(), y.view_mut());
    assert!(y.row(0).iter().all(|v| *v == 0.0) && y.row(3).iter().all(|v| v.is_finite()));
    assert!(y.row(1).iter().chain(y.row(2)).all(|v| v.is_nan()));
    InputRounding::fixed(8, 3.0).unwrap().round(x.view(), y.view_mut());
    assert!(y[[1, 0]].is_nan() && (y[[2, 0]] - 3.0).abs() < 1e-6 && (y[[4, 0]] - 3.0).abs() < 1e-6);
    InputRounding::fixed(8, 0.0).unwrap().round(x.view(), y.view_mut());
    assert!(y[[4, 0]] == 0.0);
}
