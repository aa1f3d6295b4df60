use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::merge::{
    GaussianMerge, NearestValues, ResidualMerge, adjacent_sets, gaussian_weights,
};
use tensorpress_kvcache::policy::{chunkkv, criticalkv, snapkv};
use tensorpress_kvcache::score::{Critical, KeyNorm, QueryWindow, lazy_share, output_norms};
use tensorpress_kvcache::{Action, Budget, Cache, KvStore, LayerAt, Merge, Policy, Score};
use tensorpress_tensor::{Checkpoint, ndarray};

use crate::{Case, Fixed, floats, ints, near, open, same_sets, sets, tokens_first};

const ALONE: LayerAt = LayerAt { index: 0, of: 1 };

/// Rows of a tensor.
fn rows(file: &Checkpoint, name: &str, width: usize) -> Array2<f32> {
    let all = floats(file, name);
    Array2::from_shape_vec((all.len() / width, width), all).expect("whole rows")
}

/// A cache that holds keys and values whose queries look at nothing in particular.
fn holding(k: Array3<f32>, v: Array3<f32>, rule: impl Merge + 'static) -> (Case, Cache) {
    let case = Case { q: Array3::zeros(k.raw_dim()), k, v };
    let policy = Policy::new(KeyNorm, Budget::Keep(1.0)).with_action(Action::Merge(Arc::new(rule)));
    let cache = case.seen(policy, 7);
    (case, cache)
}

/// Sets, pivots, weights and merged keys and values of KVMerger's paper, as it was read for the vectors.
#[test]
fn kvmerger_sets() {
    let Some(file) = open("kvmerger_paper") else { return };
    let (k, v) = (tokens_first(&file, "in.k_rope"), tokens_first(&file, "in.v"));
    let received = rows(&file, "in.attention_column_sum", 96);
    let mut checked = 0;
    for cosine in [0.75, 0.9] {
        let rule = GaussianMerge::new(cosine);
        let (_, cache) = holding(k.clone(), v.clone(), rule);
        for h in 0..4 {
            let name = |what: &str| format!("eps{cosine}.h{h}.{what}");
            let keys = k.slice(s![.., h, ..]);
            let sets = adjacent_sets(keys, cosine, |_| false);
            assert_eq!(sets, ints(&file, &name("set_of_token")));
            let (pivots, parts) = (ints(&file, &name("pivot")), floats(&file, &name("weight")));
            for (set, pivot) in pivots.iter().enumerate() {
                let members: Vec<usize> = (0..96).filter(|t| sets[*t] == set).collect();
                let most =
                    |a: &&usize, b: &&usize| received[[h, **a]].total_cmp(&received[[h, **b]]);
                assert_eq!(members.iter().max_by(most), Some(pivot));
                let mine: Vec<f32> =
                    gaussian_weights(keys, &members, *pivot).iter().map(|w| *w as f32).collect();
                let theirs: Vec<f32> = members.iter().map(|t| parts[*t]).collect();
                near(&mine, &theirs, 1e-5, "weights");
            }
            let held = cache.held().expect("a policy");
            let merged = rule.merge(held, h, &pivots).expect("merges");
            for (mine, theirs) in [(&merged.keys, "k"), (&merged.values, "v")] {
                let theirs = floats(&file, &name(theirs));
                near(mine.as_slice().expect("contiguous"), &theirs, 1e-5, "merged");
            }
            assert!(merged.weights.iter().all(|w| *w == 1.0));
            let into: Vec<usize> = merged.into.iter().map(|at| at.expect("somewhere")).collect();
            assert_eq!(into, sets);
            checked += 5;
        }
    }
    println!("kvmerger: 1 file, {checked} tensors of sets, pivots, weights, keys and values equal");
}

/// What a prompt becomes: the tail, the best by score, and ten slots that hold seven tokens each.
#[test]
fn zeromerge_prompts() {
    let Some(file) = open("zeromerge_init") else { return };
    let (k, v) = (tokens_first(&file, "in.k"), tokens_first(&file, "in.v"));
    let scores = rows(&file, "in.score", 120);
    let mut checked = 0;
    for (mode, sum) in [("sum", true), ("max", false)] {
        let theirs = |what: &str| tokens_first(&file, &format!("init_{mode}.{what}"));
        let (their_k, their_v) = (theirs("k"), theirs("v"));
        let (their_s, their_w) = (
            rows(&file, &format!("init_{mode}.s"), 60),
            rows(&file, &format!("init_{mode}.w"), 60),
        );
        let rule = ResidualMerge::new(10, 20).with_sum(sum);
        let fixed = Fixed(scores.rows().into_iter().map(|r| r.to_vec()).collect());
        let policy =
            Policy::new(fixed, Budget::Keep(1.0)).with_action(Action::Merge(Arc::new(rule)));
        let case = Case { q: Array3::zeros(k.raw_dim()), k: k.clone(), v: v.clone() };
        let cache = case.seen(policy, 120);
        for h in 0..4 {
            let of = scores.row(h);
            let mut order: Vec<usize> = (0..100).collect();
            order.sort_by(|a, b| of[*b].total_cmp(&of[*a]));
            let mut keep: Vec<usize> = order[..40].iter().copied().chain(100..120).collect();
            keep.sort_unstable();
            let merged = rule
                .merge_by(cache.held().expect("a policy"), h, &keep, of.as_slice().expect("a row"))
                .expect("merges");
            // Theirs are in another order: residual slots, the best by score, the tail.
            let best: Vec<usize> = order[..30].to_vec();
            let place = |slot: usize| keep.binary_search(&slot).expect("kept");
            let residual = keep.iter().filter(|s| **s < 100 && !best.contains(s)).copied();
            let slots: Vec<usize> =
                residual.chain(best.iter().copied()).chain(100..120).map(place).collect();
            for (theirs, at) in slots.iter().enumerate() {
                let row = |x: &Array3<f32>| x.slice(s![theirs, h, ..]).to_vec();
                near(&merged.keys.row(*at).to_vec(), &row(&their_k), 1e-5, "keys");
                near(&merged.values.row(*at).to_vec(), &row(&their_v), 1e-5, "values");
                assert_eq!(merged.weights[*at], their_w[[h, theirs]]);
                let tokens = (0..120).filter(|t| merged.into[*t] == Some(*at)).map(|t| of[t]);
                let score: f32 =
                    if sum { tokens.sum() } else { tokens.fold(f32::NEG_INFINITY, f32::max) };
                near(&[score], &[their_s[[h, theirs]]], 1e-5, "score");
            }
            checked += 4;
        }
        assert_eq!(rule.takes_largest(), !sum);
    }
    println!("zeromerge: 1 file, {checked} tensors of keys, values, weights and scores equal");
}

/// CriticalKV, ChunkKV, merging values and the lazy share of kvpress.
#[test]
fn kvpress_changes() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let output = Arc::new(rows(&file, "in.o_proj_weight", 384));
    let norms = rows(&file, "criticalkv.vwo_l1norm", 300);
    for h in 0..4 {
        let values = case.v.slice(s![.., h, ..]);
        let mine = output_norms(values, output.view(), 3, h).expect("norms");
        near(&mine, norms.row(h).as_slice().expect("a row"), 1e-5, "norms");
    }
    let window = case.scores(QueryWindow::new(32, 5));
    let mut checked = 4;
    for ratio in [0.25, 0.5, 0.75] {
        let budget = Budget::Keep(1.0 - ratio);
        let kept = |name: &str| sets(&ints(&file, &format!("{name}.kept_r{ratio}")), 4);
        let policy = criticalkv(32, 5, Some(output.clone()), budget);
        let mine = case.kept(policy, ALONE);
        let score = Critical::new(Arc::new(QueryWindow::new(32, 5)), Some(output.clone()));
        let cache = case.seen(Policy::new(score.clone(), Budget::Keep(1.0)), 300);
        let tokens = (300.0 * (1.0 - ratio)) as usize;
        let scores = score.score_within(cache.held().expect("a policy"), tokens).expect("scores");
        same_sets(&mine, &kept("criticalkv_snapkv"), &scores, &format!("critical at {ratio}"));
        let mine = case.kept(chunkkv(Policy::new(QueryWindow::new(32, 5), budget), 20), ALONE);
        assert_eq!(mine, kept("chunkkv_snapkv_c20"), "chunks at {ratio}");
        // SnapKV's own order is another name for its set.
        let mine = case.kept(snapkv(32, 5, budget), ALONE);
        same_sets(&mine, &kept("snapkv_order"), &window, "snapkv");
        // CriticalKV within AdaKV's budgets of heads, written out.
        let mask = file.tensor(&format!("critical_adakv_snapkv.pruned_mask_r{ratio}")).expect("it");
        let theirs: Vec<BTreeSet<usize>> = mask
            .bytes()
            .chunks(300)
            .map(|row| (0..300).filter(|t| row[*t] == 0).collect())
            .collect();
        let (mine, scores) = critical_adakv(&window, &norms, tokens);
        same_sets(&mine, &theirs, &scores, &format!("critical AdaKV at {ratio}"));
        checked += 4;
    }
    for (name, ratio, rule) in [
        ("merging_knorm.v_r0.5", 0.5, NearestValues::default()),
        ("merging_knorm.v_r0.75", 0.75, NearestValues::default()),
        ("merging_knorm_thr0.6_frac0.5.v_r0.5", 0.5, NearestValues::new(0.6, 0.5)),
    ] {
        let policy = Policy::new(KeyNorm, Budget::Keep(1.0 - ratio));
        let cache = case.seen(policy.with_action(Action::Merge(Arc::new(rule))), 300);
        let theirs = tokens_first(&file, &format!("{name}_sorted_by_pos"));
        for h in 0..4 {
            let theirs: Vec<f32> = theirs.slice(s![.., h, ..]).iter().copied().collect();
            let mine = cache.store().values(h);
            near(mine.as_slice().expect("contiguous"), &theirs, 1e-4, name);
            assert!(cache.store().weights(h).iter().all(|w| *w == 1.0));
        }
        checked += 1;
    }
    let cache = case.seen(Policy::new(QueryWindow::new(1, 1), Budget::Keep(1.0)), 300);
    let share = lazy_share(cache.held().expect("a policy"), 4, 64).expect("a share") as f32;
    near(&[share], &floats(&file, "simlayerkv.lazy_score_n4_recent64"), 1e-4, "lazy share");
    println!("kvpress: 1 file, {} norms, kept sets, values and shares equal", checked + 1);
}

/// kvpress's CriticalAdaKV: every head's best fifth is safe, the layer's best set how many each head keeps; half of those go
/// by score, the rest by score times norm.
fn critical_adakv(
    window: &[Vec<f32>],
    norms: &Array2<f32>,
    tokens: usize,
) -> (Vec<BTreeSet<usize>>, Vec<Vec<f32>>) {
    let order = |scores: &[f32]| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order
    };
    let mut scores = window.to_vec();
    for scores in &mut scores {
        let safe = (tokens as f64 * 0.2) as usize;
        order(scores)[..safe].iter().for_each(|t| scores[*t] = f32::MAX);
    }
    let flat: Vec<f32> = scores.iter().flatten().copied().collect();
    let mut counts = [0; 4];
    order(&flat)[..tokens * 4].iter().for_each(|i| counts[i / 300] += 1);
    let mut kept = Vec::new();
    for (h, scores) in scores.iter_mut().enumerate() {
        let first: Vec<usize> = order(scores)[..counts[h] / 2].to_vec();
        first.iter().for_each(|t| scores[*t] = f32::MAX);
        for (t, score) in scores.iter_mut().enumerate() {
            *score = if *score == f32::MAX { f32::MAX } else { (*score + 1e-4) * norms[[h, t]] };
        }
        kept.push(order(scores)[..counts[h]].iter().copied().collect());
    }
    (kept, scores)
}
