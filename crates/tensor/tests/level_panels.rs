//! Tables of levels that are prepacked: which are, and what their products are then.

#![cfg(feature = "testing")]

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, KnownLevels, LevelFormat, LevelTable, Mask, Masked, Multiply,
    PackedPlane, Sum, Tables,
};
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{DType, Node, Registry};

const SIZES: [[usize; 2]; 6] = [[1, 1], [3, 7], [17, 96], [16, 64], [5, 192], [33, 1200]];

fn child(rows: usize, cols: usize, mut value: impl FnMut(usize) -> f32) -> Child {
    let values: Vec<f32> = (0..rows * cols).map(&mut value).collect();
    let values = Array2::from_shape_vec((rows, cols), values).unwrap();
    Child::Node(Dense::from_f32(values.view(), DType::F32).unwrap().boxed())
}

fn codes([rows, cols]: [usize; 2], bits: u8, seed: u64) -> Box<PackedPlane> {
    let mut random = SplitMix::new(seed);
    let codes = (0..rows * cols).map(|_| (random.next_u64() >> (64 - bits)) as u8);
    Box::new(PackedPlane::pack(&codes.collect::<Vec<_>>(), rows, cols, bits).unwrap())
}

/// A leaf whose levels are `level` of their number.
fn leaf(
    shape @ [rows, _]: [usize; 2],
    bits: u8,
    (blocks, tables): (Blocks, Tables),
    scaled: bool,
    level: impl FnMut(usize) -> f32,
) -> LevelTable {
    let mut format = LevelFormat::new(1 << bits, blocks).unwrap().with_tables(tables).unwrap();
    let grid = blocks.grid(shape);
    let mut beside = vec![child(tables.count(rows, grid[0] * grid[1]), 1 << bits, level)];
    match scaled {
        true => beside.push(child(grid[0], grid[1], |i| 0.01 * (1 + i % 5) as f32)),
        false => format = format.without_scales(),
    }
    if let Tables::Chosen(_) = tables {
        beside.push(Child::Plane(codes(grid, 2, 6)));
    }
    LevelTable::new(format, shape, codes(shape, bits, 5), beside).unwrap()
}

fn support([rows, cols]: [usize; 2]) -> Mask {
    Mask::from_bools(Array2::from_shape_fn((rows, cols), |(r, c)| (r * 7 + c * 5) % 3 != 1).view())
}

/// The laws hold, and once it is prepacked it is multiplied without decoding.
fn check(node: Box<dyn Node>, again: Box<dyn Node>) {
    assert_eq!(again.prepack().unwrap().multiply(), Multiply::Fused);
    check_node(node, &Registry::default(), 1e-4);
}

const SHARED: [(Blocks, Tables); 9] = [
    (Blocks::Rows(32), Tables::One),
    (Blocks::Rows(usize::MAX), Tables::One),
    (Blocks::Flat(usize::MAX), Tables::One),
    (Blocks::Rows(64), Tables::Rows(1)),
    (Blocks::Rows(1 << 20), Tables::Rows(3)),
    (Blocks::Rows(32), Tables::Chosen(3)),
    (Blocks::Rows(96), Tables::Blocks),
    (Blocks::Flat(1 << 16), Tables::Blocks),
    (Blocks::Rows(1 << 20), Tables::Chosen(1)),
];

#[test]
fn leaves_become_panels_and_obey_the_laws() {
    for shape in SIZES {
        for shared in SHARED {
            for (bits, scaled) in [(1, true), (2, false), (3, true), (4, true), (4, false)] {
                let uneven = || {
                    let mut random = SplitMix::new(7);
                    let level = move |_| random.next_f64() as f32 - 0.4;
                    leaf(shape, bits, shared, scaled, level).boxed()
                };
                let even = || {
                    let level = |i| (i % (1 << bits)) as f32 - 2.5;
                    leaf(shape, bits, shared, scaled, level).boxed()
                };
                check(uneven(), uneven());
                check(even(), even());
                if bits < 4 {
                    let masked = |node| Masked::new(support(shape), node).unwrap().boxed();
                    check(masked(uneven()), masked(uneven()));
                    check(masked(even()), masked(even()));
                }
            }
        }
    }
}

/// Dropped entries take a level that is 0; where there are 16 others, the matrix is decoded as before.
#[test]
fn masks_need_a_level_of_zero() {
    let shape = [17, 96];
    let masked = |level: fn(usize) -> f32| {
        let node = leaf(shape, 4, (Blocks::Rows(32), Tables::Rows(1)), true, level);
        Masked::new(support(shape), node.boxed()).unwrap().boxed()
    };
    let with_zero = |i: usize| if i % 16 == 3 { 0.0 } else { (i % 7) as f32 + 0.3 };
    check(masked(with_zero), masked(with_zero));
    let without = |i: usize| (i % 7) as f32 + 0.3;
    assert_eq!(masked(without).prepack().unwrap().multiply(), Multiply::Decode);
    check_node(masked(without), &Registry::default(), 1e-4);
}

#[test]
fn known_tables_and_their_outliers_are_multiplied_fused() {
    let shape @ [rows, cols] = [40, 256];
    for levels in [KnownLevels::Nf4, KnownLevels::Fp4] {
        let sum = || {
            let blocks = Blocks::Flat(64);
            let [scale_rows, scale_cols] = blocks.grid(shape);
            let scales = child(scale_rows, scale_cols, |i| 0.01 * (1 + i % 7) as f32);
            let beside = vec![Child::Node(levels.boxed()), scales];
            let format = LevelFormat::new(16, blocks).unwrap();
            let table = LevelTable::new(format, shape, codes(shape, 4, 8), beside).unwrap();
            let outliers = Array2::from_elem((rows, cols), 3.0);
            let outliers = Dense::from_f32(outliers.view(), DType::F16).unwrap().boxed();
            let kept = Array2::from_shape_fn((rows, cols), |(r, c)| (r * 31 + c) % 97 == 0);
            let outliers = Masked::new(Mask::from_bools(kept.view()), outliers).unwrap();
            Sum::new(vec![table.boxed(), outliers.boxed()]).unwrap().boxed()
        };
        check(sum(), sum());
    }
}

#[test]
fn what_has_no_panels_is_decoded() {
    let even = |i: usize| i as f32;
    for (shape, bits, blocks) in [
        ([17, 96], 5, Blocks::Rows(32)),
        ([17, 96], 4, Blocks::Rows(48)),
        ([17, 96], 4, Blocks::Flat(128)),
        ([0, 96], 4, Blocks::Rows(32)),
        ([17, 0], 4, Blocks::Rows(32)),
    ] {
        let node = || leaf(shape, bits, (blocks, Tables::One), true, even).boxed();
        assert_eq!(node().prepack().unwrap().multiply(), Multiply::Decode, "{shape:?} {blocks:?}");
        check_node(node(), &Registry::default(), 1e-4);
    }
}
