use tensorpress_kvcache::policy::{lagkv, snapkv};
use tensorpress_kvcache::score::ExpectedAttention;
use tensorpress_kvcache::{Budget, LayerAt, Layers, Policy, Rope, Rule};
use tensorpress_tensor::ndarray;

use crate::{Case, floats, ints, near, open, tokens_first};

/// Real queries and keys of two small Llamas: rotations there and back, moments, budgets of a pyramid.
#[test]
fn causal_models() {
    for (name, layers, window) in [("causal_stories260k", 5, 16), ("causal_tinystories656k", 2, 32)]
    {
        let Some(file) = open(name) else { return };
        let first = Case::read(&file, "l0.");
        let dim = first.shape().head_dim;
        let rope = Rope::new(dim, 1e4).expect("an embedding");
        let (cos, sin) = (floats(&file, "in.cos"), floats(&file, "in.sin"));
        for t in 0..cos.len() / dim {
            let mut turned: Vec<f32> = (0..dim).map(|c| f32::from(u8::from(c < dim / 2))).collect();
            rope.rotate(&mut turned, t);
            let half = |x: &[f32]| x[t * dim..][..dim / 2].to_vec();
            near(&turned, &[half(&cos), half(&sin)].concat(), 5e-5, "cos and sin");
        }
        for layer in 0..layers {
            let case = Case::read(&file, &format!("l{layer}."));
            for (what, turned) in [("k", &case.k), ("q", &case.q)] {
                let plain = tokens_first(&file, &format!("l{layer}.{what}_prerope"));
                let (mut there, mut back) = (plain.clone(), turned.clone());
                for (t, mut x) in there.outer_iter_mut().enumerate() {
                    rope.rotate(x.as_slice_mut().expect("contiguous"), t);
                }
                for (t, mut x) in back.outer_iter_mut().enumerate() {
                    rope.rotate_back(x.as_slice_mut().expect("contiguous"), t);
                }
                let flat = |x: &ndarray::Array3<f32>| x.iter().copied().collect::<Vec<_>>();
                near(&flat(&there), &flat(turned), 5e-5, "rotated");
                near(&flat(&back), &flat(&plain), 5e-5, "turned back");
            }
            let at = LayerAt { index: layer, of: layers };
            for ratio in [0.5, 0.75] {
                let kept = ints(&file, &format!("kept_len.pyramidkv@{ratio}"))[layer];
                let layers = Layers::Pyramid { beta: 20.0, window, rule: Rule::Kvpress };
                let policy = snapkv(window, 5, Budget::Keep(1.0 - ratio)).with_layers(layers);
                let mine = case.kept(policy, at);
                assert!(mine.iter().all(|k| k.len() == kept), "{name}: layer {layer} at {ratio}");
                let kept = ints(&file, &format!("kept_len.lagkv32@{ratio}"))[layer];
                let mine = case.kept(lagkv(32, 4, Budget::Keep(1.0 - ratio)), at);
                assert!(mine.iter().all(|k| k.len() == kept), "{name}: layer {layer} at {ratio}");
            }
            // The mean of queries that were turned back is that of those that never were turned.
            let mut score = ExpectedAttention::new(rope.clone());
            score.sinks = 0;
            let cache = case.seen(Policy::new(score, Budget::Keep(1.0)), 50);
            let (_, statistics) = cache.policy().expect("a policy");
            let plain = tokens_first(&file, &format!("l{layer}.q_prerope"));
            let mean = plain.mean_axis(ndarray::Axis(0)).expect("tokens");
            for (head, mean) in mean.outer_iter().enumerate() {
                let mine: Vec<f32> = statistics
                    .moments(head)
                    .expect("queries")
                    .0
                    .iter()
                    .map(|m| *m as f32)
                    .collect();
                near(&mine, mean.as_slice().expect("contiguous"), 1e-4, "mean query");
            }
        }
        println!(
            "{name}: 1 file, {layers} layers of rotations, means, pyramid and LagKV budgets equal"
        );
    }
}
