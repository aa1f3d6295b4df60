//! What others' readers expect.

use std::path::Path;

use tensorpress::ErrorKind;
use tensorpress::formats::gptq::Version;
use tensorpress::pipeline::{ConversionReport, Convert, Target};
use tensorpress::prelude::*;
use tensorpress_tensor::Checkpoint;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::testing::data;

use super::{compressed, convert, distance, same_weights};

/// Every layer has the group that the configuration names, and is as far from what it was as the report says.
fn holds_what_it_says(source: &Source, out: &Path, report: &ConversionReport, group: &str) {
    let config = std::fs::read_to_string(out.join("config.json")).expect("a configuration");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let said = config["quantization_config"].to_string();
    assert!(said.contains(&format!("\"group_size\":{group}")), "{said}");
    let made = open_model(out).expect("opens");
    for tensor in &report.tensors {
        let node = made.weight(&tensor.name).expect("a weight");
        let tree = node.describe();
        let known = tree["group"].as_u64().is_none_or(|own| own.to_string() == group);
        assert!(known, "{}: {tree}", tensor.name);
        let was = decode(&*source.weight(&tensor.name).unwrap()).unwrap();
        let error = distance(&was, &decode(&*node).unwrap());
        assert!((error - tensor.error.unwrap_or(0.0)).abs() < 1e-6, "{}: {error}", tensor.name);
    }
}

/// Layers of two groups have no place in a folder that names one: those of the second are rounded to the first.
#[test]
fn one_group_for_all() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let recipe = "[[stage]]\nmethod = 'rtn'\ngroup = 32\n[[layer]]\nmatch = 'model.layers.3.*'\nstage = [{ method = 'rtn', group = 64 }]\n";
    let demo = Source::demo(&registry()).expect("opens");
    let recipe = Recipe::from_toml(recipe).expect("a recipe");
    let _ = Compressor::new(recipe).run(&demo, &path("mixed")).expect("compresses");
    let mixed = open_model(path("mixed")).expect("opens");
    for to in ["gptq_v2", "awq", "compressed-tensors"] {
        let out = path(to);
        let job = |requantize| Convert::new(to.parse().unwrap()).with_requantize(requantize);
        let error = job(false).run(&mixed, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
        assert!(error.message().contains("one group for all layers"), "{to}: {error}");
        let report = job(true).run(&mixed, &out).unwrap_or_else(|e| panic!("{to}: {e}"));
        holds_what_it_says(&mixed, &out, &report, "32");
        let anew = report.tensors.iter().filter(|tensor| !tensor.lossless);
        assert!(anew.clone().all(|tensor| tensor.name.contains("layers.3.")), "{to}");
        assert_eq!(anew.count(), 7, "{to}");
    }
}

/// What others' readers refuse, or read otherwise, is not written: seen with the official packages (`cargo xtask interop`).
#[test]
fn folders_say_what_their_readers_expect() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let said = |out: &Path| -> serde_json::Value {
        let config = std::fs::read(out.join("config.json")).expect("a configuration");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        config["quantization_config"].clone()
    };
    // Once some modules are named that stay floats, no reader leaves out the head by itself.
    let four = compressed("rtn(bits=4, group=32)", &path("four"));
    let nf4 = compressed("nf4(block=64)", &path("nf4"));
    for (to, source, key) in [
        ("bnb", &nf4, "llm_int8_skip_modules"),
        ("awq", &four, "modules_to_not_convert"),
        ("compressed-tensors", &four, "ignore"),
    ] {
        convert(source, to.parse().unwrap(), &path(to));
        assert_eq!(said(&path(to))[key], serde_json::json!(["lm_head"]), "{to}");
    }
    // GPTQModel takes zero points of version 2 alone.
    for (to, notes) in [("gptq", 1), ("gptq_v2", 0)] {
        let report = convert(&four, to.parse().unwrap(), &path(to));
        let about = report.notes.iter().filter(|note| note.contains("gptq_v2"));
        assert_eq!(about.count(), notes, "{to}: {:?}", report.notes);
    }
    // Groups that do not divide a row are an order of inputs to compressed-tensors, which it reads no more.
    let short = compressed("rtn(bits=4, group=48)", &path("short"));
    for to in ["awq", "compressed-tensors"] {
        let out = path(&format!("short-{to}"));
        let job = |requantize| Convert::new(to.parse().unwrap()).with_requantize(requantize);
        let error = job(false).run(&short, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
        assert!(error.message().contains("gptq"), "{to}: {error}");
        // Rounded anew, all have one that does.
        let report = job(true).run(&short, &out).unwrap_or_else(|e| panic!("{to}: {e}"));
        holds_what_it_says(&short, &out, &report, "128");
    }
    convert(&short, Target::Gptq(Version::V2), &path("short-gptq"));
    same_weights(&short, &open_model(path("short-gptq")).expect("opens"), "short groups");
    // Rows of 192 and 512 have groups of 64 in common.
    let Some(folder) = data::find("data/models/stories3m") else { return };
    let floats = open_model(folder).expect("opens");
    for (to, scales) in
        [("gptq", "scales"), ("awq", "scales"), ("compressed-tensors", "weight_scale")]
    {
        let out = path(&format!("floats-{to}"));
        let job = Convert::new(to.parse().unwrap()).with_requantize(true);
        job.run(&floats, &out).expect("rounds");
        assert!(said(&out).to_string().contains("\"group_size\":64"), "{to}: {}", said(&out));
        let stored = Checkpoint::open(&out).expect("weights");
        let name = format!("model.layers.0.self_attn.q_proj.{scales}");
        let shape = stored.shape(&name).expect("scales");
        assert_eq!(shape.iter().product::<usize>(), 192 * 192 / 64, "{to}");
    }
}
