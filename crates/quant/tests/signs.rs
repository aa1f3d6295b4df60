//! Signs: Sherry's three of four and binarisation with several bases, against references from their definitions; laws and
//! bad input.

mod reference;

use reference::{costs, damped_gram, feed_back, inputs, output_error, random, seen};
use tensorpress_quant::{Binary, BinaryFit, Codes, Sherry};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, Masked, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    DType, DynCompress, ErrorKind, Group, Node, PartKind, Registry, Storage, Target,
};

fn compress(method: &dyn DynCompress, weight: &Array2<f32>, x: &Array2<f32>) -> Box<dyn Node> {
    let group = Group::single(Target::new("w", weight.view()), seen(x));
    method.compress_group_dyn(group).expect("finite").layers.remove(0).node
}

fn blind(method: &dyn DynCompress, weight: &Array2<f32>) -> Box<dyn Node> {
    compress(method, weight, &Array2::zeros((0, weight.ncols())))
}

/// Of four the least magnitude goes; the values for a scale.
fn ternary(block: &[f64], scale: f64) -> Vec<f64> {
    let least = block.iter().fold(f64::INFINITY, |least, w| least.min(w.abs()));
    let gone = (block.len() == 4).then(|| block.iter().position(|w| w.abs() == least).unwrap());
    let one = |(i, w): (usize, &f64)| match *w {
        _ if Some(i) == gone => 0.0,
        w if w < 0.0 => -scale,
        _ => scale,
    };
    block.iter().enumerate().map(one).collect()
}

/// The mean magnitude of what stays.
fn scale_of(group: &[f64], costs: &[f64]) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for (block, costs) in group.chunks(4).zip(costs.chunks(4)) {
        for ((w, kept), cost) in block.iter().zip(ternary(block, 1.0)).zip(costs) {
            if kept != 0.0 {
                sum += cost * w.abs();
                weights += cost;
            }
        }
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

#[test]
fn sherry_is_that_of_the_definition() {
    for (cols, group) in [(64, 16), (64, 0), (20, 128), (7, 0), (10, 8), (3, 4)] {
        let weight = random(9, cols, cols as u64);
        let method = Sherry::new(group).with_scale(DType::F32);
        let decoded = decode(&*blind(&method, &weight)).unwrap();
        for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
            let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
            let size = if group == 0 { cols } else { group };
            let exact = row.chunks(size).flat_map(|group| {
                let scale = scale_of(group, &vec![1.0; group.len()]);
                group.chunks(4).flat_map(move |block| ternary(block, scale)).collect::<Vec<_>>()
            });
            for (exact, found) in exact.zip(decoded) {
                assert!((exact - f64::from(*found)).abs() < 1e-6, "{cols}, {group}");
            }
        }
    }
}

#[test]
fn sherry_takes_five_bits_for_four_weights() {
    let storage = Storage::of(&*blind(&Sherry::default(), &random(64, 512, 3))).unwrap();
    let weights = 64.0 * 512.0;
    assert_eq!(storage.bits() as f64 / weights, 1.25 + 16.0 / 128.0 + 32.0 / weights);
    assert_eq!(storage.bytes_of(PartKind::Masks) as f64 * 8.0 / weights, 0.5);
    assert_eq!(storage.bytes_of(PartKind::Codes) as f64 * 8.0 / weights, 0.75);
}

#[test]
fn sherry_feeds_back_as_the_reference() {
    let (weight, x) = (random(6, 48, 1), inputs(200, 48, 2));
    let method = Sherry::new(16).with_codes(Codes::feedback()).with_scale(DType::F32);
    let decoded = decode(&*compress(&method, &weight, &x)).unwrap();
    let gram = damped_gram(&x, 0.01);
    let costs = costs(&gram);
    let mut equal = 0;
    for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
        let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let mut scale = 0.0;
        let exact = feed_back(&gram, &row, 4, |at, now| {
            if at % 16 == 0 {
                scale = scale_of(&now[..16], &costs[at..at + 16]);
            }
            ternary(&now[..4], scale)
        });
        let near = |(a, b): (&f64, &f32)| (*a - f64::from(*b)).abs() < 1e-4;
        equal += exact.iter().zip(decoded).filter(|(a, b)| near((a, b))).count();
    }
    assert!(equal as f64 >= 0.99 * weight.len() as f64, "{equal} of {}", weight.len());
    let plain = decode(&*blind(&Sherry::new(16), &weight)).unwrap();
    let gain = output_error(&gram, &weight, &decoded) / output_error(&gram, &weight, &plain);
    assert!(gain < 0.8, "{gain}");
}

#[test]
fn bases_are_means_of_what_is_left() {
    for (bases, group) in [(1, 0), (2, 0), (2, 16), (1, 7)] {
        let weight = random(8, 48, 4);
        let method = Binary::new(bases).with_group(group).with_scale(DType::F32);
        let decoded = decode(&*blind(&method, &weight)).unwrap();
        let mut signs = 0;
        for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
            let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
            let size = if group == 0 { 48 } else { group };
            for (group, found) in row.chunks(size).zip(decoded.to_vec().chunks(size)) {
                let mut left = group.to_vec();
                let mut means = Vec::new();
                for _ in 0..bases {
                    let mean = left.iter().map(|w| w.abs()).sum::<f64>() / left.len() as f64;
                    left.iter_mut().for_each(|w| *w -= mean * w.signum());
                    means.push(mean);
                }
                // Sign by sign is nearest unless a later base is the larger one.
                let by_signs = means.is_sorted_by(|a, b| a >= b);
                for ((w, left), found) in group.iter().zip(left).zip(found) {
                    let lost = w - f64::from(*found);
                    assert!(lost.abs() <= left.abs() + 1e-6, "{bases}, {size}");
                    assert!(!by_signs || (lost - left).abs() < 1e-6, "{bases}, {size}");
                    signs += usize::from(by_signs);
                }
            }
        }
        assert!(signs > weight.len() / 2, "{signs}");
    }
}

fn loss(weight: &Array2<f32>, decoded: &Array2<f32>) -> f64 {
    weight.iter().zip(decoded).map(|(w, q)| f64::from(w - q).powi(2)).sum()
}

/// A joint fit loses no more, its scales solve the normal equations of its signs, and sums of signs are found.
#[test]
fn a_joint_fit_is_a_least_squares_fit() {
    let weight = random(12, 40, 5);
    for bases in 2..=4 {
        let joint = Binary::new(bases).with_fit(BinaryFit::Joint).with_scale(DType::F32);
        let decoded = decode(&*blind(&joint, &weight)).unwrap();
        let mean = decode(&*blind(&Binary::new(bases).with_scale(DType::F32), &weight)).unwrap();
        assert!(loss(&weight, &decoded) < 0.98 * loss(&weight, &mean), "{bases}");
        // The error is at right angles to what any scale adds: to the values themselves, their sum over the bases.
        for (w, q) in weight.rows().into_iter().zip(decoded.rows()) {
            let [mut along, mut size] = [0.0; 2];
            for (w, q) in w.iter().zip(q) {
                along += f64::from(w - q) * f64::from(*q);
                size += f64::from(w * w);
            }
            assert!(along.abs() < 1e-3 * size, "{bases}: {along} of {size}");
        }
    }
    let sums = Array2::from_shape_fn((4, 32), |(r, c)| {
        let bits = (c * 5 + r) % 8;
        let sign = |i: usize| if bits >> i & 1 == 1 { 1.0 } else { -1.0 };
        sign(0) * 4.0 + sign(1) * 2.0 + sign(2)
    });
    let joint = Binary::new(3).with_fit(BinaryFit::Joint);
    assert!(loss(&sums, &decode(&*blind(&joint, &sums)).unwrap()) < 1e-6);
}

#[test]
fn bases_feed_back() {
    let (weight, x) = (random(24, 64, 6), inputs(300, 64, 7));
    let gram = damped_gram(&x, 0.01);
    for bases in 1..=3 {
        let method = Binary::new(bases).with_group(32).with_fit(BinaryFit::Joint);
        let plain = decode(&*blind(&method, &weight)).unwrap();
        let fed = method.with_codes(Codes::feedback());
        let fed = decode(&*compress(&fed, &weight, &x)).unwrap();
        let gain = output_error(&gram, &weight, &fed) / output_error(&gram, &weight, &plain);
        assert!(gain < 0.8, "{bases}: {gain}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33), (16, 64)] {
        let (weight, x) = (random(rows, cols, 1), inputs(40, cols, 2));
        for codes in [Codes::default(), Codes::feedback()] {
            for group in [0, 8, 32, 1 << 20] {
                let sherry = Sherry::new(group).with_codes(codes);
                check_node(compress(&sherry, &weight, &x), &Registry::default(), 1e-4);
                let binary = Binary::new(1 + group % 3).with_group(group).with_codes(codes);
                check_node(compress(&binary, &weight, &x), &Registry::default(), 1e-4);
            }
        }
    }
    check_damage(&*blind(&Sherry::new(8), &random(6, 20, 2)), &Registry::default());
    check_damage(&*blind(&Binary::new(2), &random(6, 20, 2)), &Registry::default());
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    for method in [&Sherry::default() as &dyn DynCompress, &Binary::new(3)] {
        assert_eq!(decode(&*blind(method, &zeros)).unwrap(), zeros);
        for size in [1e-44f32, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
            let weight = random(4, 32, 4).mapv(|w| w.clamp(-1.0, 1.0) * size);
            let decoded = decode(&*blind(method, &weight)).unwrap();
            assert!(decoded.iter().all(|w| w.abs() <= 2.0 * size), "{size}");
        }
    }
    let weight = Array2::from_elem((2, 12), 0.75);
    let decoded = decode(&*blind(&Binary::new(2).with_fit(BinaryFit::Joint), &weight)).unwrap();
    assert_eq!(decoded, weight);
}

#[test]
fn masked_signs_decode_to_zero() {
    let (weight, x) = (random(8, 64, 5), inputs(100, 64, 9));
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    let kept = keep.mapv(|keep| f32::from(u8::from(keep))) * &weight;
    for codes in [Codes::default(), Codes::feedback()] {
        let mut target = Target::new("w", weight.view());
        target.mask = Some(&mask);
        let method = Binary::new(2).with_group(32).with_codes(codes);
        let made = method.compress_group_dyn(Group::single(target.clone(), seen(&x))).unwrap();
        let masked = Masked::new(mask.clone(), made.layers.into_iter().next().unwrap().node);
        let decoded = decode(&masked.unwrap()).unwrap();
        assert!(decoded.indexed_iter().all(|(at, w)| keep[at] || *w == 0.0));
        // Scales are those of what stays.
        assert!(loss(&kept, &decoded) < 0.35 * loss(&kept, &Array2::zeros((8, 64))));
        let refused = Sherry::default().compress_group_dyn(Group::single(target, seen(&x)));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |method: &dyn DynCompress, weight: &Array2<f32>| {
        let group = Group::single(Target::new("w", weight.view()), Calibration::none(8));
        method.compress_group_dyn(group).map(drop).unwrap_err()
    };
    assert!(error(&Sherry::new(6), &weight).to_string().contains("group = 6"));
    assert!(error(&Binary::new(0), &weight).to_string().contains("bases = 0"));
    assert_eq!(error(&Binary::new(5), &weight).kind(), ErrorKind::InvalidArgument);
    let scale = Binary::default().with_scale(DType::I8);
    assert_eq!(error(&scale, &weight).kind(), ErrorKind::InvalidArgument);
    weight[[2, 3]] = f32::NAN;
    for method in [&Sherry::default() as &dyn DynCompress, &Binary::default()] {
        let error = error(method, &weight);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("w")));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(70, 96, 8), inputs(150, 96, 3));
    for codes in [Codes::default(), Codes::feedback()] {
        let sherry = Sherry::new(32).with_codes(codes);
        let binary = Binary::new(2).with_fit(BinaryFit::Joint).with_codes(codes);
        for method in [&sherry as &dyn DynCompress, &binary] {
            let run = |par: Par| {
                let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
                group.par = par;
                decode(&*method.compress_group_dyn(group).unwrap().layers[0].node).unwrap()
            };
            assert_eq!(run(Par::Seq), run(Par::Threads(2)));
        }
    }
}
