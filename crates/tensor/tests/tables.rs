//! Leaves of several tables of levels, and of grids whose zero points are real numbers.

#![cfg(feature = "testing")]

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, GroupedAffine, LevelFormat, LevelTable, Mask, Masked, PackedPlane, Plane,
    SymbolBuf, Tables, decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, PartKind, Registry, Storage};

const SIZES: [[usize; 2]; 8] =
    [[0, 0], [0, 8], [8, 0], [1, 1], [3, 7], [17, 33], [16, 64], [5, 130]];

fn check(node: impl Node + 'static) {
    check_node(node.boxed(), &Registry::default(), 1e-4);
}

fn symbols(count: usize, bits: u8, seed: u64) -> Vec<u16> {
    let mut random = SplitMix::new(seed);
    (0..count).map(|_| (random.next_u64() >> 48) as u16 >> (16 - bits)).collect()
}

fn bytes(count: usize, bits: u8, seed: u64) -> Vec<u8> {
    symbols(count, bits, seed).iter().map(|symbol| *symbol as u8).collect()
}

fn floats(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.25)
}

fn child(values: &Array2<f32>) -> Child {
    Child::Node(Dense::from_f32(values.view(), DType::F32).unwrap().boxed())
}

fn packed(rows: usize, cols: usize, bits: u8, seed: u64) -> Box<dyn Plane> {
    if bits > 8 {
        let codes = symbols(rows * cols, bits, seed);
        return Box::new(PackedPlane::pack(&codes, rows, cols, bits).unwrap());
    }
    Box::new(PackedPlane::pack(&bytes(rows * cols, bits, seed), rows, cols, bits).unwrap())
}

fn support([rows, cols]: [usize; 2]) -> Mask {
    Mask::from_bools(Array2::from_shape_fn((rows, cols), |(r, c)| (r * 7 + c * 5) % 3 != 1).view())
}

/// Tables of `1 << bits` levels, with an offset; chosen by a plane of so many bits.
fn leaf(
    shape @ [rows, cols]: [usize; 2],
    bits: u8,
    (blocks, tables): (Blocks, Tables),
    scaled: bool,
    choice: u8,
) -> LevelTable {
    let format = LevelFormat::new(1 << bits, blocks).unwrap().with_offset();
    let mut format = format.with_tables(tables).unwrap();
    let [scale_rows, scale_cols] = blocks.grid(shape);
    let mut beside = vec![child(&floats(tables.count(rows, rows), 1 << bits, 1))];
    if scaled {
        beside.push(child(&floats(scale_rows, scale_cols, 2)));
    } else {
        format = format.without_scales();
    }
    beside.push(child(&floats(1, 1, 3)));
    if let Tables::Chosen(_) = tables {
        beside.push(Child::Plane(packed(scale_rows, scale_cols, choice, 4)));
    }
    LevelTable::new(format, shape, packed(rows, cols, bits, 5), beside).unwrap()
}

#[test]
fn several_tables_obey_the_laws() {
    for shape in SIZES {
        for (bits, scaled) in [(1, true), (3, false), (4, true), (8, false), (10, true)] {
            for shared in [
                (Blocks::Rows(5), Tables::One),
                (Blocks::Rows(1), Tables::Rows(1)),
                (Blocks::Flat(7), Tables::Rows(4)),
                (Blocks::Rows(32), Tables::Rows(usize::MAX)),
                (Blocks::Rows(16), Tables::Chosen(4)),
                (Blocks::Flat(9), Tables::Chosen(3)),
            ] {
                check(leaf(shape, bits, shared, scaled, 2));
                let masked = leaf(shape, bits, shared, scaled, 2).boxed();
                check(Masked::new(support(shape), masked).unwrap());
            }
        }
    }
    for shared in [(Blocks::Rows(8), Tables::Rows(2)), (Blocks::Rows(8), Tables::Chosen(3))] {
        check_damage(&leaf([6, 20], 4, shared, true, 2), &Registry::default());
        check_damage(&leaf([6, 20], 4, shared, false, 2), &Registry::default());
    }
}

/// Entry by entry; a choice past the last table is the last.
#[test]
fn several_tables_decode_by_their_definition() {
    let shape @ [rows, cols] = [9, 37];
    for (bits, scaled) in [(4, true), (4, false), (9, true)] {
        for (blocks, tables) in
            [(Blocks::Rows(10), Tables::Rows(2)), (Blocks::Rows(10), Tables::Chosen(3))]
        {
            let node = leaf(shape, bits, (blocks, tables), scaled, 3);
            let levels = floats(tables.count(rows, rows), 1 << bits, 1);
            let grid @ [scale_rows, scale_cols] = blocks.grid(shape);
            let (scales, offset) = (floats(scale_rows, scale_cols, 2), floats(1, 1, 3)[[0, 0]]);
            let chosen = bytes(grid[0] * grid[1], 3, 4);
            let mut buffer = SymbolBuf::of(node.codes());
            let codes = buffer.read(node.codes(), 0..rows).unwrap();
            for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
                let block = [r, c / 10];
                let table = match tables {
                    Tables::Rows(each) => r / each,
                    _ => usize::from(chosen[r * grid[1] + c / 10]).min(2),
                };
                let level = levels[[table, usize::from(codes.at(r * cols + c))]];
                let scale = if scaled { scales[block] } else { 1.0 };
                assert_eq!(*w, level * scale + offset, "[{r}, {c}]");
            }
        }
    }
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let format = LevelFormat::new(16, Blocks::Rows(5)).unwrap();
    for tables in [Tables::Rows(0), Tables::Chosen(0), Tables::Chosen((1 << 16) + 1)] {
        let error = format.with_tables(tables).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{tables:?}");
    }
    let format = format.with_tables(Tables::Rows(3)).unwrap().without_scales();
    let new = |tables| {
        let beside = vec![child(&floats(tables, 16, 1))];
        LevelTable::new(format, [4, 10], packed(4, 10, 4, 2), beside).map(drop)
    };
    assert!(new(2).is_ok());
    assert_eq!(new(1).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    // What first versions wrote keeps its id.
    let plain = leaf([4, 10], 4, (Blocks::Rows(5), Tables::One), true, 2);
    assert_eq!(plain.describe()["node"], "levels.v1");
    let bare = leaf([4, 10], 4, (Blocks::Rows(5), Tables::One), false, 2);
    assert_eq!(bare.describe()["node"], "levels.v2");
}

fn grids(shape @ [rows, cols]: [usize; 2], bits: u8, group: usize) -> GroupedAffine {
    let groups = rows * cols.div_ceil(group);
    let scales = (0..groups).map(|g| 0.25 * (1.0 + g as f32)).collect();
    let zeros: Vec<f32> = (0..groups).map(|g| 4.5 - 1.25 * g as f32).collect();
    let codes = bytes(rows * cols, bits, 6);
    let scales = (scales, DType::F32);
    GroupedAffine::with_real_zeros(shape, bits, group, &codes, scales, (&zeros, DType::F32))
        .unwrap()
}

#[test]
fn real_zero_points_obey_the_laws() {
    for bits in 1..=8 {
        for shape in SIZES {
            for group in [5, 32] {
                check(grids(shape, bits, group));
                check(Masked::new(support(shape), grids(shape, bits, group).boxed()).unwrap());
            }
        }
    }
    check_damage(&grids([6, 20], 3, 8), &Registry::default());
    let masked = Masked::new(support([6, 20]), grids([6, 20], 4, 8).boxed()).unwrap();
    check_damage(&masked, &Registry::default());
}

#[test]
fn real_zero_points_decode_by_their_definition() {
    let shape @ [rows, cols] = [7, 50];
    let node = grids(shape, 4, 16);
    assert!(node.has_real_zeros());
    assert_eq!(node.describe()["node"], "grouped_affine.v2");
    let (scales, zeros) = (node.scales().to_vec(), node.zeros().unwrap());
    let codes = bytes(rows * cols, 4, 6);
    for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
        let g = r * cols.div_ceil(16) + c / 16;
        assert_eq!(zeros[g], 4.5 - 1.25 * g as f32);
        assert_eq!(*w, scales[g] * (f32::from(codes[r * cols + c]) - zeros[g]));
    }
    assert_eq!(Storage::of(&node).unwrap().bytes_of(PartKind::Zeros), 7 * 4 * 4);
}

#[test]
fn real_zero_points_that_do_not_fit_are_refused() {
    let new = |zeros: &[f32], dtype| {
        let scales = (vec![1.0; 4], DType::F32);
        let node = GroupedAffine::with_real_zeros([2, 8], 4, 4, &[0; 16], scales, (zeros, dtype));
        node.map(drop)
    };
    assert!(new(&[0.5; 4], DType::F16).is_ok());
    assert_eq!(new(&[0.5; 3], DType::F16).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert_eq!(new(&[1e6; 4], DType::F16).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(new(&[f32::NAN; 4], DType::F32).unwrap_err().kind(), ErrorKind::Numerical);
}
