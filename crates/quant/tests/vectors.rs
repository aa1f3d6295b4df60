//! Pyramids and the lattice E8: points against exhaustive searches, feedback against a reference that solves for the rest
//! anew after each vector; laws and bad input.

mod reference;

use reference::{damped_gram, feed_back, inputs, output_error, random, seen};
use tensorpress_quant::{Codes, E8, Pvq};
use tensorpress_tensor::linalg::{Par, SplitMix, gaussian};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Child, KnownVectors, Mask, Pyramid, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Node, Registry, Storage, Target,
};

fn compress(method: &dyn DynCompress, weight: &Array2<f32>, x: &Array2<f32>) -> Box<dyn Node> {
    let group = Group::single(Target::new("w", weight.view()), seen(x));
    method.compress_group_dyn(group).expect("finite").layers.remove(0).node
}

fn blind(method: &dyn DynCompress, weight: &Array2<f32>) -> Box<dyn Node> {
    compress(method, weight, &Array2::zeros((0, weight.ncols())))
}

fn normal(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// All vectors of so many numbers whose magnitudes sum to `pulses`.
fn all(numbers: usize, pulses: i32) -> Vec<Vec<i32>> {
    if numbers == 0 {
        return if pulses == 0 { vec![Vec::new()] } else { Vec::new() };
    }
    let with = |first: i32| {
        let rest = all(numbers - 1, pulses - first.abs());
        rest.into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (-pulses..=pulses).flat_map(with).collect()
}

fn cosine(w: &[f32], z: &[f64]) -> f64 {
    let along: f64 = w.iter().zip(z).map(|(w, z)| f64::from(*w) * z).sum();
    let norm = |square: f64| square.sqrt();
    along
        / norm(z.iter().map(|z| z * z).sum())
        / norm(w.iter().map(|w| f64::from(*w).powi(2)).sum())
}

/// Directions are close to the best there are, and almost always are the best.
#[test]
fn directions_are_near_the_best_of_all() {
    let weight = random(40, 32, 3);
    let method = Pvq::new(3, 4).with_gain(8).with_scale(DType::F32);
    let pulses = method.format().unwrap().pulses();
    let points = all(4, pulses as i32);
    assert_eq!(points.len() as u128, method.format().unwrap().points(4));
    let decoded = decode(&*blind(&method, &weight)).unwrap();
    let (mut best, mut total) = (0, 0);
    for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
        for (w, q) in row.to_vec().chunks(4).zip(decoded.to_vec().chunks(4)) {
            let float = |z: &Vec<i32>| z.iter().map(|z| f64::from(*z)).collect::<Vec<_>>();
            let most = points.iter().map(|z| cosine(w, &float(z))).fold(-1.0, f64::max);
            let found = cosine(w, &q.iter().map(|q| f64::from(*q)).collect::<Vec<_>>());
            assert!(found > 1.0 - 1.15 * (1.0 - most) - 2e-3, "{found} of {most}");
            best += usize::from(found > most - 1e-6);
            total += 1;
        }
    }
    assert!(best * 10 >= total * 9, "{best} of {total}");
}

/// Lengths are at the nearest entry of their table to the projection.
#[test]
fn lengths_are_the_nearest_of_a_table() {
    let weight = random(12, 64, 4);
    let method = Pvq::new(3, 8).with_gain(3).with_scale(DType::F32);
    let node = method.compress(weight.view(), &Calibration::none(64)).unwrap().node;
    let decoded = decode(&node).unwrap();
    let Child::Node(lengths) = node.child(0) else { panic!("lengths are a node") };
    let lengths = decode(&**lengths).unwrap();
    for (r, (row, decoded)) in weight.rows().into_iter().zip(decoded.rows()).enumerate() {
        let norm = row.dot(&row).sqrt();
        for (g, (w, q)) in row.to_vec().chunks(8).zip(decoded.to_vec().chunks(8)).enumerate() {
            let length = q.iter().map(|q| q * q).sum::<f32>().sqrt();
            assert!((length - lengths[[r, g]]).abs() < 1e-5);
            let along: f32 = w.iter().zip(q).map(|(w, q)| w * q).sum::<f32>() / length.max(1e-9);
            let far = |length: f32| (length - along).abs();
            // Eight entries of a matrix, brought to this row's norm.
            let table = lengths.rows().into_iter().enumerate().flat_map(|(other, row)| {
                let of = weight.row(other).dot(&weight.row(other)).sqrt();
                row.iter().map(|l| l / of * norm).collect::<Vec<_>>()
            });
            let best = table.map(far).fold(f32::INFINITY, f32::min);
            assert!(far(length) <= best + 1e-5, "{along}: {length}");
        }
    }
    let storage = Storage::of(&node).unwrap();
    let format = node.format();
    let stated = 12 * (8 * format.stored_bits() as u64 + 8 * 3 + 32) + 8 * 16;
    assert_eq!(storage.bits(), stated);
}

fn nearest(x: &[f64]) -> Vec<f64> {
    let points = KnownVectors::E8p.vectors().chunks(8);
    let far = |p: &&[f32]| -> f64 {
        x.iter().zip(p.iter()).map(|(x, p)| (x - f64::from(*p)).powi(2)).sum()
    };
    let best = points.min_by(|a, b| far(a).total_cmp(&far(b))).expect("points");
    best.iter().map(|p| f64::from(*p)).collect()
}

#[test]
fn points_of_e8_are_the_nearest_of_all() {
    for cols in [8, 16, 19] {
        let weight = normal(12, cols, cols as u64);
        let node =
            E8::default().with_scale(DType::F32).compress(weight.view(), &Calibration::none(cols));
        let node = node.unwrap().node;
        let decoded = decode(&node).unwrap();
        let Child::Node(scales) = node.child(1) else { panic!("scales are a node") };
        let scales = decode(&**scales).unwrap();
        for ((row, decoded), scale) in weight.rows().into_iter().zip(decoded.rows()).zip(&scales) {
            for (w, q) in row.to_vec().chunks(8).zip(decoded.to_vec().chunks(8)) {
                let x: Vec<f64> = w.iter().map(|w| f64::from(w / scale)).collect();
                let far = |p: &[f64]| x.iter().zip(p).map(|(x, p)| (x - p).powi(2)).sum::<f64>();
                let found: Vec<f64> = q.iter().map(|q| f64::from(q / scale)).collect();
                assert!(far(&found) <= far(&nearest(&x)) + 1e-4, "{x:?}: {found:?}");
            }
        }
    }
}

/// The best table of four numbers loses 0.1175 of the energy of normal weights (Lloyd, Max).
#[test]
fn e8_loses_less_than_the_best_table_of_four() {
    let weight = normal(64, 512, 9);
    let decoded = decode(&*blind(&E8::default(), &weight)).unwrap();
    let loss: f64 = weight.iter().zip(&decoded).map(|(w, q)| f64::from(w - q).powi(2)).sum();
    let loss = loss / weight.len() as f64;
    println!("e8: mean squared error of normal weights {loss:.4}");
    assert!((0.08..0.1).contains(&loss), "{loss}");
    let storage = Storage::of(&*blind(&E8::default(), &weight)).unwrap();
    assert_eq!(storage.bits(), 64 * 512 * 2 + 64 * 16);
}

#[test]
fn feedback_is_that_of_the_reference() {
    let (weight, x) = (normal(5, 48, 1), inputs(200, 48, 2));
    let gram = damped_gram(&x, 0.01);
    let e8 = E8::default().with_codes(Codes::feedback()).with_scale(DType::F32);
    let made = e8.compress(weight.view(), &seen(&x)).unwrap();
    let Child::Node(scales) = made.node.child(1) else { panic!("scales are a node") };
    let scales = decode(&**scales).unwrap();
    let decoded = decode(&made.node).unwrap();
    let mut equal = 0;
    for (r, row) in weight.rows().into_iter().enumerate() {
        let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let scale = f64::from(scales[[r, 0]]);
        let exact = feed_back(&gram, &row, 8, |_, now| {
            let x: Vec<f64> = now[..8].iter().map(|w| w / scale).collect();
            nearest(&x).iter().map(|p| p * scale).collect()
        });
        let near = |(a, b): (&f64, &f32)| (*a - f64::from(*b)).abs() < 1e-4;
        equal += exact.iter().zip(decoded.row(r)).filter(|(a, b)| near((a, b))).count();
    }
    assert!(equal as f64 >= 0.96 * weight.len() as f64, "{equal} of {}", weight.len());
    let methods: [(&dyn DynCompress, &dyn DynCompress); 2] =
        [(&E8::default(), &e8), (&Pvq::new(2, 8), &Pvq::new(2, 8).with_codes(Codes::feedback()))];
    for (plain, fed) in methods {
        let error = |method: &dyn DynCompress| {
            output_error(&gram, &weight, &decode(&*compress(method, &weight, &x)).unwrap())
        };
        let gain = error(fed) / error(plain);
        assert!(gain < 0.8, "{fed:?}: {gain}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (5, 33), (4, 64)] {
        let (weight, x) = (random(rows, cols, 1), inputs(40, cols, 2));
        for codes in [Codes::default(), Codes::feedback()] {
            let e8 = E8::default().with_codes(codes);
            check_node(compress(&e8, &weight, &x), &Registry::default(), 1e-4);
            for (bits, size) in [(1, 2), (3, 16), (5, 7)] {
                let pvq = Pvq::new(bits, size).with_codes(codes);
                check_node(compress(&pvq, &weight, &x), &Registry::default(), 1e-4);
            }
        }
    }
    check_damage(&*blind(&Pvq::new(2, 4), &random(3, 10, 2)), &Registry::default());
    check_damage(&*blind(&E8::default(), &random(3, 10, 2)), &Registry::default());
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    for method in [&Pvq::default() as &dyn DynCompress, &E8::default()] {
        assert_eq!(decode(&*blind(method, &zeros)).unwrap(), zeros);
        let mut random = SplitMix::new(4);
        for size in [1e-44f32, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
            let weight =
                Array2::from_shape_fn((4, 32), |_| (random.next_f64() as f32 - 0.5) * size);
            let decoded = decode(&*blind(method, &weight)).unwrap();
            let far = (&decoded - &weight).iter().fold(0f32, |far, d| far.max(d.abs()));
            assert!(far <= size, "{method:?}, {size}: {far}");
        }
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |method: &dyn DynCompress, weight: &Array2<f32>| {
        let group = Group::single(Target::new("w", weight.view()), Calibration::none(8));
        method.compress_group_dyn(group).map(drop).unwrap_err()
    };
    for (method, named) in [
        (Pvq::new(0, 8), "bits = 0"),
        (Pvq::new(3, 33), "size = 33"),
        (Pvq::default().with_gain(9), "gain = 9"),
        (Pvq::new(1, 2), "bits = 1"),
    ] {
        let made = method.compress(weight.view(), &Calibration::none(8));
        // Two bits number the four vectors of one pulse.
        if named != "bits = 1" {
            assert!(made.map(drop).unwrap_err().to_string().contains(named), "{named}");
        }
    }
    let scale = E8::default().with_scale(DType::I8);
    assert_eq!(error(&scale, &weight).kind(), ErrorKind::InvalidArgument);
    let mask = Mask::from_bools(weight.mapv(|w| w > 0.0).view());
    for method in [&Pvq::default() as &dyn DynCompress, &E8::default()] {
        let mut target = Target::new("w", weight.view());
        target.mask = Some(&mask);
        let refused = method.compress_group_dyn(Group::single(target, Calibration::none(8)));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    weight[[2, 3]] = f32::NAN;
    for method in [&Pvq::default() as &dyn DynCompress, &E8::default()] {
        let error = error(method, &weight);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("w")));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(40, 96, 8), inputs(150, 96, 3));
    for codes in [Codes::default(), Codes::feedback()] {
        let (pvq, e8) = (Pvq::default().with_codes(codes), E8::default().with_codes(codes));
        for method in [&pvq as &dyn DynCompress, &e8] {
            let run = |par: Par| {
                let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
                group.par = par;
                decode(&*method.compress_group_dyn(group).unwrap().layers[0].node).unwrap()
            };
            assert_eq!(run(Par::Seq), run(Par::Threads(2)));
        }
    }
    let node = Pvq::default().compress(weight.view(), &Calibration::none(96)).unwrap().node;
    let _: &Pyramid = &node;
}
