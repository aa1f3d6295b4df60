//! Contexts said again by several layers: what stays is the best of all of them.

use tensorpress_kvcache::{Caches, KvRecipe, KvStore};
use tensorpress_tensor::Scratch;
use tensorpress_tensor::ndarray::Array3;

use crate::{noise, shape};

const LAYERS: usize = 3;
const CONTEXT: usize = 60;

/// Layers that look at their own keys, the first ones more sharply.
fn said_again(recipe: &str) -> Caches {
    let recipe: KvRecipe = recipe.parse().expect("a recipe");
    let mut caches = recipe.with_repetition().together(&[shape(); LAYERS]).expect("caches");
    let (of, mut scratch) = (shape(), Scratch::default());
    let mut say = |caches: &mut Caches, layer: usize, sharp: f32| {
        let k = noise(CONTEXT, of.kv_heads, layer as u64);
        let q = Array3::from_shape_fn((CONTEXT, of.heads, of.head_dim), |(t, h, c)| {
            sharp * k[[t, h / of.group(), c]]
        });
        caches.append(layer, k.view(), k.view()).expect("appends");
        let mut out = q.clone();
        caches.attend(layer, q.view(), None, None, out.view_mut(), &mut scratch).expect("attends");
    };
    (0..LAYERS).for_each(|layer| say(&mut caches, layer, 1.0));
    (0..LAYERS).for_each(|layer| caches.begin_repetition(layer, 0..CONTEXT).expect("begins"));
    for (layer, sharp) in [40.0, 4.0, 0.0].into_iter().enumerate() {
        say(&mut caches, layer, sharp);
    }
    caches
}

fn held(caches: &Caches, layer: usize) -> usize {
    (0..shape().kv_heads).map(|h| caches.layer(layer).store().held(h)).sum()
}

#[test]
fn the_best_of_all_layers_stay() {
    let mut caches = said_again("f32 | kvzip(keep=0.25)");
    for layer in [2, 0] {
        caches.end_repetition(layer).expect("ends");
        let all = 2 * CONTEXT * shape().kv_heads;
        assert_eq!(held(&caches, layer), all, "others are not done");
    }
    caches.end_repetition(1).expect("ends");
    let [sharp, middle, dull] = [0, 1, 2].map(|layer| held(&caches, layer));
    assert!(sharp > middle && middle >= dull, "{sharp} {middle} {dull}");
    let most = CONTEXT / 4 * LAYERS * shape().kv_heads;
    let few = most - LAYERS * shape().kv_heads;
    assert!((few..=most).contains(&(sharp + middle + dull)), "{sharp} {middle} {dull} of {most}");
    // The first ones stay even where nothing is looked at.
    for h in 0..shape().kv_heads {
        assert_eq!(caches.layer(2).store().positions(h)[..4], [0, 1, 2, 3]);
    }
}

#[test]
fn what_is_abandoned_is_not_ranked() {
    let mut caches = said_again("f32 | kvzip(keep=0.25)");
    caches.end_repetition(1).expect("ends");
    caches.abandon_repetition(0);
    caches.end_repetition(2).expect("ends");
    assert_eq!(held(&caches, 0), CONTEXT * shape().kv_heads, "it waits as before");
    let others = held(&caches, 1) + held(&caches, 2);
    assert!(others <= CONTEXT / 4 * 2 * shape().kv_heads, "{others}");
}
