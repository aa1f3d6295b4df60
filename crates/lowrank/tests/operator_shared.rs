//! Operators of several matrices against slow references: atoms that layers share, and weights from a latent and a seed.

use tensorpress_lowrank::Root;
use tensorpress_lowrank::operator::{Latent, MatrixAtoms, RandomHypernet};
use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis, concatenate};
use tensorpress_tensor::{DType, ErrorKind};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn views(layers: &[Array2<f32>]) -> Vec<ArrayView2<'_, f32>> {
    layers.iter().map(|layer| layer.view()).collect()
}

fn energy(m: &Array2<f64>) -> f64 {
    m.iter().map(|v| v * v).sum()
}

/// Layers that have much in common.
fn related(count: usize, rows: usize, cols: usize) -> Vec<Array2<f32>> {
    let base = [random(rows, cols, 1), random(rows, cols, 2), random(rows, cols, 3)];
    let layer = |l: usize| {
        let mix = random(1, 3, 100 + l as u64);
        let mut layer = random(rows, cols, 200 + l as u64) * 0.2;
        base.iter().zip(&mix).for_each(|(base, c)| layer.scaled_add(*c, base));
        layer
    };
    (0..count).map(layer).collect()
}

/// A root of second moments that mixes channels.
fn root(channels: usize) -> Root {
    let mut root = random(channels, channels, 9);
    root.diag_mut().mapv_inplace(|v| v + 2.0);
    Root::Full(root)
}

/// The stack of all layers, each a row, is decomposed as a whole: what its best approximation loses, and what each row of
/// that loses, is what the atoms lose. Fails if atoms are chosen layer by layer, or if the metric is left out.
#[test]
fn atoms_are_the_decomposition_of_the_stack() {
    for (count, rows, cols) in [(6, 5, 7), (4, 1, 9), (5, 8, 1), (1, 3, 3), (7, 2, 2)] {
        let layers = related(count, rows, cols);
        for root in [Root::Identity, root(cols)] {
            let seen = |w: &Array2<f32>| root.apply(w.view(), Par::Seq).unwrap().mapv(f64::from);
            let rows_of = |w: Array2<f64>| w.into_shape_with_order((1, rows * cols)).unwrap();
            let stack: Vec<_> = layers.iter().map(|w| rows_of(seen(w))).collect();
            let stack: Vec<_> = stack.iter().map(|w| w.view()).collect();
            let stack = concatenate(Axis(0), &stack).unwrap();
            for atoms in [1, 2, 4, 99] {
                let made = MatrixAtoms::new(atoms).fit(&views(&layers), &root, Par::Seq).unwrap();
                let best = linalg::svd_truncated(stack.view(), atoms).unwrap().reconstruct();
                let whole = energy(&stack);
                for (l, lost) in made.lost.iter().enumerate() {
                    let slow: f64 = (&stack.row(l) - &best.row(l)).iter().map(|v| v * v).sum();
                    let ours = energy(&(seen(&layers[l]) - seen(&made.layer(l))));
                    let near = |a: f64, b: f64| (a - b).abs() <= 2e-6 * whole;
                    assert!(near(ours, slow) && near(*lost, slow), "{l}: {ours} {lost} {slow}");
                }
            }
        }
    }
}

/// The metric is worth something: on its own measure each dictionary is better than the other.
#[test]
fn each_dictionary_is_best_at_what_it_measures() {
    let layers = related(6, 5, 7);
    let root = root(7);
    let [plain, weighed] = [&Root::Identity, &root].map(|by| {
        let made = MatrixAtoms::new(2).fit(&views(&layers), by, Par::Seq).unwrap();
        [&Root::Identity, &root].map(|by| {
            let lost = |(l, w): (usize, &Array2<f32>)| {
                energy(&by.apply((w - &made.layer(l)).view(), Par::Seq).unwrap().mapv(f64::from))
            };
            layers.iter().enumerate().map(lost).sum::<f64>()
        })
    });
    assert!(plain[0] < weighed[0] && weighed[1] < plain[1], "{plain:?} {weighed:?}");
}

/// Atoms are stored once and multiply once. Fails if layers have atoms of their own.
#[test]
fn atoms_are_shared() {
    let layers = related(9, 6, 8);
    let made = MatrixAtoms::new(3).fit(&views(&layers), &Root::Identity, Par::Seq).unwrap();
    assert_eq!((made.atoms.len(), made.coefficients.dim()), (3, (9, 3)));
    assert_eq!(made.bytes(DType::F16), 3 * 6 * 8 * 2 + 9 * 3 * 4);
    let x = random(4, 8, 5);
    let outputs = made.outputs(x.view(), Par::Seq);
    assert_eq!(outputs.len(), 9);
    for (l, y) in outputs.iter().enumerate() {
        let slow = x.mapv(f64::from).dot(&made.layer(l).mapv(f64::from).t());
        assert!(y.iter().zip(&slow).all(|(y, slow)| (f64::from(*y) - slow).abs() < 1e-5));
    }
    // Coefficients are directions: orthonormal columns.
    let c = made.coefficients.mapv(f64::from);
    let inner = c.t().dot(&c);
    assert!(inner.indexed_iter().all(|((r, c), v)| (v - f64::from(u8::from(r == c))).abs() < 1e-6));
}

#[test]
fn atoms_of_nothing_and_of_extremes() {
    let fit = |atoms: usize, layers: &[Array2<f32>]| {
        MatrixAtoms::new(atoms).fit(&views(layers), &Root::Identity, Par::Seq)
    };
    let zeros = fit(2, &[Array2::zeros((2, 3)), Array2::zeros((2, 3))]).unwrap();
    assert_eq!(zeros.layer(1), Array2::<f32>::zeros((2, 3)));
    assert!(fit(1, &[Array2::zeros((0, 3))]).unwrap().layer(0).is_empty());
    for size in [1e-30f32, 1e30] {
        let layers: Vec<_> = related(3, 2, 3).into_iter().map(|w| w * size).collect();
        let made = fit(3, &layers).unwrap();
        let far = (&made.layer(2) - &layers[2]).fold(0.0f32, |far, d| far.max(d.abs()));
        assert!(far < 1e-5 * size, "{far} of {size}");
    }
    let kind = |made: tensorpress_tensor::Result<_>| made.map(drop).unwrap_err().kind();
    assert_eq!(kind(fit(0, &related(2, 2, 2))), ErrorKind::InvalidArgument);
    assert_eq!(kind(fit(1, &[])), ErrorKind::InvalidArgument);
    let unlike = [random(2, 3, 1), random(3, 2, 1)];
    assert_eq!(kind(fit(1, &unlike)), ErrorKind::ShapeMismatch);
    let narrow = MatrixAtoms::new(1).fit(&views(&related(2, 2, 3)), &root(4), Par::Seq);
    assert_eq!(kind(narrow), ErrorKind::ShapeMismatch);
    let mut bad = related(2, 2, 3);
    bad[1][[0, 1]] = f32::NAN;
    assert_eq!(kind(fit(1, &bad)), ErrorKind::Numerical);
    // Two layers of the largest values are an atom beyond f32.
    let most = Array2::from_elem((2, 2), f32::MAX);
    assert_eq!(kind(fit(1, &[most.clone(), most])), ErrorKind::Numerical);
}

/// Column i of P of all layers below each other, through the public door alone: what a latent of one 1 makes.
fn projections(shapes: &[[usize; 2]], latent: usize, seed: u64) -> Array2<f64> {
    let all = shapes.iter().map(|[r, c]| r * c).sum();
    let mut columns = Array2::zeros((all, latent));
    for (i, mut column) in columns.columns_mut().into_iter().enumerate() {
        let mut one = RandomHypernet::new(latent).with_seed(seed).fit(&[], Par::Seq).unwrap();
        one.codes[i] = 1;
        one.scale = 1.0;
        one.shapes = shapes.to_vec();
        let values: Vec<f32> = (0..shapes.len()).flat_map(|l| one.layer(l)).collect();
        column.assign(&Array1::from(values).mapv(f64::from));
    }
    columns
}

fn flat(layers: &[Array2<f32>]) -> Array2<f64> {
    let values: Vec<f64> = layers.iter().flatten().map(|w| f64::from(*w)).collect();
    Array2::from_shape_vec((values.len(), 1), values).unwrap()
}

fn made(latent: &Latent) -> Array2<f64> {
    let layers: Vec<_> = (0..latent.shapes.len()).map(|l| latent.layer(l)).collect();
    flat(&layers)
}

/// The latent is that of least squares over all layers, to the step it is rounded to. Fails if z is not fitted, or for one
/// layer alone.
#[test]
fn the_latent_is_the_least_squares_solution() {
    let layers = [random(9, 7, 1), random(4, 5, 2)];
    let shapes = [[9, 7], [4, 5]];
    for latent in [1, 5, 20] {
        let p = projections(&shapes, latent, 11);
        let goal = flat(&layers);
        let z = linalg::least_squares(p.view(), goal.view(), None, Par::Seq).unwrap().solution;
        let least = energy(&(&goal - &p.dot(&z)));
        let hypernet = RandomHypernet::new(latent).with_seed(11).with_bits(16);
        let ours = hypernet.fit(&views(&layers), Par::Seq).unwrap();
        for (code, z) in ours.codes.iter().zip(&z) {
            let got = f64::from(*code) * f64::from(ours.scale);
            assert!((got - z).abs() <= 0.6 * f64::from(ours.scale), "{got} for {z}");
        }
        let lost = energy(&(&goal - &made(&ours)));
        assert!(
            lost <= least * (1.0 + 1e-6) + 1e-9 && lost >= least * (1.0 - 1e-6),
            "{lost} {least}"
        );
        assert!(lost < energy(&goal), "{latent}");
    }
}

/// More numbers lose less, until they are as many as the weights; fewer bits lose more. Fails if z is not rounded.
#[test]
fn the_rate_is_set_by_numbers_and_bits() {
    let layers = [random(6, 6, 3)];
    let lost = |latent: usize, bits: u8| {
        let made_of = RandomHypernet::new(latent).with_bits(bits).fit(&views(&layers), Par::Seq);
        let made_of = made_of.unwrap();
        assert_eq!(made_of.bytes(), (latent * usize::from(bits)).div_ceil(8) + 12);
        assert!(made_of.entropy_bits() <= f64::from(bits) * latent as f64);
        let most = (1 << (bits - 1)) - 1;
        assert!(made_of.codes.iter().all(|code| i32::from(*code).abs() <= most));
        energy(&(flat(&layers) - made(&made_of)))
    };
    let falling = [4, 12, 24].map(|latent| lost(latent, 16));
    assert!(falling.windows(2).all(|pair| pair[1] < pair[0]), "{falling:?}");
    // More numbers than weights: nothing is left but rounding.
    assert!(lost(60, 16) < 1e-4);
    let rising = [16, 4, 2].map(|bits| lost(24, bits));
    assert!(rising.windows(2).all(|pair| pair[1] > pair[0]), "{rising:?}");
}

/// Only the seed is stored: written anew here, bit for bit. Layers have projections of their own.
#[test]
fn projections_are_known_by_their_seed() {
    let (latent, seed) = (70, 5);
    let p = projections(&[[3, 4], [3, 4]], latent, seed);
    let size = f64::from(1.0 / (latent as f64).sqrt() as f32);
    for layer in 0..2 {
        let bits = SplitMix::new(SplitMix::new(seed).at(layer as u64));
        for (row, line) in p.rows().into_iter().skip(12 * layer).take(12).enumerate() {
            for (c, value) in line.iter().enumerate() {
                let word = bits.at((row * 2 + c / 64) as u64);
                let sign = if word >> (c % 64) & 1 == 1 { -1.0 } else { 1.0 };
                assert!((value - sign * size).abs() < 1e-7, "layer {layer}, {row}, {c}");
            }
        }
    }
    let other = projections(&[[3, 4], [3, 4]], latent, seed + 1);
    let agree = |a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>| {
        a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
    };
    let (first, second) = p.view().split_at(Axis(0), 12);
    assert!((0.4..0.6).contains(&agree(p.view(), other.view())));
    assert!((0.4..0.6).contains(&agree(first, second)));
}

#[test]
fn latents_are_made_anew_in_parts_and_by_any_number_of_threads() {
    let layers = [random(40, 30, 7), random(1, 3, 8), Array2::zeros((0, 4)), random(5, 1, 9)];
    let hypernet = RandomHypernet::new(33).with_seed(4);
    let [one, two] =
        [Par::Seq, Par::Threads(3)].map(|par| hypernet.fit(&views(&layers), par).unwrap());
    assert_eq!(one, two);
    for (l, layer) in layers.iter().enumerate() {
        let whole = one.layer(l);
        assert_eq!(whole.dim(), layer.dim());
        let half = layer.nrows() / 2;
        let parts = [one.rows(l, 0..half), one.rows(l, half..layer.nrows())];
        assert_eq!(concatenate(Axis(0), &[parts[0].view(), parts[1].view()]).unwrap(), whole);
    }
}

#[test]
fn latents_of_nothing_and_of_extremes() {
    let fit =
        |hypernet: RandomHypernet, layer: &Array2<f32>| hypernet.fit(&[layer.view()], Par::Seq);
    let zeros = fit(RandomHypernet::new(5), &Array2::zeros((3, 4))).unwrap();
    assert_eq!((zeros.layer(0), zeros.entropy_bits()), (Array2::zeros((3, 4)), 0.0));
    for size in [1e-30f32, 1e30] {
        let layer = random(5, 5, 1) * size;
        let made = fit(RandomHypernet::new(50).with_bits(16), &layer).unwrap().layer(0);
        let far = (&made - &layer).fold(0.0f32, |far, d| far.max(d.abs()));
        assert!(far < 1e-2 * size, "{far} of {size}");
    }
    let refused = |hypernet: RandomHypernet, layer: &Array2<f32>, kind, what: &str| {
        let error = fit(hypernet, layer).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(what), "{error}");
    };
    let layer = random(2, 2, 1);
    let argument = ErrorKind::InvalidArgument;
    refused(RandomHypernet::new(0), &layer, argument, "latent = 0: allowed are 1 to 65536");
    refused(RandomHypernet::new(65537), &layer, argument, "latent = 65537");
    refused(RandomHypernet::new(1).with_bits(1), &layer, argument, "bits = 1: allowed are 2 to 16");
    refused(RandomHypernet::new(1).with_bits(17), &layer, argument, "bits = 17");
    let mut bad = layer.clone();
    bad[[1, 0]] = f32::NAN;
    refused(RandomHypernet::new(1), &bad, ErrorKind::Numerical, "layer 0: weight [1, 0]");
    // Two weights of two numbers, in one step: 1.4 times the largest number there is, unless both have one projection.
    let most = Array2::from_elem((1, 2), f32::MAX);
    let fit = |seed| fit(RandomHypernet::new(2).with_bits(2).with_seed(seed), &most);
    let beyond = (0..16).filter(|seed| match fit(*seed) {
        Ok(made) => !made.layer(0).iter().all(|w| w.is_finite()),
        Err(error) => {
            error.kind() == ErrorKind::Numerical && error.message().contains("beyond f32")
        }
    });
    assert!((1..16).contains(&beyond.count()));
}
