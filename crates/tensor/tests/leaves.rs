//! The laws of leaves: grids of up to 16 bits, and tables of levels whose scales are nodes in turn.

#![cfg(feature = "testing")]

use std::sync::Arc;

use ndarray::Array2;
use serde_json::json;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, Encoding, Format, GroupedAffine, Json, KnownLevels, Leaf, LevelFormat,
    LevelTable, Mask, Masked, PackedPlane, Plane, Slot, SymbolBuf, Symbols, decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, PartKind, Registry, Result, Storage, ndarray};

const SIZES: [[usize; 2]; 8] =
    [[0, 0], [0, 8], [8, 0], [1, 1], [3, 7], [17, 33], [16, 64], [5, 130]];

fn check(node: impl Node + 'static) {
    check_node(node.boxed(), &Registry::default(), 1e-4);
}

fn codes(count: usize, bits: u8, seed: u64) -> Vec<u16> {
    let mut random = SplitMix::new(seed);
    (0..count).map(|_| (random.next_u64() >> 48) as u16 >> (16 - bits)).collect()
}

fn floats(rows: usize, cols: usize, seed: u64) -> Dense {
    let mut random = SplitMix::new(seed);
    let values = Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.25);
    Dense::from_f32(values.view(), DType::F32).unwrap()
}

fn packed([rows, cols]: [usize; 2], bits: u8, seed: u64) -> Box<dyn Plane> {
    let codes = codes(rows * cols, bits, seed);
    if bits > 8 {
        return Box::new(PackedPlane::pack(&codes, rows, cols, bits).unwrap());
    }
    let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
    Box::new(PackedPlane::pack(&codes, rows, cols, bits).unwrap())
}

fn support([rows, cols]: [usize; 2]) -> Mask {
    Mask::from_bools(Array2::from_shape_fn((rows, cols), |(r, c)| (r * 7 + c * 5) % 3 != 1).view())
}

/// A grid of wide codes, `group` columns each.
fn grid(shape @ [rows, cols]: [usize; 2], bits: u8, group: usize, seed: u64) -> GroupedAffine {
    let groups = rows * cols.div_ceil(group);
    let scales = (0..groups).map(|g| 1e-4 * (1.0 + g as f32)).collect();
    let zeros = codes(groups, bits, seed + 1);
    let codes = codes(rows * cols, bits, seed);
    GroupedAffine::from_codes(shape, bits, group, &codes, scales, DType::F32, &zeros).unwrap()
}

/// A table of `1 << bits` levels with scales and an offset, all of them children.
fn table(shape: [usize; 2], bits: u8, blocks: Blocks) -> LevelTable {
    let format = LevelFormat::new(1 << bits, blocks).unwrap().with_offset();
    let [rows, cols] = blocks.grid(shape);
    let children = [floats(1, 1 << bits, 1), floats(rows, cols, 2), floats(1, 1, 3)];
    let children = children.map(|node| Child::Node(node.boxed())).into();
    LevelTable::new(format, shape, packed(shape, bits, 4), children).unwrap()
}

#[test]
fn wide_codes_obey_the_laws() {
    for bits in 9..=16 {
        for shape @ [rows, cols] in SIZES {
            check(grid(shape, bits, 5, 1));
            let node = grid(shape, bits, 32, 2);
            assert_eq!(node.codes().alphabet(), 1 << bits);
            let expected = decode(&node).unwrap();
            let masked = Masked::new(support(shape), node.boxed()).unwrap();
            let (mask, decoded) = (support(shape), decode(&masked).unwrap());
            for ((r, c), w) in decoded.indexed_iter() {
                let expected = if mask.keeps(r, c) { expected[[r, c]] } else { 0.0 };
                assert_eq!(w.to_bits(), expected.to_bits(), "{bits} bits at [{r}, {c}]");
            }
            let bytes = Storage::of(&masked).unwrap().bytes_of(PartKind::Codes);
            let kept = mask.kept(0..rows) as u64;
            assert_eq!(bytes, (kept * u64::from(bits)).div_ceil(8), "{rows} x {cols}");
            check(masked);
        }
    }
    check_damage(&grid([6, 20], 11, 5, 3), &Registry::default());
    check_damage(
        &Masked::new(support([6, 20]), grid([6, 20], 13, 5, 3).boxed()).unwrap(),
        &Registry::default(),
    );
}

/// The definition, entry by entry, whatever the width.
#[test]
fn wide_codes_decode_by_their_definition() {
    let [rows, cols] = [7, 50];
    let node = grid([rows, cols], 12, 16, 5);
    let (scales, zeros) = (node.scales().to_vec(), node.zeros().unwrap());
    let mut buffer = SymbolBuf::of(node.codes());
    let codes = buffer.read(node.codes(), 0..rows).unwrap();
    assert!(matches!(codes, Symbols::U16(_)), "symbols come in their own width");
    for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
        let g = r * cols.div_ceil(16) + c / 16;
        assert_eq!(*w, scales[g] * (f32::from(codes.at(r * cols + c)) - zeros[g]));
    }
}

#[test]
fn tables_of_levels_obey_the_laws() {
    for bits in [1, 3, 4, 8, 10] {
        for shape in SIZES {
            for blocks in [
                Blocks::Flat(1),
                Blocks::Flat(7),
                Blocks::Flat(64),
                Blocks::Flat(usize::MAX),
                Blocks::Rows(3),
                Blocks::Rows(64),
            ] {
                check(table(shape, bits, blocks));
                check(Masked::new(support(shape), table(shape, bits, blocks).boxed()).unwrap());
            }
        }
    }
}

/// Blocks over the ends of rows and in rows; products and sums rounded one after the other.
#[test]
fn tables_of_levels_decode_by_their_definition() {
    let shape @ [rows, cols] = [9, 37];
    for (bits, blocks) in [(4, Blocks::Flat(64)), (4, Blocks::Rows(16)), (9, Blocks::Flat(10))] {
        let node = table(shape, bits, blocks);
        let beside = node.beside().unwrap();
        let mut buffer = SymbolBuf::of(node.codes());
        let codes = buffer.read(node.codes(), 0..rows).unwrap();
        for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
            let at = r * cols + c;
            let block = match blocks {
                Blocks::Flat(block) => at / block,
                Blocks::Rows(block) => r * cols.div_ceil(block) + c / block,
                _ => unreachable!(),
            };
            let level = beside[0][usize::from(codes.at(at))];
            assert_eq!(*w, level * beside[1][block] + beside[2][0]);
        }
    }
}

/// Scales that are a table of levels in turn, with levels that have a name.
fn nested(shape: [usize; 2]) -> LevelTable {
    let blocks = Blocks::Flat(16);
    let scales = blocks.grid(shape);
    let inner = Blocks::Flat(8);
    let [rows, cols] = inner.grid(scales);
    let known = |levels: KnownLevels| Child::Node(levels.boxed());
    let format = LevelFormat::new(256, inner).unwrap().with_offset();
    let float = |rows, cols, seed| Child::Node(floats(rows, cols, seed).boxed());
    let beside = vec![known(KnownLevels::Dynamic8), float(rows, cols, 6), float(1, 1, 7)];
    let scales = LevelTable::new(format, scales, packed(scales, 8, 8), beside).unwrap();
    let beside = vec![known(KnownLevels::Nf4), Child::Node(scales.boxed())];
    let format = LevelFormat::new(16, blocks).unwrap();
    LevelTable::new(format, shape, packed(shape, 4, 9), beside).unwrap()
}

#[test]
fn scales_may_be_leaves_in_turn() {
    for shape in SIZES {
        check(nested(shape));
        check(Masked::new(support(shape), nested(shape).boxed()).unwrap());
    }
    check_damage(&nested([6, 20]), &Registry::default());
    check_damage(
        &Masked::new(support([6, 20]), nested([6, 20]).boxed()).unwrap(),
        &Registry::default(),
    );
    // All of a child is billed as what it is for; every plane of it can be replaced.
    let node = nested([16, 64]);
    let storage = Storage::of(&node).unwrap();
    assert_eq!(storage.bytes_of(PartKind::Codes), 512);
    assert_eq!(storage.bytes_of(PartKind::Scales), 64 + 8 * 4 + 4);
    assert_eq!(storage.bytes(), 512 + 100);
    let mut planes = 0;
    let mut count = |plane: Box<dyn Plane>| {
        planes += 1;
        Ok(plane)
    };
    node.boxed().map_planes(&mut count).unwrap();
    // Codes of weights and of scales; the 4 bytes of each f32 of both floats.
    assert_eq!(planes, 2 + 8);
}

#[test]
fn known_tables_are_nodes() {
    for (levels, count) in
        [(KnownLevels::Nf4, 16), (KnownLevels::Fp4, 16), (KnownLevels::Dynamic8, 256)]
    {
        assert_eq!(levels.shape(), [1, count]);
        check(levels);
        let mask = Arc::new(support([1, count]));
        assert_eq!(levels.boxed().keep(&mask).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = [4, 10];
    let format = LevelFormat::new(16, Blocks::Rows(5)).unwrap();
    let children = |levels: usize, scales: usize| {
        [floats(1, levels, 1), floats(4, scales, 2)].map(|n| Child::Node(n.boxed())).into()
    };
    let new = |bits, shape, children| {
        LevelTable::new(format, shape, packed([4, 10], bits, 3), children).map(drop)
    };
    assert!(new(4, shape, children(16, 2)).is_ok());
    let kind = |result: Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(new(5, shape, children(16, 2))), ErrorKind::InvalidArgument);
    assert_eq!(kind(new(4, [4, 11], children(16, 3))), ErrorKind::ShapeMismatch);
    assert_eq!(kind(new(4, shape, children(15, 2))), ErrorKind::ShapeMismatch);
    assert_eq!(kind(new(4, shape, children(16, 3))), ErrorKind::ShapeMismatch);
    assert_eq!(kind(new(4, shape, Vec::new())), ErrorKind::ShapeMismatch);
    let error = LevelFormat::new(0, Blocks::Rows(5)).map(drop).unwrap_err();
    assert!(error.to_string().contains("1 to 65536"), "{error}");
    assert_eq!(kind(LevelFormat::new(4, Blocks::Flat(0)).map(drop)), ErrorKind::InvalidArgument);
    // Values that are not finite are found when they are first used.
    let infinite = Dense::from(Array2::from_elem((4, 2), f32::INFINITY));
    let beside = [floats(1, 16, 1), infinite].map(|n| Child::Node(n.boxed())).into();
    let node = LevelTable::new(format, shape, packed(shape, 4, 3), beside).unwrap();
    let error = decode(&node).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(error.to_string().contains("scales: value 0 is inf"), "{error}");
}

/// A format of another crate: two codes a byte-wide symbol, no children but a plane of shifts.
#[derive(Debug)]
struct Pairs;

impl Format for Pairs {
    const ID: &'static str = "test_pairs.v1";

    fn read_from(_: &Json) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self, json: &mut Json) {
        json["pairs"] = json!(true);
    }

    fn codes(&self, cols: usize) -> usize {
        cols.div_ceil(2)
    }

    fn slots(&self, [rows, _]: [usize; 2]) -> Vec<Slot> {
        let (kind, encoding) = (PartKind::Zeros, Encoding::Plane);
        vec![Slot { name: "shifts", kind, shape: [rows, 1], encoding }]
    }

    fn check(&self, _: [usize; 2], _: u32) -> Result<()> {
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        for (c, out) in out.iter_mut().enumerate() {
            *out = f32::from(codes.at(c / 2) >> (4 * (c % 2)) & 15) - beside[0][row];
        }
    }
}

#[test]
fn formats_may_have_fewer_codes_than_weights() {
    let mut registry = Registry::default();
    registry.add_node(Pairs::ID, Leaf::<Pairs>::read_from).unwrap();
    for shape @ [rows, cols] in SIZES {
        let shifts = Child::Plane(packed([rows, 1], 4, 1));
        let codes = packed([rows, cols.div_ceil(2)], 8, 2);
        let leaf = Leaf::new(Pairs, shape, codes, vec![shifts]).unwrap();
        check_node(leaf.boxed(), &registry, 1e-4);
    }
    let codes = packed([2, 3], 8, 2);
    let leaf = Leaf::new(Pairs, [2, 6], codes, vec![Child::Plane(packed([2, 1], 4, 1))]).unwrap();
    let refused = Masked::new(support([2, 6]), leaf.boxed()).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

/// Integers on steps of rows and columns: laws, and values by the formula, for codes of every width.
#[test]
fn steps_hold_codes_of_any_size() {
    use tensorpress_tensor::node::StepFormat;
    for largest in [0i32, 1, 7, 100, 128, 3000, 32_767, 40_000, 1 << 30] {
        for (rows, cols) in [(1, 1), (3, 7), (17, 40)] {
            let mut random = SplitMix::new(largest as u64);
            let mut within = |most: i32| ((random.next_f64() * 2.0 - 1.0) * f64::from(most)) as i32;
            let mut codes: Vec<i32> = (0..rows * cols).map(|_| within(largest)).collect();
            (codes[0], codes[rows * cols / 2]) = (largest, -largest);
            let row_steps: Vec<i32> = (0..rows).map(|_| within(90)).collect();
            let column_steps: Vec<i32> = (0..cols).map(|_| within(200)).collect();
            let leaf = StepFormat::leaf(&codes, &row_steps, &column_steps).unwrap();
            let dense = decode(&leaf).unwrap();
            for ((r, c), w) in dense.indexed_iter() {
                let step = f64::from(row_steps[r] + column_steps[c]) / 8.0;
                let expected = f64::from(codes[r * cols + c]) * step.exp2();
                let error = (f64::from(*w) - expected).abs();
                assert!(error <= 3e-7 * expected.abs(), "{largest}: {w} {expected} at {r}, {c}");
            }
            if rows > 1 {
                let keep = Array2::from_shape_fn((rows, cols), |(r, c)| (r + 2 * c) % 3 > 0);
                let other = StepFormat::leaf(&codes, &row_steps, &column_steps).unwrap();
                let masked = Masked::new(Mask::from_bools(keep.view()), other.boxed()).unwrap();
                let kept = decode(&masked).unwrap();
                assert!(
                    kept.indexed_iter().all(|(at, w)| *w == if keep[at] { dense[at] } else { 0.0 })
                );
                check_node(masked.boxed(), &Registry::default(), 1e-4);
                check_damage(&leaf, &Registry::default());
            }
            check_node(leaf.boxed(), &Registry::default(), 1e-4);
        }
    }
}

#[test]
fn steps_refuse_what_they_cannot_hold() {
    use tensorpress_tensor::node::StepFormat;
    let kind =
        |codes: &[i32], rows: &[i32]| StepFormat::leaf(codes, rows, &[0, 1]).unwrap_err().kind();
    assert_eq!(kind(&[1, 2, 3], &[0]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[1, i32::MIN], &[0]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[1, 2, 3, 4], &[0, 1 << 20]), ErrorKind::InvalidArgument);
    // No step is 0 or infinite, however far its exponent.
    for exponent in [-70_000, -480, 0, 480, 70_000] {
        let step = StepFormat::step(exponent) * StepFormat::step(exponent);
        assert!(step.is_normal(), "{exponent}: {step}");
    }
    assert_eq!((StepFormat::eighths(0.0), StepFormat::eighths(f64::INFINITY)), (-480, 480));
    assert!((-480..=480).all(|e| StepFormat::eighths(f64::from(StepFormat::step(e))) == e));
}
