//! Ranks chosen over several matrices, and directions and blocks in one order.

mod common;

use common::{energy, inputs, random};
use tensorpress_allocate::{Choice, Exact, Minimax, Solver as _, Table, Unit};
use tensorpress_lowrank::{
    Alds, BitStack, BlockBytes, Directions, Factors, InputCovariance, InputGram, Level, Plain,
    Rank, Ranking, Root, Spectrum, embedding_factors, first_blocks, lord, rom, svd, svd_llm,
    welore,
};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate, s};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node, written};
use tensorpress_tensor::{
    Bytes, Checkpoint, Compress, Compressed, DType, DynCompress, ErrorKind, Group, Registry,
    Result, Storage, Target,
};

fn wide(m: &Array2<f32>) -> Array2<f64> {
    m.mapv(f64::from)
}

fn run(method: &dyn DynCompress, weight: &Array2<f32>, dtype: DType) -> Result<Compressed> {
    let target = Target::new("w", weight.view()).with_dtype(dtype);
    let group = Group::single(target, Calibration::none(weight.ncols()));
    Ok(method.compress_group_dyn(group)?.layers.remove(0))
}

/// Weights whose singular values fall by this factor.
fn falling(rows: usize, cols: usize, factor: f64, seed: u64) -> Array2<f32> {
    let svd = linalg::svd(random(rows, cols, seed).mapv(f64::from).view()).unwrap();
    let values = svd.s.iter().enumerate().map(|(i, _)| factor.powi(i as i32));
    let scaled = &svd.u * &values.collect::<tensorpress_tensor::ndarray::Array1<f64>>();
    scaled.dot(&svd.vt).mapv(|v| v as f32)
}

/// Fails if levels forgot the metric, or kept ranks that save nothing.
#[test]
fn levels_are_what_compressing_at_each_rank_takes_and_loses() {
    for (rows, cols) in [(12, 20), (20, 12), (9, 9), (1, 7)] {
        let (weight, x) = (random(rows, cols, 1), inputs(90, cols, 2));
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let spectrum = Spectrum::of(weight.view(), &InputGram, &calibration, Par::Seq).unwrap();
        let levels = spectrum.levels(DType::F32);
        let (last, factored) = levels.split_last().unwrap();
        assert_eq!((last.bytes, last.error), ((rows * cols * 4) as u64, 0.0));
        assert!(levels.windows(2).all(|pair| pair[0].bytes < pair[1].bytes));
        for level in factored {
            let target = Target::new("w", weight.view());
            let group = Group::single(target, calibration.clone());
            let made =
                svd_llm(Rank::Number(level.choice)).compress_group(group).unwrap().layers.remove(0);
            assert_eq!(Storage::of(&*made.node).unwrap().bytes(), level.bytes);
            let lost = wide(&x).dot(&(wide(&weight) - wide(&decode(&*made.node).unwrap())).t());
            assert!((energy(&lost) - level.error).abs() < 1e-4 * (1.0 + level.error), "{level:?}");
        }
    }
    // Of the covariance, without statistics that can be used, and at the ends of f32.
    let (weight, x) = (random(8, 10, 3), inputs(50, 10, 4));
    let calibration = Calibration::from_samples(x, Par::Seq);
    let all = Spectrum::of(weight.view(), &InputGram, &calibration, Par::Seq).unwrap();
    let about_mean = Spectrum::of(weight.view(), &InputCovariance, &calibration, Par::Seq).unwrap();
    assert!(about_mean.values()[0] < all.values()[0]);
    let dead = Calibration::from_samples(Array2::zeros((5, 10)), Par::Seq);
    let plain = Spectrum::of(weight.view(), &Plain, &dead, Par::Seq).unwrap();
    assert_eq!(Spectrum::of(weight.view(), &InputGram, &dead, Par::Seq).unwrap(), plain);
    for scale in [1e-30f32, 1e30] {
        let scaled = weight.mapv(|v| v * scale);
        let values = Spectrum::of(scaled.view(), &Plain, &dead, Par::Seq).unwrap();
        for (value, plain) in values.values().iter().zip(plain.values()) {
            assert!((value / f64::from(scale) / plain - 1.0).abs() < 1e-4);
        }
    }
    let zero = Spectrum::of(Array2::zeros((4, 6)).view(), &Plain, &Calibration::none(6), Par::Seq);
    assert!(zero.unwrap().values().iter().all(|v| *v == 0.0));
}

/// A sweep of ranks over several matrices (LoRD) loses less than one ratio for all.
#[test]
fn ranks_by_a_knapsack_over_levels_lose_less_than_one_ratio() {
    let spectra: Vec<Spectrum> = [0.6, 0.9, 0.98]
        .iter()
        .enumerate()
        .map(|(i, factor)| {
            let weight = falling(40, 30, *factor, 10 + i as u64);
            Spectrum::of(weight.view(), &Plain, &Calibration::none(30), Par::Seq).unwrap()
        })
        .collect();
    let unit = |spectrum: &Spectrum| {
        let choices = spectrum.levels(DType::F32).into_iter();
        Unit::new("w", choices.map(|l| Choice::new(l.bytes, l.error)).collect::<Vec<_>>())
    };
    let table = Table::new(spectra.iter().map(unit).collect::<Vec<_>>()).unwrap();
    let uniform = |spectrum: &Spectrum| spectrum.levels(DType::F32)[7];
    let budget: u64 = spectra.iter().map(|s| uniform(s).bytes).sum();
    let error: f64 = spectra.iter().map(|s| uniform(s).error).sum();
    let found = Exact::new().solve(&table, budget).unwrap();
    println!("rank 8 each {error:.3}, by a knapsack {:.3}", found.error);
    assert!(found.cost <= budget && found.error < 0.9 * error);
}

/// Fails if values were not taken in parts of each largest, or if flat matrices were factored.
#[test]
fn welore_is_one_threshold_on_normalised_values() {
    let spectra: Vec<Spectrum> = [(24, 16, 0.6, 100.0), (16, 40, 0.95, 0.01), (20, 20, 0.8, 1.0)]
        .iter()
        .enumerate()
        .map(|(i, (rows, cols, factor, scale))| {
            let weight = falling(*rows, *cols, *factor, 20 + i as u64) * *scale;
            Spectrum::of(weight.view(), &Plain, &Calibration::none(*cols), Par::Seq).unwrap()
        })
        .collect();
    let full: usize = spectra.iter().map(Spectrum::full).sum();
    for kept in [0.1, 0.3, 0.5, 0.7, 1.0] {
        let chosen = welore(&spectra, kept).unwrap();
        let budget = (kept * full as f64) as usize;
        // By bisection, as the paper searches.
        let counts = |threshold: f64| -> Vec<usize> {
            let of = |s: &Spectrum| {
                s.values().iter().filter(|v| **v / s.values()[0] > threshold).count().max(1)
            };
            spectra.iter().map(of).collect()
        };
        let (mut low, mut high) = (-1e-9, 1.0);
        for _ in 0..100 {
            let middle = 0.5 * (low + high);
            if counts(middle).iter().sum::<usize>() <= budget {
                high = middle
            } else {
                low = middle
            }
        }
        assert_eq!(chosen.counts, counts(high), "{kept}");
        assert!(chosen.counts.iter().sum::<usize>() <= budget.max(3));
        for ((count, rank), spectrum) in chosen.counts.iter().zip(&chosen.ranks).zip(&spectra) {
            assert_eq!(*rank, (2 * count < spectrum.full()).then_some(*count));
        }
        // Scales do not matter: the first has the largest values and the lowest rank in proportion.
        let share = |i: usize| chosen.counts[i] as f64 / spectra[i].full() as f64;
        let ordered = share(0) < share(2) && share(2) <= share(1);
        assert!(ordered || kept == 0.1 || kept == 1.0, "{kept}: {:?}", chosen.counts);
    }
    for bad in [0.0, 1.1, f64::NAN] {
        assert_eq!(welore(&spectra, bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(welore(&[], 0.5).unwrap().counts.is_empty());
    let zero = Spectrum::new([3, 3], vec![0.0; 3]).unwrap();
    assert_eq!(welore(&[zero], 0.4).unwrap().counts, [1]);
    for (values, kind) in [
        (vec![1.0, 2.0], ErrorKind::Numerical),
        (vec![f64::NAN], ErrorKind::Numerical),
        (vec![-1.0], ErrorKind::Numerical),
        (vec![1.0; 4], ErrorKind::ShapeMismatch),
    ] {
        assert_eq!(Spectrum::new([3, 5], values).unwrap_err().kind(), kind);
    }
}

/// Fails if groups were not factored apart.
#[test]
fn alds_is_a_truncated_svd_of_each_group() {
    for (rows, cols, groups, rank) in [(12, 20, 2, 2), (20, 21, 4, 1), (9, 30, 3, 2), (30, 9, 1, 3)]
    {
        let weight = random(rows, cols, 30);
        let made = run(&Alds::new(groups, Rank::Number(rank)), &weight, DType::F32).unwrap();
        assert_eq!(made.fallback, None, "{rows} x {cols}");
        let mut parts = Vec::new();
        let mut at = 0;
        for i in 0..groups {
            let size = cols / groups + usize::from(i < cols % groups);
            let part = wide(&weight).slice(s![.., at..at + size]).to_owned();
            parts.push(linalg::svd_truncated(part.view(), rank).unwrap().reconstruct());
            at += size;
        }
        let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
        let expected = concatenate(Axis(1), &views).unwrap();
        let ours = wide(&decode(&*made.node).unwrap());
        assert!(energy(&(&ours - &expected)) < 1e-8 * energy(&expected), "{rows} x {cols}");
        // j (k out + in) numbers, and the places of the inputs of several groups.
        let places = if groups > 1 { 2 * cols } else { 0 };
        let bytes = Storage::of(&*made.node).unwrap().bytes() as usize;
        assert_eq!(bytes, 4 * rank * (groups * rows + cols) + places);
        check_node(made.node, &Registry::default(), 1e-4);
    }
    let node = run(&Alds::new(2, Rank::Number(1)), &random(8, 12, 31), DType::F32).unwrap().node;
    check_damage(&*node, &Registry::default());
}

#[test]
fn alds_obeys_the_laws_at_all_shapes() {
    for (rows, cols) in [(1, 1), (1, 40), (33, 1), (7, 24), (40, 33)] {
        let mut weight = random(rows, cols, 32);
        for case in 0..3 {
            match case {
                1 => weight.column_mut(cols / 2).fill(0.0),
                2 => weight.fill(0.0),
                _ => {}
            }
            for groups in [1, 3, 1000] {
                for rank in [Rank::Number(2), Rank::Ratio(0.5), Rank::Energy(0.8)] {
                    let made = run(&Alds::new(groups, rank), &weight, DType::BF16).unwrap();
                    assert!(Storage::of(&*made.node).unwrap().bytes() <= 2 * weight.len() as u64);
                    check_node(made.node, &Registry::default(), 1e-4);
                }
            }
        }
    }
    let weight = random(4, 6, 33);
    for bad in [
        Alds::new(0, Rank::Number(1)),
        Alds::new(2, Rank::Number(0)),
        Alds::new(2, Rank::Ratio(1.0)),
        Alds::default().with_dtype(Some(DType::U8)),
    ] {
        let error = run(&bad, &weight, DType::F32).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("allowed"), "{error}");
    }
    let mut bad = weight.clone();
    bad[[0, 0]] = f32::INFINITY;
    assert_eq!(run(&Alds::default(), &bad, DType::F32).unwrap_err().kind(), ErrorKind::Numerical);
    // An energy is kept of every group.
    let weight = falling(20, 40, 0.8, 34);
    let made = run(&Alds::new(4, Rank::Energy(0.9)), &weight, DType::F32).unwrap();
    let lost = &weight - &decode(&*made.node).unwrap();
    for (lost, part) in lost.axis_chunks_iter(Axis(1), 10).zip(weight.axis_chunks_iter(Axis(1), 10))
    {
        assert!(energy(&lost) <= 0.1001 * energy(&part));
    }
}

fn matrices() -> Vec<Array2<f32>> {
    // The second falls apart in two groups of inputs, each of low rank.
    let halves =
        [random(24, 2, 40).dot(&random(2, 16, 41)), random(24, 2, 42).dot(&random(2, 16, 43))];
    let two = concatenate(Axis(1), &[halves[0].view(), halves[1].view()]).unwrap();
    vec![falling(24, 32, 0.7, 44), two + random(24, 32, 45) * 0.01, falling(24, 32, 0.95, 46)]
}

fn alds_levels(weight: &Array2<f32>, groups: &[usize]) -> Vec<Level<(usize, usize)>> {
    Alds::levels(weight.view(), groups, DType::F32).unwrap()
}

/// The paper's search: a common error, and of each matrix the cheapest way to keep to it, by bisection. Fails if levels had
/// another error or cost, and if groups were not chosen for each matrix.
#[test]
fn minimax_over_levels_is_the_search_of_alds() {
    let weights = matrices();
    // Levels as by formula.
    for weight in &weights {
        let most = linalg::svd(wide(weight).view()).unwrap().s[0];
        for level in alds_levels(weight, &[1, 2, 4]) {
            let (k, rank) = level.choice;
            let parts = wide(weight);
            let next = parts
                .axis_chunks_iter(Axis(1), 32 / k)
                .map(|part| linalg::svd(part).unwrap().s.get(rank).copied().unwrap_or(0.0));
            let error = next.fold(0.0, f64::max) / most;
            assert!((level.error - error).abs() < 1e-5, "{level:?}: {error}");
            if level.error > 0.0 {
                let made = run(&Alds::new(k, Rank::Number(rank)), weight, DType::F32).unwrap();
                assert_eq!(Storage::of(&*made.node).unwrap().bytes(), level.bytes, "{level:?}");
            }
        }
    }
    let solve = |groups: &[usize], budget: u64| {
        let unit = |weight: &Array2<f32>| {
            let levels = alds_levels(weight, groups).into_iter();
            Unit::new("w", levels.map(|l| Choice::new(l.bytes, l.error)).collect::<Vec<_>>())
        };
        let table = Table::new(weights.iter().map(unit).collect::<Vec<_>>()).unwrap();
        let found = Minimax::new().solve(&table, budget).unwrap();
        let chosen: Vec<_> = weights
            .iter()
            .zip(&found.choices)
            .map(|(weight, at)| alds_levels(weight, groups)[*at])
            .collect();
        chosen
    };
    let worst = |chosen: &[Level<(usize, usize)>]| {
        chosen.iter().fold(0.0f64, |worst, level| worst.max(level.error))
    };
    for budget in [2500u64, 3500, 5000] {
        let chosen = solve(&[1, 2, 4], budget);
        // By bisection over the common error.
        let cheapest = |limit: f64| -> u64 {
            let of = |weight: &Array2<f32>| {
                let levels = alds_levels(weight, &[1, 2, 4]).into_iter();
                levels.filter(|l| l.error <= limit).map(|l| l.bytes).min().unwrap()
            };
            weights.iter().map(of).sum()
        };
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if cheapest(middle) <= budget { high = middle } else { low = middle }
        }
        assert!((worst(&chosen) - high).abs() < 1e-9, "{} {high}", worst(&chosen));
        assert!(chosen.iter().map(|level| level.bytes).sum::<u64>() <= budget);
        let one = worst(&solve(&[1], budget));
        println!(
            "{budget} bytes: {:.4} by {:?}, one group {one:.4}",
            worst(&chosen),
            chosen.iter().map(|l| l.choice).collect::<Vec<_>>()
        );
        assert!(worst(&chosen) <= one);
    }
    assert!(worst(&solve(&[1, 2, 4], 2500)) < 0.95 * worst(&solve(&[1], 2500)));
    assert!(Alds::levels(weights[0].view(), &[0], DType::F32).is_err());
}

fn directions() -> (Vec<Array2<f32>>, Vec<Array2<f32>>, Vec<Directions>) {
    let weights =
        vec![falling(20, 30, 0.7, 50), falling(30, 16, 0.9, 51) * 0.5, random(12, 12, 52)];
    let samples: Vec<_> = weights.iter().map(|w| inputs(80, w.ncols(), 53)).collect();
    let of = |(weight, x): (&Array2<f32>, &Array2<f32>)| {
        let gram = wide(x).t().dot(&wide(x));
        let root = Root::Full(linalg::cholesky(gram, Par::Seq).unwrap().mapv(|v| v as f32));
        Directions::of(weight.view(), &root, 0, Par::Seq).unwrap()
    };
    let directions = weights.iter().zip(&samples).map(of).collect();
    (weights, samples, directions)
}

/// Any set of directions loses the sum of the energies of the others: fails if energies were of the weights alone.
#[test]
fn any_directions_can_be_kept_and_lose_what_is_said() {
    let (weights, samples, directions) = directions();
    for ((weight, x), directions) in weights.iter().zip(&samples).zip(&directions) {
        for kept in [vec![0], vec![1, 3], vec![2, 0, 5], (0..directions.len()).collect()] {
            let node = directions.node(&kept, DType::F32).unwrap();
            assert_eq!(
                Storage::of(&*node).unwrap().bytes(),
                directions.bytes(kept.len(), DType::F32)
            );
            let lost = wide(x).dot(&(wide(weight) - wide(&decode(&*node).unwrap())).t());
            let gone = (0..directions.len()).filter(|i| !kept.contains(i));
            let expected: f64 = gone.map(|i| directions.energies()[i]).sum();
            let all: f64 = directions.energies().iter().sum();
            assert!((energy(&lost) - expected).abs() < 1e-4 * all, "{} {expected}", energy(&lost));
            check_node(node, &Registry::default(), 1e-4);
        }
        assert!(directions.node(&[99], DType::F32).is_err());
        assert!(directions.node(&[0], DType::U8).is_err());
    }
}

/// The derivative of a loss by a mask on each direction, by differences.
#[test]
fn changes_are_derivatives_by_masks() {
    let (weights, samples, directions) = directions();
    for ((weight, x), directions) in weights.iter().zip(&samples).zip(&directions) {
        // Some loss of the outputs, and its gradient by the weights.
        let goal = wide(&random(x.nrows(), weight.nrows(), 60));
        let loss = |w: &Array2<f64>| 0.5 * energy(&(wide(x).dot(&w.t()) - &goal));
        let outputs = wide(x).dot(&wide(weight).t()) - &goal;
        let gradient = outputs.t().dot(&wide(x)).mapv(|v| v as f32);
        let changes = directions.changes(gradient.view(), Par::Seq).unwrap();
        for (at, change) in changes.iter().enumerate() {
            // One direction's part of the matrix, through a node of it alone.
            let part = match directions.bytes(1, DType::F32) < (weight.len() * 4) as u64 {
                true => wide(&decode(&*directions.node(&[at], DType::F32).unwrap()).unwrap()),
                false => continue,
            };
            let h = 1e-3;
            let (more, less) = (wide(weight) + &part * h, wide(weight) - &part * h);
            let slope = (loss(&more) - loss(&less)) / (2.0 * h);
            assert!((slope.abs() - change).abs() < 1e-3 * (1.0 + change), "{slope} {change}");
        }
        assert!(directions.changes(Array2::zeros((2, 2)).view(), Par::Seq).is_err());
        let nan = Array2::from_elem(weight.dim(), f32::NAN);
        assert_eq!(
            directions.changes(nan.view(), Par::Seq).unwrap_err().kind(),
            ErrorKind::Numerical
        );
    }
}

/// Every size is a beginning of one list: fails if matrices were ranked apart, or if larger sizes dropped what smaller ones
/// keep.
#[test]
fn one_ranking_serves_every_size() {
    let (_, _, directions) = directions();
    let scores: Vec<Vec<f64>> = directions.iter().map(|d| d.energies().to_vec()).collect();
    let ranking = Ranking::by_scores(&scores).unwrap();
    let cost = |unit: usize, kept: usize| directions[unit].bytes(kept, DType::F32);
    let least: u64 = (0..3).map(|unit| cost(unit, 1)).sum();
    let dense: u64 = directions.iter().map(|d| d.bytes(usize::MAX >> 20, DType::F32)).sum();
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); 3];
    for budget in (least..=dense + 100).step_by(97) {
        let kept = ranking.keep(budget, cost).unwrap();
        let spent: u64 = kept.iter().enumerate().map(|(unit, parts)| cost(unit, parts.len())).sum();
        assert!(spent <= budget);
        for (now, before) in kept.iter().zip(&before) {
            assert!(before.iter().all(|part| now.contains(part)));
        }
        // By brute force over thresholds: all above one score, and the first of each.
        let above = |limit: f64| -> Vec<Vec<usize>> {
            scores
                .iter()
                .map(|parts| (0..parts.len()).filter(|i| *i == 0 || parts[*i] >= limit).collect())
                .collect()
        };
        let fits = |kept: &Vec<Vec<usize>>| {
            kept.iter().enumerate().map(|(u, parts)| cost(u, parts.len())).sum::<u64>() <= budget
        };
        let mut limits: Vec<f64> = scores.iter().flatten().copied().collect();
        limits.sort_by(f64::total_cmp);
        let best = limits.iter().map(|limit| above(*limit)).find(fits);
        assert_eq!(kept, best.unwrap_or_else(|| above(f64::INFINITY)), "{budget}");
        before = kept;
    }
    assert!(before.iter().zip(&scores).all(|(kept, all)| kept.len() == all.len()));
    let error = ranking.keep(least - 1, cost).unwrap_err();
    assert!(error.message().contains(&format!("allowed are {least}")), "{error}");
    assert_eq!(Ranking::by_scores(&[vec![f64::NAN]]).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(Ranking::by_scores(&[vec![]]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(Ranking::by_scores(&[]).unwrap().keep(0, cost).unwrap().is_empty());
}

/// Blocks of all matrices, and as many as fit, read from one file. Fails if a block came before the one it stands on.
#[test]
fn blocks_of_all_matrices_load_to_a_budget() {
    let weights = [random(20, 32, 70), random(32, 24, 71) * 3.0];
    let x: Vec<_> = weights.iter().map(|w| inputs(60, w.ncols(), 72)).collect();
    let nodes: Vec<_> = weights
        .iter()
        .zip(&x)
        .map(|(weight, x)| {
            let calibration = Calibration::from_samples(x.clone(), Par::Seq);
            BitStack::new(4, 2).compress(weight.view(), &calibration).unwrap().node
        })
        .collect();
    let bytes: Vec<BlockBytes> =
        nodes.iter().map(|node| BlockBytes::of(&**node).unwrap()).collect();
    for (node, bytes) in nodes.iter().zip(&bytes) {
        assert_eq!((bytes.blocks.len(), bytes.base > 0), (4, true));
        assert_eq!(bytes.of_first(4), Storage::of(&**node).unwrap().bytes());
    }
    // What both lose together with one block more of one of them.
    let first = |unit: usize, blocks: usize| {
        let description = first_blocks(&nodes[unit].describe(), blocks).unwrap();
        let checkpoint =
            Checkpoint::from_bytes("node", Bytes::from(written(&*nodes[unit]).0)).unwrap();
        Registry::default().read(&description, "w", &checkpoint).unwrap()
    };
    let lost = |unit: usize, blocks: usize| {
        let ours = wide(&decode(&*first(unit, blocks)).unwrap());
        energy(&wide(&x[unit]).dot(&(wide(&weights[unit]) - ours).t()))
    };
    let losses: Vec<Vec<f64>> = (0..2)
        .map(|unit| {
            let other = 1 - unit;
            (0..4).map(|b| lost(unit, b + 1) + if b > 0 { lost(other, b) } else { 0.0 }).collect()
        })
        .collect();
    let ranking = Ranking::by_layers(&losses).unwrap();
    let layers: Vec<usize> = ranking.order().iter().map(|(_, block)| *block).collect();
    assert_eq!(layers, [0, 0, 1, 1, 2, 2, 3, 3]);
    for pair in ranking.order().chunks(2) {
        let loss = |at: (usize, usize)| losses[at.0][at.1];
        assert!(loss(pair[0]) <= loss(pair[1]));
    }
    let cost = |unit: usize, blocks: usize| bytes[unit].of_first(blocks);
    let mut last = f64::INFINITY;
    for budget in (cost(0, 1) + cost(1, 1)..=cost(0, 4) + cost(1, 4)).step_by(50) {
        let kept = ranking.keep(budget, cost).unwrap();
        let mut spent = 0;
        for (unit, blocks) in kept.iter().enumerate() {
            assert!(blocks.iter().copied().eq(0..blocks.len()), "{blocks:?}");
            let loaded = first(unit, blocks.len());
            spent += Storage::of(&*loaded).unwrap().bytes();
        }
        assert!(spent <= budget);
        let now: f64 = (0..2).map(|unit| lost(unit, kept[unit].len())).sum();
        assert!(now <= last * (1.0 + 1e-9), "{budget}: {now} after {last}");
        last = now;
    }
    for bad in [0, 5] {
        let error = first_blocks(&nodes[0].describe(), bad).unwrap_err();
        assert!(error.message().contains("allowed are 1 to 4"), "{error}");
    }
    let other = svd(Rank::Number(1)).compress(weights[0].view(), &Calibration::none(32)).unwrap();
    assert_eq!(BlockBytes::of(&*other.node).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Fails if rows were not weighted.
#[test]
fn embeddings_are_factored_by_how_often_they_are_read() {
    let (rows, dim, rank) = (60, 12, 3);
    let table = random(rows, dim, 80);
    let counts: Vec<f64> = (0..rows).map(|i| 1000.0 / (1.0 + i as f64)).map(f64::floor).collect();
    let decoded = |counts: &[f64]| {
        let rank = Rank::Number(rank);
        let node = embedding_factors(table.view(), counts, rank, DType::F32, Par::Seq).unwrap();
        wide(&decode(&node).unwrap())
    };
    // Eigenvectors of Σ n e eᵀ in f64.
    let scaled =
        wide(&table).reversed_axes() * &tensorpress_tensor::ndarray::Array1::from(counts.clone());
    let moments = scaled.dot(&wide(&table));
    let vectors = linalg::symmetric_eigen(moments.view()).unwrap().vectors;
    let v = vectors.slice(s![.., dim - rank..]).to_owned();
    let expected = wide(&table).dot(&v).dot(&v.t());
    let ours = decoded(&counts);
    assert!(energy(&(&ours - &expected)) < 1e-8 * energy(&expected));
    let lost = |ours: &Array2<f64>| -> f64 {
        let rows = (ours - &wide(&table)).map_axis(Axis(1), |row| row.dot(&row));
        rows.iter().zip(&counts).map(|(row, n)| row * n).sum()
    };
    let alike = decoded(&vec![0.0; rows]);
    assert_eq!(alike, decoded(&vec![7.0; rows]));
    println!("by counts {:.1}, all alike {:.1}", lost(&ours), lost(&alike));
    assert!(lost(&ours) < 0.95 * lost(&alike));
    let error = |counts: &[f64], rank| {
        embedding_factors(table.view(), counts, rank, DType::F32, Par::Seq).unwrap_err().kind()
    };
    assert_eq!(error(&counts[1..], Rank::Number(1)), ErrorKind::ShapeMismatch);
    assert_eq!(error(&vec![-1.0; rows], Rank::Number(1)), ErrorKind::Numerical);
    assert_eq!(error(&counts, Rank::Number(0)), ErrorKind::InvalidArgument);
    let empty =
        embedding_factors(Array2::zeros((0, 4)).view(), &[], Rank::Number(2), DType::F16, Par::Seq);
    assert_eq!(decode(&empty.unwrap()).unwrap().dim(), (0, 4));
}

/// LLM-ROM is LoRD on the inputs of compressed layers; its product is that of output eigenvectors.
#[test]
fn rom_projects_on_the_leading_eigenvectors_of_outputs() {
    let (weight, x) = (random(14, 10, 90), inputs(70, 10, 91));
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let exact = |by: &dyn DynCompress| {
        let group = Group::single(Target::new("w", weight.view()), calibration.clone());
        wide(&decode(&*by.compress_group_dyn(group).unwrap().layers.remove(0).node).unwrap())
    };
    let rank = Rank::Number(3);
    let ours = exact(&rom(rank));
    let y = wide(&x).dot(&wide(&weight).t());
    let vectors = linalg::symmetric_eigen(y.t().dot(&y).view()).unwrap().vectors;
    let v = vectors.slice(s![.., 11..]).to_owned();
    let expected = v.dot(&v.t().dot(&wide(&weight)));
    assert!(energy(&(&ours - &expected)) < 1e-8 * energy(&expected));
    assert_eq!(ours, exact(&lord(rank)));
    let narrow = lord(rank).with_factors(Factors::Float(DType::F16));
    assert!(energy(&(exact(&narrow) - &ours)) < 1e-5 * energy(&ours));
}
