//! Coded nodes: the laws, and what coding saves on real models.

use std::collections::BTreeMap;

use serde_json::json;
use tensorpress::entropy::{TileCoder, coded};
use tensorpress::model::text;
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::quant::{GridSpec, GroupedAffine, Nf4, Rtn};
use tensorpress::tensor::linalg::SplitMix;
use tensorpress::tensor::ndarray::{Array2, s};
use tensorpress::tensor::node::{Dense, Mask, Masked, Plane, Product, Sum, SymbolBuf, decode};
use tensorpress::tensor::stats::Calibration;
use tensorpress::tensor::{Compress, DType, Node, RawTensor, Scratch, Storage};
use tensorpress::{ErrorKind, registry};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::laws::{check_damage, check_node};

const CODERS: [TileCoder; 3] = [TileCoder::Rans, TileCoder::Huffman, TileCoder::Range];

/// A nearly normal matrix.
fn normal(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| {
        (0..6).map(|_| random.next_f64() as f32 - 0.5).sum::<f32>()
    })
}

fn rounded(weight: &Array2<f32>, bits: u8, group: usize) -> Box<dyn Node> {
    let grid = GridSpec::new(bits, group).with_scale(DType::F16);
    let calibration = Calibration::none(weight.ncols());
    Rtn::new(grid).compress(weight.view(), &calibration).unwrap().node.boxed()
}

fn uses_tiles(node: &dyn Node) -> bool {
    node.describe().to_string().contains("tiled.v1")
}

#[test]
fn coded_nodes_obey_the_laws() {
    for coder in CODERS {
        for (rows, cols, bits) in [(1, 1, 4), (3, 7, 2), (40, 300, 4), (64, 4000, 3), (33, 512, 8)]
        {
            let weight = normal(rows, cols, u64::from(bits));
            let plain = rounded(&weight, bits, 128);
            let dense = decode(&*plain).unwrap();
            let before = Storage::of(&*plain).unwrap().bytes();
            let node = coded(plain, coder).unwrap();
            let after = Storage::of(&*node).unwrap().bytes();
            assert!(after <= before, "{coder:?} {rows} x {cols}: {after} from {before}");
            assert_eq!(uses_tiles(&*node), after < before);
            assert!(rows * cols < 10_000 || after < before, "{coder:?} {rows} x {cols}");
            assert_eq!(decode(&*node).unwrap(), dense, "no bit changes");
            check_node(node, &registry(), 1e-4);
        }
    }
}

/// Codes of 9 to 16 bits: the highest 8 bits and the rest are coded apart.
#[test]
fn wide_codes_can_be_coded() {
    for bits in 9..=16u8 {
        let shape @ [rows, cols] = [40, 500];
        let half = f32::from(1u16 << (bits - 1));
        let codes = normal(rows, cols, 14).mapv(|v| (half + v * half / 8.0) as u16);
        let grid = || {
            let (codes, scales) = (codes.as_slice().unwrap(), vec![1e-3; rows]);
            let zero = [1 << (bits - 1)];
            GroupedAffine::from_codes(shape, bits, cols, codes, scales, DType::F32, &zero).unwrap()
        };
        let keep = Array2::from_shape_fn((rows, cols), |(r, c)| r != 3 && (r + c * 5) % 3 != 0);
        let masked = || Masked::new(Mask::from_bools(keep.view()), grid().boxed()).unwrap().boxed();
        for make in [&(|| grid().boxed()) as &dyn Fn() -> Box<dyn Node>, &masked] {
            let plain = make();
            let (dense, before) = (decode(&*plain).unwrap(), Storage::of(&*plain).unwrap());
            for coder in CODERS {
                let node = coded(make(), coder).unwrap();
                let described = node.describe().to_string();
                assert!(described.contains("tiled.v2"), "{coder:?} {bits} bits: {described}");
                // About 1.5 bits of each code are no news.
                let after = Storage::of(&*node).unwrap().bytes();
                assert!(after + after / 16 < before.bytes(), "{coder:?} {bits} bits: {after}");
                assert_eq!(decode(&*node).unwrap(), dense, "no bit changes");
                check_node(node, &registry(), 1e-4);
            }
        }
    }
    let codes: Vec<u16> = (0..12 * 60).map(|i| 300 + i % 7).collect();
    let node =
        GroupedAffine::from_codes([12, 60], 10, 60, &codes, vec![1.0; 12], DType::F16, &[300]);
    let node = coded(node.unwrap().boxed(), TileCoder::Range).unwrap();
    assert!(node.describe().to_string().contains("tiled.v2"));
    check_damage(&*node, &registry());
}

/// Tables of levels: codes of weights, codes of scales, and the bytes of what scales are made of.
#[test]
fn tables_of_levels_can_be_coded() {
    let weight = normal(64, 600, 15);
    let blind = Calibration::none(600);
    for coder in CODERS {
        let plain = Nf4::default().compress(weight.view(), &blind).unwrap().node;
        let (dense, before) = (decode(&plain).unwrap(), Storage::of(&plain).unwrap().bytes());
        let node = coded(plain.boxed(), coder).unwrap();
        assert!(uses_tiles(&*node));
        assert!(Storage::of(&*node).unwrap().bytes() < before);
        assert_eq!(decode(&*node).unwrap(), dense, "no bit changes");
        check_node(node, &registry(), 1e-4);
    }
}

#[test]
fn masked_codes_and_sums_can_be_coded() {
    let weight = normal(96, 700, 5);
    let mut random = SplitMix::new(6);
    let keep = Array2::from_shape_fn((96, 700), |(r, _)| r != 7 && random.next_f64() < 0.4);
    let mask = Mask::from_bools(keep.view());
    let masked = Masked::new(mask, rounded(&weight, 4, 64)).unwrap().boxed();
    let rest = rounded(&(&weight - &decode(&*masked).unwrap()), 3, 128);
    let node = Sum::new(vec![masked, rest]).unwrap().boxed();
    let dense = decode(&*node).unwrap();
    for coder in CODERS {
        let again = rounded(&weight, 4, 64);
        let masked = Masked::new(Mask::from_bools(keep.view()), again).unwrap().boxed();
        let rest = rounded(&(&weight - &decode(&*masked).unwrap()), 3, 128);
        let node = coded(Sum::new(vec![masked, rest]).unwrap().boxed(), coder).unwrap();
        // The mask, and codes and zeros of both terms.
        assert_eq!(
            node.describe().to_string().matches("tiled.v1").count(),
            5,
            "{}",
            node.describe()
        );
        assert_eq!(decode(&*node).unwrap(), dense);
        check_node(node, &registry(), 1e-4);
    }
}

/// Float leaves: every type, whole and masked, in products, with values that only bits tell apart.
#[test]
fn floats_are_coded_to_the_last_bit() {
    let mut weight = normal(80, 700, 8);
    let odd = [-0.0, 0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, f32::MAX];
    weight.iter_mut().step_by(997).zip(odd.iter().cycle()).for_each(|(w, odd)| *w = *odd);
    let keep = Array2::from_shape_fn((80, 700), |(r, c)| r != 3 && (r * 7 + c * 5) % 3 != 0);
    let finite = normal(80, 90, 9);
    for coder in CODERS {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let dense = |w: &Array2<f32>| Dense::from_f32(w.view(), dtype).unwrap().boxed();
            let mask = || Mask::from_bools(keep.view());
            let masked = || Masked::new(mask(), dense(&weight)).unwrap().boxed();
            for make in [&(|| dense(&weight)) as &dyn Fn() -> Box<dyn Node>, &masked] {
                let (plain, node) = (make(), coded(make(), coder).unwrap());
                let (before, after) = (Storage::of(&*plain).unwrap(), Storage::of(&*node).unwrap());
                // An f32 has 8 bits of exponent, of which about 2.6 are news.
                assert!(after.bytes() < before.bytes(), "{coder:?} {dtype:?}: {after} of {before}");
                let bits = |node: &dyn Node| decode(node).unwrap().mapv(f32::to_bits);
                assert_eq!(bits(&*plain), bits(&*node), "{coder:?} {dtype:?}");
                let packed = node.prepack().unwrap();
                assert_eq!(bits(&*plain), bits(&*packed), "{coder:?} {dtype:?}");
            }
            // Without infinities, products too.
            let right = dense(&normal(90, 300, 10));
            let product = Product::new(dense(&finite), right).unwrap().boxed();
            let node = coded(product, coder).unwrap();
            assert!(node.describe().to_string().contains("split_floats.v1"));
            check_node(node, &registry(), 1e-4);
        }
    }
    let small = || Dense::from_f32(normal(4, 500, 11).view(), DType::BF16).unwrap().boxed();
    check_damage(&*coded(small(), TileCoder::Range).unwrap(), &registry());
    // Bytes without a pattern stay where they are.
    let mut random = SplitMix::new(12);
    let noise: Vec<u8> = (0..4000).map(|_| (random.next_u64() >> 40) as u8).collect();
    let noise = RawTensor::new(DType::F16, vec![10, 200], noise.into()).unwrap();
    let node = coded(Dense::new(&noise).unwrap().boxed(), TileCoder::Rans).unwrap();
    assert_eq!(node.describe()["node"], "dense.v1");
}

#[test]
fn damage_is_an_error_or_another_value() {
    for coder in CODERS {
        let node = coded(rounded(&normal(12, 600, 3), 4, 64), coder).unwrap();
        assert!(uses_tiles(&*node));
        check_damage(&*node, &registry());
    }
}

#[test]
fn declared_sizes_need_bytes_behind_them() {
    let part = |dtype, shape, bytes: Vec<u8>| RawTensor::new(dtype, shape, bytes.into()).unwrap();
    // A constant plane: lengths of one tile, coding, length, symbol.
    let codes = part(DType::U8, vec![4], vec![3, 1, 1, 5]);
    let scales = part(DType::F32, vec![1, 1], 1f32.to_le_bytes().to_vec());
    let parts = BTreeMap::from([("w.codes".to_owned(), codes), ("w.scales".to_owned(), scales)]);
    let read = |cols: u64| {
        let codes = json!({"plane": "tiled.v1", "alphabet": 16, "tile": 1, "shape": [1, cols]});
        let node = json!({"node": "grouped_affine.v1", "shape": [1, cols], "group": cols, "zero": 8, "codes": codes});
        registry().read(&node, "w", &parts)
    };
    assert_eq!(decode(&*read(5000).unwrap()).unwrap().sum(), -15_000.0);
    for cols in [1 << 15, 1 << 40, u64::MAX >> 1] {
        assert_eq!(read(cols).unwrap_err().kind(), ErrorKind::Corruption);
    }
}

/// Bits of the planes' symbols under one table for each plane (order-0 entropy), and the number of planes.
fn entropy_bits(node: Box<dyn Node>) -> (f64, u32) {
    let (mut bits, mut planes) = (0.0, 0);
    let mut count = |plane: Box<dyn Plane>| {
        let mut symbols = SymbolBuf::of(&*plane);
        let symbols = symbols.read(&*plane, 0..plane.rows())?;
        planes += 1;
        let mut counts = [0f64; 256];
        symbols.iter().for_each(|s| counts[usize::from(s)] += 1.0);
        let total = symbols.len() as f64;
        bits += counts.iter().filter(|n| **n > 0.0).map(|n| n * (total / n).log2()).sum::<f64>();
        Ok(plane)
    };
    node.map_planes(&mut count).expect("planes can be read");
    (bits, planes)
}

#[test]
fn what_coding_saves_on_real_models() {
    let Some(texts) = data::find("data/text") else { return };
    let calibration = text::read(&texts.join("tinystories_train_2MB_calib.txt")).expect("a text");
    println!(
        "| model | recipe | bits/weight | coded | codes and zeros, bytes | coded | order-0 entropy | KB saved |"
    );
    for (model, group) in [("stories260k", 32), ("stories3m", 64)] {
        let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
        let source = Source::open(&folder, &registry()).expect("a model");
        for bits in [4, 3] {
            let line = format!("gptq(bits={bits}, group={group}, clip=mse)");
            let run = |line: &str| {
                let out = tempfile::tempdir().expect("a folder");
                let report = Compressor::new(Recipe::parse(line).expect("a recipe"))
                    .with_calibration(CalibrationText::new(calibration.clone()))
                    .run(&source, &out.path().join("out"))
                    .expect("compresses");
                let made = Source::open(out.path().join("out"), &registry()).expect("a model");
                (out, report, made)
            };
            let (_plain_folder, plain_report, plain) = run(&line);
            let (_coded_folder, coded_report, made) = run(&format!("{line} | coded(rans)"));
            let (mut before, mut after, mut bound, mut planes) = (0, 0, 0.0, 0);
            let integers = |node: &dyn Node| {
                let storage = Storage::of(node).expect("counts");
                let kinds =
                    [tensorpress::tensor::PartKind::Codes, tensorpress::tensor::PartKind::Zeros];
                kinds.map(|kind| storage.bytes_of(kind)).iter().sum::<u64>()
            };
            for name in plain.trees().keys() {
                let [a, b] = [&plain, &made].map(|s| s.weight(name).expect("a weight"));
                assert_eq!(decode(&*a).unwrap(), decode(&*b).unwrap(), "{model} {line} {name}");
                before += integers(&*a);
                after += integers(&*b);
                let (bits, count) = entropy_bits(a);
                bound += bits / 8.0;
                planes += count;
            }
            println!(
                "| {model} | {line} | {:.3} | {:.3} | {before} | {after} | {bound:.0} | {:.1} |",
                plain_report.bits_per_weight,
                coded_report.bits_per_weight,
                (before - after) as f64 / 1e3
            );
            assert!(after < before, "{model} {line}");
            // The entropy, a header and a table for each of many small planes, and no more.
            let allowed = bound * 1.002 + 32.0 * f64::from(planes);
            assert!(
                (after as f64) < allowed,
                "{model} {line}: {after} for {bound}, {planes} planes"
            );
        }
    }
}

/// Rows of a table of embeddings that is coded are decoded once for all tokens, near ones together: what comes of it is the
/// rows of the table, whatever the order of the tokens, of one sequence and of several.
#[test]
fn tokens_of_a_coded_table_are_its_rows() {
    let source = Source::demo(&registry()).unwrap();
    let mut embedding = source.embedding().unwrap();
    let table = decode(embedding.table().node().expect("as it is stored")).unwrap();
    let [vocab, width] = embedding.table().shape();
    assert!(vocab > 512, "more than one band");
    for coder in CODERS {
        let node = coded(rounded(&table, 4, 0), coder).unwrap();
        let rows = decode(&*node).unwrap();
        embedding.replace(node).unwrap();
        let mut random = SplitMix::new(5);
        let mut sequence = |tokens: usize| -> Vec<u32> {
            (0..tokens).map(|_| (random.next_u64() % vocab as u64) as u32).collect()
        };
        let last = vocab as u32 - 1;
        let sequences =
            [sequence(300), vec![3, 3, 1, 3], Vec::new(), sequence(7), vec![last, 0, last]];
        let mut scratch = Scratch::default();
        let together = embedding.embed_sequences(&sequences, 0, &mut scratch).unwrap();
        let ids = sequences.concat();
        assert_eq!(together.dim(), (ids.len(), width));
        for (id, row) in ids.iter().zip(together.rows()) {
            assert_eq!(row, rows.row(*id as usize), "token {id}");
        }
        let mut at = 0;
        for sequence in &sequences {
            let alone = embedding.embed(sequence, &mut scratch).unwrap();
            assert_eq!(alone, together.slice(s![at..at + sequence.len(), ..]));
            at += sequence.len();
        }
        let beyond = embedding.embed(&[0, vocab as u32], &mut scratch).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::InvalidArgument);
    }
}
