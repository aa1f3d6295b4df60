//! The laws of nodes on every node of this crate and on trees of them.

#![cfg(feature = "testing")]

use ndarray::Array2;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{
    Dense, Mask, Masked, Product, Side, Sum, Transform, Transformed, decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, Registry, ndarray};

const SIZES: [[usize; 2]; 7] = [[0, 0], [1, 1], [3, 7], [16, 16], [17, 33], [64, 65], [5, 128]];

fn random(shape: [usize; 2], seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn(shape, |_| random.next_f64() as f32 - 0.5)
}

fn dense(shape: [usize; 2], dtype: DType, seed: u64) -> Box<dyn Node> {
    Dense::from_f32(random(shape, seed).view(), dtype).unwrap().boxed()
}

fn mask(shape: [usize; 2], seed: u64) -> Mask {
    Mask::from_bools(random(shape, seed).mapv(|v| v > 0.1).view())
}

fn check(node: Box<dyn Node>) {
    check_node(node, &Registry::default(), 1e-5);
}

#[test]
fn dense_of_every_type() {
    for shape in SIZES {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            check(dense(shape, dtype, 1));
        }
    }
}

#[test]
fn sums_products_and_masks() {
    for shape @ [out, inp] in SIZES {
        check(
            Sum::new(vec![dense(shape, DType::F32, 1), dense(shape, DType::F16, 2)])
                .unwrap()
                .boxed(),
        );
        let (u, v) = (dense([out, 3], DType::F32, 3), dense([3, inp], DType::BF16, 4));
        check(Product::new(u, v).unwrap().boxed());
        let masked = Masked::new(mask(shape, 5), dense(shape, DType::F16, 6)).unwrap();
        let support = mask(shape, 5);
        for ((r, c), w) in decode(&masked).unwrap().indexed_iter() {
            assert!(support.keeps(r, c) || w.to_bits() == 0, "law 5: masked entries are exactly 0");
        }
        check(masked.boxed());
    }
}

#[test]
fn transforms_on_both_sides() {
    for shape @ [out, inp] in SIZES {
        for (side, n) in [(Side::In, inp), (Side::Out, out)] {
            let scale = (0..n).map(|i| 0.5 + i as f32).collect();
            let reversed = (0..n as u32).rev().collect();
            let spread = (0..n as u32).map(|i| 2 * i + 1).collect();
            let block = if n == 0 { 1 } else { 1 << n.trailing_zeros() };
            let signs = (0..n.div_ceil(8)).map(|i| (i as u8).wrapping_mul(37)).collect();
            let transforms = [
                Transform::scale(scale, DType::F32).unwrap(),
                Transform::index(reversed, n).unwrap(),
                Transform::index(spread, 2 * n + 1).unwrap(),
                Transform::hadamard(n, block, Vec::new()).unwrap(),
                Transform::hadamard(n, block, signs).unwrap(),
            ];
            for transform in transforms {
                check(
                    Transformed::new(side, transform, dense(shape, DType::F32, 7)).unwrap().boxed(),
                );
            }
        }
    }
}

#[test]
fn a_tree_of_everything() {
    let shape = [24, 40];
    let masked = Masked::new(mask(shape, 1), dense(shape, DType::BF16, 2)).unwrap().boxed();
    let product =
        Product::new(dense([24, 4], DType::F16, 3), dense([4, 40], DType::F32, 4)).unwrap();
    let hadamard = Transform::hadamard(40, 8, vec![0xa5; 5]).unwrap();
    let rotated = Transformed::new(Side::In, hadamard, product.boxed()).unwrap().boxed();
    let tree = Sum::new(vec![masked, rotated]).unwrap();
    check_damage(&tree, &Registry::default());
    check(tree.boxed());
}

#[test]
fn impossible_trees_are_refused() {
    let kind = |r: Result<(), tensorpress_tensor::Error>| r.unwrap_err().kind();
    let a = || dense([4, 6], DType::F32, 1);
    let b = || dense([4, 5], DType::F32, 2);
    assert_eq!(kind(Sum::new(vec![a(), b()]).map(drop)), ErrorKind::ShapeMismatch);
    assert_eq!(kind(Sum::new(vec![]).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Product::new(a(), b()).map(drop)), ErrorKind::ShapeMismatch);
    assert_eq!(kind(Masked::new(mask([4, 5], 3), a()).map(drop)), ErrorKind::ShapeMismatch);
    assert_eq!(
        kind(Transform::scale(vec![1.0, f32::NAN], DType::F32).map(drop)),
        ErrorKind::Numerical
    );
    assert_eq!(kind(Transform::scale(vec![1e-9], DType::F16).map(drop)), ErrorKind::Numerical);
    assert_eq!(kind(Transform::index(vec![0, 0], 2).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Transform::index(vec![2], 2).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Transform::hadamard(12, 8, vec![]).map(drop)), ErrorKind::InvalidArgument);
    let scale = Transform::scale(vec![1.0; 5], DType::F32).unwrap();
    assert_eq!(kind(Transformed::new(Side::In, scale, a()).map(drop)), ErrorKind::ShapeMismatch);
}
