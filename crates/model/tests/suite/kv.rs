//! KV caches in front of a real model, token by token.

use tensorpress_kvcache::KvRecipe;
use tensorpress_model::text::{self, Limits};
use tensorpress_model::{Decoder, KvCache};
use tensorpress_tensor::Scratch;
use tensorpress_tensor::testing::data;

use crate::common::open;

fn caches(model: &Decoder, recipe: &str) -> Vec<Box<dyn KvCache>> {
    let (config, recipe) = (model.config(), recipe.parse::<KvRecipe>().expect(recipe));
    let caches =
        recipe.caches(model.blocks().len(), config.heads, config.kv_heads, config.head_dim);
    caches.expect("heads it can hold").into_iter().map(|c| Box::new(c) as _).collect()
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let e: Vec<f64> = logits.iter().map(|l| f64::from(l - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// Mean KL divergence of every prediction from that with a dense cache.
fn divergence(model: &Decoder, segments: &[Vec<u32>], recipe: &str) -> f64 {
    let mut scratch = Scratch::default();
    let (mut sum, mut count) = (0.0, 0);
    for ids in segments {
        let ids = &ids[..ids.len() - 1];
        let dense = model.forward(ids, &mut model.cache(), &mut scratch).expect("runs");
        let mut cache = caches(model, recipe);
        for (t, dense) in dense.rows().into_iter().enumerate() {
            let logits = model.logits_last(&ids[t..=t], &mut cache, &mut scratch).expect("runs");
            let p = probabilities(dense.as_slice().expect("contiguous"));
            let q = probabilities(&logits);
            sum += p
                .iter()
                .zip(&q)
                .map(|(p, q)| if *p > 0.0 { p * (p / q).ln() } else { 0.0 })
                .sum::<f64>();
            count += 1;
        }
    }
    sum / f64::from(count)
}

#[test]
fn quantised_caches_of_stories3m() {
    let Some(folder) = data::find("data/models/stories3m") else { return };
    let Some(file) = data::find("data/text/tinystories_val_250stories.jsonl") else { return };
    let source = open(folder).expect("a model");
    let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
    let (text, tokenizer) =
        (text::read(&file).expect("stories"), source.tokenizer().expect("a tokenizer"));
    let segments =
        text::segments(&text, &file, &tokenizer, source.config().context, limits).expect("stories");
    let model = source.decoder().expect("a model").materialise().expect("dense");
    for (recipe, most) in [
        ("f32", 1e-9),
        // The protocol of the figures: groups of 32, the last 32 tokens exact for each query.
        ("kivi(bits=4, scales=f32, sliding=true)", 0.002),
        ("kivi(bits=2, scales=f32, sliding=true)", 0.055),
    ] {
        let kld = divergence(&model, &segments, recipe);
        println!("checked: stories3m, {} stories, {recipe}: KLD {kld:.7}", segments.len());
        assert!(kld <= most, "{recipe}: {kld}");
    }
}
