//! Groups of rows, each with a Gram matrix of its own: against the method on each group by hand, and what is done without.

use std::hash::Hasher;
use std::sync::Arc;

use tensorpress_quant::{
    Awq, Codes, Drift, E8, Gptq, GridSpec, Guided, Hadamard, Hqq, KMeans, Nf4, Obq, RowSteps, Rtn,
    Watersic,
};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate, s};
use tensorpress_tensor::node::{Mask, Masked, Stacked, as_node, decode, to_bytes};
use tensorpress_tensor::stats::{Calibration, Supplied, Supply};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, DynCompress, ErrorKind, Fold, Group, Node, Registry, Result, Target,
};

const TOKENS: usize = 128;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Inputs of channels that go with their neighbours.
fn stream(cols: usize) -> Array2<f32> {
    let raw = random(TOKENS, cols, 2);
    Array2::from_shape_fn((TOKENS, cols), |(t, c)| {
        (1 + c % 3) as f32 * (raw[[t, c]] + 0.8 * raw[[t, (c + 1) % cols]])
    })
}

/// The mean of x xᵀ for each group, tokens weighted each time otherwise.
fn means(x: &Array2<f32>, groups: usize) -> Array2<f32> {
    let n = x.ncols();
    let mut stack = Array2::zeros((groups * n, n));
    for k in 0..groups {
        let weight = |t: usize| if t % groups == k { 1.0 } else { 0.01 };
        let sum: f32 = (0..x.nrows()).map(weight).sum();
        let weighted = Array2::from_shape_fn(x.dim(), |(t, c)| x[[t, c]] * weight(t) / sum);
        let mut mean = weighted.t().dot(x);
        for i in 0..n {
            (0..i).for_each(|j| mean[[j, i]] = mean[[i, j]]);
        }
        stack.slice_mut(s![k * n..(k + 1) * n, ..]).assign(&mean);
    }
    stack
}

/// Matrices for so many groups, and what errors in the outputs cost.
#[derive(Debug)]
struct Known {
    grams: (usize, Array2<f32>),
    costs: Option<Array2<f32>>,
}

impl Supplied for Known {
    fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        if supply == Supply::OUTPUT_FISHER_DIAGONAL {
            return Ok(self.costs.clone());
        }
        let (groups, grams) = &self.grams;
        Ok((supply == Supply::guided_gram(*groups)).then(|| grams.clone()))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.grams.1.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

fn knowing(x: &Array2<f32>, groups: usize, grams: Array2<f32>) -> Calibration {
    let known = Known { grams: (groups, grams), costs: None };
    Calibration::from_samples(x.clone(), Par::Seq).with_supplied(Arc::new(known))
}

fn methods() -> Vec<Box<dyn DynCompress>> {
    let grid = GridSpec::new(3, 16);
    vec![
        Box::new(Gptq::new(grid)),
        Box::new(Gptq::new(grid).with_act_order(true)),
        Box::new(Watersic::bits(3.0).with_rows(RowSteps::None)),
        Box::new(Nf4::default().with_codes(Codes::feedback())),
        Box::new(E8::default().with_codes(Codes::feedback())),
        Box::new(Obq::new(grid)),
        Box::new(Awq::with_solver(grid, Gptq::new(grid))),
    ]
}

fn bytes(made: &Compressed) -> Vec<u8> {
    to_bytes(&*made.node).unwrap()
}

#[test]
fn each_group_of_rows_is_what_the_method_makes_with_its_own_matrix() {
    for (rows, cols) in [(22, 32), (5, 48)] {
        let (weight, x) = (random(rows, cols, 1), stream(cols));
        let grams = means(&x, 4);
        let calibration = knowing(&x, 4, grams.clone());
        let places: Vec<_> = Supply::guided_gram(4).rows(rows).collect();
        for method in methods() {
            let name = format!("{method:?}");
            let alone = |k: usize| {
                let gram =
                    grams.slice(s![k * cols..(k + 1) * cols, ..]).mapv(|v| v * TOKENS as f32);
                let own = Calibration::from_samples(x.clone(), Par::Seq);
                let own = own.with::<tensorpress_tensor::stats::Gram>(gram);
                let weight = weight.slice(s![places[k].clone(), ..]);
                decode(&*method.compress(weight, &own).unwrap().node).unwrap()
            };
            let expected: Vec<_> = (0..4).map(alone).collect();
            let views: Vec<_> = expected.iter().map(|rows| rows.view()).collect();
            let expected = concatenate(Axis(0), &views).unwrap();
            let plain = method.compress(weight.view(), &calibration).unwrap();
            let made = Guided::new(method).compress(weight.view(), &calibration).unwrap();
            assert_eq!(made.fallback, plain.fallback, "{name}");
            assert_eq!(decode(&*made.node).unwrap(), expected, "{name}");
            assert_ne!(decode(&*plain.node).unwrap(), expected, "{name}: weights do nothing");
            assert_eq!(as_node::<Stacked>(&*made.node).unwrap().pieces().len(), 4);
            check_node(made.node, &Registry::default(), 1e-4);
        }
    }
}

/// What the loss is of is what counts: less of it is lost, for every group.
#[test]
fn the_weighted_error_is_smaller() {
    let (weight, x) = (random(64, 48, 1), stream(48));
    let grams = means(&x, 4);
    let calibration = knowing(&x, 4, grams.clone());
    let gptq = Gptq::new(GridSpec::new(3, 16));
    let plain = decode(&gptq.compress(weight.view(), &calibration).unwrap().node).unwrap();
    let made = Guided::new(gptq).compress(weight.view(), &calibration).unwrap();
    let guided = decode(&*made.node).unwrap();
    let lost = |made: &Array2<f32>, k: usize| {
        let error = (made - &weight).slice(s![k * 16..(k + 1) * 16, ..]).to_owned();
        (error.dot(&grams.slice(s![k * 48..(k + 1) * 48, ..])) * &error).sum()
    };
    for k in 0..4 {
        let [guided, plain] = [&guided, &plain].map(|made| lost(made, k));
        assert!(guided < 0.9 * plain, "group {k}: {guided} {plain}");
    }
}

/// A group for all rows and gradients of one size: the method as it is, to the byte.
#[test]
fn constant_gradients_are_no_weights() {
    let (weight, x) = (random(24, 32, 1), stream(32));
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    // Exact: the number of tokens is a power of two.
    let mean = calibration.gram().unwrap() / TOKENS as f32;
    for method in methods() {
        let plain = method.compress(weight.view(), &calibration).unwrap();
        let one = Guided::new(method).with_groups(1);
        let made = one.compress(weight.view(), &knowing(&x, 1, mean.clone())).unwrap();
        assert_eq!(bytes(&made), bytes(&plain), "{one:?}");
        assert_eq!(made.fallback, plain.fallback);
    }
    // Nor do groups change what is rounded row by row.
    let all = concatenate(Axis(0), &[mean.view(), mean.view(), mean.view()]).unwrap();
    let gptq = Gptq::new(GridSpec::new(3, 16));
    let plain = decode(&gptq.compress(weight.view(), &calibration).unwrap().node).unwrap();
    let three = Guided::new(gptq).with_groups(3);
    let made = three.compress(weight.view(), &knowing(&x, 3, all)).unwrap();
    assert_eq!(decode(&*made.node).unwrap(), plain);
}

#[test]
fn without_weights_the_method_stands_alone() {
    let (weight, x) = (random(12, 32, 1), stream(32));
    let blind = Calibration::from_samples(x.clone(), Par::Seq);
    let others = knowing(&x, 3, means(&x, 3));
    let nothing = knowing(&x, 4, Array2::zeros((128, 32)));
    let unseen = knowing(&Array2::zeros((0, 32)), 4, means(&x, 4));
    let mut nan = x.clone();
    nan[[5, 7]] = f32::NAN;
    let nan = knowing(&nan, 4, means(&x, 4));
    for method in methods() {
        let guided = Guided::new(method);
        for seen in [&blind, &others, &nothing, &unseen, &nan, &Calibration::none(32)] {
            let alone = guided.solver.compress(weight.view(), seen);
            match (guided.compress(weight.view(), seen), alone) {
                (Ok(made), Ok(alone)) => {
                    assert_eq!(bytes(&made), bytes(&alone), "{guided:?}");
                    let mut said = made.fallback.unwrap();
                    alone.fallback.iter().for_each(|own| said = said.replace(own, ""));
                    assert!(said.ends_with("not guided"), "{said}");
                }
                (Err(e), Err(own)) => assert_eq!(e.kind(), own.kind()),
                other => panic!("{guided:?}: {other:?}"),
            }
        }
    }
    // What reads no Gram matrix asks for no gradients.
    let free: [Box<dyn DynCompress>; 3] =
        [Box::new(Rtn::default()), Box::new(KMeans::default()), Box::new(Hqq::default())];
    let all = knowing(&x, 4, means(&x, 4));
    for method in free {
        let guided = Guided::new(method);
        assert!(tensorpress_tensor::Method::needs(&guided).of_caller().is_empty());
        let made = guided.compress(weight.view(), &all).unwrap();
        assert_eq!(bytes(&made), bytes(&guided.solver.compress(weight.view(), &all).unwrap()));
        assert!(made.fallback.unwrap().contains("reads no Gram matrix"));
    }
    // Scales are folded as if it stood alone.
    let norm = vec![1.5f32; 32];
    let grid = GridSpec::new(3, 16);
    let awq = Guided::new(Awq::with_solver(grid, Gptq::new(grid)));
    let group = |seen: &Calibration| Group {
        fold: Some(Fold { values: &norm, dtype: tensorpress_tensor::DType::F32 }),
        ..Group::single(Target::new("w", weight.view()), seen.clone())
    };
    assert!(awq.compress_group(group(&blind)).unwrap().folded.is_some());
    assert!(awq.compress_group(group(&all)).unwrap().folded.is_none());
}

/// Rows that nothing was seen to depend on count as all do.
#[test]
fn a_group_without_gradients_keeps_the_plain_matrix() {
    let (weight, x) = (random(16, 32, 1), stream(32));
    let mut grams = means(&x, 4);
    grams.slice_mut(s![64..96, ..]).fill(0.0);
    let calibration = knowing(&x, 4, grams);
    let gptq = Gptq::new(GridSpec::new(3, 16));
    let made = Guided::new(gptq).compress(weight.view(), &calibration).unwrap();
    let plain = decode(&gptq.compress(weight.view(), &calibration).unwrap().node).unwrap();
    let made_rows = decode(&*made.node).unwrap();
    assert_eq!(made_rows.slice(s![8..12, ..]), plain.slice(s![8..12, ..]));
    assert_ne!(made_rows.slice(s![..8, ..]), plain.slice(s![..8, ..]));
    let said = made.fallback.unwrap();
    assert!(said.contains("rows 8..12"), "{said}");
}

#[test]
fn shapes_at_the_edges() {
    let gptq = Gptq::new(GridSpec::new(3, 16));
    for (rows, cols, pieces) in [(3, 16, 3), (1, 16, 1), (9, 1, 4), (1, 1, 1), (4, 5, 4)] {
        let (weight, x) = (random(rows, cols, 1), stream(cols));
        let calibration = knowing(&x, 4, means(&x, pieces));
        let made = Guided::new(gptq).compress(weight.view(), &calibration).unwrap();
        assert_eq!((made.node.shape(), &made.fallback), ([rows, cols], &None));
        let stack = as_node::<Stacked>(&*made.node).map_or(1, |stack| stack.pieces().len());
        assert_eq!(stack, pieces);
        check_node(made.node, &Registry::default(), 1e-4);
    }
    for (rows, cols) in [(0, 16), (4, 0), (0, 0)] {
        let weight = Array2::zeros((rows, cols));
        let calibration = Calibration::from_samples(Array2::zeros((9, cols)), Par::Seq);
        let made = Guided::new(gptq).compress(weight.view(), &calibration).unwrap();
        assert_eq!(made.node.shape(), [rows, cols]);
    }
}

#[test]
fn bad_input_is_an_error() {
    let (mut weight, x) = (random(8, 16, 1), stream(16));
    let calibration = knowing(&x, 4, means(&x, 4));
    let gptq = Gptq::new(GridSpec::new(3, 16));
    let kind = |r: Result<Compressed>| r.unwrap_err().kind();
    let none = Guided::new(gptq).with_groups(0).compress(weight.view(), &calibration);
    assert_eq!(kind(none), ErrorKind::InvalidArgument);
    let inside = Guided::new(Drift::new(gptq)).compress(weight.view(), &calibration);
    assert_eq!(kind(inside), ErrorKind::Unsupported);
    // Matrices of other inputs are the caller's mistake.
    let wrong = knowing(&x, 4, means(&stream(12), 4));
    let refused = Guided::new(gptq).compress(weight.view(), &wrong).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::ShapeMismatch, Some("weight")));
    let mut nan = means(&x, 4);
    nan[[3, 3]] = f32::NAN;
    let made = Guided::new(gptq).compress(weight.view(), &knowing(&x, 4, nan)).unwrap();
    assert!(made.fallback.unwrap().contains("not guided"));
    weight[[1, 2]] = f32::NAN;
    let refused = Guided::new(gptq).compress(weight.view(), &calibration).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::Numerical, Some("weight")));
}

/// A support is cut with the rows, and errors in outputs cost what they cost each row.
#[test]
fn what_else_is_known_of_rows_goes_along() {
    let (weight, x) = (random(18, 32, 1), stream(32));
    let (grams, gptq) = (means(&x, 4), Gptq::new(GridSpec::new(3, 16)));
    let calibration = knowing(&x, 4, grams.clone());
    let mask = Mask::from_bools(random(18, 32, 4).mapv(|v| v > 0.0).view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let group = Group::single(target, calibration);
    let made = Guided::new(gptq).compress_group(group).unwrap().layers.remove(0);
    let node = Masked::new(mask.clone(), made.node).unwrap();
    check_damage(&node, &Registry::default());
    let decoded = decode(&node).unwrap();
    for (k, rows) in Supply::guided_gram(4).rows(18).enumerate() {
        let gram = grams.slice(s![k * 32..(k + 1) * 32, ..]).mapv(|v| v * TOKENS as f32);
        let own = mask.rows(rows.clone());
        let mut target = Target::new("w", weight.slice(s![rows.clone(), ..]));
        target.mask = Some(&own);
        let seen = Calibration::from_gram(gram, TOKENS as u64).unwrap();
        let made = gptq.compress_group(Group::single(target, seen)).unwrap().layers.remove(0);
        let expected = decode(&Masked::new(own, made.node.boxed()).unwrap()).unwrap();
        assert_eq!(decoded.slice(s![rows, ..]), expected);
    }
    check_node(node.boxed(), &Registry::default(), 1e-4);

    let costs = random(1, 18, 5).mapv(|v| v * v + 0.1);
    let watersic = Watersic::bits(3.0).with_rows(RowSteps::Diag);
    let known = |grams: (usize, Array2<f32>), costs: Array2<f32>| {
        let known = Known { grams, costs: Some(costs) };
        Calibration::from_samples(x.clone(), Par::Seq).with_supplied(Arc::new(known))
    };
    let all = known((4, grams.clone()), costs.clone());
    let made = Guided::new(watersic).compress(weight.view(), &all).unwrap();
    assert_eq!(made.fallback, None);
    let decoded = decode(&*made.node).unwrap();
    for (k, rows) in Supply::guided_gram(4).rows(18).enumerate() {
        let mean = grams.slice(s![k * 32..(k + 1) * 32, ..]).to_owned();
        let own = known((1, mean), costs.slice(s![.., rows.clone()]).to_owned());
        let one = Guided::new(watersic).with_groups(1);
        let made = one.compress(weight.slice(s![rows.clone(), ..]), &own).unwrap();
        assert_eq!(decoded.slice(s![rows, ..]), decode(&*made.node).unwrap());
    }
}

/// Rotated inputs are rotated for every group.
#[test]
fn rotations_stand_on_either_side() {
    let (weight, x) = (random(16, 32, 1), stream(32));
    let calibration = knowing(&x, 4, means(&x, 4));
    let gptq = Gptq::new(GridSpec::new(3, 16));
    let outside = Hadamard::new(Guided::new(gptq)).compress(weight.view(), &calibration).unwrap();
    let inside = Guided::new(Hadamard::new(gptq)).compress(weight.view(), &calibration).unwrap();
    let plain = Hadamard::new(gptq).compress(weight.view(), &calibration).unwrap();
    assert_eq!((&outside.fallback, &inside.fallback), (&None, &None));
    let [outside, inside, plain] = [outside, inside, plain].map(|m| decode(&*m.node).unwrap());
    for ((at, a), b) in outside.indexed_iter().zip(&inside) {
        assert!((a - b).abs() < 1e-4, "{at:?}: {a} {b}");
    }
    assert_ne!(outside, plain);
}

#[test]
fn threads_change_no_byte() {
    let (weight, x) = (random(70, 96, 1), stream(96));
    let calibration = knowing(&x, 4, means(&x, 4));
    let run = |par: Par| {
        let group = Group::single(Target::new("w", weight.view()), calibration.clone());
        let guided = Guided::new(Gptq::new(GridSpec::new(3, 32)));
        let made = guided.compress_group(Group { par, ..group }).unwrap().layers.remove(0);
        bytes(&made)
    };
    assert!(run(Par::Seq) == run(Par::Threads(2)) && run(Par::Seq) == run(Par::Threads(3)));
}

/// A caller who divides bits among matrices is told of the groups' own.
#[test]
fn bits_by_the_step_are_those_of_the_groups() {
    let (weight, x) = (random(48, 32, 1), stream(32));
    let known = |groups: usize, grams: Array2<f32>| {
        let known = Known { grams: (groups, grams), costs: Some(Array2::ones((1, 48))) };
        Calibration::from_samples(x.clone(), Par::Seq).with_supplied(Arc::new(known))
    };
    // A tenth of the energy in every other channel.
    let scale = |c: usize| if c.is_multiple_of(2) { 0.1f32 } else { 1.0 };
    let quieter = Array2::from_shape_fn(x.dim(), |(t, c)| scale(c) * x[[t, c]]);
    let mean = Calibration::from_samples(quieter.clone(), Par::Seq).gram().unwrap() / TOKENS as f32;
    let both = concatenate(Axis(0), &[mean.view(), mean.view()]).unwrap();
    let watersic = Watersic::bits(3.0).with_rows(RowSteps::Diag);
    let curve = |method: &dyn DynCompress, seen: &Calibration| {
        let group = Group::single(Target::new("w", weight.view()), seen.clone());
        method.rates_dyn(group).unwrap().remove(0)
    };
    let own = Known { grams: (1, mean.clone()), costs: Some(Array2::ones((1, 48))) };
    let own = Calibration::from_samples(quieter, Par::Seq).with_supplied(Arc::new(own));
    let expected = curve(&watersic, &own);
    let plain = curve(
        &watersic,
        &own.clone().with::<tensorpress_tensor::stats::Gram>(
            Calibration::from_samples(x.clone(), Par::Seq).gram().unwrap().clone(),
        ),
    );
    let step = tensorpress_tensor::rate::common_step(std::iter::once(&expected), 3.0 * 48.0 * 32.0);
    let off = |bits: f64| bits / expected.bits(step) - 1.0;
    assert!(off(plain.bits(step)) > 0.2, "the energy of channels makes no difference");
    // Each group has tables of its own.
    for (groups, grams, more) in [(1, mean, 0.0), (2, both, 0.2)] {
        let guided = Guided::new(watersic).with_groups(groups);
        let made = curve(&guided, &known(groups, grams));
        assert_eq!(made.weights(), expected.weights());
        let off = off(made.bits(step));
        assert!((-0.02..0.02 + more).contains(&off), "{groups} groups: {off}");
    }
    // What is not guided has the method's curve.
    let none = Calibration::from_samples(x.clone(), Par::Seq);
    assert_eq!(curve(&Guided::new(watersic), &none), curve(&watersic, &none));
}
