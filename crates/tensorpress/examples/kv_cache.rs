//! Keys and values of a model with four layers, held in 4 bits; half of the tokens go.

use tensorpress::kvcache::{Cache, KvRecipe};
use tensorpress::prelude::*;
use tensorpress::tensor::{Scratch, ndarray::Array3};

fn main() -> Result<()> {
    let (layers, heads, kv_heads, dim) = (4, 8, 2, 64);
    let recipe: KvRecipe = "kivi(bits=4) | h2o(keep=0.5, stride=16)".parse()?;
    let mut caches = recipe.caches(layers, heads, kv_heads, dim)?;
    let mut scratch = Scratch::default();
    for token in 0..256 {
        for (layer, cache) in caches.iter_mut().enumerate() {
            let states = |heads| {
                Array3::from_shape_fn((1, heads, dim), |(_, h, d)| {
                    ((token * 37 + layer * 11 + h * 5 + d) % 23) as f32 / 23.0 - 0.5
                })
            };
            cache.append(states(kv_heads).view(), states(kv_heads).view())?;
            let mut mixed = Array3::zeros((1, heads, dim));
            cache.attend(states(heads).view(), None, mixed.view_mut(), &mut scratch)?;
        }
    }
    let (bytes, exact) =
        (caches.iter().map(Cache::bytes).sum::<u64>(), layers * 256 * kv_heads * dim * 8);
    println!("{} tokens seen, {bytes} bytes held of {exact}", caches[0].len());
    assert!(bytes < exact as u64 / 3);
    Ok(())
}
