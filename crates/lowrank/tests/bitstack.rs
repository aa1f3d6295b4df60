//! BitStack against the official code, and its laws.

use tensorpress_lowrank::{BitStack, Solver};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, Sum, as_node, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Registry, Storage, Target,
};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

#[test]
fn every_number_of_blocks_loses_what_the_official_code_loses() {
    let Some(files) = Golden::all("bitstack") else { return };
    for golden in &files {
        let rank = golden.param("k").as_u64().unwrap() as usize;
        let scaled = golden.param("act_scaled").as_bool().unwrap();
        let calibration = Calibration::from_samples(golden.layer.x.clone(), Par::Seq);
        for blocks in 1..=golden.param("w_bit").as_u64().unwrap() as usize {
            let method = BitStack::new(blocks, rank).with_scaled(scaled);
            let method = method.with_solver(Solver::Exact);
            let made = method.compress(golden.layer.weight.view(), &calibration).unwrap();
            assert!(made.fallback.is_none());
            let ours = golden.layer.output_error(decode(&*made.node).unwrap().view());
            let official = golden.figure(&format!("output_rel_err_{blocks}blocks")).unwrap();
            println!("{}: {blocks} blocks {ours:.6}, official {official:.6}", golden.name);
            assert!((ours / official - 1.0).abs() <= 0.005, "{}: {ours} {official}", golden.name);
        }
    }
    println!("golden files checked: bitstack {}", files.len());
    assert!(files.len() >= 2, "golden vectors are missing");
}

/// The first terms of many blocks are those of fewer, and each loses less than the one before.
#[test]
fn first_blocks_are_those_of_fewer() {
    let weight = random(24, 40, 1);
    let stack = |blocks: usize| {
        let method = BitStack::new(blocks, 2).with_scaled(false);
        method.compress(weight.view(), &Calibration::none(40)).unwrap().node
    };
    let all = stack(4);
    let terms = as_node::<Sum>(&*all).expect("a sum").terms();
    let mut sum = Array2::zeros((24, 40));
    let mut before = f32::INFINITY;
    for (term, blocks) in terms.iter().zip(1..) {
        sum += &decode(&**term).unwrap();
        let alone = decode(&*stack(blocks)).unwrap();
        assert!((&alone - &sum).iter().all(|d| d.abs() < 1e-6));
        let loss = (&weight - &sum).mapv(|d| d * d).sum();
        assert!(loss < 0.6 * before, "{blocks}: {loss} after {before}");
        before = loss;
    }
    let bits = Storage::of(&*all).unwrap().bits();
    assert_eq!(bits, 4 * (24 * 40 + 16 * 2 * (24 + 40)));
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33)] {
        let (weight, x) = (random(rows, cols, 1), random(30, cols, 2));
        let calibration = Calibration::from_samples(x, Par::Seq);
        for scaled in [false, true] {
            let method = BitStack::new(2, 3).with_scaled(scaled);
            let made = method.compress(weight.view(), &calibration).unwrap();
            assert!(made.fallback.is_none());
            check_node(made.node, &Registry::default(), 1e-4);
        }
    }
    let made = BitStack::new(2, 1).compress(random(5, 9, 3).view(), &Calibration::none(9));
    check_damage(&*made.unwrap().node, &Registry::default());
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    let blind = Calibration::none(16);
    assert_eq!(
        decode(&*BitStack::default().compress(zeros.view(), &blind).unwrap().node).unwrap(),
        zeros
    );
    let made = BitStack::default().compress(random(4, 16, 1).view(), &blind).unwrap();
    assert!(made.fallback.unwrap().contains("not scaled"));
    for size in [1e-30f32, 1e-6, 1e6, 1e30] {
        let weight = random(8, 16, 4).mapv(|w| w * size);
        let made = BitStack::new(3, 4).compress(weight.view(), &blind).unwrap();
        let decoded = decode(&*made.node).unwrap();
        let far = (&decoded - &weight).iter().fold(0f32, |far, d| far.max(d.abs()));
        // Factors below the least number of f16 are gone.
        assert!(far <= if size < 1e-20 { size } else { 0.3 * size }, "{size}: {far}");
    }
    // An input that was always 0, and one that was NaN.
    let mut x = random(30, 16, 2);
    x.column_mut(3).fill(0.0);
    let seen = Calibration::from_samples(x.clone(), Par::Seq);
    let made = BitStack::new(2, 2).compress(random(8, 16, 3).view(), &seen).unwrap();
    assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()));
    x[[2, 5]] = f32::NAN;
    let seen = Calibration::from_samples(x, Par::Seq);
    let made = BitStack::new(2, 2).compress(random(8, 16, 3).view(), &seen).unwrap();
    assert!(made.fallback.unwrap().contains("not scaled"));
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |method: BitStack, weight: &Array2<f32>| {
        method.compress(weight.view(), &Calibration::none(8)).map(drop).unwrap_err()
    };
    assert!(error(BitStack::new(0, 1), &weight).to_string().contains("blocks = 0"));
    assert!(error(BitStack::new(1, 0), &weight).to_string().contains("rank = 0"));
    let factors = BitStack::default().with_factors(DType::I8);
    assert_eq!(error(factors, &weight).kind(), ErrorKind::InvalidArgument);
    let mask = Mask::from_bools(weight.mapv(|w| w > 0.0).view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let group = Group::single(target, Calibration::none(8));
    let refused = BitStack::default().compress_group_dyn(group).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    weight[[2, 3]] = f32::NAN;
    assert_eq!(error(BitStack::default(), &weight).kind(), ErrorKind::Numerical);
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(70, 96, 8);
    let run = |par: Par| {
        let mut group = Group::single(Target::new("w", weight.view()), Calibration::none(96));
        group.par = par;
        decode(&*BitStack::new(2, 4).compress_group_dyn(group).unwrap().layers[0].node).unwrap()
    };
    assert_eq!(run(Par::Seq), run(Par::Threads(2)));
}
