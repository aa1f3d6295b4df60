//! PV-tuning: both steps against their definitions, gains on several representations, laws and bad input.

mod reference;

use reference::{damped_gram, inputs, output_error, random, seen};
use tensorpress_quant::{
    Aqlm, BitMod, Codes, GridSpec, KMeans, LevelCodes, LevelSpec, Nf4, Post, Pv, Representation,
    Rtn, Sketch, VectorCodes,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{
    Compress, Compressed, DType, DynCompress, ErrorKind, Group, Node, Registry, Target,
};

fn compress(method: &dyn DynCompress, weight: &Array2<f32>, x: &Array2<f32>) -> Compressed {
    let group = Group::single(Target::new("w", weight.view()), seen(x));
    method.compress_group_dyn(group).expect("finite").layers.remove(0)
}

fn gram_of(x: &Array2<f32>) -> Array2<f64> {
    let x = x.mapv(f64::from);
    x.t().dot(&x)
}

/// tr(D H Dᵀ).
fn loss(weight: &Array2<f32>, decoded: &Array2<f32>, gram: &Array2<f64>) -> f64 {
    let rest = (weight - decoded).mapv(f64::from);
    (&rest.dot(gram) * &rest).sum()
}

/// After a P step no value can be moved to any gain: the slope of the loss by each is 0.
#[test]
fn fitted_values_are_stationary() {
    let (weight, x) = (random(8, 24, 1), inputs(100, 24, 2));
    let gram = gram_of(&x);
    let spec = |rows| LevelSpec::new(2).with_rows(rows).with_table(DType::F32);
    let scaled = Post::new(3, 8).with_scale(DType::F32);
    let sketch = Sketch::new(2, 8).with_table(DType::F32).with_codes(Codes::default());
    let tables = [
        KMeans::new(spec(1)).compress(weight.view(), &Calibration::none(24)).unwrap().node,
        KMeans::new(spec(3)).compress(weight.view(), &Calibration::none(24)).unwrap().node,
        KMeans::new(spec(0)).compress(weight.view(), &Calibration::none(24)).unwrap().node,
        scaled.compress(weight.view(), &Calibration::none(24)).unwrap().node,
        sketch.compress(weight.view(), &Calibration::none(24)).unwrap().node,
    ];
    for (case, table) in tables.iter().enumerate() {
        let mut codes = LevelCodes::of(table).unwrap();
        assert_eq!(codes.decode(), decode(table).unwrap());
        let before = loss(&weight, &codes.decode(), &gram);
        codes.fit(weight.view(), gram.view(), Par::Seq);
        let fitted = codes.decode();
        let after = loss(&weight, &fitted, &gram);
        assert!(after < 0.9 * before, "{case}: {before} to {after}");
        // Weights that shared a value move together: by a small step of all of them nothing is gained.
        let start = decode(table).unwrap();
        for row in 0..8 {
            for block in 0..3 {
                for at in 0..24 {
                    let group = match case {
                        0..3 => 0..24,
                        _ => block * 8..block * 8 + 8,
                    };
                    let rows = match case {
                        1 => row / 3 * 3..(row / 3 * 3 + 3).min(8),
                        2 => 0..8,
                        _ => row..row + 1,
                    };
                    if !group.contains(&at) {
                        continue;
                    }
                    for step in [1e-3f32, -1e-3] {
                        let mut moved = fitted.clone();
                        for r in rows.clone() {
                            for c in group.clone() {
                                let same = start[[r, c]] == start[[row, at]];
                                if case == 3 {
                                    moved[[r, c]] *= 1.0 + step;
                                } else if same {
                                    moved[[r, c]] += step;
                                }
                            }
                        }
                        let moved = loss(&weight, &moved, &gram);
                        assert!(moved >= after * (1.0 - 1e-5), "{case}: {moved} {after}");
                    }
                }
            }
        }
    }
}

/// A row so small that all codes can be tried, each with its best values: tuning ends between that and its start.
#[test]
fn tuning_ends_between_its_start_and_the_best() {
    let mut reached = 0;
    for seed in 0..20 {
        let (weight, x) = (random(1, 8, seed), inputs(60, 8, seed + 100));
        let gram = gram_of(&x);
        let method = KMeans::new(LevelSpec::new(1).with_table(DType::F32));
        let start = loss(&weight, &decode(&*compress(&method, &weight, &x).node).unwrap(), &gram);
        let tuned = Pv::new(method).with_share(0.2);
        let tuned = loss(&weight, &decode(&*compress(&tuned, &weight, &x).node).unwrap(), &gram);
        let w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        let mut best = f64::INFINITY;
        for codes in 0..256usize {
            // min over (a, b) of (w - Z (a, b)) H (..): two equations.
            let z = |k: usize, c: usize| f64::from(u8::from((codes >> c & 1) == k));
            let dot = |p: &dyn Fn(usize) -> f64, q: &dyn Fn(usize) -> f64| -> f64 {
                (0..8).map(|i| (0..8).map(|j| p(i) * gram[[i, j]] * q(j)).sum::<f64>()).sum()
            };
            let (a, b) = (|c: usize| z(0, c), |c: usize| z(1, c));
            let full = |c: usize| w[c];
            let (aa, ab, bb) = (dot(&a, &a), dot(&a, &b), dot(&b, &b));
            let (aw, bw, ww) = (dot(&a, &full), dot(&b, &full), dot(&full, &full));
            let determinant = aa * bb - ab * ab;
            let gained = if determinant > 1e-9 * aa.max(bb).powi(2) {
                (bb * aw * aw - 2.0 * ab * aw * bw + aa * bw * bw) / determinant
            } else {
                (aw * aw / aa.max(1e-300)).max(bw * bw / bb.max(1e-300))
            };
            best = best.min(ww - gained);
        }
        assert!(tuned <= start * (1.0 + 1e-6), "{seed}: {tuned} from {start}");
        assert!(tuned >= best - 1e-4 * best.abs() - 1e-6, "{seed}: {tuned} below {best}");
        reached += usize::from(tuned <= 1.5 * best);
    }
    assert!(reached >= 10, "{reached} of 20 within half of the best");
}

/// What another code is said to gain is what the loss falls by.
#[test]
fn proposals_gain_what_they_say() {
    let (weight, x) = (random(6, 24, 11), inputs(80, 24, 12));
    let gram = gram_of(&x);
    let blind = Calibration::none(24);
    let table = Post::new(3, 8).compress(weight.view(), &blind).unwrap().node;
    let sums = Aqlm::new(2, 3).with_size(4).with_rounds(0);
    let sums = sums.compress(weight.view(), &blind).unwrap().node;
    let all: [Box<dyn Representation>; 2] =
        [Box::new(LevelCodes::of(&table).unwrap()), Box::new(VectorCodes::of(&sums).unwrap())];
    for codes in all {
        let before = loss(&weight, &codes.decode(), &gram);
        let slope = (&weight - &codes.decode()).mapv(f64::from).dot(&gram);
        let mut seen = 0;
        for row in 0..6 {
            let along = slope.row(row).to_vec();
            for proposal in codes.proposals(row, &along, gram.view()) {
                let mut other = codes.copy();
                other.take(row, &proposal);
                let fallen = before - loss(&weight, &other.decode(), &gram);
                assert!((fallen - proposal.gain).abs() < 1e-4 * before, "{fallen}: {proposal:?}");
                let mut change = vec![0.0; 24];
                codes.change(row, &proposal, &mut change);
                let exact = &other.decode().row(row) - &codes.decode().row(row);
                assert!(exact.iter().zip(change).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}

#[test]
fn every_representation_gains() {
    let (weight, x) = (random(24, 64, 3), inputs(300, 64, 4));
    let gram = damped_gram(&x, 0.0);
    let blind = Codes::default();
    let methods: [(Box<dyn DynCompress>, f64); 6] = [
        (Box::new(KMeans::new(LevelSpec::new(2))), 0.6),
        (Box::new(Post::new(3, 16)), 0.8),
        (Box::new(Sketch::new(2, 32).with_codes(blind)), 0.6),
        (Box::new(Nf4::default().with_block(32).with_double_quant(false)), 0.8),
        (Box::new(Aqlm::new(1, 4).with_size(4).with_rounds(0)), 0.6),
        (Box::new(Aqlm::new(2, 3).with_size(4)), 1.0),
    ];
    for (method, most) in methods {
        let before = compress(&*method, &weight, &x).node;
        let named = method.id();
        let tuned = compress(&Pv::new(method).with_share(0.1), &weight, &x);
        assert!(tuned.fallback.is_none());
        assert_eq!(before.describe(), tuned.node.describe(), "{named}: the same format");
        let [before, after] =
            [before, tuned.node].map(|n| output_error(&gram, &weight, &decode(&*n).unwrap()));
        println!("{named}: {before:.4} to {after:.4}");
        assert!(after < most * before, "{named}: {before} to {after}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33)] {
        let (weight, x) = (random(rows, cols, 1), inputs(40, cols, 2));
        let methods: [Box<dyn DynCompress>; 5] = [
            Box::new(KMeans::new(LevelSpec::new(2))),
            Box::new(KMeans::new(LevelSpec::new(3).with_rows(0))),
            Box::new(Sketch::new(2, 8)),
            Box::new(Post::new(2, 5)),
            Box::new(Aqlm::new(2, 2).with_size(3).with_rounds(1)),
        ];
        for method in methods {
            let made = compress(&Pv::new(method).with_rounds(2), &weight, &x);
            check_node(made.node, &Registry::default(), 1e-4);
        }
    }
}

#[test]
fn bad_statistics_leave_what_was_made() {
    let weight = random(4, 16, 5);
    let method = KMeans::new(LevelSpec::new(2));
    let plain =
        decode(&method.compress(weight.view(), &Calibration::none(16)).unwrap().node).unwrap();
    for (x, why) in [
        (Array2::zeros((0, 16)), "no calibration token"),
        (Array2::zeros((9, 16)), "zero"),
        (Array2::from_elem((9, 16), f32::NAN), "NaN"),
    ] {
        let made = compress(&Pv::new(method), &weight, &x);
        assert_eq!(decode(&*made.node).unwrap(), plain);
        let note = made.fallback.unwrap();
        assert!(note.contains(why) && note.contains("not tuned"), "{note}");
    }
    // Rank 1 and dead inputs.
    let x =
        Array2::from_shape_fn((40, 16), |(t, c)| if c == 4 { 0.0 } else { t as f32 * c as f32 });
    let made = compress(&Pv::new(method), &weight, &x);
    assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()));
    for size in [1e-30f32, 1e30] {
        let weight = weight.mapv(|w| w * size);
        let made = compress(&Pv::new(method), &weight, &inputs(40, 16, 3));
        assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()), "{size}");
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let x = inputs(30, 8, 1);
    let error = |method: &dyn DynCompress, weight: &Array2<f32>| {
        let group = Group::single(Target::new("w", weight.view()), seen(&x));
        method.compress_group_dyn(group).map(drop).unwrap_err()
    };
    let kmeans = KMeans::default();
    for share in [0.0, 1.5, f64::NAN] {
        let error = error(&Pv::new(kmeans).with_share(share), &weight);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    for method in [
        Box::new(Rtn::new(GridSpec::new(3, 8))) as Box<dyn DynCompress>,
        Box::new(BitMod::new(3, 8)),
        Box::new(Nf4::default()),
    ] {
        let error = error(&Pv::new(method), &weight);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("w")), "{error}");
    }
    let mask = Mask::from_bools(weight.mapv(|w| w > 0.0).view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let refused = Pv::new(kmeans).compress_group(Group::single(target, seen(&x))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    weight[[2, 3]] = f32::NAN;
    let error = error(&Pv::new(kmeans), &weight);
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("w")));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(40, 48, 8), inputs(150, 48, 3));
    let methods: [Box<dyn DynCompress>; 2] =
        [Box::new(Pv::new(KMeans::new(LevelSpec::new(2)))), Box::new(Pv::new(Aqlm::new(1, 4)))];
    for method in methods {
        let run = |par: Par| {
            let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
            group.par = par;
            decode(&*method.compress_group_dyn(group).unwrap().layers[0].node).unwrap()
        };
        assert_eq!(run(Par::Seq), run(Par::Threads(2)));
    }
}
