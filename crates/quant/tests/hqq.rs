//! HQQ against the official code, its laws, and bad input.

use tensorpress_quant::{GroupedAffine, Hqq};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, Masked, SymbolBuf, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Node, PartKind, Registry, Storage, Target,
};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn compress(method: &Hqq, weight: &Array2<f32>) -> GroupedAffine {
    method.compress(weight.view(), &Calibration::none(weight.ncols())).expect("finite").node
}

fn codes(node: &GroupedAffine) -> Vec<f32> {
    let mut buffer = SymbolBuf::of(node.codes());
    let codes = buffer.read(node.codes(), 0..node.shape()[0]).expect("packed");
    codes.iter().map(f32::from).collect()
}

/// The method of a golden file; the axis its groups lie along.
fn method(golden: &Golden) -> (Hqq, u64) {
    let int = |key: &str| golden.param(key).as_u64().expect("an integer") as usize;
    let float = |key: &str| golden.param(key).as_f64().expect("a number") as f32;
    let iterations = if golden.flag("optimize") { int("iters") } else { 0 };
    let hqq = Hqq::new(int("nbits") as u8, int("group_size"))
        .with_scale(DType::F32)
        .with_iterations(iterations)
        .with_norm(float("lp_norm"))
        .with_beta(float("beta"), float("kappa"))
        .with_round_zero(golden.flag("round_zero"));
    (hqq, int("axis") as u64)
}

/// The largest |a - b| over the largest |b|, and the share of those within 1e-5 of it.
fn distance<'a>(
    a: impl Iterator<Item = f32>,
    b: impl ExactSizeIterator<Item = &'a f32> + Clone,
) -> (f32, f64) {
    let (most, count) = (b.clone().fold(0f32, |most, b| most.max(b.abs())), b.len());
    let far: Vec<f32> = a.zip(b).map(|(a, b)| (a - b).abs() / most).collect();
    let near = far.iter().filter(|far| **far < 1e-5).count();
    (far.iter().fold(0f32, |most, far| most.max(*far)), near as f64 / count as f64)
}

/// Scales equal but for the last bit, zero points within 1e-5 in all but a few groups (where a tie on the way went the
/// other way), codes equal, along both axes: for groups down the columns at the solver, which knows no layout.
#[test]
fn grids_and_codes_are_those_of_the_official_code() {
    let Some(files) = Golden::all("hqq") else { return };
    for golden in &files {
        let (hqq, axis) = method(golden);
        let weight = &golden.layer.weight;
        let (scale, zero) = (golden.floats("scale"), golden.floats("zero"));
        let official = golden.floats("codes");
        let (grids, ours): (Vec<(f32, f32)>, Array2<f32>) = if axis == 1 {
            let node = compress(&hqq, weight);
            let decoded = decode(&node).unwrap();
            let (error, stated) = (
                golden.layer.output_error(decoded.view()),
                golden.figure("output_rel_err").expect("a figure"),
            );
            assert!((error / stated - 1.0).abs() < 1e-4, "{}: {error} vs {stated}", golden.name);
            let grids = node.scales().iter().copied().zip(node.zeros().unwrap()).collect();
            (grids, Array2::from_shape_vec(official.dim(), codes(&node)).unwrap())
        } else {
            let tall = weight.to_shape(official.dim()).unwrap();
            let turned = tall.t().as_standard_layout().into_owned();
            let groups: Vec<&[f32]> =
                turned.rows().into_iter().map(|row| row.to_slice().unwrap()).collect();
            let grids = hqq.fit(&groups, Par::Seq).unwrap();
            let most = 2f32.powi(i32::from(hqq.bits)) - 1.0;
            let codes = Array2::from_shape_fn(official.dim(), |(r, c)| {
                (tall[[r, c]] / grids[c].scale + grids[c].zero).round_ties_even().clamp(0.0, most)
            });
            (grids.iter().map(|grid| (grid.scale, grid.zero)).collect(), codes)
        };
        let scales = distance(grids.iter().map(|grid| grid.0), scale.iter());
        let zeros = distance(grids.iter().map(|grid| grid.1), zero.iter());
        let equal = ours.iter().zip(&official).filter(|(a, b)| a == b).count();
        let equal = equal as f64 / official.len() as f64;
        println!(
            "{}: scales within {:.1e}, zero points within {:.1e} ({:.5} within 1e-5), codes equal {equal:.6}",
            golden.name, scales.0, zeros.0, zeros.1
        );
        assert!(scales.0 < 1e-6, "{}: scales", golden.name);
        assert!(zeros.1 > 0.999, "{}: zero points", golden.name);
        assert!(equal > 0.9999, "{}: codes equal {equal}", golden.name);
    }
    println!("golden files checked: hqq {}", files.len());
    assert!(files.len() >= 10, "golden vectors are missing");
}

#[test]
fn nodes_obey_the_laws() {
    let mut bits = (2..=8).cycle();
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33), (16, 64)] {
        for group in [0, 5, 32, 1 << 20] {
            for scale in [DType::F16, DType::BF16, DType::F32] {
                let hqq = Hqq::new(bits.next().unwrap(), group).with_scale(scale);
                check_node(
                    compress(&hqq, &random(rows, cols, 1)).boxed(),
                    &Registry::default(),
                    1e-4,
                );
            }
        }
    }
    check_damage(&compress(&Hqq::new(3, 8), &random(6, 20, 2)), &Registry::default());
}

/// Each zero point is a fixed point where none but the nearest levels are in question: the mean of code - w / scale.
#[test]
fn zero_points_are_means_in_the_end() {
    let weight = random(12, 64, 3) * 0.05;
    let hqq = Hqq::new(4, 32).with_scale(DType::F32).with_iterations(500);
    let node = compress(&hqq, &weight);
    let (codes, zeros) = (codes(&node), node.zeros().unwrap());
    let weight = weight.as_slice().unwrap();
    for (g, zero) in zeros.iter().enumerate() {
        let scale = node.scales()[g];
        let at = g * 32..(g + 1) * 32;
        let mean = at.map(|i| codes[i] - weight[i] / scale).sum::<f32>() / 32.0;
        assert!((mean - zero).abs() < 0.1, "group {g}: {zero} and {mean}");
    }
}

/// It loses less than the ranges it starts from, by the error it looks at.
#[test]
fn steps_lower_the_error() {
    let weight = random(64, 128, 4).mapv(|w| w * w * w);
    for bits in [2, 3, 4] {
        let error = |iterations: usize| {
            let node = compress(&Hqq::new(bits, 64).with_iterations(iterations), &weight);
            (decode(&node).unwrap() - &weight).mapv(f32::abs).sum()
        };
        assert!(error(20) < 0.98 * error(0), "{bits} bits: {} and {}", error(20), error(0));
    }
}

/// What is pruned has no say, and decodes to 0.
#[test]
fn only_kept_weights_are_fitted() {
    let weight = random(8, 64, 5) + 3.0;
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let group = Group::single(target, Calibration::none(64));
    let node = Hqq::new(4, 32).compress_group_dyn(group).unwrap().layers.remove(0).node;
    let masked = Masked::new(mask.clone(), node).unwrap();
    for ((at, w), decoded) in weight.indexed_iter().zip(&decode(&masked).unwrap()) {
        // A step is 1/15, as if there were nothing but what is kept.
        assert!(if keep[at] { (w - decoded).abs() < 0.07 } else { *decoded == 0.0 }, "{at:?}");
    }
    check_node(masked.boxed(), &Registry::default(), 1e-4);
}

#[test]
fn sizes_are_as_stated() {
    let node = compress(&Hqq::new(4, 64), &random(32, 256, 7));
    let storage = Storage::of(&node).unwrap();
    assert_eq!(storage.bits() as f64 / 8192.0, 4.0 + 32.0 / 64.0);
    assert_eq!(storage.bytes_of(PartKind::Zeros), storage.bytes_of(PartKind::Scales));
    assert_eq!(node.describe()["node"], "grouped_affine.v2");
}

/// Constant rows are exact, zeros are zeros, and a group far from 0 is as near as one at 0.
#[test]
fn limits_are_right() {
    let constant = Array2::from_elem((3, 16), 0.25);
    assert_eq!(decode(&compress(&Hqq::default(), &constant)).unwrap(), constant);
    let zeros = Array2::zeros((3, 16));
    assert_eq!(decode(&compress(&Hqq::default(), &zeros)).unwrap(), zeros);
    for offset in [0.0, 1000.0] {
        let weight = random(4, 32, 8) + offset;
        let node = compress(&Hqq::new(4, 32), &weight);
        let far = (decode(&node).unwrap() - &weight).mapv(f32::abs);
        assert!(far.iter().all(|far| *far < 0.1), "{offset}: {far}");
    }
    for size in [1e-44, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
        let weight = random(4, 32, 9) * 2.0 * size;
        for bits in [2, 8] {
            let decoded = decode(&compress(&Hqq::new(bits, 16), &weight)).unwrap();
            assert!(decoded.iter().all(|w| w.is_finite()), "{size}");
            let step = if size < 1e-40 { size } else { size / (2f32.powi(bits.into()) - 1.0) };
            // Where the ends of f32 leave room.
            if size < 1e38 {
                let far = (decoded - &weight).fold(0f32, |far, d| far.max(d.abs()));
                assert!(far <= 2.0 * step, "{size}, {bits} bits: {far}, {step}");
            }
        }
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 10);
    let error = |hqq: Hqq, weight: &Array2<f32>| {
        hqq.compress(weight.view(), &Calibration::none(8)).map(drop).unwrap_err()
    };
    for (hqq, word) in [
        (Hqq::new(1, 8), "bits = 1"),
        (Hqq::new(9, 8), "bits = 9"),
        (Hqq::default().with_norm(0.0), "norm = 0"),
        (Hqq::default().with_norm(f32::NAN), "norm = NaN"),
        (Hqq::default().with_beta(0.0, 1.0), "beta = 0"),
        (Hqq::default().with_beta(1.0, f32::INFINITY), "kappa = inf"),
        (Hqq::default().with_scale(DType::I8), "scale = I8"),
    ] {
        let error = error(hqq, &weight);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(word), "{error}");
    }
    weight[[2, 3]] = f32::NAN;
    let error = error(Hqq::default(), &weight);
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.to_string().contains("[2, 3]"), "{error}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(300, 96, 11);
    let run = |par: Par| {
        let mut group = Group::single(Target::new("w", weight.view()), Calibration::none(96));
        group.par = par;
        let node = Hqq::new(3, 32).compress_group_dyn(group).unwrap().layers.remove(0).node;
        decode(&*node).unwrap()
    };
    assert_eq!(run(Par::Seq), run(Par::Threads(2)));
}
