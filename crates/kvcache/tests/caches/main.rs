//! Caches of all layers: what layers share, what comes from outside, and slots that stand for several tokens.

mod depth;
mod joint;
mod merging;
mod outside;
mod repetition;

use std::collections::BTreeMap;

use ndarray::{Array3, s};
use tensorpress_kvcache::{Caches, KvShape};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{PartSink, Result, Scratch, ndarray};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;

fn shape() -> KvShape {
    KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape")
}

fn noise(tokens: usize, heads: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, DIM), |_| random.next_f64() as f32 - 0.5)
}

/// Keys, values and queries of a layer.
fn states(layer: usize, tokens: usize) -> [Array3<f32>; 3] {
    let seed = 100 * layer as u64;
    [(1, KV_HEADS), (2, KV_HEADS), (3, HEADS)].map(|(s, heads)| noise(tokens, heads, seed + s))
}

/// Feeds tokens to all layers, as a model does, and gives what attention gave, layer after layer.
fn feed(caches: &mut Caches, tokens: std::ops::Range<usize>) -> Vec<Array3<f32>> {
    let layers = caches.layers();
    let mut of = |layer| {
        let rows = s![tokens.clone(), .., ..];
        let [k, v, q] = states(layer, 400).map(|all| all.slice(rows).to_owned());
        let mut out = Array3::zeros((tokens.len(), HEADS, DIM));
        caches.append(layer, k.view(), v.view()).expect("appends");
        let scratch = &mut Scratch::default();
        caches.attend(layer, q.view(), None, None, out.view_mut(), scratch).expect("attends");
        out
    };
    (0..layers).map(&mut of).collect()
}

/// What writes its parts, as a file; as many bytes as it claims.
fn file(parts: &dyn Fn(&mut dyn PartSink) -> Result<()>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kv.safetensors");
    write_shard(&path, &BTreeMap::new(), &mut |sink| parts(sink)).expect("writes");
    std::fs::read(&path).expect("reads")
}

/// The largest difference.
fn far(a: &[Array3<f32>], b: &[Array3<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let of = |(a, b): (&Array3<f32>, &Array3<f32>)| {
        assert_eq!(a.dim(), b.dim());
        a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
    };
    a.iter().zip(b).map(of).fold(0.0, f32::max)
}
