use std::collections::BTreeMap;
use std::sync::Arc;

use tensorpress_kvcache::{
    Budget, Cache, Held, KvRegistry, KvShape, KvStore, Layer, LayerAt, Policy, Score, StoreForm,
};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Result, Storage};

use crate::{
    DIM, HEADS, KV_HEADS, MORE, SCORES, every_recipe, feed, go_on_alike, held, layers, one,
    waiting_recipes,
};

/// A cache's file and its description.
pub(super) fn written(cache: &Cache) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kv.safetensors");
    let mut parts = Storage::default();
    cache.parts("kv", &mut parts).expect("counts");
    let statistics = cache.policy().map_or(0, |(_, statistics)| statistics.bytes());
    assert_eq!(parts.bytes(), cache.bytes() + statistics, "bytes written = bytes claimed");
    write_shard(&path, &BTreeMap::new(), &mut |sink| cache.parts("kv", sink)).expect("writes");
    (std::fs::read(&path).expect("reads"), cache.describe().to_string())
}

pub(super) fn read(bytes: Vec<u8>, text: &str) -> Result<Cache> {
    let json = serde_json::from_str(text).expect("JSON");
    Cache::read(&json, "kv", &Checkpoint::from_bytes("kv", bytes)?)
}

#[test]
fn going_on_after_reading_is_going_on() {
    for recipe in every_recipe().into_iter().chain(waiting_recipes()) {
        // A middle layer, so that a pyramid is one.
        let mut cache = layers(&recipe, 3).remove(1);
        for to in [0, 90, 95] {
            let from = cache.len();
            if to == 90 {
                feed(&mut cache, 0..90);
            } else {
                (from..to).for_each(|t| drop(feed(&mut cache, t..t + 1)));
            }
            let (bytes, text) = written(&cache);
            let mut back = read(bytes, &text).expect(&recipe);
            assert_eq!(back.describe(), cache.describe(), "{recipe}");
            assert_eq!(held(&back), held(&cache), "{recipe}");
            // What is read can go back as far.
            let mut goes = cache.fork();
            let len = goes.earliest().max(to.min(20));
            goes.truncate(len).expect(&recipe);
            let mut went = back.fork();
            went.truncate(len).expect(&recipe);
            go_on_alike(&mut went, &mut goes, 120..125, &recipe);
            assert_eq!(went.describe(), goes.describe(), "{recipe}");
            let mut on = cache.fork();
            go_on_alike(&mut back, &mut on, to..to + 20, &recipe);
            assert_eq!(written(&back), written(&on), "{recipe}");
        }
    }
}

/// A score of another crate.
#[derive(Debug)]
struct Every(usize);

impl Score for Every {
    fn id(&self) -> &'static str {
        "every"
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::json!({ "id": "every", "n": self.0 })
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |p: usize| f32::from(u8::from(p.is_multiple_of(self.0)));
        let heads = 0..held.store.shape().kv_heads;
        Ok(heads.map(|h| held.store.positions(h).into_iter().map(of).collect()).collect())
    }
}

#[test]
fn scores_of_other_crates_come_back_by_name() {
    let shape = KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape");
    let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
    let policy = Policy::new(Every(3), Budget::Tokens(10));
    let mut cache =
        Cache::new(layer).with_policy(policy, LayerAt { index: 0, of: 1 }).expect("a policy");
    feed(&mut cache, 0..60);
    let (bytes, text) = written(&cache);
    let error = read(bytes.clone(), &text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`every`"), "{error}");
    let every = |json: &serde_json::Value| -> Result<Arc<dyn Score>> {
        Ok(Arc::new(Every(json["n"].as_u64().expect("a number") as usize)))
    };
    let registry = KvRegistry::default().with_score("every", every);
    let json = serde_json::from_str(&text).expect("JSON");
    let file = Checkpoint::from_bytes("kv", bytes).expect("a file");
    let mut back = Cache::read_with(&json, "kv", &file, &registry).expect("reads");
    go_on_alike(&mut back, &mut cache, 60..90, "every third");
}

#[test]
fn damage_is_an_error_or_a_valid_cache() {
    let mut refused = 0;
    let more = MORE.map(|(name, keys, _)| (name, keys));
    let more = more.into_iter().chain([("kvzip", "")]);
    for (score, keys) in SCORES.map(|name| (name, "")).into_iter().chain(more) {
        let old = SCORES.contains(&score);
        let stores = [("f32", ""), ("kivi(bits=4)", " | adakv"), ("f16", " | demote")];
        for (store, last) in stores.into_iter().take(if old { 3 } else { 1 }) {
            let recipe = format!("{store} | {score}(tokens=30, stride=4{keys}){last}");
            let recipe = match keys.contains("recent") {
                true => recipe,
                false => recipe.replace("tokens=30", "tokens=30, recent=4"),
            };
            let mut cache = one(&recipe);
            feed(&mut cache, 0..50);
            (50..53).for_each(|t| drop(feed(&mut cache, t..t + 1)));
            let (bytes, text) = written(&cache);
            let mut try_read = |bytes: Vec<u8>, text: &str| {
                let Ok(json) = serde_json::from_str(text) else { return };
                let file = Checkpoint::from_bytes("kv", bytes);
                let Ok(mut cache) = file.and_then(|file| Cache::read(&json, "kv", &file)) else {
                    refused += 1;
                    return;
                };
                let shape = cache.store().shape();
                if (shape.heads, shape.kv_heads, shape.head_dim) == (HEADS, KV_HEADS, DIM) {
                    // Whatever was read goes on, or says why not.
                    use tensorpress_tensor::{Scratch, ndarray::Array3};
                    let (kv, q) = (crate::noise(40, KV_HEADS, 5), crate::noise(40, HEADS, 6));
                    let _ = cache.append(kv.view(), kv.view());
                    let mut out = Array3::zeros(q.raw_dim());
                    let _ = cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default());
                    let _ = cache.truncate(cache.earliest());
                }
            };
            let step = (bytes.len() / 60).max(1);
            for at in (0..bytes.len()).step_by(step) {
                try_read(bytes[..at].to_vec(), &text);
                for bit in [0, 6] {
                    let mut flipped = bytes.clone();
                    flipped[at] ^= 1 << bit;
                    try_read(flipped, &text);
                }
            }
            for at in 0..text.len() {
                for bit in [0, 1, 3, 4] {
                    let mut flipped = text.clone().into_bytes();
                    flipped[at] ^= 1 << bit;
                    if let Ok(text) = String::from_utf8(flipped) {
                        try_read(bytes.clone(), &text);
                    }
                }
            }
        }
    }
    assert!(refused > 10_000, "{refused} refused");
}

/// Sizes that nothing backs, and parameters that cannot be.
#[test]
fn hostile_descriptions_are_refused() {
    let mut cache = one("f32 | h2o(tokens=30, recent=8, stride=4)");
    feed(&mut cache, 0..40);
    let (bytes, text) = written(&cache);
    let huge = 1u64 << 39;
    for (pointer, value) in [
        ("/kind", "kv.cache.v9".into()),
        ("/layer/kind", "kv.cache.v1".into()),
        ("/layer/kv_heads", huge.into()),
        ("/layer/head_dim", huge.into()),
        ("/layer/len", huge.into()),
        ("/at/index", 1.into()),
        ("/at/of", 0.into()),
        ("/policy/budget", serde_json::json!({ "tokens": 0 })),
        ("/policy/budget", serde_json::json!({ "keep": 1.5 })),
        ("/policy/stride", 0.into()),
        ("/policy/stride", (-1).into()),
        ("/policy/heads", serde_json::json!({ "adaptive": { "floor": 2.0 } })),
        ("/policy/heads", serde_json::json!({ "adaptive": { "floor": 0.2, "rule": "mine" } })),
        ("/policy/recent_share", (-0.5).into()),
        ("/policy/layers", serde_json::json!({ "pyramid": { "beta": 0.5, "window": 1 } })),
        ("/policy/action", "burn".into()),
        (
            "/policy/score",
            serde_json::json!({ "id": "window_attention", "window": 0, "pool": 5, "pooling": "max" }),
        ),
        (
            "/policy/score",
            serde_json::json!({ "id": "window_attention", "window": huge, "pool": 5, "pooling": "max" }),
        ),
        ("/policy/score/id", 5.into()),
        ("/policy/score/id", "expected_attention".into()),
        (
            "/policy/score",
            serde_json::json!({
                "id": "expected_attention", "rope": { "frequencies": [1.0] }, "future": huge, "sinks": 4,
                "covariance": true, "values": true, "epsilon": 0.0,
            }),
        ),
        (
            "/policy/score",
            serde_json::json!({
                "id": "leverage_blend", "rope": null, "blend": 0.3, "attention": true, "chunk": 8, "queries": 9,
                "sinks": 1, "recent": 1, "sketch": { "gaussian": { "width": huge, "seed": 1 } },
            }),
        ),
        (
            "/policy/score",
            serde_json::json!({ "id": "lag_relative", "lag": 0, "sinks": 4, "across": false }),
        ),
        (
            "/policy/score",
            serde_json::json!({ "id": "chunked", "length": 0, "of": { "id": "knorm" } }),
        ),
        ("/policy/score", serde_json::json!({ "id": "chunked", "length": 5 })),
        ("/policy/action", serde_json::json!({ "merge": { "id": "gaussian", "cosine": 7 } })),
        ("/policy/action", serde_json::json!({ "merge": { "id": "residual" } })),
        (
            "/policy/heads",
            serde_json::json!({ "own": { "id": "entropy", "classes": 0, "top": 1, "spread": 0.1 } }),
        ),
        ("/policy/layers", serde_json::json!({ "own": { "id": "shares", "shares": [-1.0] } })),
        ("/statistics/next", huge.into()),
        ("/statistics/settled", huge.into()),
        ("/statistics/pending", 17.into()),
        ("/statistics/mass", serde_json::json!([huge, huge])),
        ("/statistics/mass", serde_json::json!([u64::MAX, u64::MAX])),
        ("/statistics/mass", serde_json::json!([1])),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        match pointer.rsplit_once('/') {
            Some((parent, name)) => json.pointer_mut(parent).expect(pointer)[name] = value.clone(),
            None => panic!("{pointer}"),
        }
        let error = read(bytes.clone(), &json.to_string()).map(drop).expect_err(pointer);
        let kinds = [ErrorKind::Corruption, ErrorKind::Version, ErrorKind::InsufficientData];
        assert!(kinds.contains(&error.kind()), "{pointer} = {value}: {error}");
    }
}
