//! What is wrong is named, and nothing is left behind.

mod common;

use std::fs;
use std::path::Path;

use common::{arg, assert_fails, contents, demo_text, json, model_folder, run};

fn compress(
    model: &Path,
    recipe: &str,
    out: &Path,
    calibration: Option<&Path>,
) -> std::process::Output {
    let mut args = vec!["compress", arg(model), "--recipe", recipe, "--out", arg(out)];
    if let Some(text) = calibration {
        args.extend(["--calib", arg(text)]);
    }
    run(&args)
}

/// Overwrites the first bytes of a tensor.
fn patch(file: &Path, tensor: &str, bytes: &[u8]) {
    let mut data = fs::read(file).expect("a file");
    let header = usize::try_from(u64::from_le_bytes(data[..8].try_into().unwrap())).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&data[8..8 + header]).expect("a header");
    let offset = json[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
    data[8 + header + offset..][..bytes.len()].copy_from_slice(bytes);
    fs::write(file, data).expect("written");
}

#[test]
fn wrong_usage_is_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let (model, out) = (arg(&model), folder.path().join("out"));
    let out = arg(&out);
    let table: &[(&[&str], &[&str])] = &[
        (&["frobnicate"], &["unrecognized subcommand"]),
        (&["compress", "demo", "--out", out], &["--recipe"]),
        (&["compress", "demo", "--recipe", "w8"], &["--out"]),
        (&["compress", "demo", "--recipe", "rtn(bits=12)", "--out", out], &["bits = 12", "2 to 8"]),
        (&["compress", "demo", "--recipe", "rtn(bit=4)", "--out", out], &["`bit`", "bits, group"]),
        (&["compress", "demo", "--recipe", "quip | gptq", "--out", out], &["planned"]),
        (&["compress", model, "--recipe", "w4", "--out", out], &["calibration", "--calib"]),
        (&["compress", model, "--recipe", "w8", "--out", out, "--eval"], &["--eval FILE"]),
        (&["compress", "demo", "--recipe", "w8", "--out", out, "--calib-windows", "x"], &["'x'"]),
        (&["eval", model], &["--text FILE"]),
        (&["eval", "demo", "--kv", "kivi(bits=3)"], &["--kv", "bits = 3", "2, 4 and 8"]),
        (&["eval", "demo", "--kv", "expected_attention(keep=1, future=0)"], &["future = 0"]),
        (&["run", "demo", "--prompt", "x", "--kv", "h2o"], &["--kv", "h2o"]),
        (&["run", "demo"], &["--prompt"]),
        (&["run", "demo", "--prompt", "x", "--temperature", "-1"], &["from 0"]),
    ];
    for (args, says) in table {
        assert_fails(&run(args), 2, says);
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing was made");
}

#[test]
fn models_that_are_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let nothing = folder.path().join("nothing");
    for command in ["inspect", "eval", "run"] {
        let mut args = vec![command, arg(&nothing)];
        args.extend(match command {
            "eval" => vec!["--text", "x.txt"],
            "run" => vec!["--prompt", "x"],
            _ => vec![],
        });
        assert_fails(&run(&args), 1, &[]);
    }
    assert_fails(&run(&["inspect", arg(&nothing)]), 1, &["nothing", "no such model"]);
    assert_fails(&run(&["inspect", arg(folder.path())]), 1, &["config.json"]);
    let packed = folder.path().join("model.tpk");
    fs::write(&packed, "").expect("written");
    assert_fails(&run(&["inspect", arg(&packed)]), 1, &["model.tpk", "header"]);
    if !cfg!(feature = "hub") {
        assert_fails(&run(&["inspect", "hf://owner/name"]), 1, &["--features hub"]);
    }
}

#[test]
fn broken_models() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let (out, weights) = (folder.path().join("out"), model.join("model.safetensors"));
    let calibration = demo_text("calib.txt");
    let good = fs::read(&weights).expect("a file");
    let fails = |recipe: &str, says: &[&str]| {
        let output = compress(&model, recipe, &out, Some(&calibration));
        assert_fails(&output, 1, says);
        // No rerun cures it: nothing is kept that could be in the way of what does.
        assert!(!common::stderr(&output).contains("resumes"));
        assert!(!out.exists() && !folder.path().join("out.partial").exists());
    };

    // NaN: found by the method that rounds, and by the forward pass of one that calibrates.
    let name = "model.layers.2.mlp.down_proj.weight";
    patch(&weights, name, &[0xc0, 0x7f]);
    fails("w8", &[name, "model.safetensors", "NaN"]);
    fails("w4", &[name, "model.safetensors", "NaN"]);
    fs::write(&weights, &good).expect("written");
    patch(&weights, "model.layers.0.self_attn.q_proj.weight", &[0x80, 0x7f]);
    fails("w8", &["model.layers.0.self_attn.q_proj.weight", "inf"]);

    fs::write(&weights, &good[..good.len() - 1000]).expect("written");
    fails("w8", &["model.safetensors"]);
    fs::write(&weights, &good[..5]).expect("written");
    fails("w8", &["model.safetensors"]);
    fs::write(&weights, &good).expect("written");

    let config = model.join("config.json");
    let text = fs::read_to_string(&config).expect("a config");
    fs::write(&config, text.replace("\"intermediate_size\": 384", "\"intermediate_size\": 385"))
        .expect("written");
    fails("w8", &["mlp.gate_proj.weight", "[384, 128]", "[385, 128]"]);
    fs::write(&config, text.replace("\"hidden_size\"", "\"hiden_size\"")).expect("written");
    fails("w8", &["config.json", "hidden_size"]);
    fs::write(&config, "{").expect("written");
    fails("w8", &["config.json"]);
    fs::write(&config, &text).expect("written");
    assert!(!folder.path().join("out.partial").exists(), "nothing was begun");

    fs::remove_file(model.join("tokenizer.json")).expect("removed");
    fails("w4", &["tokenizer.json"]);
    json(&run(&["compress", arg(&model), "--recipe", "w8", "--out", arg(&out), "--json"]));
}

#[test]
fn bad_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let out = folder.path().join("out");
    let text = folder.path().join("text.txt");
    assert_fails(&compress(&model, "w4", &out, Some(&text)), 1, &["text.txt"]);
    for empty in ["", " \n"] {
        fs::write(&text, empty).expect("written");
        assert_fails(&compress(&model, "w4", &out, Some(&text)), 1, &["calibration text is empty"]);
    }
    fs::write(&text, [0xff, 0xfe]).expect("written");
    assert_fails(&compress(&model, "w4", &out, Some(&text)), 1, &["text.txt", "UTF-8"]);
    // A text shorter than a window is used all the same.
    fs::write(&text, "Once upon a time there was a dog.").expect("written");
    assert!(compress(&model, "w4", &out, Some(&text)).status.success());
    let long = ["compress", "demo", "--recipe", "w4", "--out", "never", "--calib-length", "100000"];
    assert_fails(&run(&long), 1, &["length = 100000", "context"]);

    let lines = folder.path().join("text.jsonl");
    fs::write(&lines, "{\"text\": \"a dog\"}\n{\"txet\": 1}\n").expect("written");
    assert_fails(&run(&["eval", "demo", "--text", arg(&lines)]), 1, &["text.jsonl", "line 2"]);
    let few = run(&["eval", "demo", "--max-segments", "2", "--max-tokens", "1"]);
    assert_fails(&few, 1, &["at least 2"]);
}

#[test]
fn rules_that_cannot_be_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (recipe, out) = (folder.path().join("recipe.toml"), folder.path().join("out"));
    let fails = |text: &str, code, says: &[&str]| {
        fs::write(&recipe, text).expect("written");
        let args = ["compress", "demo", "--recipe", arg(&recipe), "--out", arg(&out)];
        assert_fails(&run(&args), code, says);
    };
    fails(
        "stage = ['rtn']\n[[layer]]\nmatch = '*.nope.*'\nskip = true",
        1,
        &["`*.nope.*`", "matches no"],
    );
    fails(
        "stage = ['rtn']\n[[layer]]\nmatch = '*embed*'\nstage = ['smooth']",
        2,
        &["recipe.toml", "`smooth`"],
    );
    fails("stage = ['rtn(bits=1)']", 2, &["recipe.toml", "bits = 1"]);
    fails("[[layer]]\nmatch = 'x'", 2, &["recipe.toml", "`stage`"]);
    assert_fails(
        &run(&["compress", "demo", "--recipe", "no/such.toml", "--out", arg(&out)]),
        1,
        &["no/such.toml"],
    );
}

#[test]
fn compressed_models_are_not_compressed_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, again) = (folder.path().join("out"), folder.path().join("again"));
    json(&run(&["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--json"]));
    let before = contents(&out);
    assert_fails(&compress(&out, "w8", &again, None), 1, &["compressed already"]);
    assert!(!again.exists() && contents(&out) == before);
    // What is damaged is found when it is read.
    let shard = out.join("model-00003-of-00007.safetensors");
    let bytes = fs::read(&shard).expect("a shard");
    fs::write(&shard, &bytes[..bytes.len() - 64]).expect("written");
    assert_fails(&run(&["inspect", arg(&out)]), 1, &["model-00003-of-00007.safetensors"]);
    fs::remove_file(&shard).expect("removed");
    assert_fails(
        &run(&["inspect", arg(&out)]),
        1,
        &["model-00003-of-00007.safetensors", "missing"],
    );
}
