//! Scores, kept tokens and budgets against those of kvpress, SnapKV and Mustafar's official code.

use std::collections::BTreeSet;

use ndarray::{Array3, Axis, s};
use tensorpress_kvcache::policy::{adakv, pyramidkv, snapkv, streaming};
use tensorpress_kvcache::score::{
    Accumulated, ExpectedAttention, KeyDifference, KeyNorm, LastQuery, QueryWindow, Recency,
};
use tensorpress_kvcache::{
    Bitmap, Budget, Cache, Form, Held, KvShape, KvStore, Layer, LayerAt, Layers, Policy, Rope,
    Score,
};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, Scratch, ndarray};

fn open(name: &str) -> Option<Checkpoint> {
    let path = data::find(&format!("golden/kv/{name}.safetensors"))?;
    Some(Checkpoint::open(path).expect("a golden file"))
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("a tensor of the file");
    let mut out = vec![0.0; tensor.bytes().len() / 4];
    DType::F32.read_f32(tensor.bytes(), &mut out).expect("f32");
    out
}

fn ints(file: &Checkpoint, name: &str) -> Vec<usize> {
    let tensor = file.tensor(name).expect("a tensor of the file");
    tensor.bytes().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as usize).collect()
}

/// Golden arrays are [heads, tokens, dim]; ours are [tokens, heads, dim].
fn tokens_first(file: &Checkpoint, name: &str) -> Array3<f32> {
    let shape = file.shape(name).expect("a tensor of the file").to_vec();
    let [heads, tokens, dim] = shape[shape.len() - 3..] else { panic!("three axes") };
    let x = Array3::from_shape_vec((heads, tokens, dim), floats(file, name))
        .expect("as the shape says");
    x.permuted_axes([1, 0, 2]).as_standard_layout().into_owned()
}

/// One layer of a golden file.
struct Case {
    k: Array3<f32>,
    v: Array3<f32>,
    q: Array3<f32>,
    plain: Array3<f32>,
}

impl Case {
    fn read(file: &Checkpoint, prefix: &str) -> Self {
        let get = |name: &str| tokens_first(file, &format!("{prefix}{name}"));
        Self { k: get("k_rope"), v: get("v"), q: get("q_rope"), plain: get("q_prerope") }
    }

    fn shape(&self) -> KvShape {
        KvShape::new(self.q.dim().1, self.k.dim().1, self.k.dim().2).expect("a shape")
    }

    /// A cache that has seen everything and keeps it, the queries in steps of `step`.
    fn seen(&self, policy: Policy, step: usize) -> Cache {
        let layer = Layer::new(self.shape(), Form::Float(DType::F32)).expect("a layer");
        let mut cache =
            Cache::new(layer).with_policy(policy, LayerAt { index: 0, of: 1 }).expect("a policy");
        let n = self.k.dim().0;
        for start in (0..n).step_by(step) {
            let rows = s![start..(start + step).min(n), .., ..];
            cache.append(self.k.slice(rows), self.v.slice(rows)).expect("appends");
            cache.observe_plain_queries(self.plain.slice(rows)).expect("observes");
            let q = self.q.slice(rows);
            let mut out = Array3::zeros(q.raw_dim());
            cache.attend(q, None, out.view_mut(), &mut Scratch::default()).expect("attends");
        }
        cache
    }

    fn scores(&self, score: impl Score + Clone + 'static) -> Vec<Vec<f32>> {
        let mut scores = Vec::new();
        for step in [self.k.dim().0, 7] {
            let cache = self.seen(Policy::new(score.clone(), Budget::Keep(1.0)), step);
            let (_, statistics) = cache.policy().expect("a policy");
            let now = score.score(Held { store: cache.store(), statistics }).expect("scores");
            if scores.is_empty() {
                scores = now;
            } else {
                // Streaming equals batch.
                near(&now.concat(), &scores.concat(), 1e-5, score.id());
            }
        }
        scores
    }

    /// Positions kept by a policy after the whole prompt.
    fn kept(&self, policy: Policy, at: LayerAt) -> Vec<BTreeSet<usize>> {
        let layer = Layer::new(self.shape(), Form::Float(DType::F32)).expect("a layer");
        let mut cache = Cache::new(layer).with_policy(policy, at).expect("a policy");
        cache.append(self.k.view(), self.v.view()).expect("appends");
        cache.observe_plain_queries(self.plain.view()).expect("observes");
        let mut out = Array3::zeros(self.q.raw_dim());
        cache
            .attend(self.q.view(), None, out.view_mut(), &mut Scratch::default())
            .expect("attends");
        (0..self.shape().kv_heads)
            .map(|h| cache.store().positions(h).into_iter().collect())
            .collect()
    }
}

fn near(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}: {i}: {a} against {b}");
    }
}

/// The sets agree but for tokens whose scores lie within 1e-5 of the border.
fn same_sets(
    mine: &[BTreeSet<usize>],
    theirs: &[BTreeSet<usize>],
    scores: &[Vec<f32>],
    what: &str,
) {
    for (h, (mine, theirs)) in mine.iter().zip(theirs).enumerate() {
        assert_eq!(mine.len(), theirs.len(), "{what}: head {h}");
        let border = theirs.iter().map(|t| scores[h][*t]).fold(f32::INFINITY, f32::min);
        for t in mine.symmetric_difference(theirs) {
            let tie = (scores[h][*t] - border).abs() <= 1e-5 * border.abs();
            assert!(tie, "{what}: head {h}: token {t}: {} at the border {border}", scores[h][*t]);
        }
    }
}

fn sets(rows: &[usize], heads: usize) -> Vec<BTreeSet<usize>> {
    rows.chunks(rows.len() / heads).map(|r| r.iter().copied().collect()).collect()
}

#[test]
fn kvpress_scores_and_kept_sets() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case { plain: tokens_first(&file, "in.q_prerope"), ..Case::read(&file, "in.") };
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
        ("expatt_nocov", case.scores(no_covariance), 4, 0),
        ("expatt_novnorm", case.scores(no_values), 4, 0),
        ("expatt_eps0.02_nf64_sink2", case.scores(short), 2, 0),
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
                "observed_attention" => Policy::new(Accumulated { per_query: true }, budget),
                _ => continue,
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
        let mine = case.kept(pyramidkv(32, 20.0, budget), third);
        same_sets(&mine, &pyramid, &scores[2].1, &format!("pyramidkv at {ratio}"));
        checked += 1;
        for (name, policy) in
            [("adakv_knorm", Policy::new(KeyNorm, budget)), ("adakv_snapkv", snapkv(32, 5, budget))]
        {
            let pruned = file.tensor(&format!("{name}.pruned_mask_r{ratio}")).expect("a mask");
            let theirs: Vec<BTreeSet<usize>> = pruned
                .bytes()
                .chunks(n)
                .map(|row| (0..n).filter(|t| row[*t] == 0).collect())
                .collect();
            let mine = case.kept(adakv(policy), LayerAt { index: 0, of: 1 });
            let differ: usize =
                mine.iter().zip(&theirs).map(|(a, b)| a.symmetric_difference(b).count()).sum();
            assert_eq!(differ, 0, "{name} at {ratio}");
            checked += 1;
        }
    }
    println!("kvpress: 1 file, {checked} scores and kept sets equal");
}

#[test]
fn pyramid_budgets() {
    let Some(file) = open("pyramidkv_budgets") else { return };
    let tensor = file.tensor("rows").expect("rows");
    let rows: Vec<f64> =
        tensor.bytes().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    for row in rows.chunks(45) {
        let [seen, ratio, layers, window, beta] = row[..5] else { panic!("five figures") };
        let pyramid = Layers::Pyramid { beta, window: window as usize };
        for index in 0..layers as usize {
            let at = LayerAt { index, of: layers as usize };
            let mine = pyramid.tokens(seen as usize, 1.0 - ratio, at);
            assert_eq!(mine as f64, row[5 + index], "{:?} layer {index}", &row[..5]);
        }
    }
    println!("pyramidkv: 1 file, {} rows of budgets equal", rows.len() / 45);
}

/// The official SnapKV and KVCache-Factory's policies work per query head: keys are repeated.
#[test]
fn snapkv_official_sets() {
    let Some(file) = open("snapkv_official") else { return };
    let mut checked = 0;
    for layer in 0..5 {
        let k = tokens_first(&file, &format!("l{layer}.in.k_rope"));
        let q = tokens_first(&file, &format!("l{layer}.in.q_rope"));
        let k = k.select(Axis(1), &[0, 0, 1, 1, 2, 2, 3, 3]);
        let case = Case { v: k.clone(), plain: q.clone(), k, q };
        let budget = Budget::Tokens(80);
        let window = case.scores(QueryWindow::new(16, 5));
        let widths = [141, 111, 81, 51, 21];
        // Factory's StreamingLLM keeps 64 sinks and its window of 16.
        let cases = [
            ("snapkv_official_avgpool_w16_cap80", snapkv(16, 5, budget), window.clone()),
            ("factory_PyramidKVCluster", snapkv(16, 5, Budget::Tokens(widths[layer])), window),
            ("factory_L2NormCluster", Policy::new(KeyNorm, budget), case.scores(KeyNorm)),
            ("factory_StreamingLLMKVCluster", streaming(64, budget), case.scores(Recency)),
        ];
        for (name, policy, scores) in cases {
            let theirs = sets(&ints(&file, &format!("l{layer}.{name}.kept_order")), 8);
            let mine = case.kept(policy, LayerAt { index: 0, of: 1 });
            same_sets(&mine, &theirs, &scores, &format!("{name}, layer {layer}"));
            checked += 1;
        }
    }
    println!("snapkv: 1 file, {checked} kept sets equal");
}

#[test]
fn mustafar() {
    let Some(file) = open("mustafar") else { return };
    let mut checked = 0;
    let (k, v) = (tokens_first(&file, "in.k"), tokens_first(&file, "in.v"));
    for sparsity in [0.3, 0.5, 0.7] {
        let form = Form::Bitmap(Bitmap::new(sparsity).with_dtype(DType::F32).with_window(0));
        let mut layer =
            Layer::new(KvShape::new(4, 4, 32).expect("a shape"), form).expect("a layer");
        layer.append(k.view(), v.view()).expect("appends");
        for (name, is_key) in [("key", true), ("val", false)] {
            let theirs = tokens_first(&file, &format!("{name}_pertoken_s{sparsity}"));
            for h in 0..4 {
                let (keys, values) = layer.decode(h);
                assert_eq!(
                    if is_key { keys } else { values },
                    theirs.slice(s![.., h, ..]),
                    "{name} {sparsity}"
                );
            }
            checked += 1;
        }
    }
    println!("mustafar: 1 file, {checked} tensors equal");
}
