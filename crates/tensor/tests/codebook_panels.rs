//! Sums of entries of codebooks that are prepacked: which are, and what their products are then.

#![cfg(feature = "testing")]

use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Additive, AdditiveFormat, Dense, Input, Mask, Multiply, decode};
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{Accum, DType, Node, Registry, Scratch};

const SIZES: [[usize; 2]; 6] = [[1, 1], [3, 7], [64, 96], [65, 64], [130, 193], [5, 4100]];

fn dense(rows: usize, cols: usize, mut value: impl FnMut(usize) -> f32) -> Box<dyn Node> {
    let values: Vec<f32> = (0..rows * cols).map(&mut value).collect();
    let values = Array2::from_shape_vec((rows, cols), values).unwrap();
    Dense::from_f32(values.view(), DType::F32).unwrap().boxed()
}

/// A leaf of random codes, whose scales are `scale` of their number.
fn scaled(
    [rows, cols]: [usize; 2],
    [size, books, entries]: [usize; 3],
    bits: u8,
    scale: impl FnMut(usize) -> f32,
) -> Box<dyn Node> {
    let format = AdditiveFormat::new(size, books, entries).unwrap();
    let mut random = SplitMix::new(5);
    let width = cols.div_ceil(size) * books;
    let codes: Vec<u16> =
        (0..rows * width).map(|_| (random.next_u64() >> (64 - bits)) as u16).collect();
    let bytes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
    let codebooks = dense(books * entries, size, |_| random.next_f64() as f32 - 0.5);
    let scales = dense(rows, 1, scale);
    let node = match bits {
        ..=8 => Additive::sums(format, [rows, cols], bits, &bytes, codebooks, scales),
        _ => Additive::sums(format, [rows, cols], bits, &codes, codebooks, scales),
    };
    node.unwrap().boxed()
}

fn leaf(shape: [usize; 2], format: [usize; 3], bits: u8) -> Box<dyn Node> {
    scaled(shape, format, bits, |r| 0.01 * (1 + r % 5) as f32)
}

#[test]
fn leaves_become_panels_and_obey_the_laws() {
    for shape in SIZES {
        for (format, bits) in [
            ([8, 2, 256], 8),
            ([8, 1, 256], 8),
            ([8, 3, 128], 7),
            ([4, 4, 64], 6),
            ([5, 2, 32], 5),
            ([3, 1, 16], 4),
            ([64, 2, 8], 3),
            ([7, 3, 200], 2),
            ([1, 1, 2], 1),
            ([16, 2, 256], 3),
        ] {
            let node = || leaf(shape, format, bits);
            let packed = node().prepack().unwrap();
            assert_eq!(packed.multiply(), Multiply::Fused, "{shape:?} {format:?}");
            check_node(node(), &Registry::default(), 1e-4);
        }
    }
}

#[test]
fn scales_of_rows_are_their_own() {
    let shape = [70, 300];
    for large in [0.0, 1e30, 1e-30, f32::MAX] {
        let node = || scaled(shape, [8, 2, 256], 8, |r| if r == 66 { large } else { 0.1 });
        // The largest weights have no norm.
        if large < 1e18 {
            check_node(node(), &Registry::default(), 1e-4);
        }
        let packed = node().prepack().unwrap();
        let x = Array2::from_elem((2, 300), 1.0);
        let mut y = Array2::zeros((2, 70));
        packed.matmul(x.view(), y.view_mut(), Accum::Replace, &mut Scratch::default()).unwrap();
        assert!(y.indexed_iter().all(|((_, r), y)| r == 66 || y.is_finite()), "{large}");
        assert_eq!(y[[0, 66]] == 0.0, large == 0.0);
    }
}

#[test]
fn odd_activations_spoil_their_token_alone() {
    // As many rows as three tokens need for panels on any instruction set.
    let packed = leaf([200, 300], [8, 2, 256], 8).prepack().unwrap();
    for odd in [0.0, f32::NAN, f32::INFINITY] {
        let mut x = Array2::zeros((3, 300));
        x.row_mut(0).fill(1.0);
        x[[1, 100]] = odd;
        let mut y = Array2::from_elem((3, 200), 7.0);
        let mut scratch = Scratch::new(Par::Threads(2));
        packed.matmul(x.view(), y.view_mut(), Accum::Replace, &mut scratch).unwrap();
        assert!(y.row(0).iter().all(|y| y.is_finite()));
        assert!(y.row(1).iter().all(|y| if odd == 0.0 { *y == 0.0 } else { y.is_nan() }));
        assert!(y.row(2).iter().all(|y| *y == 0.0));
    }
}

/// Any rows, by any number of threads, have the bits of the whole.
#[test]
fn parts_have_the_bits_of_the_whole() {
    let (rows, cols) = (200, 520);
    let packed = leaf([rows, cols], [8, 2, 256], 8).prepack().unwrap();
    let mut random = SplitMix::new(9);
    let x = Array2::from_shape_fn((3, cols), |_| random.next_f64() as f32 - 0.5);
    let product = |rows: Range<usize>, par| {
        let mut y = Array2::zeros((3, rows.len()));
        let (input, mut scratch) = (Input::new(x.view()), Scratch::new(par));
        let accum = Accum::Replace;
        packed.matmul_rows(rows, &input, y.view_mut(), accum, &mut scratch).unwrap();
        y
    };
    let whole = product(0..rows, Par::Seq);
    for threads in [2, 3, 7] {
        assert_eq!(product(0..rows, Par::Threads(threads)), whole);
    }
    for some in [0..1, 1..64, 63..65, 64..128, 100..200, 199..200, 50..50] {
        assert_eq!(product(some.clone(), Par::Threads(2)), whole.slice(s![.., some]));
    }
}

#[test]
fn what_has_no_panels_is_decoded() {
    let same = |node: Box<dyn Node>| {
        let before = decode(&*node).unwrap();
        let packed = node.prepack().unwrap();
        assert_eq!(packed.multiply(), Multiply::Decode);
        assert_eq!(decode(&*packed).unwrap(), before);
    };
    same(leaf([17, 96], [8, 2, 257], 8));
    same(leaf([17, 96], [8, 1, 1024], 10));
    same(leaf([17, 96], [65, 1, 256], 8));
    same(leaf([0, 96], [8, 2, 256], 8));
    same(leaf([17, 0], [8, 2, 256], 8));
    check_node(leaf([17, 96], [8, 2, 512], 9), &Registry::default(), 1e-4);
}

/// A code a weight can be dropped, which panels cannot say.
#[test]
fn masked_leaves_are_decoded() {
    let keeps = |r: usize, c: usize| (r * 7 + c * 5) % 3 != 1;
    let mask = Mask::from_bools(Array2::from_shape_fn((17, 96), |(r, c)| keeps(r, c)).view());
    let mask = Arc::new(mask);
    let masked = || leaf([17, 96], [1, 1, 16], 4).keep(&mask).unwrap();
    assert_eq!(masked().prepack().unwrap().multiply(), Multiply::Decode);
    // A support restricts what was prepacked before, too.
    let late = leaf([17, 96], [1, 1, 16], 4).prepack().unwrap().keep(&mask).unwrap();
    assert_eq!(late.multiply(), Multiply::Decode);
    let whole = decode(&*leaf([17, 96], [1, 1, 16], 4)).unwrap();
    for node in [masked().prepack().unwrap(), late] {
        for (((r, c), w), whole) in decode(&*node).unwrap().indexed_iter().zip(&whole) {
            assert_eq!(*w, if keeps(r, c) { *whole } else { 0.0 });
        }
    }
}
