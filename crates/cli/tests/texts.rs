//! Texts of every form for `--calib`, `--eval` and `--text`, and what begins them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{arg, assert_fails, contents, json, model_folder, run, stderr};
use serde_json::{Value, json as value};

const TEXTS: [&str; 2] = [
    "Once upon a time there was a little dog. It liked to play with a red ball.",
    "One day the ball rolled into the lake, and a kind fish brought it back.",
];
/// Some tokens of the demo model, behind BOS.
const IDS: [[u32; 9]; 2] =
    [[1, 40, 50, 60, 70, 80, 90, 100, 110], [1, 300, 301, 302, 303, 304, 305, 306, 307]];

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, text).expect("written");
    file
}

fn lines(all: &[Value]) -> String {
    all.iter().map(|line| format!("{line}\n")).collect()
}

/// A safetensors file of token ids.
fn tensor(ids: &[[u32; 9]]) -> Vec<u8> {
    let data: Vec<u8> = ids.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
    let header =
        value!({"ids": {"dtype": "U32", "shape": [ids.len(), 9], "data_offsets": [0, data.len()]}});
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// What `eval` finds, but for the model's size.
fn judged(model: &str, text: &Path, more: &[&str]) -> Value {
    json(&run(&[&["eval", model, "--text", arg(text), "--json"], more].concat()))
}

/// The files that come of calibrating on a text.
fn calibrated(text: &Path, more: &[&str]) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let args = [
        "compress",
        "demo",
        "--recipe",
        "drop_blocks(count=1) | wanda",
        "--calib",
        arg(text),
        "--out",
        arg(&out),
    ];
    let done = run(&[&args[..], more].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    contents(&out).into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

#[test]
fn a_name_says_nothing_and_every_form_is_read_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let objects = TEXTS.map(|text| value!({"text": text}));
    let ids = IDS.map(|ids| value!({"ids": ids}));
    let forms: &[&[(&str, Vec<u8>)]] = &[
        &[
            ("a.jsonl", lines(&objects).into()),
            ("a.txt", lines(&objects).into()),
            ("a", format!("\u{FEFF}{}", lines(&objects).replace('\n', "\r\n")).into()),
            ("a.json", value!(TEXTS).to_string().into()),
            ("b.json", format!("{:#}", value!(objects)).into()),
        ],
        &[
            ("ids.jsonl", lines(&ids).into()),
            ("ids.dat", lines(&IDS.map(|ids| value!({"input_ids": ids}))).into()),
            ("ids.safetensors", tensor(&IDS)),
            ("ids.txt", tensor(&IDS)),
        ],
        &[
            ("plain.txt", TEXTS.join("\n").into()),
            ("plain", TEXTS.join("\r\n").into()),
            ("plain.md", format!("\u{FEFF}{}", TEXTS.join("\n")).into()),
        ],
    ];
    let mut judgements = Vec::new();
    for forms in forms {
        let files: Vec<PathBuf> =
            forms.iter().map(|(name, text)| write(folder.path(), name, text)).collect();
        let first = judged("demo", &files[0], &[]);
        let made = calibrated(&files[0], &[]);
        for file in &files[1..] {
            assert_eq!(judged("demo", file, &[]), first, "{}", file.display());
            assert_eq!(calibrated(file, &[]), made, "{}", file.display());
        }
        judgements.push((first["perplexity"].clone(), made));
    }
    let [(texts, of_texts), (ids, of_ids), (plain, of_plain)] = &judgements[..] else {
        panic!("three")
    };
    assert!(texts != ids && texts != plain && of_texts != of_ids && of_ids != of_plain);
    // `compress --eval` reads as `eval` does.
    let out = folder.path().join("out");
    let text = folder.path().join("a.txt");
    let args =
        ["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--eval", arg(&text), "--json"];
    assert_eq!(json(&run(&args))["before"]["perplexity"], *texts);
}

#[test]
fn ids_need_no_tokenizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(model.join(name)).expect("removed");
    }
    let ids = write(folder.path(), "ids.txt", lines(&IDS.map(|ids| value!({"ids": ids}))));
    assert_eq!(
        judged(arg(&model), &ids, &[])["perplexity"],
        judged("demo", &ids, &[])["perplexity"]
    );
    let out = folder.path().join("out");
    let compress = |text: &Path| {
        run(&[
            "compress",
            arg(&model),
            "--recipe",
            "wanda",
            "--calib",
            arg(text),
            "--out",
            arg(&out),
        ])
    };
    let text = write(folder.path(), "text.txt", TEXTS[0]);
    assert_fails(&compress(&text), 1, &["tokenizer.json"]);
    let done = compress(&ids);
    assert!(done.status.success(), "{}", stderr(&done));
    let beyond = write(folder.path(), "beyond.txt", "{\"ids\": [1, 2]}\n{\"ids\": [1, 5000]}");
    let failed = run(&["eval", arg(&model), "--text", arg(&beyond)]);
    assert_fails(&failed, 1, &["beyond.txt", "text 2", "5000", "0 to 1023"]);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("a.txt", b"{\"text\": \"x\"}\n{\"texts\": 1}", &["line 2", "`texts`"]),
        ("b.txt", b"{\"text\": \"x\"", &["line 1", "not JSON"]),
        ("c.txt", b"[1, 2]", &["line 1", "a number"]),
        ("d.jsonl", b"Once upon a time", &["neither { nor ["]),
        ("e.parquet", b"PAR1\0\0PAR1", &["Parquet", "JSON lines"]),
        ("f.jsonl.gz", b"\x1f\x8b\x08\0\0\0", &["gunzip"]),
        ("g.zst", b"\x28\xb5\x2f\xfd\0\0", &["unzstd"]),
        ("h.txt", b"\xff\xfeO\0n\0", &["UTF-16", "UTF-8"]),
        ("i.bin", b"\x01\0\x02", &["NUL"]),
    ];
    for (name, bytes, says) in cases {
        let file = write(folder.path(), name, bytes);
        let says = [*says, &[name]].concat();
        assert_fails(&run(&["eval", "demo", "--text", arg(&file)]), 1, &says);
        for flag in ["--calib", "--eval"] {
            let out = folder.path().join("out");
            let args = ["compress", "demo", "--recipe", "w4", "--out", arg(&out), flag, arg(&file)];
            assert_fails(&run(&args), 1, &says);
            assert!(!out.exists());
        }
    }
    let empty = write(folder.path(), "empty.json", "[]");
    assert_fails(&run(&["eval", "demo", "--text", arg(&empty)]), 1, &["empty.json", "no token"]);
}

#[test]
fn chats_are_read_and_it_is_said_how() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = |role: &str, text: &str| value!({"role": role, "content": text});
    let chat = value!({"messages": [message("user", TEXTS[0]), message("assistant", TEXTS[1])]});
    let text = format!("user: {}\nassistant: {}\n", TEXTS[0], TEXTS[1]);
    let chat = write(folder.path(), "chat.jsonl", lines(&[chat]));
    let same = write(folder.path(), "same.jsonl", lines(&[value!({"text": text})]));
    let done = run(&["eval", "demo", "--text", arg(&chat), "--json"]);
    assert_eq!(stderr(&done).matches("not by the model's chat template").count(), 1);
    assert_eq!(json(&done), judged("demo", &same, &[]));
}

/// A model whose tokenizer's files were changed.
fn changed(parent: &Path, template: bool, config: &[(&str, Value)]) -> PathBuf {
    fs::create_dir_all(parent).expect("a folder");
    let model = model_folder(parent);
    let edit = |name: &str, change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let text = fs::read(model.join(name)).expect("a file");
        let mut json: Value = serde_json::from_slice(&text).expect("JSON");
        change(json.as_object_mut().expect("an object"));
        fs::write(model.join(name), json.to_string()).expect("written");
    };
    if !template {
        edit("tokenizer.json", &|json| json["post_processor"] = Value::Null);
    }
    edit("tokenizer_config.json", &|json| {
        json.extend(config.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    });
    model
}

#[test]
fn bos_comes_as_the_tokenizer_or_the_flag_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = write(folder.path(), "text.jsonl", lines(&TEXTS.map(|text| value!({"text": text}))));
    let perplexity = |model: &str, more: &[&str]| judged(model, &text, more)["perplexity"].clone();
    let (with, without) = (perplexity("demo", &[]), perplexity("demo", &["--bos", "never"]));
    assert_ne!(with, without);
    assert_eq!(perplexity("demo", &["--bos", "always"]), with);
    assert_eq!(perplexity("demo", &["--bos", "auto"]), with);
    let tokens = |more: &[&str]| judged("demo", &text, more)["tokens"].as_u64().expect("a count");
    assert_eq!(tokens(&[]), tokens(&["--bos", "never"]) + 2);
    assert_ne!(calibrated(&text, &[]), calibrated(&text, &["--bos", "never"]));
    assert_eq!(calibrated(&text, &[]), calibrated(&text, &["--bos", "always"]));

    let adds = |adds: bool| ("add_bos_token", value!(adds));
    for (name, template, config, auto) in [
        ("template", true, vec![], &with),
        ("template first", true, vec![adds(false)], &with),
        ("told", false, vec![adds(true)], &with),
        ("told not to", false, vec![adds(false)], &without),
        ("untold", false, vec![], &without),
    ] {
        let model = changed(&folder.path().join(name), template, &config);
        let model = arg(&model);
        assert_eq!(perplexity(model, &[]), *auto, "{name}");
        assert_eq!(perplexity(model, &["--bos", "always"]), with, "{name}");
        assert_eq!(perplexity(model, &["--bos", "never"]), without, "{name}");
    }
    let model = changed(&folder.path().join("none"), false, &[("bos_token", Value::Null)]);
    assert_eq!(perplexity(arg(&model), &[]), without);
    let says = ["no token that begins a text", "bos_token"];
    let always = ["--bos", "always"];
    let eval = ["eval", arg(&model), "--text", arg(&text)];
    assert_fails(&run(&[&eval[..], &always].concat()), 1, &says);
    let generate = ["run", arg(&model), "--prompt", "Once"];
    assert_fails(&run(&[&generate[..], &always].concat()), 1, &says);
    let out = folder.path().join("out");
    let compress =
        ["compress", arg(&model), "--recipe", "w4", "--out", arg(&out), "--calib", arg(&text)];
    assert_fails(&run(&[&compress[..], &always].concat()), 1, &says);
    assert_fails(
        &run(&["eval", "demo", "--bos", "perhaps"]),
        2,
        &["perhaps", "auto, always, never"],
    );
}
