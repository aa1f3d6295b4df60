//! `compress`, `eval`, `inspect` and `run` when all is well.

mod common;

use std::path::Path;

use common::{
    arg, assert_fails, contents, demo_text, json, model_folder, run, stderr, tensorpress,
};
use tensorpress_tensor::testing::data;

#[test]
fn demo_from_end_to_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("w4");
    let done = run(&["compress", "demo", "--recipe", "w4", "--out", arg(&out), "--eval", "--json"]);
    let report = json(&done);
    let layers = report["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 6 * 7);
    for layer in layers {
        assert_eq!(layer["method"], "gptq(bits=4, group=128, clip=mse)");
        assert!(layer["error"].as_f64().expect("a number") < 0.3, "{layer}");
        assert!(layer["bits_per_weight"].as_f64().expect("a number") < 4.3, "{layer}");
        assert!(layer["fallback"].is_null(), "{layer}");
        assert!(layer["name"].as_str().expect("a name").starts_with("model.layers."));
    }
    let (before, after) = (&report["before"], &report["after"]);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    assert!(number(&after["perplexity"]) < 1.2 * number(&before["perplexity"]));
    assert_eq!(after["reference_perplexity"], before["perplexity"]);
    assert!(before["kld_mean"].is_null());
    assert!(number(&after["kld_mean"]) > 0.0);
    assert!(number(&report["bytes_after"]) < number(&report["bytes_before"]));
    assert_eq!(report["bytes_after"], after["file_bytes"]);
    assert!(number(&report["seconds"]) > 0.0);
    if cfg!(target_os = "linux") {
        assert!(number(&report["peak_rss_bytes"]) > 1e6);
    }

    // The same figures, judged on their own.
    let text = demo_text("heldout.jsonl");
    let args = ["eval", arg(&out), "--reference", "demo", "--text", arg(&text), "--json"];
    let judged = json(&run(&args));
    for key in
        ["perplexity", "reference_perplexity", "kld_mean", "kld_p99", "top1_agreement", "tokens"]
    {
        assert_eq!(judged[key], after[key], "{key}");
    }
    assert_eq!(judged["bits_per_weight"], report["bits_per_weight"]);

    let inspected = json(&run(&["inspect", arg(&out), "--json"]));
    assert_eq!(inspected["compressed"].as_array().expect("weights").len(), layers.len());
    assert_eq!(inspected["file_bytes"], report["bytes_after"]);
    let plain = run(&["inspect", arg(&out)]);
    assert!(String::from_utf8_lossy(&plain.stdout).contains("grouped_affine"));

    let told = json(&run(&[
        "run",
        arg(&out),
        "--prompt",
        "Once upon a time",
        "--max-tokens",
        "8",
        "--json",
    ]));
    assert_eq!(told["tokens"], 8);
    let streamed = run(&["run", arg(&out), "--prompt", "Once upon a time", "--max-tokens", "8"]);
    let text = String::from_utf8_lossy(&streamed.stdout).into_owned();
    assert_eq!(Some(text.trim_end_matches('\n')), told["text"].as_str());
    assert!(stderr(&streamed).contains("tokens/s"));
}

#[test]
fn a_folder_is_like_the_demo() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let outs = ["a", "b"].map(|name| folder.path().join(name));
    for (model, out) in [("demo", &outs[0]), (arg(&model), &outs[1])] {
        json(&run(&[
            "compress",
            model,
            "--recipe",
            "rtn(bits=5, group=32)",
            "--out",
            arg(out),
            "--json",
        ]));
    }
    let [a, b] = outs.map(|out| contents(&out));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a == b);
    let config: serde_json::Value = serde_json::from_slice(&a["config.json"]).expect("JSON");
    assert_eq!(config["quantization_config"]["quant_method"], "tensorpress");
    assert!(a.contains_key("tokenizer.json") && a.contains_key("model.safetensors.index.json"));
}

#[test]
fn rules_for_layers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (recipe, out) = (folder.path().join("recipe.toml"), folder.path().join("out"));
    let text = r#"
        stage = ["gptq(bits=3, group=64)"]
        [[layer]]
        match = "model.layers.0.*"
        skip = true
        [[layer]]
        match = "*.v_proj.weight"
        stage = [{ method = "rtn", bits = 8, group = 64 }]
        [[layer]]
        match = "model.embed_tokens.weight"
        stage = [{ method = "rtn", bits = 8, group = 0 }]
    "#;
    std::fs::write(&recipe, text).expect("written");
    let args =
        ["compress", "demo", "--recipe", arg(&recipe), "--out", arg(&out), "--json", "--eval"];
    let report = json(&run(&args));
    let layers = report["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 1 + 5 * 7);
    for layer in layers {
        let (name, method) = (layer["name"].as_str().unwrap(), layer["method"].as_str().unwrap());
        let expected = match name {
            "model.embed_tokens.weight" => "rtn(bits=8, group=0)",
            name if name.ends_with("v_proj.weight") => "rtn(bits=8, group=64)",
            _ => "gptq(bits=3, group=64)",
        };
        assert_eq!(method, expected, "{name}");
        assert!(!name.starts_with("model.layers.0."), "{name}");
    }
    assert!(report["after"]["kld_mean"].as_f64().expect("judged") < 1.0);
}

#[test]
fn awq_folds_and_stays_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    for (recipe, out) in [("awq(bits=4, group=64)", "a"), ("awq | gptq(bits=4, group=64)", "b")] {
        let out = folder.path().join(out);
        let args = ["compress", "demo", "--recipe", recipe, "--out", arg(&out), "--json", "--eval"];
        let report = json(&run(&args));
        assert!(report["after"]["kld_mean"].as_f64().expect("judged") < 0.1, "{recipe}");
        for layer in report["layers"].as_array().expect("layers") {
            assert!(layer["error"].as_f64().expect("a number") < 0.3, "{layer}");
        }
    }
}

/// Heads and channels that are gone: a plain folder, one with blocks of different shapes, and one compressed besides.
#[test]
fn smaller_shapes_are_reported_inspected_and_judged() {
    let folder = tempfile::tempdir().expect("a folder");
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    for (i, (recipe, uneven, bits)) in [
        ("flap(sparsity=0.5, uniform=true)", false, 16.0),
        ("flap(sparsity=0.3)", true, 16.0),
        ("flap(sparsity=0.3) | rtn(bits=8)", true, 8.25),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(i.to_string());
        let args = ["compress", "demo", "--recipe", recipe, "--out", arg(&out), "--json"];
        let report = json(&run(&args));
        let blocks = report["blocks"].as_array().expect("blocks");
        assert_eq!(blocks.len(), 6);
        for (number, block) in blocks.iter().enumerate() {
            assert_eq!(block["block"], number);
            assert_eq!(block["before"]["intermediate"], 384);
            assert!(block["after"]["heads"].as_u64() <= block["before"]["heads"].as_u64());
        }
        let layers = report["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 6 * 7);
        assert!(layers.iter().all(|l| l["method"] == recipe), "{recipe}");
        assert!((number(&report["bits_per_weight"]) - bits).abs() < 0.3, "{recipe}");
        assert!(number(&report["bytes_after"]) < number(&report["bytes_before"]));

        let inspected = json(&run(&["inspect", arg(&out), "--json"]));
        let shapes = &inspected["config"]["shapes"];
        assert_eq!(shapes.as_array().map(Vec::len), uneven.then_some(6), "{recipe}");
        for (block, shape) in blocks.iter().zip(shapes.as_array().into_iter().flatten()) {
            assert_eq!(block["after"], *shape, "{recipe}");
        }
        let plain = run(&["inspect", arg(&out)]);
        let text = String::from_utf8_lossy(&plain.stdout).into_owned();
        assert_eq!(
            text.lines().any(|l| l.starts_with("hidden") && l.contains(" to ")),
            uneven,
            "{text}"
        );
        let judged = json(&run(&[
            "eval",
            arg(&out),
            "--reference",
            "demo",
            "--text",
            arg(&demo_text("heldout.jsonl")),
            "--json",
        ]));
        assert!(number(&judged["kld_mean"]) > 0.0 && number(&judged["kld_mean"]) < 5.0, "{judged}");
        assert_eq!(judged["file_bytes"], report["bytes_after"]);
        assert_eq!(
            json(&run(&["run", arg(&out), "--prompt", "Once", "--max-tokens", "5", "--json"]))["tokens"],
            5
        );
        // Packed and back.
        let packed = folder.path().join(format!("{i}.tpk"));
        assert!(run(&["pack", arg(&out), "--out", arg(&packed)]).status.success());
        let again = json(&run(&["inspect", arg(&packed), "--json"]));
        assert!(again.is_object());
    }
    let out = folder.path().join("table");
    let done = run(&["compress", "demo", "--recipe", "flap(uniform=true)", "--out", arg(&out)]);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(text.contains("384 -> 308") && text.contains("feed-forward"), "{text}");
    let refused = run(&["compress", "demo", "--recipe", "flap(sparsity=1)", "--out", arg(&out)]);
    assert_fails(&refused, 2, &["sparsity = 1", "below 1"]);
}

#[test]
fn existing_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let compress = |bits: &str, force: bool| {
        let recipe = format!("rtn(bits={bits})");
        let mut args = vec!["compress", "demo", "--recipe", &recipe, "--out", arg(&out), "--json"];
        args.extend(force.then_some("--force"));
        run(&args)
    };
    let first = json(&compress("8", false));
    assert_fails(&compress("4", false), 1, &[arg(&out), "exists already", "--force"]);
    let second = json(&compress("4", true));
    assert!(second["bytes_after"].as_u64() < first["bytes_after"].as_u64());
    let names: Vec<String> = contents(&out).into_keys().collect();
    assert!(names.iter().all(|n| !n.contains("state") && !n.contains("lock")), "{names:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);

    // Not everything that is there may be replaced.
    std::fs::create_dir(out.join("inner")).expect("a folder");
    assert_fails(&compress("4", true), 1, &["inner", "not replaced"]);
    let model = model_folder(folder.path());
    let onto_itself = ["compress", arg(&model), "--recipe", "w8", "--out", arg(&model), "--force"];
    assert_fails(&run(&onto_itself), 1, &["is the model to compress"]);
    assert!(model.join("model.safetensors").exists());
}

#[test]
fn human_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let done = run(&["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--eval"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    for part in ["size", "bits per weight", "codes 8.000", "perplexity", "KL divergence", "time"] {
        assert!(text.contains(part), "`{text}` lacks `{part}`");
    }
    let done = run(&[
        "eval",
        arg(&out),
        "--reference",
        "demo",
        "--text",
        arg(&demo_text("heldout.jsonl")),
    ]);
    assert!(String::from_utf8_lossy(&done.stdout).contains("top-1 agreement"));
    let help = tensorpress().args(["compress", "--help"]).output().expect("the program starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(
        help.contains("w4") && help.contains("gptq") && !help.contains("static_groups"),
        "{help}"
    );
    let keys = tensorpress().args(["stages", "gptq"]).output().expect("the program starts");
    assert!(String::from_utf8_lossy(&keys.stdout).contains("static_groups"));
}

#[test]
fn models_of_every_kind_are_inspected() {
    for (name, says, not) in [
        ("mamba", &["inside blocks 64", "context", "any"][..], &["heads"][..]),
        ("vit", &["heads", "32 x 32, in patches of 8 x 8"], &["vocabulary"]),
        ("clip", &["4: 2 of texts, 2 of images", "patches", "vocabulary"], &["any"]),
    ] {
        let Some(folder) = data::find(&format!("golden/models/{name}")) else { return };
        let output = run(&["inspect", folder.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let head = text.split("\n\n").next().expect("a table");
        assert!(says.iter().all(|part| head.contains(part)), "{head}");
        assert!(not.iter().all(|part| !head.contains(part)), "{head}");
        // An encoder predicts no tokens.
        if name != "mamba" {
            let ids = folder.join("expected.safetensors");
            let args =
                ["eval", folder.to_str().expect("UTF-8"), "--text", ids.to_str().expect("UTF-8")];
            assert_fails(&run(&args), 1, &[name]);
        }
    }
}

#[test]
fn a_file_of_tensors_is_taken_as_that() {
    let parent = tempfile::tempdir().expect("a folder");
    let file = model_folder(parent.path()).join("model.safetensors");
    let (file, out) = (file.to_str().expect("UTF-8"), parent.path().join("out"));
    let out = out.to_str().expect("UTF-8");
    let compress = ["compress", file, "--recipe", "rtn(bits=4, group=32)", "--out", out, "--json"];
    let done = run(&compress);
    assert!(stderr(&done).contains("note: taken as tensors, without a forward pass"));
    let report = json(&done);
    let layers = report["layers"].as_array().expect("layers");
    assert!(layers.iter().all(|l| !l["name"].as_str().expect("a name").contains("embed")));
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    let inspected = json(&run(&["inspect", out, "--json"]));
    assert!(inspected["config"].is_null());
    assert_eq!(inspected["compressed"].as_array().expect("a list").len(), layers.len());
    let table = run(&["inspect", file]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("unknown"));
    let text = demo_text("heldout.jsonl");
    let text = text.to_str().expect("UTF-8");
    for args in [
        &["eval", out, "--text", text][..],
        &["run", file, "--prompt", "Once"],
        &["compress", file, "--recipe", "gptq(bits=4)", "--calib", text, "--out", "never"],
        &["compress", file, "--recipe", "rtn(bits=4)", "--eval", text, "--out", "never"],
    ] {
        assert_fails(&run(args), 1, &["cannot be run"]);
    }
}

/// Made, read by `convert`, in both forms; and nothing is replaced that is not one.
#[test]
fn importance_matrices_are_written_and_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (new, old, text) = (path("new.gguf"), path("old.dat"), path("text.txt"));
    let short = ["--calib-windows", "3", "--calib-length", "32"];
    let make = |more: &[&str], out: &Path| {
        run(&[&["imatrix", "demo", "--json", "--out", arg(out)], &short[..], more].concat())
    };
    let made = json(&make(&[], &new));
    assert_eq!(
        (&made["matrices"], &made["tokens"], &made["unseen"]),
        (&42.into(), &96.into(), &0.into())
    );
    assert_eq!(json(&make(&["--old"], &old))["matrices"], 42);
    // Files of one name have it in them: a folder for each.
    let convert = |more: &[&str], to: &str| {
        std::fs::create_dir(path(to)).expect("a folder");
        let out = path(to).join("model.gguf");
        let command = ["convert", "demo", "--to", "gguf(IQ4_NL)", "--json", "--out", arg(&out)];
        json(&run(&[&command[..], more].concat()));
        std::fs::read(&out).expect("a file")
    };
    // As if it were made on the way; and it matters.
    std::fs::copy(demo_text("calib.txt"), &text).expect("a text");
    let on_the_way = convert(&[&["--calib", arg(&text)], &short[..]].concat(), "on-the-way");
    assert!(convert(&["--imatrix", arg(&new)], "new") == on_the_way);
    assert!(convert(&["--imatrix", arg(&old)], "old").len() == on_the_way.len());
    assert!(convert(&[], "none") != on_the_way);
    // Nothing else is replaced, asked or not: the text that is read, a model.
    assert_fails(&make(&[], &new), 1, &["new.gguf", "exists already"]);
    json(&make(&["--force"], &new));
    let calib = ["--calib", arg(&text), "--force"];
    assert_fails(&make(&calib, &text), 1, &["text.txt", "no importance matrix; not replaced"]);
    assert_fails(
        &make(&["--force"], &path("new").join("model.gguf")),
        1,
        &["model.gguf", "no importance matrix"],
    );
    let model = model_folder(folder.path());
    let no_text = run(&["imatrix", arg(&model), "--out", arg(&path("x"))]);
    assert_fails(&no_text, 2, &["--calib"]);
    let out = path("y.gguf");
    let unused = ["convert", "demo", "--to", "gguf", "--imatrix", arg(&new), "--out", arg(&out)];
    assert_fails(&run(&unused), 1, &["gguf(TYPE)"]);
}
