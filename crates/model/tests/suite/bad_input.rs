//! Bad files and arguments: each a typed error that names the file and the tensor or key, never a panic.

use serde_json::{Value, json};
use tensorpress_model::text::{self, Limits, Windows, calibration_windows};
use tensorpress_model::{Config, Generation, Source, generate, perplexity};
use tensorpress_tensor::{Error, ErrorKind, Registry, Scratch};

use crate::common::{Tiny, logits, logits_in_pieces, open};

/// The error of loading a tiny model with a changed config.
fn config_error(change: impl FnOnce(&mut Value)) -> Error {
    let mut tiny = Tiny::new(4, 2, 6);
    change(&mut tiny.config);
    let (folder, source) = tiny.source();
    let error = source.and_then(|s| s.decoder()).map(|_| ()).unwrap_err();
    assert!(error.file().is_some_and(|f| f.starts_with(folder.path())), "{error}");
    error
}

#[test]
fn impossible_configs_name_the_key() {
    let cases: [(&str, Value, ErrorKind); 19] = [
        ("num_attention_heads", json!(0), ErrorKind::Corruption),
        ("num_attention_heads", json!(5), ErrorKind::Corruption),
        ("num_attention_heads", json!(-3), ErrorKind::Corruption),
        ("num_key_value_heads", json!(0), ErrorKind::Corruption),
        ("num_key_value_heads", json!(3), ErrorKind::Corruption),
        ("head_dim", json!(7), ErrorKind::Corruption),
        ("hidden_size", json!("wide"), ErrorKind::Corruption),
        ("hidden_size", Value::Null, ErrorKind::InsufficientData),
        ("num_hidden_layers", json!(u64::MAX), ErrorKind::Corruption),
        ("num_hidden_layers", json!(1u64 << 40), ErrorKind::Corruption),
        ("vocab_size", json!(1u64 << 60), ErrorKind::Corruption),
        ("intermediate_size", Value::Null, ErrorKind::InsufficientData),
        ("max_position_embeddings", json!(0), ErrorKind::Corruption),
        ("rms_norm_eps", json!(-1.0), ErrorKind::Corruption),
        ("rope_theta", json!(0.0), ErrorKind::Corruption),
        ("rope_scaling", json!("linear"), ErrorKind::Corruption),
        ("model_type", json!("gpt17"), ErrorKind::Unsupported),
        ("hidden_act", json!("mish"), ErrorKind::Unsupported),
        ("eos_token_id", json!("</s>"), ErrorKind::Corruption),
    ];
    for (key, value, kind) in cases {
        let error = config_error(|config| config[key] = value.clone());
        assert_eq!(error.kind(), kind, "{key} = {value}: {error}");
        assert!(error.message().contains(key), "{key} = {value}: {error}");
        assert!(error.file().unwrap().ends_with("config.json"), "{error}");
    }
}

#[test]
fn unknown_rope_scaling_and_foreign_quantisation_are_refused() {
    for kind in ["spiral", "yarn2"] {
        let error = config_error(|c| c["rope_scaling"] = json!({"type": kind, "factor": 2.0}));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains(kind), "{error}");
        let error =
            config_error(|c| c["rope_parameters"] = json!({"rope_type": kind, "factor": 2.0}));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    let error = config_error(|c| c["rope_scaling"] = json!({"rope_type": "linear"}));
    assert!(error.message().contains("rope_scaling.factor"), "{error}");
    let error = config_error(|c| c["quantization_config"] = json!({"quant_method": "awq"}));
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("awq"), "{error}");
}

#[test]
fn both_spellings_mean_the_same() {
    let read = |json: Value| Config::from_json(&json, "config.json".as_ref()).unwrap();
    let mut old = Tiny::new(4, 2, 6).config;
    let mut new = old.clone();
    old["rope_theta"] = json!(5e5);
    old["rope_scaling"] = json!({"type": "linear", "factor": 4});
    new.as_object_mut().unwrap().remove("rope_theta");
    new["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    assert_eq!(read(old), read(new));
    let mut nameless = Tiny::new(4, 2, 6).config;
    nameless.as_object_mut().unwrap().remove("model_type");
    assert_eq!(read(nameless), read(Tiny::new(4, 2, 6).config));
}

#[test]
fn windows_of_qwen() {
    let windows = |change: Value| {
        let mut config = Tiny::new(4, 2, 6).config;
        config["model_type"] = json!("qwen2");
        config["sliding_window"] = json!(16);
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        Config::from_json(&config, "config.json".as_ref()).unwrap().windows
    };
    assert_eq!(windows(json!({})), [None, None]);
    assert_eq!(windows(json!({"use_sliding_window": true})), [None, None]);
    let both = json!({"use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(windows(both), [None, Some(16)]);
    let types = json!(["sliding_attention", "full_attention"]);
    let typed = json!({"use_sliding_window": true, "layer_types": types});
    assert_eq!(windows(typed), [Some(16), None]);
    assert_eq!(windows(json!({"model_type": "mistral"})), [Some(16), Some(16)]);
    assert_eq!(windows(json!({"model_type": "llama"})), [None, None]);
}

#[test]
fn shapes_that_contradict_the_config_name_tensor_and_file() {
    let cases = [
        ("num_key_value_heads", 4, "model.layers.0.self_attn.k_proj.weight"),
        ("intermediate_size", 41, "model.layers.0.mlp.gate_proj.weight"),
        ("vocab_size", 62, "model.embed_tokens.weight"),
        ("num_hidden_layers", 3, "model.layers.2.self_attn.q_proj.weight"),
    ];
    for (key, value, tensor) in cases {
        let error = config_error(|config| config[key] = json!(value));
        assert_eq!(error.tensor(), Some(tensor), "{error}");
        let missing = key == "num_hidden_layers";
        let kind = if missing { ErrorKind::InsufficientData } else { ErrorKind::ShapeMismatch };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.file().unwrap().ends_with("model.safetensors"), "{error}");
    }
}

#[test]
fn missing_and_non_finite_weights_name_tensor_and_file() {
    let whole = Tiny::new(4, 2, 6);
    for name in whole.tensors.keys() {
        let mut tiny = whole.clone();
        tiny.tensors.remove(name);
        let (_folder, source) = tiny.source();
        let error = source.unwrap().decoder().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InsufficientData, "{error}");
        assert_eq!(error.tensor(), Some(name.as_str()), "{error}");
        assert!(error.file().unwrap().ends_with("model.safetensors"), "{error}");

        for bad in [f32::NAN, f32::INFINITY] {
            let mut tiny = whole.clone();
            tiny.tensors.get_mut(name).unwrap().1[3] = bad;
            let (_folder, source) = tiny.source();
            let source = source.unwrap();
            let error = source.decoder().and_then(|m| m.materialise()).map(|_| ());
            let error = match error {
                Err(error) => error,
                // Embeddings are read row by row.
                Ok(()) => logits(&source.decoder().unwrap(), &[0, 1, 2]).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Numerical, "{error}");
            assert_eq!(error.tensor(), Some(name.as_str()), "{error}");
            assert!(error.file().unwrap().ends_with("model.safetensors"), "{error}");
        }
    }
    // Without decoding everything first, the pass itself finds the weight.
    let mut tiny = whole.clone();
    let name = "model.layers.1.mlp.down_proj.weight";
    tiny.tensors.get_mut(name).unwrap().1[100] = f32::NAN;
    let (_folder, source) = tiny.source();
    let error = logits(&source.unwrap().decoder().unwrap(), &[0, 1, 2]).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some(name)), "{error}");
    // A cache refuses such keys; it is still the weight that is named.
    let mut tiny = whole.clone();
    let name = "model.layers.1.self_attn.k_proj.weight";
    tiny.tensors.get_mut(name).unwrap().1[100] = f32::NAN;
    let (_folder, source) = tiny.source();
    let model = source.unwrap().decoder().unwrap();
    let error = logits_in_pieces(&model, &[0, 1, 2], &[2, 1]).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some(name)), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let kind = || open(path).map(|_| ()).unwrap_err();
    assert_eq!(kind().kind(), ErrorKind::Io);
    assert!(kind().file().unwrap().ends_with("config.json"));
    std::fs::write(path.join("config.json"), "{ not json").unwrap();
    assert_eq!(kind().kind(), ErrorKind::Corruption);
    std::fs::write(path.join("config.json"), "[1]").unwrap();
    assert_eq!(kind().kind(), ErrorKind::Corruption);
    Tiny::new(4, 2, 6).write(path);
    let weights = path.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for len in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..len]).unwrap();
        let error = kind();
        assert!(
            matches!(error.kind(), ErrorKind::Corruption | ErrorKind::InsufficientData),
            "{len}: {error}"
        );
        assert!(error.file().unwrap().ends_with("model.safetensors"), "{error}");
    }
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(kind().kind(), ErrorKind::InsufficientData);
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(kind().file().unwrap().ends_with("model-00001-of-00002.safetensors"), "{}", kind());
}

#[test]
fn tokenizers_that_are_missing_or_broken() {
    let (folder, source) = Tiny::new(4, 2, 6).source();
    let source = source.unwrap();
    let file = folder.path().join("tokenizer.json");
    let error = source.tokenizer().unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Io, Some(file.as_path())), "{error}");
    std::fs::write(&file, "{}").unwrap();
    let error = source.tokenizer().unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Corruption, Some(file.as_path())));
}

#[test]
fn wrong_arguments() {
    let tiny = Tiny::new(4, 2, 6);
    let model = tiny.decoder();
    let invalid = |error: Error| assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    invalid(logits(&model, &[61]).unwrap_err());
    invalid(logits(&model, &[1; 97]).unwrap_err());
    let mut scratch = Scratch::default();
    invalid(model.logits_last(&[], &mut model.cache(), &mut scratch).unwrap_err());
    invalid(model.forward(&[1], &mut model.cache()[..1], &mut scratch).unwrap_err());
    let how = Generation { temperature: f32::NAN, ..Generation::default() };
    let go = &mut |_| Ok(true);
    invalid(generate(&model, &[1], how, &mut model.cache(), go).unwrap_err());
    let error = perplexity(&model, &[vec![1]], &|_, _| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
    assert!(logits(&model, &[]).unwrap().is_empty());
    let (_folder, source) = tiny.source();
    assert_eq!(source.unwrap().encoder().unwrap_err().kind(), ErrorKind::Unsupported);
    // Generation stops at the end of the context.
    let how = Generation { max_tokens: 500, temperature: 1.0, ..Generation::default() };
    let mut longest = 0;
    for seed in 0..8 {
        let how = Generation { seed, ..how };
        let new = generate(&model, &[1, 2], how, &mut model.cache(), go).unwrap();
        longest = longest.max(new.len());
    }
    assert!(longest <= 95, "{longest}");
}

#[test]
fn bad_texts() {
    let tokenizer = Source::demo(&Registry::default()).unwrap().tokenizer().unwrap();
    let cut = |text, limits| text::segments(text, "t.jsonl".as_ref(), &tokenizer, 64, limits);
    let error = cut("{\"text\": \"ok\"}\n\n{\"txt\": 1}\n", Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(error.to_string().contains("t.jsonl") && error.to_string().contains("line 3"));
    for empty in ["", "\n", "{\"text\": \"\"}"] {
        let error = cut(empty, Limits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InsufficientData, "{empty:?}");
    }
    let one = Limits { max_tokens: Some(1), ..Limits::default() };
    assert_eq!(cut("{\"text\": \"a\"}", one).unwrap_err().kind(), ErrorKind::InvalidArgument);
    for empty in ["", "  \n"] {
        let error = calibration_windows(empty, &tokenizer, Windows::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InsufficientData);
    }
    for cut in
        [Windows { length: 1, ..Windows::default() }, Windows { windows: 0, ..Windows::default() }]
    {
        let error = calibration_windows("some text", &tokenizer, cut).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.txt");
    assert_eq!(text::read(&file).unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(&file, [b'a', 0xff]).unwrap();
    assert_eq!(text::read(&file).unwrap_err().kind(), ErrorKind::Corruption);
}
