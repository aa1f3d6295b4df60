//! The laws of nodes on what the quantisers return, over bits, granularities, odd shapes and bad input.

use proptest::prelude::*;
use tensorpress_quant::{Awq, AwqClip, Clip, Gptq, Granularity, GridSpec, Rtn};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, array};
use tensorpress_tensor::node::{Mask, Masked, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Compress, DType, DynCompress, ErrorKind, Group, Node, Registry, Target};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn round(grid: GridSpec, weight: &Array2<f32>) -> tensorpress_quant::GroupedAffine {
    Rtn::new(grid).round(&Target::new("w", weight.view()), Par::Seq).unwrap()
}

#[test]
fn every_grid_obeys_the_laws() {
    let granularities =
        [Granularity::Tensor, Granularity::Channel, Granularity::Group(32), Granularity::Group(5)];
    for bits in 2..=8 {
        for granularity in granularities {
            for (rows, cols) in [(1, 1), (3, 7), (17, 33), (16, 64), (5, 130)] {
                for symmetric in [false, true] {
                    let grid = GridSpec::new(bits, 0)
                        .with_granularity(granularity)
                        .with_symmetric(symmetric)
                        .with_scale([DType::F16, DType::BF16, DType::F32][usize::from(bits) % 3]);
                    let node = round(grid, &random(rows, cols, u64::from(bits)));
                    check_node(node.boxed(), &Registry::default(), 1e-4);
                }
            }
        }
    }
}

#[test]
fn empty_matrices_round() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0)] {
        check_node(
            round(GridSpec::default(), &Array2::zeros((rows, cols))).boxed(),
            &Registry::default(),
            1e-4,
        );
    }
}

#[test]
fn masked_codes_are_stored_alone_and_decode_to_zero() {
    let weight = random(19, 37, 1);
    let keep = random(19, 37, 2).mapv(|v| v > 0.0);
    let kept = keep.iter().filter(|k| **k).count();
    let whole = round(GridSpec::new(4, 16), &weight);
    let expected = decode(&whole).unwrap();
    let node = Masked::new(Mask::from_bools(keep.view()), whole.boxed()).unwrap();
    for ((at, w), e) in decode(&node).unwrap().indexed_iter().zip(&expected) {
        assert_eq!(*w, if keep[at] { *e } else { 0.0 });
    }
    let storage = tensorpress_tensor::Storage::of(&node).unwrap();
    assert_eq!(
        storage.bytes_of(tensorpress_tensor::PartKind::Codes),
        (kept as u64 * 4).div_ceil(8)
    );
    check_damage(&node, &Registry::default());
    check_node(node.boxed(), &Registry::default(), 1e-4);
}

#[test]
fn masked_codes_of_every_form_obey_the_laws() {
    for (rows, cols) in [(1, 1), (17, 33), (16, 64), (9, 208)] {
        let weight = random(rows, cols, 4);
        let supports: [&dyn Fn(usize, usize) -> bool; 6] = [
            &|r, c| (r * 7 + c * 13) % 5 < 2,
            &|_, _| false,
            &|_, _| true,
            &|r, c| (c + r + c / 4) % 4 < 2,
            &|r, c| (r / 16 + c * 5) % 7 < 2,
            &|r, c| (r / 4 + c / 4 * 5) % 7 < 2,
        ];
        for (bits, group, symmetric) in
            [(4, 16, false), (4, 0, false), (3, 64, true), (8, 32, false), (2, 5, false)]
        {
            for keep in supports {
                let keep = Array2::from_shape_fn((rows, cols), |(r, c)| keep(r, c));
                let grid = GridSpec::new(bits, group).with_symmetric(symmetric);
                let whole = round(grid, &weight);
                let expected = decode(&whole).unwrap();
                let node = Masked::new(Mask::from_bools(keep.view()), whole.boxed()).unwrap();
                for ((at, w), e) in decode(&node).unwrap().indexed_iter().zip(&expected) {
                    let expected = if keep[at] { *e } else { 0.0 };
                    assert_eq!(w.to_bits(), expected.to_bits(), "law 5 at {at:?}");
                }
                check_node(node.boxed(), &Registry::default(), 1e-4);
            }
        }
    }
}

#[test]
fn gptq_with_act_order_obeys_the_laws() {
    let weight = random(20, 48, 3);
    let calibration = Calibration::from_samples(random(100, 48, 4), Par::Seq);
    for static_groups in [false, true] {
        let method =
            Gptq::new(GridSpec::new(3, 16)).with_act_order(true).with_static_groups(static_groups);
        let node = method.compress(weight.view(), &calibration).unwrap().node;
        check_damage(&*node, &Registry::default());
        check_node(node, &Registry::default(), 1e-4);
    }
}

/// Clipping by outputs leaves alone what attention scores are made of.
#[test]
fn awq_does_not_clip_scores() {
    let (weight, calibration) =
        (random(16, 48, 41), Calibration::from_samples(random(100, 48, 42), Par::Seq));
    let run = |clip: AwqClip, scores: bool| {
        let target = Target::new("w", weight.view()).with_scores(scores);
        let awq = Awq::new(GridSpec::new(3, 16)).with_clip(clip);
        let made = awq.compress_group(Group::single(target, calibration.clone())).unwrap();
        decode(&made.layers[0].node).unwrap()
    };
    assert_ne!(run(AwqClip::Output, false), run(AwqClip::Off, false));
    assert_eq!(run(AwqClip::Output, true), run(AwqClip::Off, true));
}

#[test]
fn awq_obeys_the_laws_and_folds_exactly() {
    let weights = [random(20, 48, 5), random(12, 48, 6)];
    let x = random(100, 48, 7);
    let norm: Vec<f32> =
        (0..48).map(|i| if i == 7 { 0.0 } else { 1.0 + i as f32 / 50.0 }).collect();
    for dtype in [DType::F32, DType::BF16] {
        let norm: Vec<f32> = norm.iter().map(|v| dtype.round(*v)).collect();
        let mut group = Group::single(
            Target::new("a", weights[0].view()),
            Calibration::from_samples(x.clone(), Par::Seq),
        );
        group.targets.push(Target::new("b", weights[1].view()));
        group.fold = Some(tensorpress_tensor::Fold { values: &norm, dtype });
        let result = Awq::new(GridSpec::new(4, 16)).compress_group_dyn(group).unwrap();
        let folded = result.folded.unwrap();
        for (f, layer) in [(0, &result.layers[0]), (1, &result.layers[1])] {
            // norm/s times Q(W s) is close to norm times W.
            let q = decode(&*layer.node).unwrap();
            let (mut error, mut size) = (0.0, 0.0);
            for ((r, c), w) in weights[f].indexed_iter() {
                error += (folded[c] * q[[r, c]] - norm[c] * w).powi(2);
                size += (norm[c] * w).powi(2);
            }
            assert!((error / size).sqrt() < 0.1, "{}", (error / size).sqrt());
        }
        assert!(folded.iter().all(|f| dtype.round(*f) == *f), "folded values are representable");
    }
    let calibration = Calibration::from_samples(x, Par::Seq);
    let solver = Gptq::new(GridSpec::new(4, 16));
    let node =
        Awq::with_solver(GridSpec::new(4, 16), solver).compress(weights[0].view(), &calibration);
    check_node(node.unwrap().node, &Registry::default(), 1e-4);
}

/// What peers fail on: no calibration, dead inputs, singular and non-finite statistics.
#[test]
fn gptq_never_fails_on_its_statistics() {
    let weight = random(24, 32, 8);
    let gptq = Gptq::new(GridSpec::new(4, 8));
    let rounded = decode(&round(GridSpec::new(4, 8), &weight)).unwrap();

    let blind = Calibration::from_samples(Array2::zeros((0, 32)), Par::Seq);
    let result = gptq.compress(weight.view(), &blind).unwrap();
    assert_eq!(decode(&*result.node).unwrap(), rounded);
    assert!(result.fallback.unwrap().contains("no calibration token"));

    let zeros = Calibration::from_samples(Array2::zeros((10, 32)), Par::Seq);
    let result = gptq.compress(weight.view(), &zeros).unwrap();
    assert_eq!(decode(&*result.node).unwrap(), rounded);
    assert!(result.fallback.unwrap().contains("zero"));

    let mut x = random(50, 32, 9);
    x[[3, 5]] = f32::NAN;
    let result = gptq.compress(weight.view(), &Calibration::from_samples(x, Par::Seq)).unwrap();
    assert_eq!(decode(&*result.node).unwrap(), rounded);
    assert!(result.fallback.unwrap().contains("NaN"));

    // Rank 1, with two dead channels, and no damping asked for.
    let mut x = Array2::from_shape_fn((40, 32), |(t, c)| (t as f32 - 20.0) * (c as f32 + 1.0));
    x.column_mut(4).fill(0.0);
    x.column_mut(9).fill(0.0);
    for act_order in [false, true] {
        let method = gptq.with_damp(0.0).with_act_order(act_order);
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let result = method.compress(weight.view(), &calibration).unwrap();
        assert!(decode(&*result.node).unwrap().iter().all(|w| w.is_finite()));
        assert!(result.fallback.unwrap().contains("damping raised"));
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 10);
    let blind = Calibration::none(8);
    let kind = |r: Result<(), tensorpress_tensor::Error>| r.unwrap_err().kind();
    let bits = Rtn::new(GridSpec::new(9, 8)).compress(weight.view(), &blind).map(drop);
    assert!(bits.as_ref().unwrap_err().to_string().contains("bits = 9"));
    assert_eq!(kind(bits), ErrorKind::InvalidArgument);
    let damp = Gptq::default().with_damp(-1.0).compress(weight.view(), &blind).map(drop);
    assert_eq!(kind(damp), ErrorKind::InvalidArgument);
    let block = Gptq::default().with_block(0).compress(weight.view(), &blind).map(drop);
    assert_eq!(kind(block), ErrorKind::InvalidArgument);
    weight[[2, 3]] = f32::INFINITY;
    let error = Rtn::default().compress(weight.view(), &blind).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.to_string().contains("[2, 3]"), "{error}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(70, 96, 11);
    let x = random(200, 96, 12);
    let run = |par: Par| {
        let mut group = Group::single(
            Target::new("w", weight.view()),
            Calibration::from_samples(x.clone(), par),
        );
        group.par = par;
        let grid = GridSpec::new(3, 32).with_clip(Clip::Mse);
        let node = Gptq::new(grid).with_act_order(true).compress_group(group).unwrap();
        decode(&*node.layers[0].node).unwrap()
    };
    assert_eq!(run(Par::Seq), run(Par::Rayon));
}

/// A small group in a matrix of larger ones: its scale has few digits in f16, and still reaches the end of its range.
#[test]
fn small_groups_keep_their_ends() {
    for magnitude in -40..0 {
        let small = 1.3 * 2f32.powi(magnitude);
        let weight = array![[1.0, small], [-small, 0.9 * small]];
        for bits in 2..=8 {
            let node = round(GridSpec::new(bits, 1), &weight);
            let decoded = decode(&node).unwrap();
            for (((r, c), w), step) in weight.indexed_iter().zip(node.scales()) {
                let error = (decoded[[r, c]] - w).abs();
                assert!(
                    error <= 0.65 * step,
                    "{bits} bits: {w} -> {} step {step}",
                    decoded[[r, c]]
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rounding is never further from a weight than half a step, and scales of any magnitude survive.
    #[test]
    fn rounding_is_to_the_nearest_level(
        bits in 2u8..=8, group in 1usize..40, rows in 1usize..6, cols in 1usize..70,
        magnitude in -30i32..30, seed in any::<u64>(),
    ) {
        let weight = random(rows, cols, seed) * 2f32.powi(magnitude);
        let node = round(GridSpec::new(bits, group), &weight);
        let decoded = decode(&node).unwrap();
        for ((r, c), w) in weight.indexed_iter() {
            let groups = cols.div_ceil(node.group());
            let step = node.scales()[r * groups + c / node.group()];
            // Half a step; a little more at the ends, where rounding the scale to ten digits moved the range.
            prop_assert!((decoded[[r, c]] - w).abs() <= 0.5 * step * 1.3, "{w} -> {} step {step}", decoded[[r, c]]);
        }
    }
}
