//! Nodes that are built of smaller matrices: block-diagonal ones and matrix product operators.

#![cfg(feature = "testing")]

use std::collections::BTreeMap;

use ndarray::{Array2, Axis};
use serde_json::json;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{BlockDiagonal, Dense, Mask, Masked, Product, TensorTrain, decode};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, RawTensor, Registry, Storage};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

/// A node of some kind: floats, floats of a support, or a product.
fn node(rows: usize, cols: usize, seed: u64) -> Box<dyn Node> {
    let dense = |rows, cols, dtype| {
        Dense::from_f32(random(rows, cols, seed + 100).view(), dtype).unwrap().boxed()
    };
    match seed % 3 {
        0 => dense(rows, cols, DType::F16),
        1 => {
            let mask = Mask::from_bools(random(rows, cols, seed).mapv(|v| v > 0.0).view());
            Masked::new(mask, dense(rows, cols, DType::F32)).unwrap().boxed()
        }
        _ => {
            let (u, v) = (dense(rows, 2, DType::BF16), dense(2, cols, DType::F32));
            Product::new(u, v).unwrap().boxed()
        }
    }
}

#[test]
fn block_diagonal_nodes_obey_the_laws() {
    // Side by side: any blocks. Interleaved: 7 outputs and 11 inputs in 3 blocks, and others.
    let side_by_side: [&[[usize; 2]]; 4] =
        [&[[3, 5]], &[[1, 1], [4, 2], [2, 7]], &[[0, 3], [5, 1], [2, 0]], &[[40, 33], [9, 70]]];
    let interleaved: [&[[usize; 2]]; 4] =
        [&[[3, 5]], &[[3, 4], [2, 4], [2, 3]], &[[1, 1], [0, 1]], &[[33, 40], [33, 39]]];
    for (shapes, woven) in
        side_by_side.map(|s| (s, false)).into_iter().chain(interleaved.map(|s| (s, true)))
    {
        let blocks = || shapes.iter().zip(1..).map(|([r, c], seed)| node(*r, *c, seed)).collect();
        let make = if woven { BlockDiagonal::interleaved } else { BlockDiagonal::new };
        let made = make(blocks()).unwrap();
        let [out, inp] = made.shape();
        // Entry by entry, from what the documentation says.
        let mut expected = Array2::<f32>::zeros((out, inp));
        let (b, mut starts) = (shapes.len(), [0, 0]);
        for (d, block) in made.blocks().iter().enumerate() {
            let block = decode(&**block).unwrap();
            for ((r, c), value) in block.indexed_iter() {
                let at =
                    if woven { [r * b + d, c * b + d] } else { [starts[0] + r, starts[1] + c] };
                expected[at] = *value;
            }
            starts = [starts[0] + block.nrows(), starts[1] + block.ncols()];
        }
        assert_eq!(decode(&made).unwrap(), expected, "{shapes:?}, interleaved: {woven}");
        assert_eq!(made.is_interleaved(), woven);
        check_damage(&made, &Registry::default());
        check_node(made.boxed(), &Registry::default(), 1e-4);
    }
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let of =
        |shapes: &[[usize; 2]]| shapes.iter().map(|[r, c]| node(*r, *c, 0)).collect::<Vec<_>>();
    let kind = |r: Result<BlockDiagonal, tensorpress_tensor::Error>| r.unwrap_err().kind();
    assert_eq!(kind(BlockDiagonal::new(vec![])), ErrorKind::InvalidArgument);
    assert_eq!(kind(BlockDiagonal::interleaved(vec![])), ErrorKind::InvalidArgument);
    // The first of two has the odd channel.
    assert_eq!(kind(BlockDiagonal::interleaved(of(&[[1, 2], [2, 2]]))), ErrorKind::ShapeMismatch);
    assert_eq!(kind(BlockDiagonal::interleaved(of(&[[2, 1], [2, 3]]))), ErrorKind::ShapeMismatch);
    let mask = std::sync::Arc::new(Mask::from_bools(Array2::from_elem((3, 5), true).view()));
    let node = BlockDiagonal::new(of(&[[3, 5]])).unwrap().boxed();
    assert_eq!(node.keep(&mask).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// W[i, j] as the sum over all bonds, in f64.
fn by_hand(legs: &[[usize; 2]], cores: &[Array2<f32>]) -> Array2<f64> {
    let sides = [0, 1].map(|side| legs.iter().map(|leg| leg[side]).product::<usize>());
    let digits = |mut number: usize, side: usize| {
        let mut digits = vec![0; legs.len()];
        for k in (0..legs.len()).rev() {
            digits[k] = number % legs[k][side];
            number /= legs[k][side];
        }
        digits
    };
    Array2::from_shape_fn((sides[0], sides[1]), |(row, col)| {
        let (i, j) = (digits(row, 0), digits(col, 1));
        let mut state = vec![1.0f64];
        for (k, core) in cores.iter().enumerate() {
            let next = core.nrows() / legs[k][0];
            let entry =
                |to: usize, a: usize| f64::from(core[[i[k] * next + to, a * legs[k][1] + j[k]]]);
            state = (0..next)
                .map(|to| state.iter().enumerate().map(|(a, s)| s * entry(to, a)).sum())
                .collect();
        }
        state[0]
    })
}

type Case = (&'static [[usize; 2]], &'static [usize]);

#[test]
fn matrix_product_operators_obey_the_laws() {
    let cases: [Case; 8] = [
        (&[[5, 7]], &[]),
        (&[[1, 1], [1, 1]], &[1]),
        (&[[2, 3], [4, 5]], &[1]),
        (&[[3, 2], [5, 7]], &[6]),
        (&[[1, 4], [6, 1]], &[3]),
        (&[[2, 3], [3, 2], [2, 4]], &[4, 3]),
        (&[[4, 1], [1, 3], [3, 5]], &[2, 5]),
        (&[[2, 2], [2, 3], [3, 2], [2, 2]], &[3, 4, 2]),
    ];
    for (legs, bonds) in cases {
        let at = |k: usize| bonds.get(k).copied().unwrap_or(1);
        let cores: Vec<_> = legs
            .iter()
            .enumerate()
            .map(|(k, [i, j])| {
                let before = k.checked_sub(1).map_or(1, at);
                node(i * at(k), before * j, k as u64)
            })
            .collect();
        let decoded: Vec<_> = cores.iter().map(|core| decode(&**core).unwrap()).collect();
        let made = TensorTrain::new(legs.to_vec(), cores).unwrap();
        assert_eq!((made.legs(), made.bonds(), made.cores().len()), (legs, bonds, legs.len()));
        let expected = by_hand(legs, &decoded);
        let got = decode(&made).unwrap();
        assert_eq!(got.dim(), expected.dim());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{legs:?}: {got} for {expected}");
        }
        check_damage(&made, &Registry::default());
        check_node(made.boxed(), &Registry::default(), 1e-4);
    }
}

/// A node of two cores is the sum of Kronecker products of their slices.
#[test]
fn two_cores_are_a_sum_of_kronecker_products() {
    let (a, b) = ([random(2, 3, 1), random(2, 3, 2)], [random(4, 5, 3), random(4, 5, 4)]);
    // Rows (i, a) of the first, columns (a, j) of the second.
    let first = Array2::from_shape_fn((4, 3), |(row, j)| a[row % 2][[row / 2, j]]);
    let second = ndarray::concatenate(Axis(1), &[b[0].view(), b[1].view()]).unwrap();
    let cores = vec![Dense::from(first).boxed(), Dense::from(second).boxed()];
    let got = decode(&TensorTrain::new(vec![[2, 3], [4, 5]], cores).unwrap()).unwrap();
    for ((r, c), got) in got.indexed_iter() {
        let term = |t: usize| a[t][[r / 4, c / 5]] * b[t][[r % 4, c % 5]];
        assert!((got - term(0) - term(1)).abs() < 1e-6);
    }
}

#[test]
fn cores_that_do_not_fit_are_refused() {
    let dense = |r: usize, c: usize| Dense::from(random(r, c, 1)).boxed();
    let kind = |legs: Vec<[usize; 2]>, cores| TensorTrain::new(legs, cores).unwrap_err().kind();
    assert_eq!(kind(vec![], vec![]), ErrorKind::InvalidArgument);
    assert_eq!(kind(vec![[2, 2]], vec![dense(2, 2), dense(2, 2)]), ErrorKind::InvalidArgument);
    assert_eq!(kind(vec![[0, 2]], vec![dense(2, 2)]), ErrorKind::InvalidArgument);
    let wide = vec![[1 << 11, 1], [1 << 10, 1]];
    assert_eq!(kind(wide, vec![dense(2, 2), dense(2, 2)]), ErrorKind::InvalidArgument);
    assert_eq!(
        kind(vec![[1, 1]; 17], (0..17).map(|_| dense(1, 1)).collect()),
        ErrorKind::InvalidArgument
    );
    // A bond that does not go on, one that does not end, and rows that are no multiple of a leg.
    let two = || vec![[2, 2], [3, 2]];
    assert_eq!(kind(two(), vec![dense(4, 2), dense(3, 2)]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(two(), vec![dense(4, 2), dense(6, 4)]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(two(), vec![dense(3, 2), dense(3, 2)]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(two(), vec![dense(0, 2), dense(3, 0)]), ErrorKind::ShapeMismatch);
    let mask = std::sync::Arc::new(Mask::from_bools(Array2::from_elem((2, 2), true).view()));
    let node = TensorTrain::new(vec![[2, 2]], vec![dense(2, 2)]).unwrap().boxed();
    assert_eq!(node.keep(&mask).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Legs multiply, bytes do not: what a description says of either is held against the cores.
#[test]
fn descriptions_that_lie_are_corrupt() {
    let values = RawTensor::new(DType::F16, vec![2, 2], vec![0; 8].into()).unwrap();
    let core = json!({"node": "dense.v1", "dtype": "F16", "shape": [2, 2]});
    let read = |tree: serde_json::Value, count: usize| {
        let parts: BTreeMap<_, _> =
            (0..count).map(|i| (format!("w.{i}.values"), values.clone())).collect();
        Registry::default().read(&tree, "w", &parts).map(|node| node.shape()).map_err(|e| e.kind())
    };
    let train = |legs: serde_json::Value, count: usize| {
        let cores = vec![core.clone(); count];
        read(json!({"node": "tensor_train.v1", "legs": legs, "cores": cores}), count)
    };
    let corrupt = Err(ErrorKind::Corruption);
    assert_eq!(train(json!([[2, 2], [2, 2]]), 2), Ok([4, 4]));
    assert_eq!(train(json!([[1, 2], [2, 1]]), 2), Ok([2, 2]));
    assert_eq!(train(json!([[2, 2]]), 2), corrupt);
    assert_eq!(train(json!([[2, 2], [2, 1]]), 2), corrupt);
    assert_eq!(train(json!([[2, 2], [2, u64::MAX]]), 2), corrupt);
    assert_eq!(train(json!(vec![[2, 2]; 17]), 17), corrupt);
    assert_eq!(train(json!([]), 0), corrupt);
    let diagonal = |interleaved: serde_json::Value, count: usize| {
        let blocks = vec![core.clone(); count];
        let tree =
            json!({"node": "block_diagonal.v1", "interleaved": interleaved, "blocks": blocks});
        read(tree, count)
    };
    assert_eq!(diagonal(json!(true), 3), Ok([6, 6]));
    assert_eq!(diagonal(json!(false), 0), corrupt);
    assert_eq!(diagonal(json!(2), 2), corrupt);
}

/// Every part is a child's: a shape that expands costs nothing.
#[test]
fn only_cores_and_blocks_are_counted() {
    let dense = |r: usize, c: usize| Dense::from(random(r, c, 1)).boxed();
    let train = TensorTrain::new(vec![[16, 16], [16, 16]], vec![dense(32, 16), dense(16, 32)]);
    assert_eq!(Storage::of(&train.unwrap()).unwrap().bytes(), 4 * 2 * 16 * 32);
    let diagonal = BlockDiagonal::new(vec![dense(3, 4), dense(5, 6)]).unwrap();
    assert_eq!(Storage::of(&diagonal).unwrap().bytes(), 4 * (12 + 30));
}

/// A few small matrices may stand for cores of any size: what is out of all proportion to the matrix is refused before
/// anything is decoded.
#[test]
fn trains_larger_than_what_they_stand_for_are_refused() {
    let wide = || -> Box<dyn Node> {
        let legs = vec![[32, 32]; 3];
        let core = || Dense::from_f32(Array2::ones((32, 32)).view(), DType::F32).unwrap().boxed();
        Box::new(TensorTrain::new(legs, (0..3).map(|_| core()).collect()).unwrap())
    };
    let edge = |rows: usize, columns: usize| -> Box<dyn Node> {
        Dense::from_f32(Array2::ones((rows, columns)).view(), DType::F32).unwrap().boxed()
    };
    // A number that goes through a bond of 32,768, and a core of 2^30 entries that takes 12 KB.
    let cores = vec![edge(1 << 15, 1), wide(), edge(1, 1 << 15)];
    let refused = TensorTrain::new(vec![[1, 1]; 3], cores).unwrap_err();
    assert!(refused.to_string().contains("for a matrix of 1 x 1"), "{refused}");
    // The same core alone is the matrix it is.
    let alone = TensorTrain::new(vec![[1 << 15, 1 << 15]], vec![wide()]).unwrap();
    assert_eq!(alone.shape(), [1 << 15, 1 << 15]);
}
