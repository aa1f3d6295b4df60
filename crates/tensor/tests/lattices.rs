//! Pyramids, the codebook of E8, signs before a node, codes in prefixes, tables for blocks: against their definitions, and
//! the laws.

use std::collections::BTreeSet;

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, array};
use tensorpress_tensor::node::{
    Additive, AdditiveFormat, Blocks, Child, Dense, KnownVectors, LevelFormat, LevelTable,
    PackedPlane, Plane, PrefixedPlane, Product, Pyramid, PyramidFormat, Signed, SymbolBuf, Tables,
    decode,
};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{DType, ErrorKind, Node, Registry, Storage};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn dense(rows: usize, cols: usize, seed: u64) -> Box<dyn Node> {
    Dense::from_f32(random(rows, cols, seed).view(), DType::F16).unwrap().boxed()
}

/// All vectors of a pyramid, in the order of the format, by recursion.
fn all(numbers: usize, pulses: i8) -> Vec<Vec<i8>> {
    if numbers == 0 {
        return if pulses == 0 { vec![Vec::new()] } else { Vec::new() };
    }
    let signed = (1..=pulses).flat_map(|size| [size, -size]);
    let firsts = std::iter::once(0).chain(signed);
    let with = |first: i8| {
        let rest = all(numbers - 1, pulses - first.abs());
        rest.into_iter().map(move |rest| [vec![first], rest].concat())
    };
    firsts.flat_map(with).collect()
}

#[test]
fn vectors_of_a_pyramid_are_numbered() {
    for (size, pulses) in [(1, 1), (1, 5), (2, 7), (3, 4), (5, 3), (8, 2)] {
        let format = PyramidFormat::new(size, pulses).unwrap();
        for numbers in 1..=size {
            let all = all(numbers, pulses as i8);
            assert_eq!(format.points(numbers), all.len() as u128);
            for (number, vector) in all.iter().enumerate() {
                assert_eq!(format.number(vector), number as u128);
                let mut back = vec![0; numbers];
                format.vector(number as u128, &mut back);
                assert_eq!(&back, vector);
            }
            let mut last = vec![0; numbers];
            format.vector(u128::MAX, &mut last);
            assert_eq!(last, *all.last().unwrap());
        }
    }
    // As Fischer (1986) counts them: N(4, 2) = 32, N(8, 4) = 2816, N(16, 8) by the recursion.
    assert_eq!(PyramidFormat::new(4, 2).unwrap().points(4), 32);
    assert_eq!(PyramidFormat::new(8, 4).unwrap().points(8), 2816);
    // Numbers beyond 64 bits.
    let wide = PyramidFormat::new(24, 60).unwrap();
    let mut random = SplitMix::new(5);
    for _ in 0..200 {
        let mut vector = vec![0i8; 24];
        let signs: Vec<i8> =
            (0..24).map(|_| if random.next_f64() < 0.5 { 1 } else { -1 }).collect();
        for _ in 0..60 {
            let at = (random.next_f64() * 24.0) as usize;
            vector[at] += signs[at];
        }
        let mut back = vec![0; 24];
        wide.vector(wide.number(&vector), &mut back);
        assert_eq!(back, vector);
    }
    assert!(wide.points(24) > 1 << 64);
}

fn pyramid(size: usize, pulses: usize, rows: usize, cols: usize) -> Pyramid {
    let format = PyramidFormat::new(size, pulses).unwrap();
    let mut random = SplitMix::new(7);
    let mut vectors = vec![0i8; rows * cols];
    for vector in vectors.chunks_mut(cols.max(1)).flat_map(|row| row.chunks_mut(size)) {
        for _ in 0..pulses {
            let at = (random.next_f64() * vector.len() as f64) as usize;
            vector[at] += if vector[at] < 0 { -1 } else { 1 };
        }
        vector.iter_mut().for_each(|z| *z = if random.next_f64() < 0.5 { -*z } else { *z });
    }
    Pyramid::vectors(format, [rows, cols], &vectors, dense(rows, cols.div_ceil(size), 8)).unwrap()
}

#[test]
fn pyramids_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (3, 7), (5, 33), (6, 64)] {
        for (size, pulses) in [(1, 3), (4, 1), (8, 6), (16, 20), (24, 60)] {
            let node = pyramid(size, pulses, rows, cols);
            check_node(node.boxed(), &Registry::default(), 1e-4);
        }
    }
    check_damage(&pyramid(4, 5, 3, 10), &Registry::default());
    check_damage(&pyramid(16, 20, 2, 32), &Registry::default());
    // 14 bits for 8 numbers and 27008 vectors would not do; 15 do.
    assert_eq!(PyramidFormat::within(8, 16).unwrap().unwrap().pulses(), 6);
    assert_eq!(PyramidFormat::within(8, 15).unwrap().unwrap().stored_bits(), 15);
    assert_eq!(PyramidFormat::within(64, 1).unwrap(), None);
    for (size, pulses) in [(0, 1), (65, 1), (1, 0), (1, 128), (64, 127)] {
        let error = PyramidFormat::new(size, pulses).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let format = PyramidFormat::new(2, 3).unwrap();
    let wrong = Pyramid::vectors(format, [1, 2], &[1, 1], dense(1, 1, 1));
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// 65536 points of E8 + 1/4: all differ, each plus 1/4 (or less 1/4) is in D8 or D8 + 1/2 with an even sum, and their
/// squared lengths are those of the paper.
#[test]
fn e8p_is_a_part_of_the_lattice() {
    let points = decode(&KnownVectors::E8p).unwrap();
    assert_eq!(points.dim(), (65536, 8));
    let mut seen = BTreeSet::new();
    for (code, point) in points.rows().into_iter().enumerate() {
        let quarters: Vec<i32> = point.iter().map(|v| (v * 4.0) as i32).collect();
        assert!(point.iter().zip(&quarters).all(|(v, q)| *v == *q as f32 / 4.0));
        let shift = if code & 1 == 1 { 1 } else { -1 };
        let halves: Vec<i32> = quarters.iter().map(|q| q - shift).collect();
        assert!(halves.iter().all(|h| h % 4 == 2 || h % 4 == -2), "{code}: {halves:?}");
        let sum: i32 = halves.iter().sum();
        assert!(sum % 8 == 0, "{code}: sum {sum} of quarters");
        let square: i32 = halves.iter().map(|h| h * h).sum();
        assert!(square <= if code >> 8 < 227 { 160 } else { 192 });
        assert!(seen.insert(quarters));
    }
    let codes: Vec<u16> = (0..24).map(|i| (i * 2729) as u16).collect();
    let format = AdditiveFormat::new(8, 1, 1 << 16).unwrap();
    let (books, scales) = (KnownVectors::E8p.boxed(), dense(3, 1, 2));
    let node = Additive::sums(format, [3, 60], 16, &codes, books, scales).unwrap();
    let storage = Storage::of(&node).unwrap();
    assert_eq!(storage.bits(), 24 * 16 + 3 * 16, "the codebook is not stored");
    check_node(node.boxed(), &Registry::default(), 1e-4);
}

#[test]
fn signs_stand_before_any_node() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (5, 33), (16, 64)] {
        let signs: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 5 % 2) as u8).collect();
        let inner = dense(rows, cols, 3);
        let plain = decode(&*inner).unwrap();
        let node = Signed::pack(&signs, inner).unwrap();
        for ((w, inner), sign) in decode(&node).unwrap().iter().zip(&plain).zip(&signs) {
            assert_eq!(*w, if *sign == 1 { *inner } else { -*inner });
        }
        check_node(node.boxed(), &Registry::default(), 1e-4);
        let product = Product::new(dense(rows, 2, 4), dense(2, cols, 5)).unwrap();
        let node = Signed::pack(&signs, product.boxed()).unwrap();
        check_damage(&node, &Registry::default());
        check_node(node.boxed(), &Registry::default(), 1e-4);
    }
    let wrong = Signed::pack(&[1], dense(1, 2, 1)).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::ShapeMismatch);
    let signs = PackedPlane::pack(&[1u8, 2], 1, 2, 2).unwrap();
    let wrong = Signed::new(Box::new(signs), dense(1, 2, 1)).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidArgument);
}

/// Codes of 2, 1 and 3 bits, joined.
fn prefixed(rows: usize, cols: usize) -> PrefixedPlane {
    let code = |bits: u8, by: usize| {
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * by % 251 % (1 << bits)) as u8).collect();
        Box::new(PackedPlane::pack(&codes, rows, cols, bits).unwrap())
    };
    let high = PrefixedPlane::new(code(2, 7), code(1, 5), 1).unwrap();
    PrefixedPlane::new(Box::new(high), code(3, 11), 3).unwrap()
}

#[test]
fn codes_have_prefixes() {
    let table = |plane: Box<dyn Plane>, rows: usize, cols: usize, count: usize| {
        let format = LevelFormat::new(count, Blocks::Rows(8)).unwrap();
        let beside = [dense(1, count, 1), dense(rows, cols.div_ceil(8), 2)];
        let beside = beside.map(Child::Node).into();
        LevelTable::new(format, [rows, cols], plane, beside).unwrap()
    };
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (5, 33), (16, 64)] {
        let plane = prefixed(rows, cols);
        let (mut whole, mut high) = (SymbolBuf::of(&plane), SymbolBuf::of(plane.high()));
        let whole = whole.read(&plane, 0..rows).unwrap().iter();
        let high = high.read(plane.high(), 0..rows).unwrap().iter();
        assert!(whole.zip(high).all(|(whole, high)| whole >> 3 == high));
        let node = table(Box::new(plane), rows, cols, 64);
        check_node(node.boxed(), &Registry::default(), 1e-4);
    }
    check_damage(&table(Box::new(prefixed(3, 10)), 3, 10, 64), &Registry::default());
    let high = table(prefixed(3, 10).into_high(), 3, 10, 8);
    check_node(high.boxed(), &Registry::default(), 1e-4);
    let one = || Box::new(PackedPlane::pack(&[0u8, 1], 1, 2, 1).unwrap());
    let other = Box::new(PackedPlane::pack(&[0u8, 1], 2, 1, 1).unwrap());
    let kind = |made: tensorpress_tensor::Result<PrefixedPlane>| made.unwrap_err().kind();
    assert_eq!(kind(PrefixedPlane::new(one(), other, 1)), ErrorKind::ShapeMismatch);
    assert_eq!(kind(PrefixedPlane::new(one(), one(), 0)), ErrorKind::InvalidArgument);
    assert_eq!(kind(PrefixedPlane::new(one(), one(), 16)), ErrorKind::InvalidArgument);
}

#[test]
fn blocks_have_tables_of_their_own() {
    let codes = PackedPlane::pack(&[0u8, 1, 1, 0, 1, 0], 2, 3, 1).unwrap();
    let format = LevelFormat::new(2, Blocks::Rows(2)).unwrap();
    let format = format.with_tables(Tables::Blocks).unwrap().without_scales();
    let levels = array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]];
    let levels = Dense::from_f32(levels.view(), DType::F16).unwrap().boxed();
    let node = LevelTable::new(format, [2, 3], Box::new(codes), vec![Child::Node(levels)]).unwrap();
    assert_eq!(decode(&node).unwrap(), array![[1.0, 2.0, 4.0], [5.0, 6.0, 7.0]]);
    assert_eq!(node.describe()["node"], "levels.v3");
    check_damage(&node, &Registry::default());
    check_node(node.boxed(), &Registry::default(), 1e-4);
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (5, 33)] {
        for blocks in [Blocks::Rows(8), Blocks::Flat(7)] {
            let format = LevelFormat::new(4, blocks).unwrap().with_tables(Tables::Blocks).unwrap();
            let [high, wide] = blocks.grid([rows, cols]);
            let codes: Vec<u8> = (0..rows * cols).map(|i| (i % 4) as u8).collect();
            let codes = PackedPlane::pack(&codes, rows, cols, 2).unwrap();
            let beside = [dense(high * wide, 4, 1), dense(high, wide, 2)].map(Child::Node).into();
            let node = LevelTable::new(format, [rows, cols], Box::new(codes), beside).unwrap();
            check_node(node.boxed(), &Registry::default(), 1e-4);
        }
    }
}
