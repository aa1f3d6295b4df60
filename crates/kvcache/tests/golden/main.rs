//! Scores, kept tokens and budgets against those of kvpress, SnapKV, KVCache-Factory and Mustafar's official code.

mod cachegen;
mod causal;
mod heads;
mod kvpress;
mod merges;
mod official;
mod presses;

use std::collections::BTreeSet;

use ndarray::{Array3, s};
use tensorpress_kvcache::{
    Budget, Cache, Held, KvShape, KvStore, Layer, LayerAt, Policy, Score, StoreForm,
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
}

impl Case {
    fn read(file: &Checkpoint, prefix: &str) -> Self {
        let get = |name: &str| tokens_first(file, &format!("{prefix}{name}"));
        Self { k: get("k_rope"), v: get("v"), q: get("q_rope") }
    }

    fn shape(&self) -> KvShape {
        KvShape::new(self.q.dim().1, self.k.dim().1, self.k.dim().2).expect("a shape")
    }

    /// A cache that has seen everything and keeps it, the queries in steps of `step`.
    fn seen(&self, policy: Policy, step: usize) -> Cache {
        self.fed(policy, &vec![step; self.k.dim().0.div_ceil(step)])
    }

    /// A cache that was fed so many tokens at a time.
    fn fed(&self, policy: Policy, steps: &[usize]) -> Cache {
        let layer = Layer::new(self.shape(), StoreForm::Float(DType::F32)).expect("a layer");
        let mut cache =
            Cache::new(layer).with_policy(policy, LayerAt { index: 0, of: 1 }).expect("a policy");
        let (n, mut start) = (self.k.dim().0, 0);
        for step in steps {
            let rows = s![start..(start + step).min(n), .., ..];
            cache.append(self.k.slice(rows), self.v.slice(rows)).expect("appends");
            let q = self.q.slice(rows);
            let mut out = Array3::zeros(q.raw_dim());
            cache.attend(q, None, out.view_mut(), &mut Scratch::default()).expect("attends");
            start = (start + step).min(n);
        }
        cache
    }

    fn scores(&self, score: impl Score + Clone + 'static) -> Vec<Vec<f32>> {
        let mut scores = Vec::new();
        for step in [self.k.dim().0, 7] {
            let cache = self.seen(Policy::new(score.clone(), Budget::Keep(1.0)), step);
            let now = score.score(cache.held().expect("a policy")).expect("scores");
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
        let layer = Layer::new(self.shape(), StoreForm::Float(DType::F32)).expect("a layer");
        let mut cache = Cache::new(layer).with_policy(policy, at).expect("a policy");
        cache.append(self.k.view(), self.v.view()).expect("appends");
        let mut out = Array3::zeros(self.q.raw_dim());
        cache
            .attend(self.q.view(), None, out.view_mut(), &mut Scratch::default())
            .expect("attends");
        (0..self.shape().kv_heads)
            .map(|h| cache.store().positions(h).into_iter().collect())
            .collect()
    }
}

/// Scores that are given.
#[derive(Debug, Clone)]
struct Fixed(Vec<Vec<f32>>);

impl Score for Fixed {
    fn id(&self) -> &'static str {
        "fixed"
    }

    fn score(&self, held: Held<'_>) -> tensorpress_tensor::Result<Vec<Vec<f32>>> {
        let of = |(h, scores): (usize, &Vec<f32>)| {
            held.store.positions(h).into_iter().map(|p| scores[p]).collect()
        };
        Ok(self.0.iter().enumerate().map(of).collect())
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
