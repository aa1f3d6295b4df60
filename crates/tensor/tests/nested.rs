//! The laws of grids whose scales are nodes, of supports stored as gaps, and of masks around masks.

#![cfg(feature = "testing")]

use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::form::Gaps;
use tensorpress_tensor::node::{
    Dense, Mask, MaskForm, Masked, Multiply, NestedAffine, NestedFormat, Sum, decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, PartKind, Registry, Storage, ndarray};

const SIZES: [[usize; 2]; 7] = [[0, 0], [0, 8], [8, 0], [1, 1], [3, 7], [17, 33], [40, 130]];

fn floats([rows, cols]: [usize; 2], seed: u64) -> Box<dyn Node> {
    let mut random = SplitMix::new(seed);
    let values = Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 + 0.25);
    Dense::from_f32(values.view(), DType::F16).unwrap().boxed()
}

fn nested(shape: [usize; 2], tile: [usize; 2], depth: usize) -> Box<dyn Node> {
    if depth == 0 {
        return floats(shape, 1);
    }
    let format = NestedFormat::new(tile).unwrap();
    let grids = format.grids(shape);
    let mut random = SplitMix::new(depth as u64);
    let codes: Vec<u8> =
        (0..shape[0] * shape[1]).map(|_| (random.next_u64() >> 61) as u8).collect();
    let child = || nested(grids, [3, 2], depth - 1);
    NestedAffine::nested(format, shape, 3, &codes, child(), child()).unwrap().boxed()
}

#[test]
fn grids_of_any_depth_and_tile_obey_the_laws() {
    for shape in SIZES {
        for tile in [[1, 16], [1, 5], [16, 1], [4, 4], [1 << 20, 1 << 20]] {
            for depth in 1..=3 {
                let node = nested(shape, tile, depth);
                let expected = if tile[0] == 1 { Multiply::Fused } else { Multiply::Decode };
                assert!(shape.contains(&0) || node.multiply() == expected);
                check_node(node, &Registry::default(), 1e-4);
            }
        }
    }
    check_damage(&*nested([9, 33], [1, 16], 2), &Registry::default());
    for tile in [[0, 1], [1, 0]] {
        assert_eq!(NestedFormat::new(tile).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

fn sparse([rows, cols]: [usize; 2], one_in: u64, seed: u64) -> Mask {
    let mut random = SplitMix::new(seed);
    let keep = Array2::from_shape_fn((rows, cols), |_| random.next_u64().is_multiple_of(one_in));
    Mask::from_bools(keep.view())
}

/// A mask in the form of gaps around floats.
fn kept(mask: &Mask) -> Masked {
    let form: Arc<dyn MaskForm> = Arc::new(Gaps::of(mask));
    Masked::in_form(mask.clone(), form, floats(mask.shape(), 5)).unwrap()
}

#[test]
fn gaps_hold_every_mask_and_few_bits_where_little_stays() {
    for shape in SIZES.into_iter().chain([[300, 40], [2, 9000]]) {
        for one_in in [1, 2, 10, 100, 1000, u64::MAX] {
            let node = kept(&sparse(shape, one_in, 7));
            let dense = decode(&node).unwrap();
            for ((r, c), w) in dense.indexed_iter() {
                assert_eq!(node.mask().keeps(r, c), *w != 0.0, "{r} {c}");
            }
            check_node(node.boxed(), &Registry::default(), 1e-4);
        }
    }
    let bits = |one_in| {
        let node = kept(&sparse([500, 200], one_in, 8));
        Storage::of(&node).unwrap().bytes_of(PartKind::Masks) as f64 * 8.0 / 100_000.0
    };
    // Entropies of 0.469, 0.081 and 0.011; no gap takes less than a symbol for each 255 entries.
    for (one_in, most) in [(10, 0.55), (100, 0.10), (1000, 0.04)] {
        assert!(bits(one_in) < most, "{one_in}: {}", bits(one_in));
    }
    let masks = [sparse([9, 40], 10, 9), sparse([9, 40], 10, 10)];
    let other: Arc<dyn MaskForm> = Arc::new(Gaps::of(&masks[0]));
    let refused = Masked::in_form(sparse([9, 40], 3, 11), other, floats([9, 40], 5)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    check_damage(&kept(&masks[1]), &Registry::default());
}

/// A mask may stand around one that it contains, and around sums with such; around no other.
#[test]
fn masks_stand_around_what_they_contain() {
    let outer = sparse([20, 48], 2, 12);
    let inside = Array2::from_shape_fn((20, 48), |(r, c)| outer.keeps(r, c) && (r + c) % 5 == 0);
    let inner = Mask::from_bools(inside.view());
    let sum =
        || Sum::new(vec![nested([20, 48], [1, 16], 2), kept(&inner).boxed()]).unwrap().boxed();
    let (plain, masked) = (decode(&*sum()).unwrap(), Masked::new(outer.clone(), sum()).unwrap());
    for ((r, c), w) in decode(&masked).unwrap().indexed_iter() {
        assert_eq!(*w, if outer.keeps(r, c) { plain[[r, c]] } else { 0.0 });
    }
    assert_eq!(masked.multiply(), Multiply::Fused);
    check_damage(&masked, &Registry::default());
    check_node(masked.boxed(), &Registry::default(), 1e-4);
    let other = Masked::new(inner, kept(&outer).boxed()).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Unsupported);
}
