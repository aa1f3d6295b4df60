//! What goes along with a model: files in folders, through links, and nothing that somebody else put there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::entropy::{PackedFile, Packer};
use tensorpress::pipeline::{Event, Progress, Report, partial_of, write_model};
use tensorpress::prelude::*;

const LIST: &str = "tensorpress-files.json";

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("written");
    }
}

/// The demo model in a folder, with these files beside it.
fn model(folder: &Path, files: &[(&str, &str)]) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    fs::create_dir_all(folder).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(demo.join(name), folder.join(name)).expect("copied");
    }
    write(folder, files);
}

/// All files below a folder, but weights of the model and what the pipeline makes.
fn side(folder: &Path) -> BTreeMap<String, String> {
    fn below(folder: &Path, prefix: &str, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().expect("a type");
            assert!(!kind.is_symlink(), "{name}");
            if kind.is_dir() {
                below(&entry.path(), &format!("{name}/"), all);
            } else {
                let text = fs::read(entry.path()).expect("a file");
                all.insert(name, String::from_utf8_lossy(&text).into_owned());
            }
        }
    }
    let mut all = BTreeMap::new();
    below(folder, "", &mut all);
    all.retain(|name, _| !name.starts_with("model") && name != "config.json" && name != LIST);
    all
}

fn texts(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn compress(model: &Path, out: &Path, bits: usize, force: bool) -> Result<Report> {
    let recipe = Recipe::parse(&format!("rtn(bits={bits})"))?;
    Compressor::new(recipe).with_force(force).run(&open_model(model)?, out)
}

const GOES: &[(&str, &str)] = &[
    ("1_Pooling/config.json", "{\"pooling\": 1}"),
    ("2_Dense/model.safetensors", "weights of a module"),
    ("3_Dense/pytorch_model.bin", "weights of another"),
    ("LICENSE", "free"),
    ("README.md", "# A model"),
    ("assets/deep/down/image.png", "png"),
    ("merges.txt", ""),
    ("modules.json", r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "3_Dense"}]"#),
    ("onnx/config.json", "{}"),
    ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ("training_args.bin", "arguments"),
];
const STAYS: &[(&str, &str)] = &[
    (".git/objects/ab", "hidden"),
    (".gitattributes", "hidden"),
    ("adapter_config.json", "an adapter"),
    ("adapter_model.safetensors", "not applied"),
    ("assets/.DS_Store", "hidden"),
    ("consolidated.safetensors", "not read"),
    ("gguf/model.q4.gguf", "weights"),
    ("model.safetensors.incomplete", "half"),
    ("onnx/model.onnx", "weights"),
    ("onnx/model.onnx_data", "weights"),
    ("original/consolidated.00.pth", "weights"),
    ("original/model.safetensors", "weights"),
    ("pytorch_model-00001-of-00002.bin", "weights"),
    ("pytorch_model.bin.index.json", "{}"),
    ("optimizer.pt", "state"),
    ("x.tensorpress-1-2.tmp", "a leftover"),
];

#[test]
fn everything_goes_along_that_is_no_weight_of_the_model() {
    let parent = tempfile::tempdir().expect("a folder");
    let (from, out) = (parent.path().join("model"), parent.path().join("out"));
    model(&from, &[GOES, STAYS].concat());
    fs::create_dir(from.join("empty")).expect("a folder");
    let report = compress(&from, &out, 8, false).expect("compresses");
    assert_eq!(side(&out), texts(GOES));
    assert!(!out.join("empty").exists() && !out.join("gguf").exists());
    // What stays behind is said, but for what is hidden, or made anew.
    let notes = report.notes.join("\n");
    for (name, text) in STAYS {
        let said = !matches!(*text, "hidden" | "a leftover" | "{}");
        assert_eq!(notes.contains(name), said, "{name}: {notes}");
    }
    assert!(!notes.contains(": model.safetensors,"), "{notes}");
    for (name, _) in GOES {
        // What was not fetched cannot go along, and is said.
        assert_eq!(notes.contains(name), *name == "tokenizer.json", "{name}: {notes}");
    }
    assert!(notes.contains("git lfs pull"), "{notes}");

    let list = fs::read(out.join(LIST)).expect("a list");
    let list: BTreeMap<String, serde::de::IgnoredAny> = files_of(&list);
    for (name, _) in GOES {
        assert!(list.contains_key(*name), "{name}");
    }
    // A packed model has the same beside it, and so has one whose nodes were made elsewhere.
    let (tpk, again) = (parent.path().join("m.tpk"), parent.path().join("again"));
    let _ = Packer::new().pack(&from, &tpk).expect("packs");
    assert_eq!(side(&from), {
        PackedFile::open(&tpk).expect("opens").unpack(&again, false, None).expect("unpacks");
        side(&again)
    });
    let of_packed = parent.path().join("of-packed");
    let report = compress(&tpk, &of_packed, 8, false).expect("compresses");
    assert_eq!(side(&of_packed), texts(GOES));
    assert!(report.notes.join("\n").contains("onnx/model.onnx"));
    let written = parent.path().join("written");
    write_model(&open_model(&from).expect("opens"), &BTreeMap::new(), &written).expect("writes");
    assert_eq!(side(&written), texts(GOES));
}

fn files_of(list: &[u8]) -> BTreeMap<String, serde::de::IgnoredAny> {
    #[derive(serde::Deserialize)]
    struct List {
        files: BTreeMap<String, serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<List>(list).expect("JSON").files
}

#[test]
fn only_what_is_ours_is_replaced_in_folders_too() {
    let parent = tempfile::tempdir().expect("a folder");
    let (from, out) = (parent.path().join("model"), parent.path().join("out"));
    model(&from, &[("1_Pooling/config.json", "one"), ("a/b/c.txt", "c")]);
    let _ = compress(&from, &out, 8, false).expect("compresses");
    let refused = |says: &str| {
        let error = compress(&from, &out, 4, true).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!partial_of(&out).exists());
    };
    for name in ["1_Pooling/mine.txt", "a/mine.txt", "a/b/.mine", "mine/config.json"] {
        write(&out, &[(name, "mine")]);
        refused(&format!("holds `{name}`, which is not what we wrote"));
        assert_eq!(fs::read(out.join(name)).expect("is there"), b"mine");
        fs::remove_file(out.join(name)).expect("removed");
    }
    fs::remove_dir(out.join("mine")).expect("removed");
    write(&out, &[("1_Pooling/config.json", "mine")]);
    refused("`1_Pooling/config.json`, which was changed since");
    write(&out, &[("1_Pooling/config.json", "one")]);
    #[cfg(unix)]
    {
        // A link is nothing of ours, wherever it leads.
        let elsewhere = parent.path().join("elsewhere");
        fs::rename(out.join("1_Pooling"), &elsewhere).expect("moved");
        std::os::unix::fs::symlink(&elsewhere, out.join("1_Pooling")).expect("linked");
        refused("holds `1_Pooling`");
        fs::remove_file(out.join("1_Pooling")).expect("removed");
        fs::rename(&elsewhere, out.join("1_Pooling")).expect("moved");
    }

    // A list that leads out of its folder is none.
    write(parent.path(), &[("mine", "mine")]);
    let list = fs::read_to_string(out.join(LIST)).expect("a list");
    for name in ["../mine", "/mine", "a\\\\..\\\\mine", "a/../../mine"] {
        let forged = list.replace("a/b/c.txt", name);
        assert_ne!(forged, list);
        write(&out, &[(LIST, &forged)]);
        refused("which leads out of its folder");
        assert!(parent.path().join("mine").exists() && out.join("a/b/c.txt").exists());
    }
    write(&out, &[(LIST, &list)]);

    // Another set of files takes the place of this one, whole.
    fs::remove_dir_all(from.join("a")).expect("removed");
    write(&from, &[("z/new.txt", "new")]);
    let _ = compress(&from, &out, 4, true).expect("replaces");
    assert_eq!(side(&out), texts(&[("1_Pooling/config.json", "one"), ("z/new.txt", "new")]));
    assert_eq!(
        fs::read_dir(&out)
            .expect("a folder")
            .filter(|e| { e.as_ref().expect("an entry").path().is_dir() })
            .count(),
        2
    );
}

/// Asks to stop as a block begins.
struct Stop(usize, Arc<AtomicBool>);

impl Progress for Stop {
    fn event(&mut self, event: Event<'_>) {
        if matches!(event, Event::Block { block, .. } if block == self.0) {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

fn stopped(from: &Path, out: &Path) {
    let cancel = Arc::new(AtomicBool::new(false));
    let mut stop = Stop(2, cancel.clone());
    let compressor = Compressor::new(Recipe::parse("rtn(bits=8)").expect("a recipe"));
    let compressor = compressor.with_cancel(cancel).with_progress(&mut stop);
    let error = compressor.run(&open_model(from).expect("opens"), out).expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

/// As if a kill had come while files were copied.
fn note_copied(partial: &Path, names: &[&str]) {
    let path = partial.join("tensorpress.state.json");
    let mut state: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("a state")).expect("JSON");
    state["copied"] = serde_json::json!(names);
    fs::write(&path, state.to_string()).expect("written");
}

#[test]
fn unfinished_copies_are_resumed_and_replaced() {
    let parent = tempfile::tempdir().expect("a folder");
    let (from, out) = (parent.path().join("model"), parent.path().join("out"));
    let partial = partial_of(&out);
    model(&from, &[("1_Pooling/config.json", "one")]);
    let begin = || {
        stopped(&from, &out);
        note_copied(&partial, &["1_Pooling/config.json", "old/deep/gone.txt", "late/x"]);
        write(&partial, &[("old/deep/gone.txt", "of the run before")]);
        fs::create_dir(partial.join("late")).expect("a folder");
    };
    // Resumed: what is no longer there to be copied goes.
    begin();
    let report = compress(&from, &out, 8, false).expect("resumes");
    assert!(report.resumed_blocks > 0);
    assert_eq!(side(&out), texts(&[("1_Pooling/config.json", "one")]));
    fs::remove_dir_all(&out).expect("removed");
    // Begun anew, by force.
    begin();
    let error = compress(&from, &out, 4, false).expect_err("other work");
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    let _ = compress(&from, &out, 4, true).expect("begins anew");
    assert_eq!(side(&out), texts(&[("1_Pooling/config.json", "one")]));
    // But not over what somebody put there, nor by a state that leads out.
    fs::remove_dir_all(&out).expect("removed");
    begin();
    write(&partial, &[("old/deep/mine.txt", "mine")]);
    let error = compress(&from, &out, 4, true).expect_err("is not ours");
    assert!(error.message().contains("old/deep/mine.txt"), "{error}");
    fs::remove_file(partial.join("old/deep/mine.txt")).expect("removed");
    write(parent.path(), &[("mine", "mine")]);
    note_copied(&partial, &["../mine", "old/deep/gone.txt"]);
    let error = compress(&from, &out, 8, false).expect_err("leads out");
    assert!(error.message().contains("../mine"), "{error}");
    assert_eq!(fs::read(parent.path().join("mine")).expect("is there"), b"mine");
    assert!(!out.exists());
}

/// A finished folder that a kill left under the name of unfinished work.
#[test]
fn a_replaced_folder_goes_with_its_folders() {
    let parent = tempfile::tempdir().expect("a folder");
    let (from, out) = (parent.path().join("model"), parent.path().join("out"));
    model(&from, &[("1_Pooling/config.json", "one"), ("a/b/c.txt", "c")]);
    let _ = compress(&from, &out, 8, false).expect("compresses");
    fs::rename(&out, partial_of(&out)).expect("renamed");
    write(&partial_of(&out), &[("a/b/mine", "mine")]);
    let error = compress(&from, &out, 8, true).expect_err("is not ours");
    assert!(error.message().contains("not ours"), "{error}");
    fs::remove_file(partial_of(&out).join("a/b/mine")).expect("removed");
    let _ = compress(&from, &out, 8, true).expect("runs");
    assert!(!partial_of(&out).exists());
    assert_eq!(side(&out), texts(&[("1_Pooling/config.json", "one"), ("a/b/c.txt", "c")]));
}

#[test]
fn results_in_the_models_own_folder_are_not_copied() {
    let parent = tempfile::tempdir().expect("a folder");
    let from = parent.path().join("model");
    model(&from, &[("1_Pooling/config.json", "one")]);
    for (bits, name) in [(8, "w8"), (4, "w4")] {
        let report = compress(&from, &from.join(name), bits, false).expect("compresses");
        assert_eq!(side(&from.join(name)), texts(&[("1_Pooling/config.json", "one")]));
        assert_eq!(report.notes.iter().any(|note| note.contains("w8")), name == "w4");
    }
    let _ = compress(&from, &from.join("w8"), 4, true).expect("replaces");
    assert_eq!(side(&from.join("w8")), texts(&[("1_Pooling/config.json", "one")]));
}

/// As the hub's cache has it, and what it never should.
#[test]
#[cfg(unix)]
fn links_are_followed() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().expect("a folder");
    let (real, out) = (parent.path().join("blobs"), parent.path().join("out"));
    model(&real, &[("hash", "one"), ("all/x", "x")]);
    let snapshot = parent.path().join("snapshots/main");
    fs::create_dir_all(snapshot.join("1_Pooling")).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).expect("linked");
    }
    symlink("../../../blobs/hash", snapshot.join("1_Pooling/config.json")).expect("linked");
    symlink("../../blobs/all", snapshot.join("linked")).expect("linked");
    let from = parent.path().join("model");
    symlink(&snapshot, &from).expect("linked");
    let _ = compress(&from, &out, 8, false).expect("compresses");
    assert_eq!(side(&out), texts(&[("1_Pooling/config.json", "one"), ("linked/x", "x")]));
    for (target, name) in [("nowhere", "lost.txt"), ("../main", "loop")] {
        symlink(target, snapshot.join(name)).expect("linked");
        let error =
            compress(&from, &parent.path().join("never"), 8, false).expect_err("a bad link");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.file().is_some_and(|file| file.ends_with(name)), "{error}");
        assert_eq!(fs::read_dir(parent.path()).expect("a folder").count(), 4, "nothing was begun");
        fs::remove_file(snapshot.join(name)).expect("removed");
    }
}
