//! Arguments in plain words, names of any length, and readers that go away.

mod common;

use std::fs;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use common::{
    arg, assert_fails, contents, demo_text, json, model_folder, run, stderr, tensorpress,
};

#[test]
fn texts_may_begin_with_a_hyphen_and_numbers_may_not() {
    let generate = ["run", "demo", "--max-tokens", "4", "--json"];
    for prompt in ["- one", "-one", "--", "-1"] {
        let done = json(&run(&[&generate[..], &["--prompt", prompt]].concat()));
        let same = json(&run(&[&generate[..], &[&format!("--prompt={prompt}")]].concat()));
        assert_eq!(done["text"], same["text"], "{prompt}");
    }
    let text = demo_text("calib.txt");
    let squeeze = ["squeeze", arg(&text), "--budget", "9", "--question", "- who?", "--keep", "-x"];
    let done = run(&squeeze);
    assert!(done.status.success(), "{}", common::stderr(&done));
    let whole = "allowed are whole numbers from";
    let table: &[(&[&str], &[&str])] = &[
        (
            &["run", "demo", "--prompt", "x", "--seed", "-1"],
            &["'-1'", "--seed", whole, "18446744073709551615"],
        ),
        (&["run", "demo", "--prompt", "x", "--seed", "one"], &["'one'", "--seed", whole]),
        (&["run", "demo", "--prompt", "x", "--max-tokens", "-4"], &["'-4'", "--max-tokens", whole]),
        (
            &["compress", "demo", "--recipe", "w8", "--out", "x", "--seed", "-1"],
            &["'-1'", "--seed", whole],
        ),
        (
            &["compress", "demo", "--recipe", "w8", "--out", "x", "--calib-windows", "-1"],
            &["'-1'", whole],
        ),
        (
            &["compress", "demo", "--recipe", "w8", "--out", "x", "--calib-chars", "-1"],
            &["'-1'", whole],
        ),
        (
            &["compress", "demo", "--recipe", "w8", "--out", "x", "--calib-length", "-1"],
            &["'-1'", whole],
        ),
        (&["eval", "demo", "--max-segments", "-1"], &["'-1'", "--max-segments", whole]),
        (&["eval", "demo", "--max-tokens", "1.5"], &["'1.5'", "--max-tokens", whole]),
        (&["squeeze", "x", "--budget", "-1"], &["'-1'", "--budget", whole]),
        (&["squeeze", "x", "--budget", "0"], &["'0'", "--budget", whole]),
    ];
    for (args, says) in table {
        assert_fails(&run(args), 2, says);
    }
}

#[test]
fn help_lists_names_and_stages_tells_of_them() {
    let out = |args: &[&str]| String::from_utf8(run(args).stdout).expect("UTF-8");
    let help = out(&["compress", "--help"]);
    let (_, recipes) = help.split_once("Presets:").expect("presets");
    assert!(recipes.contains("tensorpress stages NAME"), "{recipes}");
    assert!(recipes.lines().all(|line| line.chars().count() <= 120), "{recipes}");
    let (_, names) = recipes.split_once("Stages").expect("stages");
    let (_, names) = names.split_once(":\n").expect("names");
    let names: Vec<&str> =
        names.split("\n\n").next().expect("names").split([',', '\n']).map(str::trim).collect();
    assert!(names.contains(&"gptq") && names.contains(&"feature_mimicking"), "{names:?}");
    let listed = out(&["stages"]);
    for name in names.iter().filter(|name| !name.is_empty()) {
        let of = out(&["stages", name]);
        assert!(of.contains(&format!("{name}, ")), "{name}: {of}");
        // A name never runs into what is said of it.
        assert!(listed.contains(&format!("\n  {name}  ")), "{name}: {listed}");
        for line in of.lines().skip(2).filter(|line| line.starts_with("  ") && line.contains("): "))
        {
            let (key, rest) = line[2..].split_once("  ").expect(line);
            assert!(!key.contains(' ') && rest.contains('('), "{line}");
        }
    }
}

/// Adds a tensor of one number to a safetensors file.
fn add(file: &Path, name: &str) {
    let bytes = fs::read(file).expect("a file");
    let header =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8"))).expect("fits");
    let mut json: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let data = &bytes[8 + header..];
    json[name] = serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": [data.len(), data.len() + 4]});
    let header = json.to_string();
    let all = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data, &[0; 4]].concat();
    fs::write(file, all).expect("written");
}

#[test]
fn names_of_any_length_are_shown_short_and_kept_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let name = format!("begin.{}.end", "x".repeat(70_000));
    add(&model.join("model.safetensors"), &name);
    let packed = folder.path().join("m.tpk");
    let done = run(&["pack", arg(&model), "--out", arg(&packed)]);
    assert!(done.status.success(), "{}", common::stderr(&done));
    for (model, at) in [(&model, "/tensors"), (&packed, "/model/tensors")] {
        let shown = run(&["inspect", arg(model)]);
        assert!(shown.status.success(), "{}", common::stderr(&shown));
        let shown = String::from_utf8(shown.stdout).expect("UTF-8");
        assert!(shown.contains("begin.xxx") && shown.contains("xxx.end") && shown.contains('…'));
        assert!(shown.lines().all(|line| line.chars().count() < 1000));
        let told = json(&run(&["inspect", arg(model), "--json"]));
        let tensors = told.pointer(at).and_then(|t| t.as_array()).expect("tensors");
        assert!(tensors.iter().any(|tensor| tensor["name"] == name.as_str()));
    }
}

/// Runs the program with one of its outputs closed by the reader.
#[cfg(unix)]
fn closed(args: &[&str], output: bool) -> ExitStatus {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = tensorpress();
    command.args(args).stdin(Stdio::null());
    match output {
        true => command.stdout(writer).stderr(Stdio::null()),
        false => command.stderr(writer).stdout(Stdio::null()),
    };
    command.status().expect("the program starts")
}

#[cfg(unix)]
#[test]
fn nobody_has_to_read_what_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (packed, damaged, text) = (path("m.tpk"), path("d.tpk"), path("t.txt"));
    assert!(run(&["pack", arg(&model), "--out", &packed]).status.success());
    let mut bytes = fs::read(&packed).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("written");
    fs::write(&text, "{\"messages\": [{\"role\": \"user\", \"content\": \"Once upon a time.\"}]}")
        .expect("written");
    let out = path("out");
    let commands: &[&[&str]] = &[
        &["inspect", "demo"],
        &["inspect", &packed],
        &["compress", "demo", "--recipe", "rtn(bits=4)", "--force", "--out", &out],
        &["compress", "demo", "--recipe", "wanda", "--calib", &text, "--force", "--out", &out],
        &["eval", "demo", "--text", &text],
        &["run", "demo", "--prompt", "Once", "--max-tokens", "4"],
        &["squeeze", &text, "--budget", "5"],
        &["stages"],
        &["stages", "gptq"],
        &["stages", "--schema"],
        &["stages", "--markdown"],
        &["pack", arg(&model), "--force", "--out", &packed],
        &["unpack", &packed, "--force", "--out", &path("again")],
        &["verify", &packed],
        &["verify", &damaged],
        &["inspect", "no/such/model"],
        &["frobnicate"],
        &[],
        &["--help"],
        &["compress", "--help"],
        &["--version"],
    ];
    for command in commands {
        for json in [&[][..], &["--json"]] {
            let args = [command, json].concat();
            for output in [true, false] {
                let status = closed(&args, output);
                // 101 is a panic, no code a signal.
                assert!(status.code().is_some_and(|code| code <= 2), "{args:?}: {status}");
            }
        }
    }
}

#[test]
fn lengths_of_files_have_units() {
    let folder = tempfile::tempdir().expect("a folder");
    let convert = |size: &str, out: &str| {
        let out = folder.path().join(out);
        run(&["convert", "demo", "--to", "safetensors", "--shard-size", size, "--out", arg(&out)])
    };
    for size in ["", "0", "x", "MB", "1TB", "nan", "inf", "1e300GB", "0.5"] {
        assert_fails(&convert(size, "bad"), 2, &["allowed are bytes from 1, such as 5GB"]);
    }
    let files = |size: &str| {
        let ended = convert(size, size);
        assert!(ended.status.success(), "{size}: {}", stderr(&ended));
        let names = contents(&folder.path().join(size)).into_keys();
        names.filter(|name| name.ends_with(".safetensors")).count()
    };
    assert_eq!(files("5GB"), 1);
    assert_eq!(files("1.5GiB"), 1);
    assert_eq!(files("1e9"), 1);
    assert_eq!(files("500kB"), files("500000"));
    assert_eq!(files("0.5MiB"), files("512KiB"));
    assert!(files("100kB") > files("1MB"));
}
