//! Optimal transport against brute force and shortest paths; fusing units by it; and units said by others without data.

mod blocks;

use blocks::{HIDDEN, Small, random, solve};
use proptest::prelude::*;
use tensorpress_prune::structured::{
    Module, Norm, Repair, Score, Track, Transport, intra_fusion, scale_corrections, transport_plan,
    udfc,
};
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress_tensor::{ErrorKind, Rewrite, Usable};

fn cost_of(plan: &Array2<u64>, cost: &Array2<f64>) -> f64 {
    plan.iter().zip(cost).map(|(mass, cost)| *mass as f64 * cost).sum()
}

fn check(plan: &Array2<u64>, supply: &[u64], demand: &[u64]) {
    for (row, mass) in plan.rows().into_iter().zip(supply) {
        assert_eq!(row.sum(), *mass);
    }
    for (column, mass) in plan.columns().into_iter().zip(demand) {
        assert_eq!(column.sum(), *mass);
    }
}

/// The least cost over all ways to give units of mass to units of demand.
fn brute(sources: &[usize], targets: &mut Vec<usize>, cost: &Array2<f64>) -> f64 {
    let Some((source, rest)) = sources.split_first() else { return 0.0 };
    let mut best = f64::INFINITY;
    for at in 0..targets.len() {
        let target = targets.swap_remove(at);
        best = best.min(cost[[*source, target]] + brute(rest, targets, cost));
        targets.push(target);
        let last = targets.len() - 1;
        targets.swap(at, last);
    }
    best
}

/// The least cost by successive shortest paths (Bellman and Ford), one unit of mass at a time.
fn shortest_paths(cost: &Array2<f64>, supply: &[u64], demand: &[u64]) -> f64 {
    let (n, k) = cost.dim();
    let (mut supply, mut demand) = (supply.to_vec(), demand.to_vec());
    let mut flow = Array2::<u64>::zeros((n, k));
    let mut total = 0.0;
    while supply.iter().sum::<u64>() > 0 {
        let mut distance = vec![f64::INFINITY; n + k];
        let mut from = vec![usize::MAX; n + k];
        (0..n).filter(|i| supply[*i] > 0).for_each(|i| distance[i] = 0.0);
        for _ in 0..n + k {
            for i in 0..n {
                for j in 0..k {
                    if distance[i] + cost[[i, j]] < distance[n + j] - 1e-12 {
                        (distance[n + j], from[n + j]) = (distance[i] + cost[[i, j]], i);
                    }
                    if flow[[i, j]] > 0 && distance[n + j] - cost[[i, j]] < distance[i] - 1e-12 {
                        (distance[i], from[i]) = (distance[n + j] - cost[[i, j]], n + j);
                    }
                }
            }
        }
        let open = (0..k).filter(|j| demand[*j] > 0);
        let end = open.min_by(|a, b| distance[n + a].total_cmp(&distance[n + b])).unwrap();
        total += distance[n + end];
        demand[end] -= 1;
        let mut node = n + end;
        while from[node] != usize::MAX {
            let before = from[node];
            match node >= n {
                true => flow[[before, node - n]] += 1,
                false => flow[[node, before - n]] -= 1,
            }
            node = before;
        }
        supply[node] -= 1;
    }
    total
}

/// As much mass on both sides.
fn evened(supply: &mut [u64], demand: &mut [u64]) {
    let (a, b) = (supply.iter().sum::<u64>(), demand.iter().sum::<u64>());
    if a < b { supply[0] += b - a } else { demand[0] += a - b }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn plans_cost_no_more_than_any_other(
        mut supply in proptest::collection::vec(0u64..3, 1..5),
        mut demand in proptest::collection::vec(0u64..3, 1..5),
        whole in any::<bool>(),
        seed in any::<u64>(),
    ) {
        evened(&mut supply, &mut demand);
        prop_assume!(supply.iter().sum::<u64>() <= 8);
        // Whole costs tie often.
        let cost = random(supply.len(), demand.len(), seed).mapv(|c| {
            let c = f64::from(c.abs());
            if whole { (2.0 * c).round() } else { c }
        });
        let plan = transport_plan(cost.view(), &supply, &demand).unwrap();
        check(&plan, &supply, &demand);
        let spread = |masses: &[u64]| -> Vec<usize> {
            masses.iter().enumerate().flat_map(|(i, m)| vec![i; *m as usize]).collect()
        };
        let best = brute(&spread(&supply), &mut spread(&demand), &cost);
        prop_assert!((cost_of(&plan, &cost) - best).abs() < 1e-9, "{} {best}", cost_of(&plan, &cost));
    }

    #[test]
    fn larger_plans_cost_what_shortest_paths_do(
        mut supply in proptest::collection::vec(0u64..6, 1..16),
        mut demand in proptest::collection::vec(0u64..6, 1..12),
        whole in any::<bool>(),
        seed in any::<u64>(),
    ) {
        evened(&mut supply, &mut demand);
        let cost = random(supply.len(), demand.len(), seed).mapv(|c| {
            if whole { f64::from(c * 2.0).round() } else { f64::from(c) }
        });
        let plan = transport_plan(cost.view(), &supply, &demand).unwrap();
        check(&plan, &supply, &demand);
        let best = shortest_paths(&cost, &supply, &demand);
        prop_assert!((cost_of(&plan, &cost) - best).abs() < 1e-9, "{} {best}", cost_of(&plan, &cost));
    }

    /// Rows and columns are the averages that the plan says. Fails if what goes is discarded, or if the plan's columns are
    /// not normalised.
    #[test]
    fn channels_become_averages_by_the_plan(
        inner in 2usize..14,
        l1 in any::<bool>(),
        by_importance in any::<bool>(),
        sparsity in 0.0f64..0.4,
        seed in any::<u64>(),
    ) {
        let small = Small::new(1, (1, 1), 2, inner, 8, seed);
        let norm = if l1 { Norm::L1 } else { Norm::L2 };
        let transport = Transport::default().with_norm(norm).with_by_importance(by_importance);
        let method = intra_fusion().with_sparsity(sparsity).with_repair(Repair::Transport(transport));
        let (decisions, edits) = match small.run(&method) {
            Ok(done) => done,
            Err(e) => {
                prop_assert!(e.message().contains("sparsity"));
                return Ok(());
            }
        };
        let kept = decisions[0].kept("channels").unwrap();
        prop_assume!(kept.len() < inner);
        let name = |part: &str| format!("layers.0.{part}.weight");
        let [gate, up, down] = ["gate", "up", "down"].map(|part| small.matrix(&name(part)));
        let features = concatenate(Axis(1), &[gate.view(), up.view(), down.t()]).unwrap();
        let unit = |i: usize| {
            let row = features.row(i).mapv(f64::from);
            let length = row.dot(&row).sqrt();
            row / length
        };
        let cost = Array2::from_shape_fn((inner, kept.len()), |(i, j)| {
            let d = unit(i) - unit(kept[j]);
            if l1 { d.mapv(f64::abs).sum() } else { d.dot(&d).sqrt() }
        });
        let track = small.part(0, Module::Channels, |part| method.score.track(part)).unwrap();
        let Usable::Yes(track) = track else { panic!("norms are there") };
        let shares = transport.shares(features.view(), &track, kept).unwrap();
        // The plan: its columns sum to 1; of equal masses it is the least costly.
        for column in shares.columns() {
            prop_assert!((column.sum() - 1.0).abs() < 1e-9);
        }
        if !by_importance {
            let supply = vec![kept.len() as u64; inner];
            let demand = vec![inner as u64; kept.len()];
            let paths = shortest_paths(&cost, &supply, &demand);
            let ours: f64 = (&shares * &cost).sum() * inner as f64;
            prop_assert!((ours - paths).abs() < 1e-6, "{ours} {paths}");
        }
        for (part, weight) in [("gate", &gate), ("up", &up), ("down", &down.t().to_owned())] {
            let want = shares.t().dot(&weight.mapv(f64::from));
            let got = small.edited(&edits[0], &name(part));
            let got = if part == "down" { got.t().to_owned() } else { got };
            prop_assert_eq!(got.dim(), want.dim());
            prop_assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        }
    }

    /// D_K + D_P S with S = Z_P Z_Kᵀ (Z_K Z_Kᵀ + λ I)⁻¹ by the formula; exact where what goes is a combination of what
    /// stays: fails if what goes is discarded.
    #[test]
    fn channels_are_said_by_others(inner in 4usize..12, sparsity in 0.1f64..0.3, seed in any::<u64>()) {
        let mut small = Small::new(1, (1, 1), 2, inner, 8, seed);
        let method = udfc().with_sparsity(sparsity).with_damp(1e-4);
        let name = |part: &str| format!("layers.0.{part}.weight");
        let fits = |small: &Small| -> Option<(Vec<usize>, Array2<f32>)> {
            let (decisions, edits) = small.run(&method).unwrap();
            let kept = decisions[0].kept("channels").unwrap().to_vec();
            (kept.len() < inner).then(|| (kept, small.edited(&edits[0], &name("down"))))
        };
        let Some((kept, got)) = fits(&small) else { return Ok(()) };
        let [gate, up, down] = ["gate", "up", "down"].map(|part| small.matrix(&name(part)).mapv(f64::from));
        let z = concatenate(Axis(1), &[gate.view(), up.view()]).unwrap();
        let gone: Vec<usize> = (0..inner).filter(|i| !kept.contains(i)).collect();
        let (zk, zp) = (z.select(Axis(0), &kept), z.select(Axis(0), &gone));
        let mut inside = zk.dot(&zk.t());
        let ridge = 1e-4 * z.mapv(|v| v * v).sum() / inner as f64;
        inside.diag_mut().mapv_inplace(|v| v + ridge);
        let s = solve(inside, zk.dot(&zp.t()));
        let want = down.select(Axis(1), &kept) + down.select(Axis(1), &gone).dot(&s.t());
        prop_assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-2), "{got} {want}");
        // Twins: half of a channel beside the whole of it.
        let half = |matrix: &Array2<f32>, from: usize, to: usize| {
            let mut matrix = matrix.clone();
            let row = matrix.row(from).mapv(|v| 0.5 * v);
            matrix.row_mut(to).assign(&row);
            matrix
        };
        for part in ["gate", "up"] {
            small.set(&name(part), &half(&small.matrix(&name(part)), 1, 0));
        }
        let mut quiet = small.matrix(&name("down"));
        quiet.column_mut(0).mapv_inplace(|v| 0.1 * v);
        small.set(&name("down"), &quiet);
        let Some((kept, got)) = fits(&small) else { return Ok(()) };
        if kept.len() == inner - 1 && !kept.contains(&0) {
            let at = kept.iter().position(|k| *k == 1).unwrap();
            let want = &quiet.column(1) + &(&quiet.column(0) * 0.5);
            prop_assert!(got.column(at).iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-2));
        }
    }

    #[test]
    fn scales_are_those_of_least_squares(rows in 1usize..6, inputs in 1usize..8, seed in any::<u64>()) {
        let (w, q) = (random(rows, inputs, seed), random(rows, inputs, seed ^ 5));
        let scales = scale_corrections(w.view(), q.view(), 0.0).unwrap();
        for ((w, q), s) in w.rows().into_iter().zip(q.rows()).zip(&scales) {
            let error = |s: f32| w.iter().zip(q).map(|(w, q)| f64::from(w - s * q).powi(2)).sum::<f64>();
            let step = 1e-3 * (1.0 + s.abs());
            prop_assert!(error(*s) <= error(s + step) && error(*s) <= error(s - step));
        }
        let ridged = scale_corrections(w.view(), q.view(), 1.0).unwrap();
        prop_assert!(ridged.iter().zip(&scales).all(|(a, b)| (2.0 * a - b).abs() < 1e-5 * b.abs().max(1e-3)));
    }
}

/// A channel and its copy: one stays, and is what it was. Twice a copy's share goes nowhere else.
#[test]
fn copies_fuse_into_one() {
    let mut small = Small::new(1, (1, 1), 2, 6, 8, 3);
    let name = |part: &str| format!("layers.0.{part}.weight");
    for part in ["gate", "up", "down"] {
        let mut weight = small.matrix(&name(part));
        let weight_of =
            if part == "down" { weight.view_mut().reversed_axes() } else { weight.view_mut() };
        let mut rows = weight_of;
        for (from, to) in [(0, 3), (1, 4), (2, 5)] {
            let row = rows.row(from).to_owned();
            rows.row_mut(to).assign(&row);
        }
        small.set(&name(part), &weight);
    }
    let features = concatenate(
        Axis(1),
        &[
            small.matrix(&name("gate")).view(),
            small.matrix(&name("up")).view(),
            small.matrix(&name("down")).t(),
        ],
    );
    let track = Track::by_scores(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).unwrap();
    let shares = Transport::default().shares(features.unwrap().view(), &track, &[3, 4, 5]).unwrap();
    for (kept, copy) in [(0, 0), (1, 1), (2, 2)] {
        assert_eq!((shares[[copy, kept]], shares[[copy + 3, kept]]), (0.5, 0.5));
    }
}

#[test]
fn what_is_absurd_is_refused() {
    let cost = Array2::zeros((2, 2));
    let error = transport_plan(cost.view(), &[1, 1], &[1, 2]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        transport_plan(cost.view(), &[1], &[1]).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
    assert!(transport_plan(cost.view(), &[u64::MAX, 1], &[u64::MAX, 1]).is_err());
    let bad = Array2::from_elem((1, 1), f64::NAN);
    assert_eq!(transport_plan(bad.view(), &[1], &[1]).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(transport_plan(Array2::zeros((0, 0)).view(), &[], &[]).unwrap().len(), 0);
    assert!(transport_plan(cost.view(), &[0, 0], &[0, 0]).unwrap().iter().all(|m| *m == 0));
    let (w, q) = (random(2, 3, 1), random(2, 4, 1));
    assert_eq!(
        scale_corrections(w.view(), q.view(), 0.0).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
    assert!(
        scale_corrections(w.view(), w.view(), -1.0).unwrap_err().message().contains("ridge = -1")
    );
    assert_eq!(scale_corrections(w.view(), Array2::zeros((2, 3)).view(), 0.0).unwrap(), [1.0, 1.0]);
    // Units of nothing but zeros.
    let mut small = Small::new(1, (1, 1), 2, 6, 8, 3);
    for part in ["gate", "up"] {
        small.set(&format!("layers.0.{part}.weight"), &Array2::zeros((6, HIDDEN)));
    }
    small.set("layers.0.down.weight", &Array2::zeros((HIDDEN, 6)));
    for method in [&intra_fusion() as &dyn Rewrite, &udfc()] {
        let (decisions, edits) = small.run(method).unwrap();
        assert!(decisions[0].kept("channels").unwrap().len() < 6);
        assert!(small.edited(&edits[0], "layers.0.down.weight").iter().all(|w| *w == 0.0));
        assert!(method.keeps_blocks_alike() && method.needs().is_none());
    }
}
