//! Folders in files of a given length.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensorpress::ErrorKind;
use tensorpress::pipeline::{Convert, Target, partial_of};
use tensorpress::prelude::*;
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::{Checkpoint, Part, PartKind, Tensor};

use super::{StopAt, compressed, convert, folders, read, same_weights};

/// Weight files of a folder, and the tensors of each.
fn files(folder: &Path) -> Vec<(u64, BTreeSet<String>)> {
    let paths = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    let file = |path| {
        let file = Checkpoint::open(path).expect("opens");
        (file.file_bytes(), file.names().map(str::to_owned).collect())
    };
    paths.map(file).collect()
}

/// Whatever the length: no file is longer, but of one matrix that is; nothing is lost, nothing is there twice, and the
/// index names every tensor's file.
fn check(source: &Source, to: Target, whole: &Path, out: &Path, most: u64) {
    let what = format!("{} in files of {most}", to.name());
    let report = Convert::new(to).with_shard_size(most).run(source, out);
    let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
    let (before, after) = (files(whole), files(out));
    assert_eq!(report.bytes_after, after.iter().map(|(bytes, _)| bytes).sum::<u64>(), "{what}");
    let trees = open_model(out).expect("opens").trees().clone();
    for (bytes, names) in &after {
        let matrix = |name: &String| {
            let found = trees.keys().find(|tree| name.starts_with(&format!("{tree}.")));
            found.unwrap_or(name).clone()
        };
        let pieces: BTreeSet<String> = names.iter().map(matrix).collect();
        assert!(*bytes <= most || pieces.len() == 1, "{what}: {bytes} bytes of {pieces:?}");
    }
    let all = |files: &[(u64, BTreeSet<String>)]| -> Vec<String> {
        let mut names: Vec<String> = files.iter().flat_map(|(_, names)| names.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(all(&before), all(&after), "{what}");
    // What stands for another tensor is said in the file of that tensor.
    let aliases = |folder: &Path| -> BTreeMap<String, String> {
        let all = Checkpoint::open(folder).expect("opens");
        let said = all.metadata().flatten().filter(|(key, _)| *key != "tensorpress");
        said.map(|(key, name)| (key.clone(), name.clone())).collect()
    };
    assert_eq!(aliases(whole), aliases(out), "{what}");
    let index = std::fs::read_to_string(out.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), all(&after).len(), "{what}");
    for (name, file) in index["weight_map"].as_object().unwrap() {
        let file = Checkpoint::open(out.join(file.as_str().unwrap())).expect("opens");
        assert!(file.contains(name), "{what}: {name}");
    }
    same_weights(&open_model(whole).expect("opens"), &open_model(out).expect("opens"), &what);
}

#[test]
fn no_file_is_longer() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let source = compressed("rtn(bits=4, group=32, symmetric=true)", &path("w4"));
    for to in ["gptq", "compressed-tensors", "tensorpress", "safetensors"] {
        let to: Target = to.parse().unwrap();
        let whole = path(&format!("{}-whole", to.name()));
        convert(&source, to, &whole);
        let mut counts = Vec::new();
        for most in [1, 20_000, 131_072, 333_333, u64::MAX] {
            let out = path(&format!("{}-{most}", to.name()));
            check(&source, to, &whole, &out, most);
            counts.push(files(&out).len());
        }
        assert!(counts.is_sorted_by(|a, b| a >= b) && counts[0] > counts[4], "{counts:?}");
        assert_eq!(counts[4], 1);
    }
    // One file has no shards.
    let error = Convert::new(Target::Gguf(None)).with_shard_size(1 << 20).run(&source, &path("g"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// Tied matrices, biases, experts: whatever architectures have.
#[test]
fn golden_models_in_short_files() {
    let parent = tempfile::tempdir().expect("a folder");
    for (name, folder) in folders() {
        let source = open_model(&folder).expect("opens");
        let to = Target::Tensorpress;
        let (whole, out) = (parent.path().join(&name), parent.path().join(format!("{name}-short")));
        convert(&source, to, &whole);
        check(&source, to, &whole, &out, 50_000);
    }
}

/// A head that stands for the embedding, in the metadata alone: whether that is compressed or not.
#[test]
fn what_stands_for_another_goes_with_it() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    std::fs::create_dir(path("model")).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo.join(name), path("model").join(name)).unwrap();
    }
    let stored = Checkpoint::open(demo.join("model.safetensors")).expect("opens");
    let alias = ("lm_head.weight".to_owned(), "model.embed_tokens.weight".to_owned());
    let metadata = BTreeMap::from([alias.clone(), ("format".to_owned(), "pt".to_owned())]);
    write_shard(&path("model").join("model.safetensors"), &metadata, &mut |sink| {
        for name in stored.names() {
            let tensor = stored.tensor(name)?;
            let (shape, bytes) = (tensor.shape().to_vec(), (&**tensor.bytes()).into());
            let (name, dtype) = (name.to_owned(), tensor.dtype());
            sink.part(Part { name, kind: PartKind::Values, dtype, shape, bytes })?;
        }
        Ok(())
    })
    .expect("written");
    let plain = open_model(path("model")).expect("opens");
    let recipe = "[[stage]]\nmethod = 'rtn'\ngroup = 32\n[[layer]]\nmatch = 'model.embed_tokens.weight'\nstage = [{ method = 'rtn', bits = 8 }]\n";
    let recipe = Recipe::from_toml(recipe).expect("a recipe");
    let _ = Compressor::new(recipe).run(&plain, &path("w4")).expect("compresses");
    for (name, source) in [("plain", plain), ("w4", open_model(path("w4")).expect("opens"))] {
        let (whole, out) = (path(&format!("{name}-whole")), path(&format!("{name}-short")));
        convert(&source, Target::Tensorpress, &whole);
        let said = Checkpoint::open(&whole).expect("opens");
        assert!(said.metadata().flatten().any(|(key, _)| *key == alias.0), "{name}: no alias");
        check(&source, Target::Tensorpress, &whole, &out, 100_000);
    }
}

#[test]
fn broken_off_and_taken_up_again() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = compressed("rtn(bits=4, group=32)", &parent.path().join("w4"));
    fn job<'a>() -> Convert<'a> {
        Convert::new(Target::Safetensors).with_shard_size(300_000)
    }
    let whole = parent.path().join("whole");
    job().run(&source, &whole).expect("converts");
    // In the blocks, and in the files that they are written anew as.
    for left in [1, 2, 4, 6, 7, 8, 9] {
        let out = parent.path().join(format!("after-{left}"));
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { left, cancel: cancel.clone() };
        let stopped = job().with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
        assert!(!out.exists() && partial_of(&out).exists());
        // Another length is another work.
        let other = Convert::new(Target::Safetensors).with_shard_size(1).run(&source, &out);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Exists);
        job().run(&source, &out).expect("converts");
        assert!(read(&out) == read(&whole) && !partial_of(&out).exists(), "after {left}");
    }
}
