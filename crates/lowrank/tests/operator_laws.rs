//! The laws of nodes on what structured operators return, and bad input.

use tensorpress_lowrank::operator::{Effort, block_dense, block_shuffle, compacter, compactif_ai};
use tensorpress_lowrank::{Factors, Rank, stages};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::stage::{Chain, Stages, WeightPart};
use tensorpress_tensor::stats::{Calibration, Gram, Needs};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, DynCompress, ErrorKind, Group, Method, Registry,
    Result, Storage, Target,
};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

/// Every form, kept even where it is larger than the matrix.
fn methods(rank: Rank, always: bool) -> Vec<Box<dyn DynCompress>> {
    let mut methods: Vec<Box<dyn DynCompress>> = Vec::new();
    for order in [1, 2, 4] {
        methods.push(Box::new(compacter(order, rank).with_always(always)));
    }
    for legs in [1, 2, 3] {
        methods.push(Box::new(compactif_ai(legs, rank).with_always(always)));
    }
    for blocks in [2, 3] {
        methods.push(Box::new(block_shuffle(blocks, rank).with_always(always)));
        methods.push(Box::new(block_dense(blocks, rank).with_always(always)));
    }
    methods
}

fn run(method: &dyn DynCompress, weight: &Array2<f32>, dtype: DType) -> Result<Compressed> {
    let target = Target::new("w", weight.view()).with_dtype(dtype);
    let group = Group::single(target, Calibration::none(weight.ncols()));
    Ok(method.compress_group_dyn(group)?.layers.remove(0))
}

#[test]
fn every_form_obeys_the_laws() {
    for (rows, cols) in [(1, 1), (1, 8), (9, 1), (7, 24), (16, 12), (40, 36)] {
        let weight = random(rows, cols, 1);
        for rank in [Rank::Number(1), Rank::Number(99), Rank::Ratio(0.3), Rank::Energy(0.9)] {
            for method in methods(rank, true) {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let layer = run(&*method, &weight, dtype).unwrap();
                    // A full rank in f32 is the matrix, or a form that has no full rank says so.
                    if rank == Rank::Number(99) && dtype == DType::F32 && method.id() != "compacter"
                    {
                        let ours = decode(&*layer.node).unwrap();
                        let far = (&ours - &weight).fold(0.0f32, |far, d| far.max(d.abs()));
                        assert!(far < 1e-5, "{} of {rows} x {cols}: {far}", method.id());
                    }
                    check_node(layer.node, &Registry::default(), 1e-4);
                }
            }
        }
    }
    let weight = random(6, 8, 3);
    let damaged = |method: &dyn DynCompress| {
        check_damage(&*run(method, &weight, DType::F16).unwrap().node, &Registry::default());
    };
    damaged(&compacter(2, Rank::Number(1)));
    damaged(&compactif_ai(3, Rank::Number(2)));
    damaged(&block_shuffle(2, Rank::Number(1)));
}

#[test]
fn what_does_not_fit_stays_dense_and_says_so() {
    let weight = random(9, 12, 5);
    let note = |method: &dyn DynCompress, weight: &Array2<f32>| {
        let layer = run(method, weight, DType::F32).unwrap();
        assert_eq!(decode(&*layer.node).unwrap(), weight);
        assert_eq!(Storage::of(&*layer.node).unwrap().bytes() as usize, 4 * weight.len());
        layer.fallback.unwrap_or_else(|| panic!("{} says nothing", method.id()))
    };
    let undivided = note(&compacter(4, Rank::Number(1)), &weight);
    assert_eq!(undivided, "order = 4 does not divide 9 x 12: kept dense");
    for method in methods(Rank::Number(99), false) {
        if method.id() != "compacter" {
            assert!(note(&*method, &weight).contains("bytes, the matrix 432: kept dense"));
        }
        for shape in [(0, 6), (5, 0), (0, 0)] {
            assert_eq!(note(&*method, &Array2::zeros(shape)), "an empty matrix: kept dense");
        }
    }
    // A correction is never left out.
    let whole = compactif_ai(2, Rank::Number(99)).with_always(true);
    assert!(run(&whole, &weight, DType::F32).unwrap().fallback.is_none());
}

/// Rows, columns and matrices of one value, the largest and smallest values that there are: no NaN, and nothing lost that
/// one direction holds.
#[test]
fn extreme_weights_are_no_failure() {
    for value in [0.0f32, 1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e30, f32::MAX] {
        for method in methods(Rank::Number(2), true) {
            let constant = Array2::from_elem((8, 12), value);
            let layer = run(&*method, &constant, DType::F32).unwrap();
            let ours = decode(&*layer.node).unwrap();
            let far = (&ours - &constant).fold(0.0f32, |far, d| far.max(d.abs()));
            assert!(far <= 1e-5 * value + 1e-44, "{} of {value}: {far}", method.id());
            let mut one = Array2::zeros((8, 12));
            one[[3, 5]] = -value;
            let ours = decode(&*run(&*method, &one, DType::F32).unwrap().node).unwrap();
            assert!((ours[[3, 5]] + value).abs() <= 1e-5 * value + 1e-44, "{}", method.id());
            assert!(ours.iter().all(|v| v.is_finite()));
        }
    }
    // Half floats that cannot hold the factors.
    let method = block_dense(2, Rank::Number(2)).with_factors(Factors::Float(DType::F16));
    let layer = run(&method, &(random(8, 12, 7) * 1e20), DType::F32).unwrap();
    assert_eq!(layer.fallback.unwrap(), "factors beyond F16: stored in F32 instead");
}

#[test]
fn bad_input_is_refused() {
    let mut weight = random(8, 12, 9);
    let refused = |method: &dyn DynCompress, weight: &Array2<f32>, kind, what: &str| {
        let error = run(method, weight, DType::F32).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(what), "{error}");
    };
    let argument = ErrorKind::InvalidArgument;
    let one = Rank::Number(1);
    refused(&compacter(0, one), &weight, argument, "order = 0: allowed are 1 to 32");
    refused(&compacter(33, one), &weight, argument, "order = 33: allowed are 1 to 32");
    let mut many = compacter(2, one);
    many.form.terms = 5;
    refused(&many, &weight, argument, "terms = 5: allowed are 1 to order² = 4");
    many.form = many.form.with_terms(1).with_sweeps(1001);
    refused(&many, &weight, argument, "sweeps = 1001: allowed are 0 to 1000");
    refused(&compactif_ai(0, one), &weight, argument, "legs = 0: allowed are 1 to 16");
    refused(&compactif_ai(17, one), &weight, argument, "legs = 17: allowed are 1 to 16");
    refused(&block_dense(0, one), &weight, argument, "of_inputs = 0: allowed are 1 to 4096");
    refused(&block_shuffle(5000, one), &weight, argument, "of_outputs = 5000");
    for rank in [Rank::Number(0), Rank::Ratio(1.0), Rank::Ratio(f64::NAN), Rank::Energy(0.0)] {
        for method in methods(rank, false) {
            refused(&*method, &weight, argument, "allowed");
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        weight[[2, 3]] = bad;
        for method in methods(one, false) {
            refused(&*method, &weight, ErrorKind::Numerical, "weight [2, 3]");
            assert!(!method.takes_mask() && !method.needs().has::<Gram>());
        }
    }
    let effort = Effort { seed: 0, par: Par::Seq };
    let rules = compacter(2, one).form;
    assert_eq!(rules.fit(&[], effort).unwrap_err().kind(), argument);
    let odd = Array2::zeros((3, 4));
    assert_eq!(rules.fit(&[odd.view()], effort).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let legs = compactif_ai(2, one).form.decompose(odd.view(), &[[3, 2], [1, 1]], effort);
    assert_eq!(legs.unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let nan = Array2::from_elem((2, 2), f64::NAN);
    let one_core = compactif_ai(1, one).form.decompose(nan.view(), &[[2, 2]], effort);
    assert_eq!(one_core.unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(rules.fit(&[nan.view()], effort).unwrap_err().kind(), ErrorKind::Numerical);
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(64, 96, 11);
    for method in methods(Rank::Ratio(0.4), false) {
        let made = [Par::Seq, Par::Threads(3)].map(|par| {
            let group = Group::single(Target::new("w", weight.view()), Calibration::none(96));
            let made = method.compress_group_dyn(Group { par, ..group }).unwrap();
            decode(&*made.layers[0].node).unwrap()
        });
        assert_eq!(made[0], made[1], "{}", method.id());
    }
}

/// A cut of 1024 directions that keeps few goes by random ones: what has no more is found again, to the same bits with any
/// number of threads.
#[test]
fn large_cuts_go_by_random_directions() {
    let small = |seed: u64| random(32, 32, seed);
    let weight = Array2::from_shape_fn((1024, 1024), |_| 0.0f32);
    let weight = (0..4).fold(weight, |mut sum, term| {
        let (a, b) = (small(2 * term), small(2 * term + 1));
        for ((r, c), w) in sum.indexed_iter_mut() {
            *w += a[[r / 32, c / 32]] * b[[r % 32, c % 32]];
        }
        sum
    });
    let made = [Par::Seq, Par::Threads(3)].map(|par| {
        let group = Group::single(Target::new("w", weight.view()), Calibration::none(1024));
        let method = compactif_ai(2, Rank::Number(4));
        let made = method.compress_group(Group { par, ..group }).unwrap().layers.remove(0);
        assert!(made.fallback.is_none());
        assert_eq!(Storage::of(&*made.node).unwrap().bytes(), 4 * 2 * 4 * 1024);
        decode(&*made.node).unwrap()
    });
    let far = (&made[0] - &weight).fold(0.0f32, |far, d| far.max(d.abs()));
    assert!(far < 1e-4, "{far}");
    assert_eq!(made[0], made[1]);
}

/// Rounds to multiples of 1/8.
#[derive(Debug)]
struct Coarse;

impl Method for Coarse {
    fn id(&self) -> &'static str {
        "coarse"
    }
    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for Coarse {
    type Node = Dense;
    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
        group.each(|t| {
            Dense::from_f32(t.weight.mapv(|w| (w * 8.0).round() / 8.0).view(), DType::BF16)
        })
    }
}

#[test]
fn factors_are_stored_by_another_method() {
    let weight = random(16, 24, 13);
    let inner: std::sync::Arc<dyn DynCompress> = std::sync::Arc::new(Coarse);
    let method = block_shuffle(2, Rank::Number(4)).with_factors(Factors::By(inner));
    let layer = run(&method, &weight, DType::F32).unwrap();
    let text = layer.node.describe().to_string();
    assert!(text.contains("BF16") && !text.contains("F32"), "{text}");
    assert_eq!(
        Storage::of(&*layer.node).unwrap().bytes() as usize,
        2 * method.form.weights([16, 24], 4)
    );
    check_node(layer.node, &Registry::default(), 1e-4);
}

/// Stages are read from recipes with their keys, and build what the constructors build.
#[test]
fn stages_are_what_the_constructors_are() {
    let mut known = Stages::<WeightPart>::default();
    known.extend(stages()).unwrap();
    let weight = random(16, 24, 15);
    let cases: [(&str, Box<dyn DynCompress>); 5] = [
        ("compacter(order=2, terms=2, rank=1)", Box::new(compacter(2, Rank::Number(1)))),
        ("compactif_ai(legs=3, ratio=0.5)", Box::new(compactif_ai(3, Rank::Ratio(0.5)))),
        ("block_shuffle(blocks=2, rank=3)", Box::new(block_shuffle(2, Rank::Number(3)))),
        ("block_dense(energy=0.5)", Box::new(block_dense(4, Rank::Energy(0.5)))),
        (
            "block_dense(ratio=0.4, factors=f16)",
            Box::new(block_dense(4, Rank::Ratio(0.4)).with_factors(Factors::Float(DType::F16))),
        ),
    ];
    for (recipe, expected) in cases {
        let chain = Chain::parse(recipe, &known).unwrap();
        let WeightPart::Method(method) = chain.stages()[0].build().unwrap() else {
            panic!("{recipe}: no method")
        };
        let [ours, expected] =
            [&*method, &*expected].map(|method| run(method, &weight, DType::F32).unwrap());
        assert_eq!(ours.node.describe(), expected.node.describe(), "{recipe}");
        assert_eq!(decode(&*ours.node).unwrap(), decode(&*expected.node).unwrap(), "{recipe}");
    }
    let refused = |recipe: &str, what: &str| {
        let error =
            Chain::parse(recipe, &known).and_then(|chain| chain.stages()[0].build().map(drop));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused("compacter(order=2, terms=5)", "terms = 5: allowed are 1 to order² = 4");
    refused("block_shuffle(blocks=1)", "blocks = 1: allowed are integers from 2 to 4096");
    refused("compactif_ai(bond=4)", "unknown key `bond`");
    refused("block_dense(factors=f16, block_dense)", "which decides how they are stored");
}
