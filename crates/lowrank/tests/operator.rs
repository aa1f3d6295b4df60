//! Structured operators against slow references: rearrangements entry by entry, alternating least squares, decompositions of
//! whole stacks.

use tensorpress_lowrank::operator::{
    BlockLowRank, Effort, Form, KroneckerFit, MatrixProduct, Operator, block_dense, block_shuffle,
    compacter, compactif_ai,
};
use tensorpress_lowrank::{Rank, svd};
use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, s};
use tensorpress_tensor::node::{Product, as_node, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Compress, DType, Node, Storage, Usable};

const EFFORT: Effort = Effort { seed: 3, par: Par::Seq };

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() - 0.5)
}

fn energy(m: &Array2<f64>) -> f64 {
    m.iter().map(|v| v * v).sum()
}

fn tail(m: &Array2<f64>, rank: usize) -> f64 {
    linalg::svd(m.view()).unwrap().s.iter().skip(rank).map(|s| s * s).sum()
}

fn kronecker(a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
    let (rows, cols) = b.dim();
    Array2::from_shape_fn((a.nrows() * rows, a.ncols() * cols), |(r, c)| {
        a[[r / rows, c / cols]] * b[[r % rows, c % cols]]
    })
}

/// What a form decodes to in f32, and what it says it lost.
fn fitted<F: Form>(form: &F, weight: &Array2<f64>) -> (Array2<f64>, f64, usize) {
    let Usable::Yes(made) = form.fit(weight.view(), EFFORT).unwrap() else { panic!("no form") };
    let (lost, weights) = (made.lost, made.weights());
    let node = made.node(DType::F32).unwrap();
    assert_eq!(Storage::of(&*node).unwrap().bytes() as usize, 4 * weights);
    (decode(&*node).unwrap().mapv(f64::from), lost, weights)
}

fn close(a: f64, b: f64, whole: f64, what: &str) {
    assert!((a - b).abs() <= 1e-6 * whole, "{what}: {a} and {b} of {whole}");
}

/// Fails if the rearrangement is another: the loss is then not that of the closest sum.
#[test]
fn kronecker_sums_lose_what_the_rearranged_matrix_loses() {
    for (n, [o, i], terms) in [(2, [3, 5], 2), (3, [4, 2], 4), (4, [2, 2], 3), (1, [5, 6], 1)] {
        let weight = random(n * o, n * i, (n + terms) as u64);
        let rearranged = Array2::from_shape_fn((n * n, o * i), |(rule, small)| {
            weight[[rule / n * o + small / i, rule % n * i + small % i]]
        });
        let form = compacter(n, Rank::Number(99)).form.with_terms(terms).with_sweeps(0);
        let (ours, lost, _) = fitted(&form, &weight);
        let least = tail(&rearranged, terms);
        close(energy(&(&weight - &ours)), least, energy(&weight), "decoded");
        close(lost, least, energy(&weight), "said");
    }
}

/// Fails if the B_i are kept whole, or if their directions are not the leading ones.
#[test]
fn one_term_is_a_truncation_of_its_small_matrix() {
    let (a, b) = (random(3, 3, 1), random(6, 8, 2));
    let weight = kronecker(&a, &b);
    for rank in [1, 2, 4] {
        let form = compacter(3, Rank::Number(rank)).form.with_terms(1);
        let (ours, lost, weights) = fitted(&form, &weight);
        let least = energy(&a) * tail(&b, rank);
        close(energy(&(&weight - &ours)), least, energy(&weight), "decoded");
        close(lost, least, energy(&weight), "said");
        // Whole where factors would be larger.
        assert_eq!(weights, 9 + (rank * (6 + 8)).min(6 * 8));
    }
}

/// Alternating least squares never loses by a sweep, gains something, and ends where no factor can be moved for the better:
/// finite differences of the loss, written down as the definition has it. Fails if rules or factors stay as they began.
#[test]
fn sweeps_only_gain_and_end_at_a_stationary_point() {
    let weight = random(12, 20, 5);
    let form = compacter(4, Rank::Number(1)).form.with_terms(2).with_sweeps(1000);
    let fit = form.fit(&[weight.view()], EFFORT).unwrap();
    for pair in fit.losses.windows(2) {
        assert!(pair[1] <= pair[0] * (1.0 + 1e-12), "{pair:?}");
    }
    let (first, last) = (fit.losses[0], *fit.losses.last().unwrap());
    assert!(last < 0.99 * first, "{first} to {last}");
    let loss = |fit: &KroneckerFit| {
        let mut left = weight.clone();
        for (rule, [s, t]) in fit.rules.iter().zip(&fit.layers[0]) {
            left -= &kronecker(rule, &s.dot(t));
        }
        energy(&left)
    };
    close(loss(&fit), last, energy(&weight), "by definition");
    let step = 1e-4;
    for term in 0..2 {
        for which in 0..3 {
            for at in [0, 2] {
                let at_with = |by: f64| {
                    let mut moved = fit.clone();
                    let factor = match which {
                        0 => &mut moved.rules[term],
                        _ => &mut moved.layers[0][term][which - 1],
                    };
                    *factor.iter_mut().nth(at).unwrap() += by;
                    loss(&moved)
                };
                let slope = (at_with(step) - at_with(-step)) / (2.0 * step);
                assert!(slope.abs() < 1e-4 * energy(&weight), "{term} {which} {at}: {slope}");
            }
        }
    }
}

/// Rules are shared: layers of common rules lose nothing together, and their rules are counted once; layers of rules of
/// their own lose more together than apart. Fails if every layer has rules of its own.
#[test]
fn layers_share_their_rules() {
    let rules = [random(2, 2, 1), random(2, 2, 2)];
    let layer = |seed: u64, [o, i]: [usize; 2], rules: &[Array2<f64>; 2]| {
        let term = |r: &Array2<f64>, k: u64| {
            kronecker(r, &random(o, 1, seed + k).dot(&random(1, i, seed + k + 50)))
        };
        term(&rules[0], 0) + term(&rules[1], 1)
    };
    // Of other shapes too.
    let (a, b) = (layer(10, [5, 4], &rules), layer(20, [3, 7], &rules));
    let form = compacter(2, Rank::Number(1)).form.with_sweeps(1000);
    let fit = form.fit(&[a.view(), b.view()], EFFORT).unwrap();
    assert_eq!((fit.rules.len(), fit.layers.len()), (2, 2));
    assert_eq!(fit.weights(), 2 * 4 + 2 * (5 + 4) + 2 * (3 + 7));
    assert!(
        *fit.losses.last().unwrap() < 1e-6 * (energy(&a) + energy(&b)),
        "{:?}",
        fit.losses.last()
    );
    for (index, layer) in [&a, &b].into_iter().enumerate() {
        let ours = decode(&*fit.layer(index).node(DType::F32).unwrap()).unwrap().mapv(f64::from);
        assert!(energy(&(layer - &ours)) < 1e-5 * energy(layer));
    }
    let other = layer(30, [5, 4], &[random(2, 2, 3), random(2, 2, 4)]);
    let together = form.fit(&[a.view(), other.view()], EFFORT).unwrap();
    for (index, w) in [&a, &other].into_iter().enumerate() {
        let made = together.layer(index);
        assert_eq!(made.lost, together.lost[index]);
        let ours = decode(&*made.node(DType::F32).unwrap()).unwrap().mapv(f64::from);
        close(together.lost[index], energy(&(w - &ours)), energy(w), "of each layer");
    }
    let apart: f64 = [&a, &other]
        .iter()
        .map(|w| *form.fit(&[w.view()], EFFORT).unwrap().losses.last().unwrap())
        .sum();
    let lost = *together.losses.last().unwrap();
    assert!(lost > apart + 0.01 * energy(&a), "{lost} together, {apart} apart");
}

/// [i₁ j₁ ... i_k j_k, the others] of a matrix, entry by entry.
fn unfolding(weight: &Array2<f64>, legs: &[[usize; 2]], cut: usize) -> Array2<f64> {
    let numbers = |legs: &[[usize; 2]]| legs.iter().map(|[i, j]| i * j).product::<usize>();
    let (lines, rest) = (numbers(&legs[..cut]), numbers(&legs[cut..]));
    Array2::from_shape_fn((lines, rest), |(line, at)| {
        let mut number = line * rest + at;
        let (mut row, mut col, mut rows, mut cols) = (0, 0, 1, 1);
        for [i, j] in legs.iter().rev() {
            let pair = number % (i * j);
            number /= i * j;
            (row, col) = (row + pair / j * rows, col + pair % j * cols);
            (rows, cols) = (rows * i, cols * j);
        }
        weight[[row, col]]
    })
}

/// The error is exactly what the cuts dropped, no less than what any unfolding loses at the bond, and no more than all of
/// them together (Oseledets, theorem 2.2). Fails without the truncation, with legs in another order, and if a remainder is
/// cut that lost its singular values.
#[test]
fn cuts_of_a_matrix_product_operator_lose_what_they_drop() {
    for (out, inp, legs, bond) in [(12, 18, 2, 5), (16, 36, 3, 4), (16, 16, 4, 3), (7, 24, 3, 2)] {
        let form = compactif_ai(legs, Rank::Number(bond)).form;
        let weight = random(out, inp, 7).dot(&random(inp, inp, 8));
        let pairs = form.legs_of([out, inp]);
        let made = form.decompose(weight.view(), &pairs, EFFORT).unwrap();
        let dropped: f64 = made.dropped.iter().sum();
        let bonds: Vec<usize> = made.tensors.iter().skip(1).map(|t| t.shape()[0]).collect();
        assert!(bonds.contains(&bond) && bonds.iter().all(|b| *b <= bond), "{bonds:?}");
        let (ours, lost, weights) = fitted(&form, &weight);
        assert_eq!(weights, made.weights());
        let error = energy(&(&weight - &ours));
        close(error, dropped, energy(&weight), "dropped");
        close(lost, dropped, energy(&weight), "said");
        let tails: Vec<f64> =
            (1..legs).map(|cut| tail(&unfolding(&weight, &pairs, cut), bond)).collect();
        close(made.dropped[0], tails[0], energy(&weight), "the first cut");
        let (most, all) = (tails.iter().copied().fold(0.0, f64::max), tails.iter().sum::<f64>());
        assert!(most <= dropped * (1.0 + 1e-9) && dropped <= all * (1.0 + 1e-9), "{tails:?}");
        // Nothing is lost where bonds are as large as can be.
        let (all, ..) = fitted(&compactif_ai(legs, Rank::Number(9999)).form, &weight);
        assert!(energy(&(&weight - &all)) < 1e-10 * energy(&weight));
    }
}

#[test]
fn legs_multiply_to_the_sides_and_are_near_to_equal() {
    let legs_of = |legs, shape| compactif_ai(legs, Rank::Number(1)).form.legs_of(shape);
    assert_eq!(legs_of(2, [64, 4096]), [[8, 64], [8, 64]]);
    assert_eq!(legs_of(3, [4096, 11008]), [[16, 16], [16, 16], [16, 43]]);
    assert_eq!(legs_of(1, [5, 6]), [[5, 6]]);
    assert_eq!(legs_of(2, [7, 1]), [[1, 1], [7, 1]]);
    for shape in [[1, 1], [13, 12], [360, 97], [1000, 768]] {
        for legs in 1..=5 {
            let made = legs_of(legs, shape);
            let sides = [0, 1].map(|side| made.iter().map(|leg| leg[side]).product::<usize>());
            assert_eq!((sides, made.len()), (shape, legs));
        }
    }
}

#[test]
fn bonds_follow_ratio_and_energy() {
    let weight = random(24, 30, 9);
    let form = |bond| compactif_ai(3, bond).form;
    let legs = form(Rank::Number(1)).legs_of([24, 30]);
    let weights =
        |bond| form(bond).decompose(weight.view(), &legs, EFFORT).unwrap().weights() as f64;
    for ratio in [0.2, 0.5, 0.7] {
        let allowed = 24.0 * 30.0 * (1.0 - ratio);
        let ours = weights(Rank::Ratio(ratio));
        let bond = (1..).find(|bond| weights(Rank::Number(bond + 1)) > allowed).unwrap();
        assert_eq!(ours, weights(Rank::Number(bond)), "ratio {ratio}: the largest that fits");
    }
    let mut before = 1.0;
    for kept in [0.3, 0.5, 0.7, 1.0] {
        let made = form(Rank::Energy(kept)).decompose(weight.view(), &legs, EFFORT).unwrap();
        let dropped: f64 = made.dropped.iter().sum::<f64>() / energy(&weight);
        assert!(dropped <= 1.0 - kept + 1e-12 && dropped < before, "{kept}: {dropped}");
        before = dropped;
    }
}

/// Falling errors over rising bonds, each that of the decoded operator; products are counted as they are multiplied.
#[test]
fn a_profile_is_what_each_bond_gives() {
    let weight = random(12, 20, 11);
    let bonds = [1, 2, 4, 8];
    let form = MatrixProduct::default();
    let profile = form.profile(weight.view(), &bonds, EFFORT).unwrap();
    for (point, bond) in profile.iter().zip(bonds) {
        let (ours, _, weights) = fitted(&compactif_ai(2, Rank::Number(bond)).form, &weight);
        let error = (energy(&(&weight - &ours)) / energy(&weight)).sqrt();
        assert!((error - point.error).abs() < 1e-6 && weights == point.weights, "{point:?}");
        // Legs (3, 4), (4, 5): 5 j₂ lines of [3 a, 4], then 3 i₁ lines of [4, 5 a].
        let [[i, j], [k, l]] = form.legs_of([12, 20])[..] else { panic!("two") };
        assert_eq!(point.products, l * i * bond * j + i * k * l * bond);
    }
    assert!(profile.windows(2).all(|p| p[1].error < p[0].error && p[1].weights > p[0].weights));
    let zeros = form.profile(Array2::zeros((4, 4)).view(), &[1], EFFORT).unwrap();
    assert_eq!(zeros[0].error, 0.0);
}

/// Alternating least squares on L and R with their zeros, as the official code multiplies them: inner channel t = (a, c, d)
/// of block a belongs to group d = t mod groups, outputs of group d are every groups-th one.
fn alternate(weight: &Array2<f64>, [groups, blocks]: [usize; 2], rank: usize, seed: u64) -> f64 {
    let (out, inp) = weight.dim();
    let (inner, wide) = (groups * blocks * rank, inp / blocks);
    let mut left = Array2::zeros((out, inner));
    let mut right = Array2::zeros((inner, inp));
    for a in 0..blocks {
        let t = a * groups * rank..(a + 1) * groups * rank;
        let own = random(t.len(), wide, seed + a as u64);
        right.slice_mut(s![t, a * wide..(a + 1) * wide]).assign(&own);
    }
    for _ in 0..300 {
        for d in 0..groups {
            // Wᵀ of the group ~ Rᵀ Lᵀ.
            let seen = right.slice(s![d..;groups, ..]);
            let goal = weight.slice(s![d..;groups, ..]);
            let best = linalg::least_squares(seen.t(), goal.t(), None, Par::Seq).unwrap();
            left.slice_mut(s![d..;groups, d..;groups]).assign(&best.solution.t());
        }
        for a in 0..blocks {
            let (t, columns) =
                (a * groups * rank..(a + 1) * groups * rank, a * wide..(a + 1) * wide);
            let (seen, goal) =
                (left.slice(s![.., t.clone()]), weight.slice(s![.., columns.clone()]));
            let best = linalg::least_squares(seen, goal, None, Par::Seq).unwrap();
            right.slice_mut(s![t, columns]).assign(&best.solution);
        }
    }
    energy(&(weight - &left.dot(&right)))
}

/// Fails if outputs are not shuffled, if blocks are cut otherwise, or if a small matrix keeps other directions.
#[test]
fn no_alternating_least_squares_beats_the_small_decompositions() {
    for (method, rank) in [
        (block_shuffle(2, Rank::Number(2)), 2),
        (block_shuffle(3, Rank::Number(1)), 1),
        (block_dense(3, Rank::Number(2)), 2),
        (block_dense(2, Rank::Number(3)), 3),
    ] {
        let form = method.form;
        let weight = random(12, 18, 13);
        let (ours, lost, weights) = fitted(&form, &weight);
        let error = energy(&(&weight - &ours));
        close(error, lost, energy(&weight), "said");
        assert_eq!(weights, form.weights([12, 18], rank));
        let grid = [form.of_outputs, form.of_inputs];
        let starts = (0..6).map(|start| alternate(&weight, grid, rank, 100 * start));
        let best = starts.fold(f64::INFINITY, f64::min);
        assert!(error <= best * (1.0 + 1e-5), "{form:?}: {error} against {best}");
        assert!(best <= error * 1.02, "{form:?}: {best} against {error}: no straw man");
    }
}

/// A matrix of the form is found again, and what makes it one is the shuffle: the same small matrices without it are not of
/// the form.
#[test]
fn shuffled_blocks_are_found_again() {
    let (groups, blocks, rank) = (3, 3, 1);
    let small = |d: usize, a: usize| {
        let seed = (d * blocks + a) as u64;
        random(4, rank, seed).dot(&random(rank, 5, seed + 50))
    };
    let shuffled =
        Array2::from_shape_fn((12, 15), |(r, c)| small(r % groups, c / 5)[[r / groups, c % 5]]);
    let side_by_side =
        Array2::from_shape_fn((12, 15), |(r, c)| small(r / 4, c / 5)[[r % 4, c % 5]]);
    let form = block_shuffle(groups, Rank::Number(rank)).form;
    assert!(fitted(&form, &shuffled).1 < 1e-20 * energy(&shuffled));
    assert!(fitted(&form, &side_by_side).1 > 0.1 * energy(&side_by_side));
}

/// The product as the official code computes it (block-diagonal, (r l) to (l r), block-diagonal, (l s) to (s l)), from the
/// parts of the node.
#[test]
fn products_are_those_of_the_official_shuffle() {
    let weight = random(8, 12, 17).mapv(|v| v as f32);
    let method = block_shuffle(2, Rank::Number(2));
    let made = method.compress(weight.view(), &Calibration::none(12)).unwrap();
    let product = as_node::<Product>(&*made.node).expect("a product");
    let parts: Vec<String> = product.describe().as_object().unwrap().keys().cloned().collect();
    assert_eq!(parts, ["left", "node", "right"]);
    let [left, right] = ["left", "right"].map(|side| {
        let description = &product.describe()[side];
        assert_eq!(description["node"], "block_diagonal.v1");
        assert_eq!(description["interleaved"], side == "left");
        description["blocks"].as_array().unwrap().len()
    });
    assert_eq!((left, right), (2, 2));
    let Usable::Yes(fit) = method.form.fit(weight.mapv(f64::from).view(), EFFORT).unwrap() else {
        panic!("of the form")
    };
    let (second, first) = fit.factors.split_at(2);
    let x = random(1, 12, 18);
    let mut inner = Vec::new();
    for (a, block) in first.iter().enumerate() {
        inner.extend(block.dot(&x.slice(s![0, a * 6..(a + 1) * 6])));
    }
    let mut y = vec![0.0; 8];
    for (d, block) in second.iter().enumerate() {
        let shuffled: Vec<f64> = inner.iter().skip(d).step_by(2).copied().collect();
        for (row, value) in block.dot(&Array1::from(shuffled)).iter().enumerate() {
            y[row * 2 + d] = *value;
        }
    }
    let ours = x.dot(&decode(&*made.node).unwrap().mapv(f64::from).t());
    for (ours, y) in ours.iter().zip(&y) {
        assert!((ours - y).abs() < 1e-5, "{ours} for {y}");
    }
}

/// Low rank is the form of one block: the same product as plain truncation.
#[test]
fn one_block_is_low_rank() {
    let weight = random(14, 10, 19).mapv(|v| v as f32);
    let one = decode(&*compress(&block_dense(1, Rank::Number(3)), weight.view())).unwrap();
    let plain = svd(Rank::Number(3)).compress(weight.view(), &Calibration::none(10)).unwrap();
    for (one, plain) in one.iter().zip(&decode(&*plain.node).unwrap()) {
        assert!((one - plain).abs() < 1e-5, "{one} for {plain}");
    }
}

fn compress<F: Form>(method: &Operator<F>, weight: ArrayView2<'_, f32>) -> Box<dyn Node> {
    let made = method.compress(weight, &Calibration::none(weight.ncols())).unwrap();
    assert!(made.fallback.is_none(), "{:?}", made.fallback);
    made.node
}

/// At a ratio the numbers are as many as are allowed, less than one rank more would take.
#[test]
fn ranks_of_blocks_follow_ratio_and_energy() {
    let weight = random(48, 60, 21);
    let count = |form: &BlockLowRank| fitted(form, &weight).2;
    for ratio in [0.1, 0.4, 0.6] {
        for method in [block_shuffle(4, Rank::Ratio(ratio)), block_dense(4, Rank::Ratio(ratio))] {
            let allowed = 48.0 * 60.0 * (1.0 - ratio);
            let (ours, one) = (count(&method.form) as f64, method.form.weights([48, 60], 1) as f64);
            assert!(ours <= allowed && ours + one > allowed, "{ratio}: {ours} of {allowed}");
        }
        let method = compacter(4, Rank::Ratio(ratio));
        let (allowed, ours) = (48.0 * 60.0 * (1.0 - ratio), fitted(&method.form, &weight).2 as f64);
        let full = (4 * 16 + 4 * 12 * 15) as f64;
        assert!(
            ours <= allowed && (ours + 4.0 * 27.0 > allowed || ours == full),
            "{ratio}: {ours}"
        );
    }
    for fraction in [0.5, 0.9] {
        for method in
            [block_shuffle(4, Rank::Energy(fraction)), block_dense(4, Rank::Energy(fraction))]
        {
            let lost = fitted(&method.form, &weight).1 / energy(&weight);
            assert!(lost <= 1.0 - fraction + 1e-12, "{fraction}: {lost}");
            let rank = count(&method.form) / method.form.weights([48, 60], 1);
            let mut fewer = method.form;
            fewer.rank = Rank::Number(rank - 1);
            assert!(fitted(&fewer, &weight).1 / energy(&weight) > 1.0 - fraction);
        }
        let kept = compacter(4, Rank::Energy(fraction)).form.with_sweeps(0);
        let mut whole = kept;
        whole.rank = Rank::Number(99);
        let all = energy(&weight) - fitted(&whole, &weight).1;
        assert!(energy(&weight) - fitted(&kept, &weight).1 >= fraction * all * (1.0 - 1e-12));
    }
}

/// Channels that blocks do not divide: all are there, and a full rank loses nothing.
#[test]
fn blocks_need_not_divide_a_side() {
    for (out, inp) in [(7, 11), (1, 9), (9, 1), (2, 3), (5, 4)] {
        let weight = random(out, inp, 23);
        for method in [block_shuffle(4, Rank::Number(99)), block_dense(4, Rank::Number(99))] {
            let (ours, lost, _) = fitted(&method.form, &weight);
            assert!(
                energy(&(&weight - &ours)) < 1e-10 * energy(&weight) && lost < 1e-20,
                "{out} x {inp}"
            );
        }
    }
}

/// A block-diagonal second core is what keeps the low rank of the B_i: without expanding, in so many numbers.
#[test]
fn the_second_core_of_a_compacter_is_a_product() {
    let weight = random(16, 24, 25).mapv(|v| v as f32);
    let node = compress(&compacter(2, Rank::Number(2)), weight.view());
    let json = node.describe();
    assert_eq!(json["node"], "tensor_train.v1");
    assert_eq!(json["legs"].to_string(), "[[2,2],[8,12]]");
    assert_eq!(json["cores"][1]["node"], "product.v1");
    assert_eq!(json["cores"][1]["right"]["node"], "block_diagonal.v1");
    assert_eq!(Storage::of(&*node).unwrap().bytes(), 4 * (2 * 4 + 2 * 2 * (8 + 12)));
    // The tree is the sum by hand.
    let fit =
        compacter(2, Rank::Number(2)).form.fit(&[weight.mapv(f64::from).view()], EFFORT).unwrap();
    let mut sum = Array2::<f64>::zeros((16, 24));
    for (rule, [s, t]) in fit.rules.iter().zip(&fit.layers[0]) {
        sum += &kronecker(rule, &s.dot(t));
    }
    let ours = decode(&*fit.layer(0).node(DType::F32).unwrap()).unwrap();
    assert!(ours.iter().zip(&sum).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
}
