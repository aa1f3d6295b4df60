//! The laws of nodes on every node of this crate and on trees of them.

#![cfg(feature = "testing")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::Array2;
use serde_json::json;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{
    Composed, Dense, Hadamard, Index, Map, Mask, Masked, Product, Rotation, Scale, Side, Stacked,
    Sum, Transformed, decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, PartKind, RawTensor, Registry, Storage, ndarray};

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

/// A support of every form that a shape allows, and whether it keeps entry (row, column).
fn supports([rows, cols]: [usize; 2]) -> Vec<(&'static str, Mask)> {
    let from = |keep: &dyn Fn(usize, usize) -> bool| {
        Mask::from_bools(Array2::from_shape_fn((rows, cols), |(r, c)| keep(r, c)).view())
    };
    vec![
        ("random", mask([rows, cols], 5)),
        ("none", from(&|_, _| false)),
        ("all", from(&|_, _| true)),
        ("empty rows", from(&|r, c| r % 3 == 1 && (r + c) % 2 == 0)),
        ("whole rows", from(&|r, _| r % 3 == 1)),
        ("whole columns", from(&|_, c| c % 5 == 2)),
        ("2:4", from(&|r, c| (c + r + c / 4) % 4 < 2)),
        ("5:8", from(&|r, c| (c * 3 + r + c / 8) % 8 < 5)),
        ("2:16", from(&|r, c| (c * 5 + r + c / 16) % 16 < 2)),
        ("blocks of 16 x 1", from(&|r, c| (r / 16 * 7 + c * 5) % 11 < 3)),
        ("blocks of 4 x 4", from(&|r, c| (r / 4 * 3 + c / 4 * 5) % 7 < 2)),
        ("blocks of 2 x 8", from(&|r, c| (r / 2 * 3 + c / 8 * 5) % 7 < 2)),
    ]
}

#[test]
fn supports_of_every_form_and_type() {
    let mut forms = BTreeSet::new();
    for shape in SIZES {
        for (name, support) in supports(shape) {
            for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                println!("{name}, {shape:?}, {dtype:?}");
                let dense = dense(shape, dtype, 6);
                let expected = decode(&*dense).unwrap();
                let node = Masked::new(support.clone(), dense).unwrap();
                for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
                    let expected = if support.keeps(r, c) { expected[[r, c]] } else { 0.0 };
                    assert_eq!(w.to_bits(), expected.to_bits(), "law 5 at {r}, {c}");
                }
                let json = node.describe();
                let form = json.get("mask").map_or("bitmap".to_owned(), |m| m["form"].to_string());
                forms.insert(form);
                if shape == [17, 33] {
                    check_damage(&node, &Registry::default());
                }
                check(node.boxed());
            }
        }
    }
    let forms: Vec<_> = forms.iter().map(String::as_str).collect();
    assert_eq!(forms, ["\"blocks\"", "\"n_of_m\"", "bitmap"]);
}

/// Bits a weight that a mask takes in the form it is stored in.
fn mask_bits(support: Mask) -> f64 {
    let [rows, cols] = support.shape();
    let node = Masked::new(support, dense([rows, cols], DType::BF16, 1)).unwrap();
    let bytes = Storage::of(&node).unwrap().bytes_of(PartKind::Masks);
    8.0 * bytes as f64 / (rows * cols) as f64
}

#[test]
fn a_mask_takes_the_bits_of_its_smallest_form() {
    let bits = |name| {
        let support = supports([64, 128]).into_iter().find(|(other, _)| *other == name);
        mask_bits(support.expect("named above").1)
    };
    assert_eq!(bits("random"), 1.0);
    assert_eq!(bits("2:4"), 3.0 / 4.0);
    assert_eq!(bits("5:8"), 6.0 / 8.0);
    assert_eq!(bits("2:16"), 7.0 / 16.0);
    assert_eq!(bits("blocks of 16 x 1"), 1.0 / 16.0);
    assert_eq!(bits("blocks of 4 x 4"), 1.0 / 16.0);
}

#[test]
fn a_group_that_keeps_fewer_is_filled() {
    let keep = ndarray::arr2(&[[true, true, false, false, false, false, false, true]]);
    let mask = Mask::from_bools(keep.view());
    assert_eq!(mask.every(), Some([3, 8]));
    let filled = mask.to_n_of_m(2, 4).unwrap();
    assert_eq!(filled.every(), Some([2, 4]));
    let kept: Vec<_> = (0..8).filter(|c| filled.keeps(0, *c)).collect();
    assert_eq!(kept, [0, 1, 4, 7]);
    for (n, m) in [(1, 4), (5, 4), (2, 3), (2, 16)] {
        assert_eq!(mask.to_n_of_m(n, m).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

/// Reads a masked node of 2 x 8 values, of which `kept` are stored, with this mask.
fn read_masked(mask: serde_json::Value, bytes: &[u8], kept: usize) -> Result<(), ErrorKind> {
    let part = |dtype, bytes: &[u8], shape| {
        RawTensor::new(dtype, shape, bytes.to_vec().into()).expect("a part")
    };
    let parts = BTreeMap::from([
        ("w.mask".to_owned(), part(DType::U8, bytes, vec![bytes.len()])),
        ("w.inner.values".to_owned(), part(DType::F16, &vec![0; 2 * kept], vec![kept])),
    ]);
    let tree = json!({
        "node": "masked.v2", "shape": [2, 8], "mask": mask,
        "inner": {"node": "dense.v1", "dtype": "F16", "shape": [2, 8], "kept": true},
    });
    Registry::default().read(&tree, "w", &parts).map(drop).map_err(|e| e.kind())
}

#[test]
fn hostile_masks_are_refused() {
    let packed = |rows: usize, cols: usize, bits: u8| json!({"plane": "packed.v1", "bits": bits, "shape": [rows, cols]});
    let pairs = |n: u64, m: u64, plane| json!({"form": "n_of_m", "n": n, "m": m, "plane": plane});
    let blocks = |r: u64, c: u64, plane| json!({"form": "blocks", "block": [r, c], "plane": plane});
    let corrupt = Err(ErrorKind::Corruption);
    // Ranks 5 and 0, 2 and 3.
    assert_eq!(read_masked(pairs(2, 4, packed(2, 2, 3)), &[5, 2 | 3 << 3], 8), Ok(()));
    assert_eq!(read_masked(pairs(2, 4, packed(2, 2, 3)), &[6, 2 | 3 << 3], 8), corrupt);
    assert_eq!(read_masked(pairs(2, 4, packed(2, 2, 3)), &[5, 2 | 3 << 3], 7), corrupt);
    assert_eq!(read_masked(pairs(2, 4, packed(2, 3, 3)), &[0; 4], 8), corrupt);
    assert_eq!(read_masked(pairs(2, 4, packed(4, 1, 3)), &[0; 4], 8), corrupt);
    for (n, m) in [(3, 2), (1, 3), (0, 0), (8, 16), (1, 1 << 40)] {
        assert_eq!(read_masked(pairs(n, m, packed(2, 2, 3)), &[0, 0], 8), corrupt, "{n}:{m}");
    }
    assert_eq!(read_masked(blocks(2, 4, packed(1, 1, 8)), &[0b10], 8), Ok(()));
    assert_eq!(read_masked(blocks(2, 4, packed(1, 1, 8)), &[0b110], 8), corrupt);
    assert_eq!(read_masked(blocks(2, 4, packed(1, 2, 8)), &[0b10, 0], 8), corrupt);
    for (r, c) in [(0, 4), (2, 0), (1 << 20, 1), (1 << 33, 1 << 33)] {
        assert_eq!(read_masked(blocks(r, c, packed(1, 1, 8)), &[0b10], 8), corrupt, "{r} x {c}");
    }
    let bitmap = json!({"form": "bitmap", "plane": packed(2, 1, 8)});
    assert_eq!(read_masked(bitmap.clone(), &[0xff, 0], 8), Ok(()));
    assert_eq!(read_masked(bitmap, &[0xff, 0, 0], 8), corrupt);
    let other = json!({"form": "runs", "plane": packed(2, 1, 8)});
    assert_eq!(read_masked(other, &[0xff, 0], 8), Err(ErrorKind::Version));
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
            let mut maps: Vec<Arc<dyn Map>> = vec![
                Arc::new(Scale::new(scale, DType::F32).unwrap()),
                Arc::new(Index::new(reversed, n).unwrap()),
                Arc::new(Index::new(spread, 2 * n + 1).unwrap()),
                Arc::new(Hadamard::new(n, block, Vec::new()).unwrap()),
                Arc::new(Hadamard::new(n, block, signs).unwrap()),
            ];
            if n > 0 {
                let rotation = Arc::new(Rotation::new(n, n, 5).unwrap());
                let then = Arc::new(Index::new((0..n as u32).rev().collect(), n).unwrap());
                maps.push(rotation.clone());
                maps.push(Arc::new(Rotation::new(n, block, 6).unwrap()));
                maps.push(Arc::new(Composed::new(vec![rotation, then]).unwrap()));
            }
            for map in maps {
                check(Transformed::new(side, map, dense(shape, DType::F32, 7)).unwrap().boxed());
            }
        }
    }
}

#[test]
fn masks_go_through_scales_and_index_maps() {
    for shape @ [out, inp] in SIZES {
        for (side, n) in [(Side::In, inp), (Side::Out, out)] {
            let reversed = (0..n as u32).rev().collect();
            let spread: Vec<u32> = (0..n as u32).map(|i| 2 * i + 1).collect();
            let maps: [Arc<dyn Map>; 3] = [
                Arc::new(Scale::new(vec![0.5; n], DType::F32).unwrap()),
                Arc::new(Index::new(reversed, n).unwrap()),
                Arc::new(Index::new(spread, 2 * n + 1).unwrap()),
            ];
            for map in maps {
                println!("{shape:?}, {side:?}, {map:?}");
                let moved = || {
                    let dense = dense(shape, DType::F16, 7);
                    Transformed::new(side, map.clone(), dense).unwrap().boxed()
                };
                let (all, support) = (decode(&*moved()).unwrap(), mask(moved().shape(), 5));
                let node = Masked::new(support.clone(), moved()).unwrap();
                for (((r, c), w), was) in decode(&node).unwrap().indexed_iter().zip(&all) {
                    let expected = if support.keeps(r, c) { *was } else { 0.0 };
                    assert_eq!(w.to_bits(), expected.to_bits(), "law 5 at {r}, {c}");
                }
                let stored = Storage::of(&node).unwrap().bytes_of(PartKind::Values);
                let inner = map.mask(&support, side).unwrap();
                let kept = inner.kept_before(inner.shape()[0]);
                assert_eq!(stored, 2 * kept as u64, "only the support is stored");
                if shape == [17, 33] {
                    check_damage(&node, &Registry::default());
                }
                check(node.boxed());
            }
        }
    }
    let rotation = Arc::new(Rotation::new(8, 8, 5).unwrap());
    let rotated = Transformed::new(Side::In, rotation, dense([4, 8], DType::F16, 7)).unwrap();
    let refused = Masked::new(mask([4, 8], 5), rotated.boxed()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let index = Arc::new(Index::new((0..8).rev().collect(), 8).unwrap());
    let moved = Transformed::new(Side::In, index, dense([4, 8], DType::F16, 7)).unwrap().boxed();
    let narrow = Arc::new(mask([4, 7], 5));
    assert_eq!(moved.keep(&narrow).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn stacks_of_rows() {
    for [out, inp] in SIZES {
        let pieces = || {
            let second =
                Product::new(dense([out + 1, 3], DType::F32, 3), dense([3, inp], DType::BF16, 4));
            vec![
                dense([out, inp], DType::F16, 1),
                second.unwrap().boxed(),
                dense([0, inp], DType::F32, 5),
            ]
        };
        let expected = pieces().iter().map(|piece| decode(&**piece).unwrap()).collect::<Vec<_>>();
        let views: Vec<_> = expected.iter().map(|rows| rows.view()).collect();
        let expected = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
        let stack = Stacked::new(pieces()).unwrap();
        assert_eq!((stack.pieces().len(), decode(&stack).unwrap()), (3, expected));
        if [out, inp] == [17, 33] {
            check_damage(&stack, &Registry::default());
        }
        check(stack.boxed());
        // A support reaches into the pieces, which store no more than is theirs.
        let two = || vec![dense([out, inp], DType::F16, 1), dense([3, inp], DType::F32, 2)];
        let all = decode(&Stacked::new(two()).unwrap()).unwrap();
        let support = mask([out + 3, inp], 5);
        let node = Masked::new(support.clone(), Stacked::new(two()).unwrap().boxed()).unwrap();
        for (((r, c), w), was) in decode(&node).unwrap().indexed_iter().zip(&all) {
            let expected = if support.keeps(r, c) { *was } else { 0.0 };
            assert_eq!(w.to_bits(), expected.to_bits(), "law 5 at {r}, {c}");
        }
        let stored = Storage::of(&node).unwrap().bytes_of(PartKind::Values);
        let kept = [0..out, out..out + 3].map(|rows| support.kept(rows) as u64);
        assert_eq!(stored, 2 * kept[0] + 4 * kept[1]);
        if [out, inp] == [17, 33] {
            check_damage(&node, &Registry::default());
        }
        check(node.boxed());
    }
    let kind = |r: Result<Stacked, tensorpress_tensor::Error>| r.unwrap_err().kind();
    assert_eq!(kind(Stacked::new(vec![])), ErrorKind::InvalidArgument);
    let unlike = vec![dense([4, 6], DType::F32, 1), dense([4, 5], DType::F32, 2)];
    assert_eq!(kind(Stacked::new(unlike)), ErrorKind::ShapeMismatch);
    let narrow = Arc::new(mask([4, 5], 3));
    let stack = Stacked::new(vec![dense([4, 6], DType::F32, 1)]).unwrap().boxed();
    assert_eq!(stack.keep(&narrow).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

/// What a description says of the rows of a stack has to be so.
#[test]
fn a_stack_of_other_rows_than_said_is_refused() {
    let part =
        |dtype, bytes: Vec<u8>, shape| RawTensor::new(dtype, shape, bytes.into()).expect("a part");
    let piece = |rows: usize, kept: bool| {
        let mut json = json!({"node": "dense.v1", "dtype": "F16", "shape": [rows, 4]});
        if kept {
            json["kept"] = true.into();
        }
        json
    };
    let read = |rows: serde_json::Value, masked: bool| {
        let pieces = [piece(2, masked), piece(3, masked)];
        let stack = json!({"node": "stacked.v1", "rows": rows, "pieces": pieces});
        let (prefix, tree) = match masked {
            true => ("w.inner", json!({"node": "masked.v1", "shape": [5, 4], "inner": stack})),
            false => ("w", stack),
        };
        let values = |i: usize, rows: usize| {
            let kept = if masked { vec![rows] } else { vec![rows, 4] };
            let count: usize = kept.iter().product();
            (format!("{prefix}.{i}.values"), part(DType::F16, vec![0; 2 * count], kept))
        };
        let mut parts = BTreeMap::from([values(0, 2), values(1, 3)]);
        // One entry a row.
        parts.insert("w.mask".to_owned(), part(DType::U8, vec![4; 5], vec![5, 1]));
        Registry::default().read(&tree, "w", &parts).map(|node| node.shape()).map_err(|e| e.kind())
    };
    for masked in [false, true] {
        assert_eq!(read(json!([2, 3]), masked), Ok([5, 4]));
        let wrong = [json!([2, 2]), json!([5]), json!([]), json!([3, 2]), json!([usize::MAX, 3])];
        for rows in wrong {
            // Under a mask it may be the piece that finds its support to be another's.
            let refused = read(rows.clone(), masked).unwrap_err();
            let of_piece = masked && refused == ErrorKind::ShapeMismatch;
            assert!(of_piece || refused == ErrorKind::Corruption, "{rows} {masked}: {refused:?}");
        }
    }
}

#[test]
fn a_tree_of_everything() {
    let shape = [24, 40];
    let masked = Masked::new(mask(shape, 1), dense(shape, DType::BF16, 2)).unwrap().boxed();
    let product =
        Product::new(dense([24, 4], DType::F16, 3), dense([4, 40], DType::F32, 4)).unwrap();
    let hadamard = Arc::new(Hadamard::new(40, 8, vec![0xa5; 5]).unwrap());
    let rotated = Transformed::new(Side::In, hadamard, product.boxed()).unwrap().boxed();
    let rotation = Arc::new(Rotation::new(24, 24, 1).unwrap());
    let rotated = Transformed::new(Side::Out, rotation, rotated).unwrap().boxed();
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
    assert_eq!(kind(Scale::new(vec![1.0, f32::NAN], DType::F32).map(drop)), ErrorKind::Numerical);
    assert_eq!(kind(Scale::new(vec![1e-9], DType::F16).map(drop)), ErrorKind::Numerical);
    assert_eq!(kind(Index::new(vec![0, 0], 2).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Index::new(vec![2], 2).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Hadamard::new(12, 8, vec![]).map(drop)), ErrorKind::InvalidArgument);
    let scale = Arc::new(Scale::new(vec![1.0; 5], DType::F32).unwrap());
    assert_eq!(kind(Transformed::new(Side::In, scale, a()).map(drop)), ErrorKind::ShapeMismatch);
}
