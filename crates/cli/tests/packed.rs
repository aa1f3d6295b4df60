//! `pack`, `unpack`, `verify`, and packed files in the place of a model.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{arg, assert_fails, contents, json, model_folder, run, stderr, tensorpress};

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).expect("a folder").count()
}

/// A safetensors file of one bf16 tensor that does not compress away.
fn made(path: &Path, values: u32) {
    let header = format!(
        "{{\"made.weight\":{{\"dtype\":\"BF16\",\"shape\":[{values}],\"data_offsets\":[0,{}]}}}}",
        2 * values
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let mut state = 1u32;
    for _ in 0..values {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend((state >> 8 & 0x3cff | 0x3c00).to_le_bytes()[..2].iter());
    }
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_folder_there_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let (packed, again) = (folder.path().join("m.tpk"), folder.path().join("again"));
    let report = json(&run(&["pack", arg(&model), "--out", arg(&packed), "--json"]));
    let length = fs::metadata(&packed).expect("a file").len();
    let before: usize = contents(&model).values().map(Vec::len).sum();
    assert_eq!(report["bytes_before"], before);
    assert_eq!(report["bytes_after"], length);
    assert_eq!(report["files"], 4);
    let ratio = report["ratio"].as_f64().expect("a number");
    assert!((ratio - length as f64 / before as f64).abs() < 1e-12 && ratio < 0.75, "{ratio}");
    assert!(report["seconds"].as_f64().expect("a number") > 0.0);
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_f64().expect("a number") > 1e6);
    }

    let verdict = json(&run(&["verify", arg(&packed), "--json"]));
    assert_eq!(verdict["ok"], true);
    assert_eq!(verdict["tensors"], report["tensors"]);
    assert_eq!(verdict["damages"], serde_json::json!([]));
    let plain = run(&["verify", arg(&packed)]);
    assert!(plain.status.success() && String::from_utf8_lossy(&plain.stdout).starts_with("whole"));

    let done = json(&run(&["unpack", arg(&packed), "--out", arg(&again), "--json"]));
    assert_eq!((&done["bytes_before"], &done["bytes_after"]), (&length.into(), &before.into()));
    assert!(contents(&again) == contents(&model));

    // What is there stays, unless it is to be replaced.
    assert_fails(&run(&["pack", arg(&model), "--out", arg(&packed)]), 1, &["m.tpk", "--force"]);
    assert_fails(&run(&["unpack", arg(&packed), "--out", arg(&again)]), 1, &["again", "--force"]);
    fs::write(again.join("config.json"), "changed").expect("written");
    json(&run(&["unpack", arg(&packed), "--out", arg(&again), "--json", "--force"]));
    assert!(contents(&again) == contents(&model));
    let other =
        ["pack", arg(&again), "--out", arg(&packed), "--json", "--force", "--effort", "best"];
    let best = json(&run(&other));
    assert!(best["ratio"].as_f64().expect("a number") <= ratio);
    assert_eq!(count(folder.path()), 3);
}

#[test]
fn one_file_and_wrong_usage() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, packed) = (folder.path().join("a.txt"), folder.path().join("a.tpk"));
    fs::write(&text, "Once upon a time").expect("written");
    let out = run(&["pack", arg(&text), "--out", arg(&packed)]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("size"));
    let again = folder.path().join("b.txt");
    let out = run(&["unpack", arg(&packed), "--out", arg(&again)]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("checked"));
    assert_eq!(fs::read(&again).expect("a file"), b"Once upon a time");
    assert_fails(&run(&["pack", arg(&text)]), 2, &["--out"]);
    let hard = ["pack", arg(&text), "--out", "never", "--effort", "hard"];
    assert_fails(&run(&hard), 2, &["fast", "best"]);
    assert_fails(&run(&["pack", "no/such", "--out", "never"]), 1, &["no/such"]);
    assert_fails(&run(&["unpack", arg(&text), "--out", "never"]), 1, &["a.txt", "header"]);
    assert_fails(&run(&["unpack", "no/such", "--out", "never"]), 1, &["no/such"]);
    assert_fails(&run(&["verify", "no/such"]), 1, &["no/such"]);
    assert_fails(&run(&["inspect", arg(&text)]), 1, &["a.txt", "is no model"]);
    assert!(!Path::new("never").exists());
    let inspected = json(&run(&["inspect", arg(&packed), "--json"]));
    assert_eq!(inspected["files"][0]["path"], "a.txt");
    assert!(inspected["model"].is_null() && inspected["no_model"] == "is one file");
}

#[test]
fn damage_is_found_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, packed) = (folder.path().join("m.safetensors"), folder.path().join("m.tpk"));
    made(&file, 100_000);
    json(&run(&["pack", arg(&file), "--out", arg(&packed), "--json"]));
    let good = fs::read(&packed).expect("a file");
    let out = folder.path().join("out");
    let name = "made.weight";
    let damaged = |at: usize, says: &[&str]| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&packed, &bad).expect("written");
        let found = run(&["verify", arg(&packed)]);
        assert_fails(&found, 1, says);
        let found = run(&["verify", arg(&packed), "--json"]);
        assert_eq!(found.status.code(), Some(1));
        let verdict: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
        assert_eq!(verdict["ok"], false);
        assert!(verdict["damages"][0]["message"].is_string());
        assert_fails(&run(&["unpack", arg(&packed), "--out", arg(&out)]), 1, says);
        assert!(!out.exists());
    };
    damaged(good.len() / 2, &["m.tpk", "m.safetensors", name, "chunk 0"]);
    damaged(20, &["m.tpk", "header"]);
    damaged(good.len() - 5, &["m.tpk", "index"]);
    fs::write(&packed, &good[..good.len() - 1]).expect("written");
    assert_fails(&run(&["verify", arg(&packed)]), 1, &["m.tpk", "header", "bytes long"]);
    assert_eq!(count(folder.path()), 2);
}

#[test]
fn differences_from_a_base() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let (packed, out) = (folder.path().join("delta.tpk"), folder.path().join("out"));
    let tuned = folder.path().join("tuned");
    fs::create_dir(&tuned).expect("a folder");
    for (name, mut bytes) in contents(&model) {
        if name == "model.safetensors" {
            // The last bits of some values of the last tensor.
            let from = bytes.len() - 1000;
            bytes[from..].iter_mut().step_by(2).for_each(|byte| *byte ^= 1);
        }
        fs::write(tuned.join(name), bytes).expect("written");
    }
    let alone = folder.path().join("alone.tpk");
    let alone = json(&run(&["pack", arg(&tuned), "--out", arg(&alone), "--json"]));
    let pack = ["pack", arg(&tuned), "--base", arg(&model), "--out", arg(&packed), "--json"];
    let report = json(&run(&pack));
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    assert!(number(&report["bytes_after"]) < 0.4 * number(&alone["bytes_after"]), "{report}");
    assert!(number(&report["delta_tensors"]) > 1.0);

    let without = run(&["unpack", arg(&packed), "--out", arg(&out)]);
    assert_fails(&without, 1, &["delta.tpk", "--base", "xxh3-128", arg(&model)]);
    assert_fails(&run(&["verify", arg(&packed)]), 1, &["--base"]);
    let wrong = run(&["verify", arg(&packed), "--base", arg(&tuned.join("config.json"))]);
    assert_fails(&wrong, 1, &["not the base"]);
    assert!(!out.exists());
    let base = ["--base", arg(&model), "--json"];
    json(&run(&[&["unpack", arg(&packed), "--out", arg(&out)], &base[..]].concat()));
    assert!(contents(&out) == contents(&tuned));
    assert_eq!(json(&run(&[&["verify", arg(&packed)], &base[..]].concat()))["ok"], true);

    // Shapes need no base, weights do.
    let inspected = json(&run(&["inspect", arg(&packed), "--json"]));
    assert_eq!(inspected["base"].as_str(), Some(arg(&model)));
    assert!(inspected["model"]["parameters"].as_u64().expect("a number") > 1_000_000);
    let prompt = ["run", arg(&packed), "--prompt", "Once", "--max-tokens", "2"];
    assert_fails(&run(&prompt), 1, &["--base"]);
    let told = json(&run(&[&prompt[..], &base[..]].concat()));
    assert_eq!(told["tokens"], 2);
}

#[test]
fn packed_models_are_models() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let packed = folder.path().join("m.tpk");
    json(&run(&["pack", arg(&model), "--out", arg(&packed), "--json"]));
    // The same figures.
    let few = ["--max-segments", "3", "--json", "--text", arg(&common::demo_text("heldout.jsonl"))]
        .map(str::to_owned);
    let judge = |model: &Path, reference: &Path| {
        let mut args = vec!["eval".to_owned(), arg(model).to_owned()];
        args.extend(["--reference".to_owned(), arg(reference).to_owned()]);
        args.extend(few.clone());
        json(&run(&args))
    };
    let (of_folder, of_packed) = (judge(&model, &model), judge(&packed, &packed));
    assert_eq!(of_folder, of_packed);
    assert_eq!(of_packed["kld_mean"], 0.0);

    // The same bytes.
    let outs = ["a", "b"].map(|name| folder.path().join(name));
    for (model, out) in [(&model, &outs[0]), (&packed, &outs[1])] {
        let calibration = common::demo_text("calib.txt");
        let recipe = ["--recipe", "gptq(bits=4, group=64)", "--calib-windows", "4"];
        let args = ["compress", arg(model), "--calib", arg(&calibration), "--out", arg(out)];
        json(&run(&[&args[..], &recipe, &["--json"]].concat()));
    }
    let [a, b] = outs.map(|out| contents(&out));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a == b && a.contains_key("tokenizer.json"));

    // And of a compressed model, packed.
    let small = folder.path().join("small.tpk");
    json(&run(&["pack", arg(&folder.path().join("a")), "--out", arg(&small), "--json"]));
    let told = json(&run(&["run", arg(&small), "--prompt", "Once", "--max-tokens", "5", "--json"]));
    assert_eq!(told["tokens"], 5);
    let inspected = json(&run(&["inspect", arg(&small), "--json"]));
    assert_eq!(inspected["model"]["compressed"].as_array().expect("weights").len(), 6 * 7);
    let tensors = inspected["tensors"].as_array().expect("tensors");
    let codes = tensors.iter().find(|t| t["name"].as_str().expect("a name").ends_with(".codes"));
    let codes = codes.expect("packed codes");
    assert!(codes["bits_per_value"].as_f64().expect("a number") <= 8.1, "{codes}");
    let plain = run(&["inspect", arg(&packed)]);
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    for part in ["bits per value", "model.embed_tokens.weight", "architecture", "tokenizer.json"] {
        assert!(text.contains(part), "{part}: {text} {}", stderr(&plain));
    }

    // Damage is found when the weight is read.
    let mut bad = fs::read(&packed).expect("a file");
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&packed, &bad).expect("written");
    let args = ["run", arg(&packed), "--prompt", "Once", "--max-tokens", "5"];
    assert_fails(&run(&args), 1, &["m.tpk/model.safetensors", "chunk", "checksum"]);
}

/// Whether something is being written.
fn unfinished(folder: &Path) -> bool {
    let listing = fs::read_dir(folder).expect("a folder");
    let mut names = listing.map(|entry| entry.expect("an entry").file_name());
    names.any(|name| name.to_string_lossy().contains(".tensorpress-"))
}

/// Kills the program as soon as its unfinished work is seen.
fn kill_when(args: &[&str], seen: impl Fn() -> bool) {
    let mut child = tensorpress()
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    while !seen() {
        assert!(child.try_wait().expect("a status").is_none(), "ended before it was killed");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("killed");
    assert!(!child.wait().expect("a status").success(), "killed too late");
}

#[test]
fn killed_work_leaves_nothing_under_the_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("a folder");
    made(&model.join("m.safetensors"), 30_000_000);
    let (packed, out) = (folder.path().join("m.tpk"), folder.path().join("out"));
    let pack = ["pack", arg(&model), "--out", arg(&packed)];
    kill_when(&pack, || unfinished(folder.path()));
    assert!(!packed.exists());
    assert!(run(&pack).status.success());
    assert!(!unfinished(folder.path()));

    let unpack = ["unpack", arg(&packed), "--out", arg(&out)];
    kill_when(&unpack, || unfinished(folder.path()));
    assert!(!out.exists());
    // What the killed one left is no obstacle.
    assert!(run(&unpack).status.success());
    assert!(contents(&out) == contents(&model));
    assert!(!unfinished(folder.path()));
}

/// Ctrl-C and SIGTERM: the work ends by itself, and takes along what it has begun.
#[test]
#[cfg(unix)]
fn interrupted_work_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("a folder");
    made(&model.join("m.safetensors"), 30_000_000);
    let (packed, out) = (folder.path().join("m.tpk"), folder.path().join("out"));
    let interrupt = |args: &[&str], signal: &str| {
        let mut command = tensorpress();
        let command = command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        while !unfinished(folder.path()) {
            assert!(child.try_wait().expect("a status").is_none(), "ended before it was stopped");
            std::thread::sleep(Duration::from_micros(200));
        }
        let id = child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args([signal, &id])
                .status()
                .expect("kill")
                .success()
        );
        let output = child.wait_with_output().expect("ends");
        assert_fails(&output, 1, &["stopped as asked"]);
        assert!(!unfinished(folder.path()));
    };
    let pack = ["pack", arg(&model), "--out", arg(&packed)];
    for signal in ["-INT", "-TERM"] {
        interrupt(&pack, signal);
        assert!(!packed.exists());
    }
    assert!(run(&pack).status.success());
    interrupt(&["unpack", arg(&packed), "--out", arg(&out)], "-INT");
    assert!(!out.exists());
    assert_eq!(count(folder.path()), 2);
}

/// A limit on the size of files stands in for a full disk.
#[test]
#[cfg(unix)]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, packed) = (folder.path().join("m.safetensors"), folder.path().join("m.tpk"));
    made(&file, 1_000_000);
    let limited = |command: &str| {
        let program = env!("CARGO_BIN_EXE_tensorpress");
        let script = format!("trap '' XFSZ; ulimit -f 64; exec '{program}' {command}");
        std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell")
    };
    let command = format!("pack '{}' --out '{}'", arg(&file), arg(&packed));
    assert_fails(&limited(&command), 1, &["m.tpk", "cannot write"]);
    assert_eq!(count(folder.path()), 1);
    json(&run(&["pack", arg(&file), "--out", arg(&packed), "--json"]));
    let command = format!("unpack '{}' --out '{}'", arg(&packed), arg(&folder.path().join("out")));
    assert_fails(&limited(&command), 1, &["out", "cannot write"]);
    assert_eq!(count(folder.path()), 2);
}
