use std::collections::BTreeSet;

use ndarray::{Array3, s};
use tensorpress_kvcache::policy::{pyramidkv, snapkv, streaming};
use tensorpress_kvcache::score::{
    Accumulated, ExpectedAttention, KeyDifference, KeyNorm, LastQuery, QueryWindow,
};
use tensorpress_kvcache::{Budget, Causal, Heads, KvStore, LayerAt, Layers, Policy, Rope, Rule};
use tensorpress_tensor::{Scratch, ndarray};

use crate::{Case, floats, ints, near, open, same_sets, sets};

#[test]
fn kvpress_scores_and_kept_sets() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let (heads, n) = (4, 300);
    let rope = Rope::with_frequencies(floats(&file, "in.inv_freq")).expect("frequencies");
    let expected = ExpectedAttention::new(rope.clone());
    let mut no_covariance = expected.clone();
    no_covariance.covariance = false;
    let mut no_values = expected.clone();
    no_values.values = false;
    let mut short = expected.clone();
    (short.epsilon, short.future, short.sinks) = (0.02, 64, 2);
    let scores = [
        ("knorm", case.scores(KeyNorm), 0, 0),
        ("keydiff", case.scores(KeyDifference), 0, 0),
        ("snapkv_w32_k5", case.scores(QueryWindow::new(32, 5)), 0, 32),
        ("snapkv_w16_k7", case.scores(QueryWindow::new(16, 7)), 0, 16),
        ("tova", case.scores(LastQuery), 0, 1),
        ("observed_attention", case.scores(Accumulated { per_query: true }), 0, 0),
        ("expatt", case.scores(expected.clone()), 4, 0),
        ("expatt_nocov", case.scores(no_covariance.clone()), 4, 0),
        ("expatt_novnorm", case.scores(no_values.clone()), 4, 0),
        ("expatt_eps0.02_nf64_sink2", case.scores(short.clone()), 2, 0),
    ];
    let mut checked = 0;
    for (name, mine, first, last) in &scores {
        let theirs = floats(&file, &format!("{name}.score"));
        for (h, theirs) in theirs.chunks(n).enumerate() {
            // Tokens that are forced to stay get some large score in both.
            near(&mine[h][*first..n - last], &theirs[*first..n - last], 1e-4, name);
        }
        for ratio in [0.25, 0.5, 0.75] {
            let theirs = sets(&ints(&file, &format!("{name}.kept_r{ratio}")), heads);
            let budget = Budget::Keep(1.0 - ratio);
            let policy = match *name {
                "knorm" => Policy::new(KeyNorm, budget),
                "keydiff" => Policy::new(KeyDifference, budget),
                "snapkv_w32_k5" => snapkv(32, 5, budget),
                "snapkv_w16_k7" => snapkv(16, 7, budget),
                "tova" => Policy::new(LastQuery, budget),
                "expatt" => Policy::new(expected.clone(), budget),
                "expatt_nocov" => Policy::new(no_covariance.clone(), budget),
                "expatt_novnorm" => Policy::new(no_values.clone(), budget),
                "expatt_eps0.02_nf64_sink2" => Policy::new(short.clone(), budget),
                "observed_attention" => Policy::new(Accumulated { per_query: true }, budget),
                other => panic!("{other}"),
            };
            let mine_kept = case.kept(policy, LayerAt { index: 0, of: 1 });
            same_sets(&mine_kept, &theirs, mine, &format!("{name} at {ratio}"));
            checked += 1;
        }
        checked += 1;
    }
    for ratio in [0.25, 0.5, 0.75] {
        let budget = Budget::Keep(1.0 - ratio);
        for sinks in [0, 4] {
            let theirs =
                sets(&ints(&file, &format!("streaming_llm_sink{sinks}.kept_r{ratio}")), heads);
            assert_eq!(case.kept(streaming(sinks, budget), LayerAt { index: 0, of: 1 }), theirs);
            checked += 1;
        }
        let pyramid = sets(&ints(&file, &format!("pyramidkv.kept_r{ratio}")), heads);
        // The layer is the third of MiniLM's six.
        let third = LayerAt { index: 2, of: 6 };
        let layers = Layers::Pyramid { beta: 20.0, window: 32, rule: Rule::Kvpress };
        let mine = case.kept(pyramidkv(32, 20.0, budget).with_layers(layers), third);
        same_sets(&mine, &pyramid, &scores[2].1, &format!("pyramidkv at {ratio}"));
        checked += 1;
        let mut leaderboard = expected.clone();
        leaderboard.epsilon = 0.01;
        let no_floor = Policy::new(leaderboard, budget);
        let heads = |floor, rule| Heads::Adaptive { floor, rule };
        let cases = [
            ("adakv_knorm", Policy::new(KeyNorm, budget).with_heads(heads(0.2, Rule::Kvpress))),
            ("adakv_snapkv", snapkv(32, 5, budget).with_heads(heads(0.2, Rule::Kvpress))),
            ("adakv_expatt_a0", no_floor.clone().with_heads(heads(0.0, Rule::Kvpress))),
            // Without a floor the rules are one.
            ("adakv_expatt_a0", no_floor.with_heads(heads(0.0, Rule::Authors))),
        ];
        for (name, policy) in cases {
            let pruned = file.tensor(&format!("{name}.pruned_mask_r{ratio}")).expect("a mask");
            let theirs: Vec<BTreeSet<usize>> = pruned
                .bytes()
                .chunks(n)
                .map(|row| (0..n).filter(|t| row[*t] == 0).collect())
                .collect();
            let mine = case.kept(policy, LayerAt { index: 0, of: 1 });
            let differ: usize =
                mine.iter().zip(&theirs).map(|(a, b)| a.symmetric_difference(b).count()).sum();
            assert_eq!(differ, 0, "{name} at {ratio}");
            checked += 1;
        }
    }
    println!("kvpress: 1 file, {checked} scores and kept sets equal");
}

/// What expected attention is made of, and attention itself.
#[test]
fn kvpress_moments_and_attention() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let rope = Rope::with_frequencies(floats(&file, "in.inv_freq")).expect("frequencies");
    let mut expected = ExpectedAttention::new(rope.clone());
    expected.sinks = 4;
    let cache = case.seen(Policy::new(expected, Budget::Keep(1.0)), 300);
    let (_, statistics) = cache.policy().expect("a policy");
    // kvpress gives both turned to the mean of the positions to come.
    let turns: Vec<(f64, f64)> = (0..32)
        .map(|c| floats(&file, "in.future512_cos_mean")[c])
        .zip(floats(&file, "in.future512_sin_mean"))
        .map(|(c, s)| (f64::from(c), f64::from(s)))
        .collect();
    let turn = |x: &[f64]| -> Vec<f32> {
        let half = |c: usize| if c < 16 { -x[c + 16] } else { x[c - 16] };
        (0..32).map(|c| (x[c] * turns[c].0 + half(c) * turns[c].1) as f32).collect()
    };
    let mu = floats(&file, "expatt.mu");
    for (head, mu) in mu.chunks(32).enumerate() {
        let (mean, _) = statistics.moments(head).expect("queries");
        near(&turn(&mean), mu, 1e-4, "mu");
    }
    let (_, covariance) = statistics.moments(0).expect("queries");
    let rows: Vec<Vec<f32>> = covariance.columns().into_iter().map(|c| turn(&c.to_vec())).collect();
    let turned: Vec<f32> = (0..32)
        .flat_map(|c| turn(&rows.iter().map(|r| f64::from(r[c])).collect::<Vec<_>>()))
        .collect();
    near(&turned, &floats(&file, "expatt.cov_head0"), 1e-4, "covariance");
    let q = case.q.slice(s![299.., .., ..]);
    let mut out = Array3::zeros(q.raw_dim());
    let causal = Causal::from(299);
    let (store, mut scratch) = (cache.store(), Scratch::default());
    store.attend(q, causal, out.view_mut(), &mut scratch, None).expect("attends");
    let theirs = floats(&file, "ref.attn_out_last_query");
    near(&out.into_raw_vec_and_offset().0, &theirs, 1e-5, "attention");
    println!("kvpress: 1 file, means of 12 heads, 1 covariance, 1 output of attention equal");
}

#[test]
fn pyramid_budgets() {
    let Some(file) = open("pyramidkv_budgets") else { return };
    let tensor = file.tensor("rows").expect("rows");
    let rows: Vec<f64> =
        tensor.bytes().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    for row in rows.chunks(45) {
        let [seen, ratio, layers, window, beta] = row[..5] else { panic!("five figures") };
        let pyramid = Layers::Pyramid { beta, window: window as usize, rule: Rule::Kvpress };
        for index in 0..layers as usize {
            let at = LayerAt { index, of: layers as usize };
            let mine = pyramid.tokens(seen as usize, 1.0 - ratio, at);
            assert_eq!(mine as f64, row[5 + index], "{:?} layer {index}", &row[..5]);
        }
    }
    println!("pyramidkv: 1 file, {} rows of budgets equal", rows.len() / 45);
}
