//! Checkpoint folders as people have them: stale indexes, other formats, missing heads, odd types, the hub's cache.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{arg, assert_fails, contents, demo_text, json, model_folder, run, stderr};
use serde_json::{Value, json};

const INDEX: &str = "model.safetensors.index.json";

/// A tensor: type, shape and bytes.
type Stored = (String, Vec<u64>, Vec<u8>);

/// The tensors and the metadata of a safetensors file.
#[derive(Clone, Default)]
struct Weights {
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("a file");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let (header, data) = bytes[8..].split_at(length);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("a header");
        let mut read = Self::default();
        for (name, value) in header {
            if name == "__metadata__" {
                read.metadata = serde_json::from_value(value).expect("texts");
                continue;
            }
            let at = |i: usize| value["data_offsets"][i].as_u64().expect("an offset") as usize;
            let dtype = value["dtype"].as_str().expect("a type").to_owned();
            let shape = serde_json::from_value(value["shape"].clone()).expect("a shape");
            read.tensors.insert(name, (dtype, shape, data[at(0)..at(1)].to_vec()));
        }
        read
    }

    /// All safetensors files of a folder.
    fn read_all(folder: &Path) -> Self {
        let mut all = Self::default();
        for name in contents(folder).keys().filter(|name| name.ends_with(".safetensors")) {
            all.tensors.extend(Self::read(&folder.join(name)).tensors);
        }
        all
    }

    fn write(&self, path: &Path) {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(self.metadata));
        }
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
            );
            data.extend(bytes);
        }
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(path, [&length[..], header.as_bytes(), &data].concat()).expect("written");
    }

    fn rename(&mut self, to: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors)
            .into_iter()
            .map(|(name, tensor)| (to(&name), tensor))
            .collect();
    }
}

/// The demo model's folder, its weights changed.
fn changed(parent: &Path, change: impl FnOnce(&mut Weights)) -> PathBuf {
    let model = model_folder(parent);
    let path = model.join("model.safetensors");
    let mut weights = Weights::read(&path);
    change(&mut weights);
    weights.write(&path);
    model
}

fn set_config(model: &Path, key: &str, value: Value) {
    let path = model.join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    config[key] = value;
    fs::write(path, config.to_string()).expect("written");
}

/// The demo model in two shards; gives what its index says.
fn sharded(parent: &Path) -> (PathBuf, BTreeMap<String, String>) {
    let model = model_folder(parent);
    let path = model.join("model.safetensors");
    let whole = Weights::read(&path);
    fs::remove_file(path).expect("removed");
    let mut map = BTreeMap::new();
    let mut shards = [Weights::default(), Weights::default()];
    for (name, tensor) in whole.tensors {
        let second = usize::from(name.contains("layers.5."));
        map.insert(name.clone(), shard(second).to_owned());
        shards[second].tensors.insert(name, tensor);
    }
    shards.iter().enumerate().for_each(|(i, shard_of)| shard_of.write(&model.join(shard(i))));
    write_index(&model, &map);
    (model, map)
}

fn shard(index: usize) -> &'static str {
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"][index]
}

fn write_index(model: &Path, map: &BTreeMap<String, String>) {
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
    fs::write(model.join(INDEX), index).expect("written");
}

fn compress(model: &Path, out: &Path) -> std::process::Output {
    run(&["compress", arg(model), "--recipe", "rtn(bits=8)", "--out", arg(out), "--json"])
}

fn perplexity(model: &Path) -> f64 {
    let text = demo_text("heldout.jsonl");
    let args = ["eval", arg(model), "--text", arg(&text), "--max-segments", "2", "--json"];
    json(&run(&args))["perplexity"].as_f64().expect("a number")
}

#[test]
fn indexes_that_do_not_hold() {
    let parent = tempfile::tempdir().expect("a folder");
    let (model, good) = sharded(parent.path());
    let outs = ["a", "b", "c"].map(|name| parent.path().join(name));
    let done = compress(&model, &outs[0]);
    json(&done);
    assert!(!stderr(&done).contains("note"), "{}", stderr(&done));

    // Names that are nowhere, a tensor in another shard than said, one that is not named.
    let mut map = good.clone();
    map.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "old.safetensors".into());
    map.insert("lm_head.weight".into(), shard(0).into());
    map.insert("model.norm.weight".into(), shard(1).into());
    map.remove("model.layers.3.mlp.up_proj.weight");
    write_index(&model, &map);
    let says = [
        "files that are not there: old.safetensors",
        "no file has: lm_head.weight, model.layers.0.self_attn.rotary_emb.inv_freq",
        "another file than it says: model.norm.weight",
        "does not name them: model.layers.3.mlp.up_proj.weight",
    ];
    let told = |output: &std::process::Output| {
        let said = stderr(output);
        assert!(output.status.success(), "{said}");
        for says in says {
            assert_eq!(said.matches(says).count(), 1, "{says}: {said}");
        }
        assert_eq!(said.matches(INDEX).count(), says.len(), "{said}");
    };
    let done = compress(&model, &outs[1]);
    told(&done);
    assert!(contents(&outs[1]) == contents(&outs[0]));
    told(&run(&["inspect", arg(&model), "--json"]));
    let text = demo_text("heldout.jsonl");
    let few = ["--text", arg(&text), "--max-segments", "2"];
    told(&run(&[&["eval", arg(&model), "--reference", arg(&model)][..], &few].concat()));
    told(&run(&["run", arg(&model), "--prompt", "Once", "--max-tokens", "2"]));

    // What a command needs and no file has.
    let missing = "model.layers.5.mlp.up_proj.weight";
    map.insert(missing.into(), shard(0).into());
    write_index(&model, &map);
    told_moved(&compress(&model, &outs[2]), missing);
    let path = model.join(shard(1));
    let mut last = Weights::read(&path);
    let gone = last.tensors.remove(missing).expect("was there");
    last.write(&path);
    fs::remove_dir_all(&outs[2]).expect("removed");
    let never = &outs[2];
    let fails = |says: &[&str]| {
        for output in [compress(&model, never), run(&["inspect", arg(&model)])] {
            assert_fails(&output, 1, says);
        }
        assert!(!never.exists());
    };
    fails(&[missing, INDEX, shard(0), "missing"]);
    map.remove(missing);
    write_index(&model, &map);
    assert_fails(&compress(&model, never), 1, &[missing, INDEX, "no such tensor"]);
    last.tensors.insert(missing.into(), gone);
    last.write(&path);
    json(&compress(&model, never));
    fs::remove_dir_all(never).expect("removed");
    write_index(&model, &good);
    fs::remove_file(&path).expect("removed");
    fails(&["model.layers.5.", INDEX, shard(1), "missing"]);
}

fn told_moved(output: &std::process::Output, name: &str) {
    let said = stderr(output);
    assert!(output.status.success() && said.contains("another file"), "{said}");
    assert!(said.contains(name), "{said}");
}

#[test]
fn one_file_beside_an_index() {
    let parent = tempfile::tempdir().expect("a folder");
    let model = model_folder(parent.path());
    let outs = ["a", "b"].map(|name| parent.path().join(name));
    json(&compress(&model, &outs[0]));
    let map = [("model.norm.weight", "model-00001-of-00009.safetensors")];
    write_index(&model, &map.map(|(name, file)| (name.into(), file.into())).into());
    let done = compress(&model, &outs[1]);
    json(&done);
    for says in ["note: ", INDEX, "model-00001-of-00009.safetensors", "as transformers reads it"] {
        assert!(stderr(&done).contains(says), "{}", stderr(&done));
    }
    assert!(contents(&outs[0]) == contents(&outs[1]));
}

#[test]
fn folders_that_hold_something_else() {
    let parent = tempfile::tempdir().expect("a folder");
    let model = model_folder(parent.path());
    let weights = model.join("model.safetensors");
    let good = fs::read(&weights).expect("a file");
    fs::remove_file(&weights).expect("removed");
    let out = parent.path().join("out");
    let fails = |says: &[&str]| {
        assert_fails(&compress(&model, &out), 1, says);
        assert_fails(&run(&["inspect", arg(&model)]), 1, says);
    };
    for (name, says) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("weights.pth", "torch.load"),
        ("model.gguf", "gguf_file='model.gguf'"),
    ] {
        fs::write(model.join(name), "weights").expect("written");
        fails(&[arg(&model), name, "python -c", says]);
        fs::remove_file(model.join(name)).expect("removed");
    }
    // A download into a folder keeps its half in a folder of its own.
    let cache = model.join(".cache/huggingface/download");
    fs::create_dir_all(&cache).expect("a folder");
    fs::write(cache.join("abc.incomplete"), "half").expect("written");
    fails(&["unfinished download", "abc.incomplete"]);
    fs::remove_dir_all(model.join(".cache")).expect("removed");

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n";
    fs::write(&weights, pointer).expect("written");
    fails(&["model.safetensors", "git-lfs pointer", "git lfs pull"]);
    fs::write(&weights, &good[..good.len() - 10]).expect("written");
    fails(&["model.safetensors", "broken off"]);
    fs::write(&weights, &good).expect("written");
    let tokenizer = model.join("tokenizer.json");
    fs::write(&tokenizer, pointer).expect("written");
    let prompt = ["run", arg(&model), "--prompt", "Once"];
    assert_fails(&run(&prompt), 1, &["tokenizer.json", "git lfs pull"]);
    fs::write(model.join("config.json"), pointer).expect("written");
    fails(&["config.json", "git lfs pull"]);

    // Adapters have no config of a model.
    fs::remove_file(model.join("config.json")).expect("removed");
    fs::rename(&weights, model.join("adapter_model.safetensors")).expect("renamed");
    let config = json!({"base_model_name_or_path": "owner/base", "peft_type": "LORA"});
    fs::write(model.join("adapter_config.json"), config.to_string()).expect("written");
    fails(&["adapter", "`owner/base`", "merge"]);
    assert!(!out.exists());
}

#[test]
fn decoders_without_a_head() {
    let parent = tempfile::tempdir().expect("a folder");
    let model = model_folder(parent.path());
    set_config(&model, "tie_word_embeddings", json!(false));
    let (out, calib) = (parent.path().join("out"), demo_text("calib.txt"));
    let headless = |model: &Path, says: &[&str]| {
        let text = demo_text("heldout.jsonl");
        assert_fails(&run(&["eval", arg(model), "--text", arg(&text)]), 1, says);
        assert_fails(&run(&["run", arg(model), "--prompt", "Once"]), 1, says);
        let found = json(&run(&["inspect", arg(model), "--json"]));
        assert_eq!(found["config"]["tied"], false);
    };
    headless(&model, &["lm_head.weight", "no language head"]);
    for recipe in ["rtn(bits=8)", "awq | gptq(bits=4, group=64)", "drop_blocks(count=1)"] {
        let mut args = vec!["compress", arg(&model), "--recipe", recipe, "--out", arg(&out)];
        args.extend(["--calib", arg(&calib), "--calib-windows", "4", "--json", "--force"]);
        json(&run(&args));
        headless(&out, &["lm_head.weight", "no language head"]);
        // What cannot be judged is told before the work.
        args.extend(["--eval", arg(&calib)]);
        assert_fails(&run(&args), 1, &["no language head"]);
    }

    // A head over classes goes along.
    for (name, dtype, shape) in
        [("score.weight", "F32", vec![2, 128]), ("v_head.summary.weight", "F8_E5M2", vec![1, 128])]
    {
        let parent = tempfile::tempdir().expect("a folder");
        let width = if dtype == "F32" { 4 } else { 1 };
        let bytes: Vec<u8> = (0..shape.iter().product::<u64>() * width).map(|i| i as u8).collect();
        let head: Stored = (dtype.to_owned(), shape, bytes);
        let model = changed(parent.path(), |weights| {
            weights.tensors.insert(name.to_owned(), head.clone());
        });
        set_config(&model, "architectures", json!(["LlamaForSequenceClassification"]));
        set_config(&model, "tie_word_embeddings", json!(false));
        let out = parent.path().join("out");
        json(&compress(&model, &out));
        assert!(Weights::read_all(&out).tensors[name] == head);
        headless(&out, &["no language head", name]);
    }
}

#[test]
fn one_matrix_under_either_name_and_names_without_prefix() {
    let parent = tempfile::tempdir().expect("a folder");
    let demo = perplexity(&model_folder(parent.path()));
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    type Change<'a> = &'a dyn Fn(&mut Weights);
    let swap = |weights: &mut Weights| {
        weights.rename(|name| if name == table { head.to_owned() } else { name.to_owned() });
    };
    let stands = |weights: &mut Weights, alias: &str, name: &str| {
        weights.metadata.insert("format".into(), "pt".into());
        weights.metadata.insert(alias.into(), name.into());
    };
    let cases: [(bool, Change<'_>); 6] = [
        (true, &swap),
        (true, &|w| stands(w, head, table)),
        (false, &|w| stands(w, head, table)),
        (true, &|w| {
            swap(w);
            stands(w, table, head);
        }),
        (false, &|w| {
            swap(w);
            stands(w, table, head);
        }),
        (true, &|w| w.rename(|name| name.trim_start_matches("model.").to_owned())),
    ];
    for (number, (tied, change)) in cases.iter().enumerate() {
        let parent = tempfile::tempdir().expect("a folder");
        let model = changed(parent.path(), change);
        set_config(&model, "tie_word_embeddings", json!(tied));
        assert_eq!(perplexity(&model), demo, "case {number}");
        let out = parent.path().join("out");
        json(&compress(&model, &out));
        let after = perplexity(&out);
        assert!((after / demo - 1.0).abs() < 0.01, "case {number}: {after} after {demo}");
        // The whole checkpoint is there, and nothing twice.
        let [was, is] = [&model, &out].map(|folder| Weights::read_all(folder).tensors);
        let outside = |all: &BTreeMap<String, Stored>| -> Vec<String> {
            all.keys().filter(|name| !name.contains("layers.")).cloned().collect()
        };
        assert_eq!(outside(&was), outside(&is), "case {number}");
    }
}

/// A small BERT that tells classes apart, its names with this prefix.
fn encoder(model: &Path, prefix: &str) {
    fs::create_dir(model).expect("a folder");
    let config = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20,
        "max_position_embeddings": 12, "type_vocab_size": 2, "hidden_act": "gelu",
    });
    fs::write(model.join("config.json"), config.to_string()).expect("written");
    let mut weights = Weights::default();
    let mut add = |name: String, shape: &[u64]| {
        let seed = weights.tensors.len() as u64;
        let count: u64 = shape.iter().product();
        let value = |i: u64| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
        weights.tensors.insert(name, ("F32".to_owned(), shape.to_vec(), bytes));
    };
    for (name, rows) in [("word", 20), ("position", 12), ("token_type", 2)] {
        add(format!("{prefix}embeddings.{name}_embeddings.weight"), &[rows, 16]);
    }
    let mut norms = vec![format!("{prefix}embeddings.LayerNorm")];
    for block in 0..2 {
        let block = format!("{prefix}encoder.layer.{block}");
        norms.extend(["attention.output", "output"].map(|of| format!("{block}.{of}.LayerNorm")));
        for (name, shape) in [
            ("attention.self.query", [16, 16]),
            ("attention.self.key", [16, 16]),
            ("attention.self.value", [16, 16]),
            ("attention.output.dense", [16, 16]),
            ("intermediate.dense", [32, 16]),
            ("output.dense", [16, 32]),
        ] {
            add(format!("{block}.{name}.weight"), &shape);
            add(format!("{block}.{name}.bias"), &shape[..1]);
        }
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[16]);
        add(format!("{norm}.bias"), &[16]);
    }
    add("classifier.weight".to_owned(), &[3, 16]);
    add("classifier.bias".to_owned(), &[3]);
    weights.write(&model.join("model.safetensors"));
}

#[test]
fn encoders_with_a_head_over_classes_and_without_prefix() {
    let parent = tempfile::tempdir().expect("a folder");
    let outs = ["bert.", ""].map(|prefix| {
        let model = parent.path().join(format!("model{prefix}"));
        encoder(&model, prefix);
        let out = parent.path().join(format!("out{prefix}"));
        let report = json(&compress(&model, &out));
        assert_eq!(report["layers"].as_array().expect("layers").len(), 12);
        json(&run(&["inspect", arg(&out), "--json"]));
        let [was, is] = [&model, &out].map(|folder| Weights::read_all(folder).tensors);
        for name in ["classifier.weight", "classifier.bias"] {
            assert!(was[name] == is[name], "{name}");
        }
        let text = demo_text("heldout.jsonl");
        assert_fails(&run(&["eval", arg(&out), "--text", arg(&text)]), 1, &["bert as a decoder"]);
        is
    });
    let [mut with, without] = outs.map(|tensors| Weights { tensors, ..Weights::default() });
    with.rename(|name| name.trim_start_matches("bert.").to_owned());
    assert!(with.tensors.keys().eq(without.tensors.keys()) && with.tensors.len() > 30);
    let types = |all: &Weights| {
        all.tensors.values().map(|t| (t.0.clone(), t.1.clone())).collect::<Vec<_>>()
    };
    assert_eq!(types(&with), types(&without));
}

#[test]
fn tensors_of_any_type_go_along() {
    let parent = tempfile::tempdir().expect("a folder");
    let mut odd: BTreeMap<String, Stored> = BTreeMap::new();
    let types = [
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("C64", 64),
        ("BOOL", 8),
        ("U64", 64),
        ("F64", 64),
    ];
    for (number, (dtype, bits)) in types.iter().enumerate() {
        for prefix in ["extra.", "model.layers.1.extra."] {
            let shape = vec![3, 4];
            let most = if *dtype == "BOOL" { 1 } else { 255 };
            let bytes = (0..12 * bits / 8).map(|i| (37 * i + number as u64) as u8 & most).collect();
            odd.insert(format!("{prefix}{dtype}"), ((*dtype).to_owned(), shape, bytes));
        }
    }
    let model = changed(parent.path(), |weights| weights.tensors.extend(odd.clone()));
    let found = json(&run(&["inspect", arg(&model), "--json"]));
    let listed = found["tensors"].as_array().expect("tensors");
    assert!(odd.iter().all(|(name, (dtype, ..))| {
        listed.iter().any(|tensor| tensor["name"] == *name && tensor["dtype"] == *dtype)
    }));
    let kept = |folder: &Path| {
        let all = Weights::read_all(folder).tensors;
        for (name, tensor) in &odd {
            assert!(all.get(name) == Some(tensor), "{name}");
        }
    };
    let (out, packed, again) =
        (parent.path().join("out"), parent.path().join("m.tpk"), parent.path().join("again"));
    json(&compress(&model, &out));
    kept(&out);
    for folder in [&model, &out] {
        json(&run(&["pack", arg(folder), "--out", arg(&packed), "--json", "--force"]));
        json(&run(&["unpack", arg(&packed), "--out", arg(&again), "--json"]));
        assert!(contents(&again) == contents(folder));
        fs::remove_dir_all(&again).expect("removed");
    }
    // Out of a packed file, and in a model that lost a block.
    json(&run(&["pack", arg(&model), "--out", arg(&packed), "--json", "--force"]));
    json(&compress(&packed, &again));
    assert!(contents(&again) == contents(&out));
    let (smaller, calib) = (parent.path().join("smaller"), demo_text("calib.txt"));
    let mut args = vec!["compress", arg(&model), "--recipe", "drop_blocks(count=1)", "--json"];
    args.extend(["--out", arg(&smaller), "--calib", arg(&calib), "--calib-windows", "4"]);
    json(&run(&args));
    let all = Weights::read_all(&smaller).tensors;
    for (name, tensor) in odd.iter().filter(|(name, _)| name.starts_with("extra.")) {
        assert!(all.get(name) == Some(tensor), "{name}");
    }
}

/// A snapshot in the hub's cache, of a sentence-transformers model.
#[test]
#[cfg(unix)]
fn the_hubs_cache() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().expect("a folder");
    let model = model_folder(parent.path());
    fs::create_dir(model.join("1_Pooling")).expect("a folder");
    fs::create_dir(model.join("onnx")).expect("a folder");
    fs::write(model.join("1_Pooling/config.json"), "{}").expect("written");
    fs::write(model.join("onnx/model.onnx"), "weights").expect("written");
    fs::write(model.join("pytorch_model.bin"), "weights").expect("written");
    let cache = parent.path().join("models--owner--name");
    let snapshot = cache.join("snapshots/0123");
    for folder in ["blobs", "snapshots/0123/1_Pooling", "snapshots/0123/onnx"] {
        fs::create_dir_all(cache.join(folder)).expect("a folder");
    }
    let names = contents_names(&model);
    for (number, name) in names.iter().enumerate() {
        fs::copy(model.join(name), cache.join(format!("blobs/{number}"))).expect("copied");
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{number}"), snapshot.join(name)).expect("linked");
    }
    let outs = ["plain", "linked"].map(|name| parent.path().join(name));
    json(&compress(&model, &outs[0]));
    let done = compress(&snapshot, &outs[1]);
    let notes = json(&done)["notes"].to_string();
    for name in ["onnx/model.onnx", "pytorch_model.bin"] {
        assert_eq!(stderr(&done).matches(name).count(), 1, "{}", stderr(&done));
        assert!(notes.contains(name), "{notes}");
    }
    for name in contents_names(&outs[0]) {
        let [a, b] = [&outs[0], &outs[1]].map(|out| fs::read(out.join(&name)).expect("a file"));
        assert!(a == b, "{name}");
    }
    assert!(contents_names(&outs[1]).contains(&"1_Pooling/config.json".to_owned()));
    assert!(!outs[1].join("onnx").exists() && !outs[1].join("pytorch_model.bin").exists());

    let (packed, again) = (parent.path().join("m.tpk"), parent.path().join("again"));
    json(&run(&["pack", arg(&snapshot), "--out", arg(&packed), "--json"]));
    json(&run(&["unpack", arg(&packed), "--out", arg(&again), "--json"]));
    assert_eq!(contents_names(&again), names);
    for name in &names {
        assert!(fs::symlink_metadata(again.join(name)).expect("a file").is_file(), "{name}");
        assert!(fs::read(again.join(name)).ok() == fs::read(model.join(name)).ok(), "{name}");
    }
    json(&run(&["unpack", arg(&packed), "--out", arg(&again), "--json", "--force"]));

    fs::remove_file(cache.join("blobs/0")).expect("removed");
    let lost = run(&["pack", arg(&snapshot), "--out", arg(&packed), "--force"]);
    assert_fails(&lost, 1, &[names[0].as_str(), "leads nowhere"]);
    json(&run(&["verify", arg(&packed), "--json"]));
}

/// Paths of all files below a folder, sorted.
fn contents_names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("UTF-8");
        match entry.path().is_dir() {
            true => names.extend(
                contents_names(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")),
            ),
            false => names.push(name),
        }
    }
    names.sort();
    names
}
