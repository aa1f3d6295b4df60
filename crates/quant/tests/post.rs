//! Powers of the square root of two: scales against a scan, codes against the definition, feedback against a reference that
//! solves for the rest anew after each column; laws and bad input.

mod reference;

use reference::{costs, damped_gram, feed_back, inputs, output_error, random, seen};
use tensorpress_quant::{Codes, LevelTable, Post, optimal_scale};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, Masked, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Node, Registry, Storage, Target,
};

fn compress(method: Post, weight: &Array2<f32>) -> LevelTable {
    method.compress(weight.view(), &Calibration::none(weight.ncols())).expect("finite").node
}

fn levels(bits: u32) -> Vec<f64> {
    let sizes = (0..(1i32 << (bits - 1)) - 1).map(|k| 2f64.powf(-f64::from(k) / 2.0));
    let mut all: Vec<f64> = sizes.flat_map(|size| [size, -size]).chain([0.0]).collect();
    all.sort_by(f64::total_cmp);
    all
}

fn nearest(levels: &[f64], value: f64) -> f64 {
    let far = |level: &f64| (level - value).abs();
    *levels.iter().min_by(|a, b| far(a).total_cmp(&far(b))).expect("levels")
}

fn loss(levels: &[f64], values: &[f64], weights: &[f64], scale: f64) -> f64 {
    let one = |(v, w): (&f64, &f64)| w * (v - scale * nearest(levels, v / scale)).powi(2);
    values.iter().zip(weights).map(one).sum()
}

/// The least loss that a fine scan of scales and, from each, a few steps of least squares find.
fn scanned(levels: &[f64], values: &[f64], weights: &[f64]) -> f64 {
    let most = values.iter().fold(0f64, |most, v| most.max(v.abs()));
    let mut best = values.iter().zip(weights).map(|(v, w)| w * v * v).sum::<f64>();
    for i in 1..4000 {
        let mut scale = most * 3.0 * f64::from(i) / 4000.0;
        for _ in 0..3 {
            best = best.min(loss(levels, values, weights, scale));
            let (mut along, mut square) = (0.0, 0.0);
            for (v, w) in values.iter().zip(weights) {
                let level = nearest(levels, v / scale);
                along += w * v * level;
                square += w * level * level;
            }
            if square == 0.0 || along <= 0.0 {
                break;
            }
            scale = along / square;
        }
    }
    best
}

#[test]
fn no_scale_loses_less() {
    let tables: [Vec<f64>; 5] = [
        levels(2),
        levels(4),
        vec![-1.0, 1.0],
        vec![-1.0, -0.5, 0.0, 0.1, 0.7],
        vec![0.25, 0.5, 2.0],
    ];
    for (seed, table) in tables.iter().enumerate() {
        for n in [1, 2, 5, 40] {
            let values = random(2, n, seed as u64 * 10 + n as u64);
            let weights: Vec<f32> = values.row(1).iter().map(|w| w.abs() + 0.01).collect();
            let values = values.row(0).to_vec();
            let narrow: Vec<f32> = table.iter().map(|l| *l as f32).collect();
            let table: Vec<f64> = narrow.iter().map(|l| f64::from(*l)).collect();
            let scale = f64::from(optimal_scale(&narrow, &values, Some(&weights)));
            let [values, weights] =
                [values, weights].map(|all| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            let found = match scale > 0.0 {
                true => loss(&table, &values, &weights, scale),
                false => values.iter().zip(&weights).map(|(v, w)| w * v * v).sum(),
            };
            let least = scanned(&table, &values, &weights);
            assert!(found <= least * (1.0 + 1e-6) + 1e-12, "{table:?}, {n}: {found} > {least}");
        }
    }
}

#[test]
fn weights_are_at_their_nearest_level() {
    for bits in [2u8, 3, 4, 6] {
        let weight = random(12, 96, bits.into());
        let decoded = decode(&compress(Post::new(bits, 32), &weight)).unwrap();
        let table = levels(bits.into());
        for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
            let (row, decoded) = (row.to_vec(), decoded.to_vec());
            for (w, q) in row.chunks(32).zip(decoded.chunks(32)) {
                let w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
                let found: f64 = w.iter().zip(q).map(|(w, q)| (w - f64::from(*q)).powi(2)).sum();
                // f16's rounding of a scale moves it by 2^-11 at most.
                let least = scanned(&table, &w, &[1.0; 32]);
                let size: f64 = w.iter().map(|w| w * w).sum();
                assert!(found <= least + 5e-7 * size, "{bits}: {found} {least}");
            }
        }
    }
}

#[test]
fn feedback_is_that_of_the_reference() {
    let (weight, x) = (random(6, 48, 1), inputs(200, 48, 2));
    let method = Post::new(3, 16).with_codes(Codes::feedback()).with_scale(DType::F32);
    let made = method.compress(weight.view(), &seen(&x)).unwrap();
    assert!(made.fallback.is_none());
    let decoded = decode(&made.node).unwrap();
    let gram = damped_gram(&x, 0.01);
    let (costs, table) = (costs(&gram), levels(3));
    let mut equal = 0;
    for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
        let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let mut scale = 0.0;
        let exact = feed_back(&gram, &row, 1, |at, now| {
            if at % 16 == 0 {
                let narrow = |of: &[f64]| of.iter().map(|v| *v as f32).collect::<Vec<_>>();
                let (values, costs) = (narrow(&now[..16]), narrow(&costs[at..at + 16]));
                scale = f64::from(optimal_scale(&narrow(&table), &values, Some(&costs)));
            }
            vec![scale * nearest(&table, now[0] / scale)]
        });
        equal +=
            exact.iter().zip(decoded).filter(|(a, b)| (*a - f64::from(**b)).abs() < 1e-4).count();
    }
    assert!(equal as f64 >= 0.99 * weight.len() as f64, "{equal} of {}", weight.len());
    let plain = decode(&compress(Post::new(3, 16), &weight)).unwrap();
    let gain = output_error(&gram, &weight, &decoded) / output_error(&gram, &weight, &plain);
    assert!(gain < 0.7, "{gain}");
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33), (16, 64)] {
        for group in [0, 5, 32, 1 << 20] {
            let node = compress(Post::new(4, group), &random(rows, cols, 1));
            check_node(node.boxed(), &Registry::default(), 1e-4);
            let fed = Post::new(3, group).with_codes(Codes::feedback());
            let made = fed.compress(random(rows, cols, 1).view(), &seen(&inputs(40, cols, 2)));
            check_node(made.unwrap().node.boxed(), &Registry::default(), 1e-4);
        }
    }
    check_damage(&compress(Post::new(3, 8), &random(6, 20, 2)), &Registry::default());
    let storage = Storage::of(&compress(Post::default(), &random(64, 512, 3))).unwrap();
    let stated = 4.0 + 16.0 / 128.0 + 16.0 * 32.0 / 32_768.0;
    assert_eq!(storage.bits() as f64 / 32_768.0, stated);
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    assert_eq!(decode(&compress(Post::default(), &zeros)).unwrap(), zeros);
    for size in [1e-44, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
        let mut weight = random(4, 32, 4);
        weight.mapv_inplace(|w| w.clamp(-1.0, 1.0) * size);
        let decoded = decode(&compress(Post::new(4, 16), &weight)).unwrap();
        let far = (&decoded - &weight).fold(0f32, |far, d| far.max(d.abs()));
        assert!(far <= if size < 1e-36 { size } else { 0.3 * size }, "{size}: {far}");
    }
    let fed = Post::new(4, 8).with_codes(Codes::feedback());
    let weight = random(4, 16, 5);
    let plain = decode(&compress(Post::new(4, 8), &weight)).unwrap();
    for (x, why) in [
        (Array2::zeros((0, 16)), "no calibration token"),
        (Array2::zeros((9, 16)), "zero"),
        (Array2::from_elem((9, 16), f32::NAN), "NaN"),
    ] {
        let made = fed.compress(weight.view(), &seen(&x)).unwrap();
        assert_eq!(decode(&made.node).unwrap(), plain);
        let note = made.fallback.unwrap();
        assert!(note.contains(why) && note.contains("nearest"), "{note}");
    }
    // Dead inputs and rank 1: the weights of dead inputs are 0.
    let mut x = Array2::from_shape_fn((40, 16), |(t, c)| (t as f32 - 20.0) * (c as f32 + 1.0));
    x.column_mut(4).fill(0.0);
    let decoded = decode(&fed.compress(weight.view(), &seen(&x)).unwrap().node).unwrap();
    assert!(decoded.iter().all(|w| w.is_finite()) && decoded.column(4).iter().all(|w| *w == 0.0));
}

#[test]
fn masked_weights_decode_to_zero() {
    let (weight, x) = (random(8, 64, 5), inputs(100, 64, 9));
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    for codes in [Codes::default(), Codes::feedback()] {
        let mut target = Target::new("w", weight.view());
        target.mask = Some(&mask);
        let method = Post::default().with_codes(codes);
        let made = method.compress_group_dyn(Group::single(target, seen(&x))).unwrap();
        let masked = Masked::new(mask.clone(), made.layers.into_iter().next().unwrap().node);
        let decoded = decode(&masked.unwrap()).unwrap();
        assert!(decoded.indexed_iter().all(|(at, w)| keep[at] || *w == 0.0));
        let kept = keep.mapv(|keep| f32::from(u8::from(keep))) * &weight;
        let error = output_error(&damped_gram(&x, 0.01), &kept, &decoded);
        assert!(error < 0.05, "{error}");
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |method: Post, weight: &Array2<f32>| {
        method.compress(weight.view(), &Calibration::none(8)).map(drop).unwrap_err()
    };
    assert!(error(Post::new(7, 4), &weight).to_string().contains("allowed are 2 to 6"));
    let scale = error(Post::default().with_scale(DType::I8), &weight);
    assert_eq!(scale.kind(), ErrorKind::InvalidArgument);
    let damp = Post::default().with_codes(Codes::feedback().with_damp(f32::NAN));
    assert_eq!(error(damp, &weight).kind(), ErrorKind::InvalidArgument);
    let blind = Post::default().with_codes(Codes::feedback());
    let made = blind.compress(weight.view(), &Calibration::none(8)).unwrap();
    assert!(made.fallback.unwrap().contains("no calibration token"));
    weight[[2, 3]] = f32::NEG_INFINITY;
    assert!(error(Post::default(), &weight).to_string().contains("[2, 3]"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(70, 96, 8), inputs(150, 96, 3));
    for codes in [Codes::default(), Codes::feedback()] {
        let run = |par: Par| {
            let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
            group.par = par;
            let method = Post::new(3, 32).with_codes(codes);
            let made = method.compress_group_dyn(group).unwrap().layers.remove(0).node;
            decode(&*made).unwrap()
        };
        assert_eq!(run(Par::Seq), run(Par::Threads(2)));
    }
}
