//! Codes whose spread is a row's times a column's: laws, damage, and real bits against the estimate.

use std::collections::BTreeMap;

use tensorpress_entropy::{TileCoder, coded, register};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::s;
use tensorpress_tensor::node::spread::Model;
use tensorpress_tensor::node::{Mask, Masked, StepFormat, Trellis, decode};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Accum, Node, PartKind, Registry, Scratch, Storage};

fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry).unwrap();
    registry
}

struct Normal(SplitMix);

impl Normal {
    fn next(&mut self) -> f64 {
        (0..12).map(|_| self.0.next_f64()).sum::<f64>() - 6.0
    }
}

/// Codes of `spread` times a third of an octave more or less a row and a column; on a path of the trellis if there is one.
fn codes(rows: usize, cols: usize, spread: f64, states: usize) -> Vec<i32> {
    let mut normal = Normal(SplitMix::new(7));
    let of = |n: usize, i: usize| ((i * n) % 11) as f64 / 3.0 - 5.0 / 3.0;
    let trellis = Trellis::new(states);
    let mut at = vec![0u8; cols];
    let mut codes = Vec::new();
    for r in 0..rows {
        if r % Trellis::ROWS == 0 {
            at.fill(0);
        }
        for (c, state) in at.iter_mut().enumerate() {
            let x = normal.next() * spread * (of(7, r) + of(5, c)).exp2();
            codes.push(match &trellis {
                None => x.round() as i32,
                Some(trellis) => {
                    let side = f64::from(*state & 1);
                    let code = (2.0 * ((x - side) / 2.0).round() + side) as i32;
                    *state = trellis.next(*state, code);
                    code
                }
            });
        }
    }
    codes
}

fn leaf(codes: &[i32], cols: usize) -> Box<dyn Node> {
    let rows = codes.len() / cols;
    let steps = |n: usize| (0..n).map(|i| (i % 13) as i32).collect::<Vec<_>>();
    StepFormat::leaf(codes, &steps(rows), &steps(cols)).unwrap().boxed()
}

/// Bits by the prototype's rule: classes of a third of an octave, a table a class (and parity) of 10 bits a symbol that
/// occurs, 4 bits a row and a column.
fn estimate(codes: &[i32], cols: usize, trellis: bool) -> f64 {
    let rows = codes.len() / cols;
    let size = |i: usize| f64::from(codes[i].abs()) + 0.3;
    let (mut a, mut b) = (vec![1.0; rows], vec![1.0; cols]);
    for _ in 0..3 {
        for r in 0..rows {
            a[r] = (0..cols).map(|c| size(r * cols + c) / b[c]).sum::<f64>() / cols as f64;
        }
        for c in 0..cols {
            b[c] = (0..rows).map(|r| size(r * cols + c) / a[r]).sum::<f64>() / rows as f64;
        }
    }
    let thirds = |v: f64| (v.log2() * 3.0).round();
    let mut classes: BTreeMap<(i32, i32), BTreeMap<i32, f64>> = BTreeMap::new();
    for (i, code) in codes.iter().enumerate() {
        let class = (thirds(a[i / cols]) + thirds(b[i % cols])).clamp(-6.0, 24.0) as i32;
        let parity = if trellis { code & 1 } else { 0 };
        *classes.entry((class, parity)).or_default().entry(*code).or_default() += 1.0;
    }
    let of = |counts: &BTreeMap<i32, f64>| {
        let total: f64 = counts.values().sum();
        counts.values().map(|n| n * (total / n).log2() + 10.0).sum::<f64>()
    };
    classes.values().map(of).sum::<f64>() + 4.0 * (rows + cols) as f64
}

#[test]
fn real_bits_are_those_of_the_estimate() {
    for (spread, states) in
        [(0.4, 0), (1.5, 0), (12.0, 0), (90.0, 0), (1.2, 8), (4.0, 8), (4.0, 256)]
    {
        let (rows, cols) = (600, 700);
        let codes = codes(rows, cols, spread, states);
        let expected = estimate(&codes, cols, states > 0);
        let model = Model::fit(&codes, cols, states > 0).bits;
        let node = coded(leaf(&codes, cols), TileCoder::Rans).unwrap();
        assert!(node.describe().to_string().contains("spread.v1"), "{spread} {states}");
        let real = 8.0 * Storage::of(&*node).unwrap().bytes_of(PartKind::Codes) as f64;
        let count = codes.len() as f64;
        println!(
            "spread {spread}, {states} states: {:.4} bits, the model says {:.4}, the prototype's rule {:.4}",
            real / count,
            model / count,
            expected / count
        );
        assert!(real < 1.01 * expected, "{spread} {states}: {real} {expected}");
        assert!((model / real - 1.0).abs() < 0.015, "{spread} {states}: {model} {real}");
    }
}

#[test]
fn planes_by_classes_obey_the_laws() {
    let cases = [
        (200, 60, 2.0, 0),
        (200, 60, 2.0, 8),
        (70, 130, 40.0, 4),
        (257, 100, 300.0, 0),
        (1000, 9, 1.0, 32),
    ];
    for (rows, cols, spread, states) in cases {
        let mut codes = codes(rows, cols, spread, states);
        // One far beyond 16 bits; along a trellis, where any code with its remainder may be.
        codes[cols * 3 + 1] += 1 << 20;
        let plain = leaf(&codes, cols);
        let dense = decode(&*plain).unwrap();
        for coder in TileCoder::ALL {
            let node = coded(leaf(&codes, cols), coder).unwrap();
            let described = node.describe().to_string();
            assert_eq!(described.contains("spread.v1"), coder != TileCoder::Huffman, "{described}");
            assert_eq!(decode(&*node).unwrap(), dense, "no bit changes");
            check_node(node, &registry(), 1e-4);
        }
        check_damage(&*coded(plain, TileCoder::Rans).unwrap(), &registry());
    }
}

#[test]
fn tiles_are_decoded_alone() {
    for states in [0, 8] {
        let (rows, cols) = (700, 520);
        let codes = codes(rows, cols, 2.0, states);
        let node = coded(leaf(&codes, cols), TileCoder::Rans).unwrap();
        let described = node.describe();
        let tile = described["codes"]["tile"].as_u64().unwrap() as usize;
        assert!(tile.is_multiple_of(Trellis::ROWS) && tile < rows, "{described}");
        let dense = decode(&*node).unwrap();
        for at in [0..1, tile - 1..tile + 1, tile..rows, rows - 1..rows, 5..5, 0..rows] {
            let mut part = tensorpress_tensor::ndarray::Array2::zeros((at.len(), cols));
            node.decode_rows(at.clone(), part.view_mut(), Accum::Replace, &mut Scratch::default())
                .unwrap();
            assert_eq!(part, dense.slice(s![at, ..]));
        }
    }
}

/// What has no classes stays as it was coded; and so do ragged rows.
#[test]
fn other_planes_are_coded_as_before() {
    let mut normal = Normal(SplitMix::new(3));
    let alike: Vec<i32> = (0..200 * 200).map(|_| (normal.next() * 2.0).round() as i32).collect();
    let node = coded(leaf(&alike, 200), TileCoder::Rans).unwrap();
    assert!(node.describe().to_string().contains("tiled.v1"));
    let codes = codes(100, 120, 2.0, 0);
    let mask =
        tensorpress_tensor::ndarray::Array2::from_shape_fn((100, 120), |(r, c)| (r + c) % 3 > 0);
    let masked = || Masked::new(Mask::from_bools(mask.view()), leaf(&codes, 120)).unwrap();
    let node = coded(masked().boxed(), TileCoder::Rans).unwrap();
    assert_eq!(decode(&*node).unwrap(), decode(&masked()).unwrap());
    check_node(node, &registry(), 1e-4);
}
