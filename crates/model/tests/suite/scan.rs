//! State-space models: states in the place of caches.

use serde_json::json;
use tensorpress_kvcache::KvRecipe;
use tensorpress_model::text::{Corpus, Limits};
use tensorpress_model::tokenizer::Bos;
use tensorpress_model::{
    Decoder, Generation, KvCache, ScanState, Source, ThroughCache, embedded, generate,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{ErrorKind, Registry, Scratch};

use crate::common::{Tiny, logits_in_pieces, open};

/// The golden folders, where they are.
fn models() -> Vec<(&'static str, Source)> {
    let folder = |name: &&str| data::find(&format!("golden/models/{name}"));
    let names = ["mamba", "mamba2"].into_iter();
    names.filter_map(|name| Some((name, open(folder(&name)?).unwrap()))).collect()
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 37 + 5) % 101).collect()
}

#[test]
fn sequences_know_nothing_of_each_other_and_threads_change_no_bit() {
    for (name, source) in models() {
        let lengths = [7, 1, 24, 2];
        let embedding = source.embedding().unwrap();
        let mut scratch = Scratch::new(Par::Seq);
        let parts = lengths.map(|length| embedding.embed(&ids(length), &mut scratch).unwrap());
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        let mut together = concatenate(Axis(0), &views).unwrap();
        let mut threads = together.clone();
        for block in 0..source.blocks() {
            let block = source.block(block).unwrap();
            block.forward_sequences(together.view_mut(), &lengths, None, &mut scratch).unwrap();
            let mut many = Scratch::new(Par::Rayon);
            block.forward_sequences(threads.view_mut(), &lengths, None, &mut many).unwrap();
        }
        assert_eq!(together, threads, "{name}");
        let decoder = source.decoder().unwrap();
        let mut from = 0;
        for length in lengths {
            let alone = decoder.hidden(&ids(length), &mut scratch).unwrap();
            let rows = together.slice_axis(Axis(0), (from..from + length).into());
            let apart = alone.iter().zip(rows).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{name}, {length} tokens: {apart}");
            from += length;
        }
    }
}

/// The state of the first block.
fn state(model: &Decoder) -> Box<dyn KvCache> {
    model.cache().remove(0)
}

#[test]
fn a_state_has_one_size_and_no_keys() {
    for (name, source) in models() {
        let model = source.decoder().unwrap().materialise().unwrap();
        let mut cache = model.cache();
        let empty: Vec<u64> = cache.iter().map(|state| state.bytes()).collect();
        let mut scratch = Scratch::default();
        model.forward(&ids(24), &mut cache, &mut scratch).unwrap();
        assert!(cache.iter().all(|state| state.len() == 24), "{name}");
        assert!(cache.iter().map(|state| state.bytes()).eq(empty), "{name}");
        assert!(!model.blocks()[0].attends() && model.blocks()[0].rope().is_none());
        // A state can be kept, and gone on from twice.
        let kept: ScanState = cache[0].state().expect("a state").clone();
        let mut hidden = model.embedding().embed(&ids(3), &mut scratch).unwrap();
        let mut again = hidden.clone();
        let block = &model.blocks()[0];
        block.forward(hidden.view_mut(), cache[0].as_mut(), None, &mut scratch).unwrap();
        block.forward(again.view_mut(), &mut kept.clone(), None, &mut scratch).unwrap();
        assert_eq!(hidden, again, "{name}");

        let recipe: KvRecipe = "f32".parse().unwrap();
        let refused = model.caches(&recipe).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert!(refused.to_string().contains("state"), "{refused}");
        let refused = ThroughCache::new(&model, &recipe).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    }
}

#[test]
fn memories_of_other_kinds_are_refused() {
    let llama = Tiny::new(4, 2, 6).decoder();
    let mut scratch = Scratch::default();
    let models: Vec<Decoder> = models().iter().map(|(_, s)| s.decoder().unwrap()).collect();
    for model in &models {
        let mut hidden = Array2::zeros((1, model.config().hidden));
        let (block, cache) = (&model.blocks()[0], &mut llama.cache()[0]);
        let error = block.forward(hidden.view_mut(), cache.as_mut(), None, &mut scratch);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
        let (block, mut cache) = (&llama.blocks()[0], state(model));
        let mut hidden = Array2::zeros((1, llama.config().hidden));
        let error = block.forward(hidden.view_mut(), cache.as_mut(), None, &mut scratch);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    if let [first, second] = models.as_slice() {
        let mut hidden = Array2::zeros((1, first.config().hidden));
        let (block, mut cache) = (&first.blocks()[0], state(second));
        let error = block.forward(hidden.view_mut(), cache.as_mut(), None, &mut scratch);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::ShapeMismatch);
    }
}

#[test]
fn generation_goes_on_where_it_stopped() {
    for (name, source) in models() {
        let model = source.decoder().unwrap().materialise().unwrap();
        let how = Generation { max_tokens: 8, ..Generation::default() };
        let new = generate(&model, &ids(9), how, &mut model.cache(), &mut |_| Ok(true)).unwrap();
        let all = [ids(9), new.clone()].concat();
        let logits = logits_in_pieces(&model, &all, &[all.len()]).unwrap();
        for (row, token) in logits.rows().into_iter().skip(8).zip(&new) {
            let best = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            assert!(best - row[*token as usize] < 1e-3, "{name}");
        }
    }
}

#[test]
fn infinities_of_configs_are_read_in_every_spelling() {
    let Some(golden) = data::find("golden/models/mamba2") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    let text = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut write = |limit: serde_json::Value, replace: &str| {
        config["time_step_limit"] = limit;
        let text = config.to_string().replace("\"?\"", replace);
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let model = open(folder.path()).and_then(|source| source.decoder());
        model.and_then(|model| logits_in_pieces(&model, &ids(5), &[5]))
    };
    let usual = write(json!([0.0, { "__float__": "Infinity" }]), "").unwrap();
    assert_eq!(write(json!([0.0, "?"]), "Infinity").unwrap(), usual);
    assert_eq!(write(json!(null), "").unwrap(), usual);
    // Limits count.
    assert_ne!(write(json!([0.0, 0.1]), "").unwrap(), usual);
    for bad in [json!([1.0, 0.5]), json!([0.0]), json!("wide"), json!([0.0, { "__float__": "x" }])]
    {
        let error = write(bad.clone(), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{bad}");
        assert!(error.to_string().contains("time_step_limit"), "{error}");
    }
}

#[test]
fn plain_texts_come_in_windows_though_nothing_limits_them() {
    let Some(golden) = data::find("golden/models/mamba") else { return };
    let demo = Source::demo(&Registry::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in demo.tokenizer_files() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    let text = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = json!(demo.config().vocab);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let source = open(folder.path()).unwrap();
    assert_eq!(source.config().limit(), None);
    let text = Corpus::from(embedded::CALIBRATION.repeat(2));
    let longest = |limits: Limits| {
        let segments = text.segments(&source, Bos::Auto, limits).unwrap();
        segments.iter().map(Vec::len).max().unwrap()
    };
    assert_eq!(longest(Limits::default()), 2048);
    assert_eq!(longest(Limits { max_tokens: Some(3000), ..Limits::default() }), 3000);
}
