//! Tables by soft assignments, tables with feedback, nested codes, and rows of two methods: against references, and the
//! laws.

mod reference;

use std::hash::Hasher;
use std::sync::Arc;

use reference::{costs, damped_gram, feed_back, inputs, output_error, random, seen};
use tensorpress_quant::{
    Codes, Dkm, Gptq, GridSpec, LevelSpec, LevelTable, MixedRows, Nested, Rtn, Sketch,
    optimal_levels,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Mask, Masked, decode};
use tensorpress_tensor::stats::{Calibration, Supplied, Supply};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, DType, DynCompress, ErrorKind, Group, Node, Registry, Storage, Target,
};

fn compress(method: &dyn DynCompress, weight: &Array2<f32>, seen: Calibration) -> Compressed {
    let group = Group::single(Target::new("w", weight.view()), seen);
    method.compress_group_dyn(group).expect("finite").layers.remove(0)
}

fn decoded(method: &dyn DynCompress, weight: &Array2<f32>, x: &Array2<f32>) -> Array2<f32> {
    decode(&*compress(method, weight, seen(x)).node).unwrap()
}

fn loss(weight: &Array2<f32>, decoded: &Array2<f32>) -> f64 {
    weight.iter().zip(decoded).map(|(w, q)| f64::from(w - q).powi(2)).sum()
}

/// The fixed point is one: assignments and means made from it, weight by weight, give it back.
#[test]
fn soft_levels_stand_still() {
    let values: Vec<f32> = random(1, 600, 1).iter().map(|w| DType::F16.round(*w)).collect();
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 600.0;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 600.0;
    let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (count, temperature) in [(4, 0.05), (8, 0.1), (8, 2.0)] {
        let dkm = Dkm::default().with_temperature(temperature).with_iterations(5000);
        let levels = dkm.fixed_point(&values, count);
        assert!(levels.is_sorted() && levels.len() == count);
        let tau = f64::from(temperature) * variance / (count * count) as f64;
        for k in 0..count {
            let (mut sum, mut weight) = (0.0, 0.0);
            for v in &values {
                let far = |c: f32| (f64::from(*v) - f64::from(c)).powi(2);
                let least = levels.iter().map(|c| far(*c)).fold(f64::INFINITY, f64::min);
                let near = |c: f32| ((least - far(c)) / tau).exp();
                let all: f64 = levels.iter().map(|c| near(*c)).sum();
                sum += near(levels[k]) / all * f64::from(*v);
                weight += near(levels[k]) / all;
            }
            let moved = (sum / weight - f64::from(levels[k])).abs();
            // Values are told apart by 11 bits.
            assert!(moved < 2e-3 * f64::from(most), "{count}, {temperature}, {k}: {moved}");
        }
    }
    // Hard assignments are k-means: near its optimum, never below it.
    let weight = random(8, 256, 2);
    let spec = LevelSpec::new(3);
    let hard =
        decode(&spec.fit(&Target::new("w", weight.view()), None, Par::Seq).unwrap()).unwrap();
    let soft = decoded(&Dkm::new(spec).with_temperature(0.01), &weight, &Array2::zeros((0, 256)));
    let ratio = loss(&weight, &soft) / loss(&weight, &hard);
    assert!((0.999..1.25).contains(&ratio), "{ratio}");
}

/// A table for each group of a row, of weights as they stand, each counting by its cost.
#[test]
fn sketches_are_those_of_the_reference() {
    let (weight, x) = (random(6, 48, 1), inputs(200, 48, 2));
    let gram = damped_gram(&x, 0.01);
    let costs: Vec<f32> = costs(&gram).iter().map(|c| *c as f32).collect();
    for group in [16, 48] {
        let method = Sketch::new(2, group).with_table(DType::F32);
        let decoded = decoded(&method, &weight, &x);
        let mut equal = 0;
        for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
            let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
            let mut table = Vec::new();
            let exact = feed_back(&gram, &row, 1, |at, now| {
                if at % group == 0 {
                    let w: Vec<f32> = now[..group].iter().map(|v| *v as f32).collect();
                    table = optimal_levels(&w, Some(&costs[at..at + group]), 4).unwrap();
                }
                let far = |level: &&f32| (f64::from(**level) - now[0]).abs();
                let level = table.iter().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
                vec![f64::from(*level)]
            });
            let near = |(a, b): (&f64, &f32)| (*a - f64::from(*b)).abs() < 1e-4;
            equal += exact.iter().zip(decoded).filter(|(a, b)| near((a, b))).count();
        }
        assert!(equal as f64 >= 0.97 * weight.len() as f64, "{group}: {equal}");
        let plain = Sketch::new(2, group).with_codes(Codes::default());
        let plain = self::decoded(&plain, &weight, &x);
        let gain = output_error(&gram, &weight, &decoded) / output_error(&gram, &weight, &plain);
        assert!(gain < 0.8, "{group}: {gain}");
    }
    // A table a row is what k-means makes, where nothing is fed back.
    let spec = LevelSpec::new(3);
    let hard =
        decode(&spec.fit(&Target::new("w", weight.view()), None, Par::Seq).unwrap()).unwrap();
    let plain = Sketch::new(3, 0).with_codes(Codes::default());
    assert_eq!(self::decoded(&plain, &weight, &x), hard);
}

/// Codes of a node, and those of the node cut to fewer bits, are prefixes; scales are the same.
#[test]
fn nested_codes_are_prefixes() {
    let (weight, x) = (random(10, 64, 3), inputs(200, 64, 4));
    for codes in [Codes::default(), Codes::feedback()] {
        let method = Nested::new(2, 5).with_group(16).with_codes(codes);
        let made = method.compress(weight.view(), &seen(&x)).unwrap().node;
        let whole = decode(&made).unwrap();
        let widest = whole.clone();
        for bits in (2..=5).rev() {
            let cut = Nested::narrow(&made, bits).unwrap();
            let alone = method.with_keep(bits).compress(weight.view(), &seen(&x)).unwrap().node;
            assert_eq!(decode(&cut).unwrap(), decode(&alone).unwrap(), "{bits}");
            // A level lies in the middle of those of one bit more: within half a step of any longer code's.
            let cut = decode(&cut).unwrap();
            for (a, b) in cut.iter().zip(&widest) {
                assert!(a.signum() == b.signum(), "{a} {b}");
            }
            check_node(alone.boxed(), &Registry::default(), 1e-4);
        }
        assert!(
            loss(&weight, &whole)
                < loss(&weight, &decode(&Nested::narrow(&made, 3).unwrap()).unwrap())
        );
        assert_eq!(Nested::narrow(&made, 6).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let bits = |method: Nested| {
        let made = method.compress(random(64, 512, 1).view(), &Calibration::none(512)).unwrap();
        Storage::of(&made.node).unwrap().bits() as f64 / 32768.0
    };
    assert_eq!(bits(Nested::new(2, 4)), 4.0 + 16.0 / 128.0 + 16.0 * 16.0 / 32768.0);
    assert_eq!(bits(Nested::new(2, 4).with_keep(3)), 3.0 + 16.0 / 128.0 + 16.0 * 8.0 / 32768.0);
}

/// Without feedback every code is the nearest of its width: of the grid of its scale, whose levels are halves of steps.
#[test]
fn nested_codes_are_nearest_and_feedback_gains() {
    let (weight, x) = (random(24, 64, 5), inputs(300, 64, 6));
    let gram = damped_gram(&x, 0.01);
    for bits in [2u8, 3, 4] {
        let plain = Nested::new(2, 4).with_group(32).with_codes(Codes::default()).with_keep(bits);
        let plain = decoded(&plain, &weight, &x);
        let fed = Nested::new(2, 4).with_group(32).with_keep(bits);
        let fed = decoded(&fed, &weight, &x);
        let gain = output_error(&gram, &weight, &fed) / output_error(&gram, &weight, &plain);
        // Codes of two bits that were chosen by feedback leave the longest ones less to choose.
        assert!(gain < if bits < 4 { 0.8 } else { 1.1 }, "{bits} bits: {gain}");
        for (row, decoded) in weight.rows().into_iter().zip(plain.rows()) {
            for (w, q) in row.to_vec().chunks(32).zip(decoded.to_vec().chunks(32)) {
                let half = q.iter().fold(f32::INFINITY, |least, q| least.min(q.abs()));
                let count = (1 << bits) as f32;
                for (w, q) in w.iter().zip(q) {
                    let at = (w / (2.0 * half)).floor().clamp(-count / 2.0, count / 2.0 - 1.0);
                    let exact = (at + 0.5) * 2.0 * half;
                    // A group need not have a weight at the innermost level.
                    let odd = (q / half).round();
                    assert!((q - odd * half).abs() < 1e-3 * half.abs());
                    assert!((exact - w).abs() >= (q - w).abs() - 1e-5, "{w}: {q}, {exact}");
                }
            }
        }
    }
}

/// A caller's Fisher diagonal and gradient.
#[derive(Debug)]
struct Loss {
    fisher: Array2<f32>,
    gradient: Option<Array2<f32>>,
}

impl Supplied for Loss {
    fn of_weights(
        &self,
        supply: Supply,
        _: &str,
    ) -> tensorpress_tensor::Result<Option<Array2<f32>>> {
        Ok(match supply {
            Supply::FISHER => Some(self.fisher.clone()),
            Supply::GRADIENT => self.gradient.clone(),
            _ => None,
        })
    }

    fn identify(&self, hash: &mut dyn Hasher) -> tensorpress_tensor::Result<()> {
        self.fisher.iter().for_each(|f| hash.write(&f.to_le_bytes()));
        Ok(())
    }
}

/// Rows are chosen by the Taylor expansion of the loss, and each is what its method makes of it.
#[test]
fn rows_that_matter_get_more_bits() {
    let (weight, x) = (random(20, 32, 1), inputs(100, 32, 2));
    let [low, high] = [2, 8].map(|bits| Rtn::new(GridSpec::new(bits, 16)));
    let [of_low, of_high] = [&low, &high].map(|method| decoded(method, &weight, &x));
    let fisher = random(20, 32, 3).mapv(|v| v * v);
    let gradient = random(20, 32, 4).mapv(|v| 0.01 * v);
    let gram = x.t().dot(&x);
    for case in 0..4 {
        let supplied = |gradient| Arc::new(Loss { fisher: fisher.clone(), gradient });
        let calibration = match case {
            0 => seen(&x).with_supplied(supplied(Some(gradient.clone()))),
            1 => seen(&x).with_supplied(supplied(None)),
            2 => seen(&x),
            _ => Calibration::none(32),
        };
        let worth = |r: usize| -> f64 {
            let d = &of_low.row(r) - &weight.row(r);
            let sum = |of: &dyn Fn(usize) -> f32| (0..32).map(|c| f64::from(of(c))).sum::<f64>();
            let second = sum(&|c| 0.5 * fisher[[r, c]] * d[c] * d[c]);
            match case {
                0 => (sum(&|c| gradient[[r, c]] * d[c]) + second).abs(),
                1 => second,
                2 => f64::from(d.dot(&gram.dot(&d))),
                _ => f64::from(d.dot(&d)),
            }
        };
        let mut order: Vec<usize> = (0..20).collect();
        order.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
        let made = compress(&MixedRows::new(low, high, 0.25), &weight, calibration.clone());
        assert_eq!(made.fallback.is_none(), case < 2, "{:?}", made.fallback);
        let mixed = decode(&*made.node).unwrap();
        for (at, row) in order.iter().enumerate() {
            let expected = if at < 5 { &of_high } else { &of_low };
            assert_eq!(mixed.row(*row), expected.row(*row), "{case}: row {row}");
        }
        check_node(made.node, &Registry::default(), 1e-4);
        // A threshold between the fifth and the sixth.
        let between = (worth(order[4]) + worth(order[5])) / 2.0;
        let by = MixedRows::new(low, high, 0.0).with_threshold(between);
        assert_eq!(decode(&*compress(&by, &weight, calibration).node).unwrap(), mixed);
    }
    for (share, expected) in [(0.0, &of_low), (1.0, &of_high)] {
        assert_eq!(decoded(&MixedRows::new(low, high, share), &weight, &x), *expected);
    }
    // Several matrices with one input, of a method that feeds back: each row as if alone.
    let gptq = |bits| Gptq::new(GridSpec::new(bits, 16));
    let mut group = Group::single(Target::new("a", weight.view()), seen(&x));
    let other = random(7, 32, 9);
    group.targets.push(Target::new("b", other.view()));
    let made = MixedRows::new(gptq(2), gptq(6), 0.3).compress_group(group).unwrap();
    for (layer, weight) in made.layers.iter().zip([&weight, &other]) {
        let [low, high] = [2, 6].map(|bits| decoded(&gptq(bits), weight, &x));
        let mixed = decode(&*layer.node).unwrap();
        let rows = (0..weight.nrows()).filter(|r| mixed.row(*r) == high.row(*r)).count();
        assert_eq!(rows, (0.3 * weight.nrows() as f64).round() as usize);
        assert!(
            (0..weight.nrows()).all(|r| mixed.row(r) == high.row(r) || mixed.row(r) == low.row(r))
        );
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33), (6, 64)] {
        let (weight, x) = (random(rows, cols, 1), inputs(40, cols, 2));
        for group in [0, 5, 32] {
            let sketch = Sketch::new(3, group);
            check_node(compress(&sketch, &weight, seen(&x)).node, &Registry::default(), 1e-4);
            let nested = Nested::new(1, 3).with_group(group);
            check_node(compress(&nested, &weight, seen(&x)).node, &Registry::default(), 1e-4);
        }
        for spec in [LevelSpec::new(3), LevelSpec::new(2).with_rows(0)] {
            let made = compress(&Dkm::new(spec), &weight, Calibration::none(cols));
            check_node(made.node, &Registry::default(), 1e-4);
        }
        let [low, high] = [2, 5].map(|bits| Rtn::new(GridSpec::new(bits, 16)));
        let mixed = MixedRows::new(low, high, 0.3);
        check_node(compress(&mixed, &weight, seen(&x)).node, &Registry::default(), 1e-4);
    }
    let damaged = |made: LevelTable| check_damage(&made, &Registry::default());
    let (weight, blind) = (random(4, 10, 2), Calibration::none(10));
    damaged(Sketch::new(2, 4).compress(weight.view(), &blind).unwrap().node);
    damaged(Nested::new(1, 3).compress(weight.view(), &blind).unwrap().node);
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    let blind = Array2::zeros((0, 16));
    let methods: [&dyn DynCompress; 2] = [&Sketch::default(), &Dkm::default()];
    for method in methods {
        assert_eq!(decoded(method, &zeros, &blind), zeros);
        for size in [1e-44f32, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
            let weight = random(4, 16, 4).mapv(|w| w.clamp(-1.0, 1.0) * size);
            let far = &decoded(method, &weight, &blind) - &weight;
            let far = far.iter().fold(0f32, |far, d| far.max(d.abs()));
            assert!(far <= size, "{method:?}, {size}: {far}");
        }
        let made = compress(method, &random(4, 16, 1), Calibration::none(16));
        assert!(made.fallback.is_none_or(|note| note.contains("no calibration token")));
    }
    assert_eq!(decoded(&Nested::default(), &zeros, &blind), zeros);
    let constant = Array2::from_elem((2, 12), -0.75);
    assert_eq!(decoded(&Dkm::default(), &constant, &Array2::zeros((0, 12))), constant);
}

#[test]
fn masked_weights_decode_to_zero() {
    let (weight, x) = (random(8, 64, 5), inputs(100, 64, 9));
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    let kept = keep.mapv(|keep| f32::from(u8::from(keep))) * &weight;
    let spec = LevelSpec::new(3);
    let methods: [&dyn DynCompress; 3] =
        [&Sketch::new(3, 0), &Dkm::new(spec), &Nested::new(2, 4).with_group(32)];
    for method in methods {
        let mut target = Target::new("w", weight.view());
        target.mask = Some(&mask);
        let made = method.compress_group_dyn(Group::single(target, seen(&x))).unwrap();
        let node = made.layers.into_iter().next().unwrap().node;
        let decoded = decode(&Masked::new(mask.clone(), node).unwrap()).unwrap();
        assert!(decoded.indexed_iter().all(|(at, w)| keep[at] || *w == 0.0));
        let all = loss(&kept, &Array2::zeros((8, 64)));
        assert!(loss(&kept, &decoded) < 0.2 * all, "{method:?}");
    }
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let mixed = MixedRows::new(Rtn::default(), Rtn::default(), 0.5);
    let refused = mixed.compress_group_dyn(Group::single(target, seen(&x))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |method: &dyn DynCompress, weight: &Array2<f32>| {
        let group = Group::single(Target::new("w", weight.view()), Calibration::none(8));
        method.compress_group_dyn(group).map(drop).unwrap_err()
    };
    let rtn = Rtn::default();
    let cases: [(&dyn DynCompress, &str); 8] = [
        (&Sketch::new(9, 0), "bits = 9"),
        (&Sketch::default().with_table(DType::I8), "table"),
        (&Dkm::default().with_temperature(0.0), "temperature = 0"),
        (&Dkm::new(LevelSpec::new(0)), "bits = 0"),
        (&Nested::new(4, 3), "low = 4"),
        (&Nested::new(2, 4).with_keep(5), "keep = 5"),
        (&MixedRows::new(rtn, rtn, 1.5), "share = 1.5"),
        (&MixedRows::new(rtn, rtn, 0.5).with_threshold(f64::NAN), "threshold = NaN"),
    ];
    for (method, named) in cases {
        let error = error(method, &weight);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    weight[[2, 3]] = f32::NAN;
    let methods: [&dyn DynCompress; 4] =
        [&Sketch::default(), &Dkm::default(), &Nested::default(), &MixedRows::new(rtn, rtn, 0.5)];
    for method in methods {
        let error = error(method, &weight);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("w")));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(40, 96, 8), inputs(150, 96, 3));
    let gptq = |bits| Gptq::new(GridSpec::new(bits, 32));
    let methods: [&dyn DynCompress; 4] = [
        &Sketch::new(2, 32),
        &Dkm::default(),
        &Nested::new(2, 4).with_group(32),
        &MixedRows::new(gptq(3), gptq(6), 0.2),
    ];
    for method in methods {
        let run = |par: Par| {
            let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
            group.par = par;
            decode(&*method.compress_group_dyn(group).unwrap().layers[0].node).unwrap()
        };
        assert_eq!(run(Par::Seq).slice(s![.., ..]), run(Par::Threads(2)).slice(s![.., ..]));
    }
}
