//! Nothing lost: what is replaced, what is left alone, and models that are written to while they are compressed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tensorpress::model::embedded;
use tensorpress::pipeline::{CalibrationText, Event, Progress, partial_of};
use tensorpress::prelude::*;

fn recipe(line: &str) -> Recipe {
    Recipe::parse(line).expect("a recipe")
}

fn demo() -> Source {
    Source::demo(&registry()).expect("the demo model")
}

/// A little of the demo's calibration text.
fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(64)
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let listing = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let read = |path: &Path| fs::read(path).expect("a file");
    listing.map(|e| (e.file_name().to_string_lossy().into_owned(), read(&e.path()))).collect()
}

/// Files that a finished folder consists of, as its list says.
fn listed(folder: &Path) -> BTreeMap<String, u64> {
    let text = fs::read(folder.join("tensorpress-files.json")).expect("a list");
    let list: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let files = list["files"].as_object().expect("files").iter();
    files.map(|(name, file)| (name.clone(), file["bytes"].as_u64().expect("bytes"))).collect()
}

#[test]
fn only_what_is_ours_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let run = |line: &str| Compressor::new(recipe(line)).with_force(true).run(&demo(), &out);
    let refused = |line: &str, says: &str| {
        let error = run(line).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(says), "{error}");
    };
    // A plain smaller folder has its list as well, of all that is in it.
    for line in ["drop_blocks(count=2)", "rtn(bits=8)", "rtn(bits=4)"] {
        let compressor = Compressor::new(recipe(line)).with_force(true);
        let _ = compressor.with_calibration(calibration()).run(&demo(), &out).expect("replaces");
        let there: BTreeMap<String, u64> = contents(&out)
            .into_iter()
            .filter(|(name, _)| name != "tensorpress-files.json")
            .map(|(name, bytes)| (name, bytes.len() as u64))
            .collect();
        assert_eq!(listed(&out), there);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    let before = contents(&out);
    let with = |name: &str, says: &str| {
        let path = out.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, "mine").expect("written");
        refused("rtn(bits=8)", says);
        assert_eq!(fs::read(&path).expect("is there"), b"mine");
        fs::remove_file(&path).expect("removed");
    };
    with("calibration.txt", "holds `calibration.txt`, which is not what we wrote there");
    with("notes/a.txt", "notes/a.txt");
    fs::create_dir_all(out.join("notes")).expect("a folder");
    refused("rtn(bits=8)", "holds `notes`");
    fs::remove_dir(out.join("notes")).expect("removed");
    // What was written by us and changed by somebody is somebody's.
    let config = fs::read(out.join("config.json")).expect("a config");
    fs::write(out.join("config.json"), [&config[..], b" "].concat()).expect("written");
    refused("rtn(bits=8)", "holds `config.json`, which was changed since");
    fs::write(out.join("config.json"), config).expect("written");
    assert!(contents(&out) == before);

    // What the version before wrote has no list.
    fs::remove_file(out.join("tensorpress-files.json")).expect("removed");
    with("calibration.txt", "calibration.txt");
    let _ = run("rtn(bits=8)").expect("replaces");
    // Another model's folder, or any other, is not ours.
    fs::remove_dir_all(&out).expect("removed");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    fs::create_dir(&out).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(demo.join(name), out.join(name)).expect("copied");
    }
    refused("rtn(bits=8)", "config.json");
    fs::remove_dir_all(&out).expect("removed");
    fs::create_dir(&out).expect("a folder");
    let _ = run("rtn(bits=8)").expect("an empty folder holds nothing of anybody's");
}

#[test]
fn names_beside_the_output_are_nobodys_to_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let mine = ["out.replaced/notes", "out.tmp", "out.old/x", "out.2024-01.tmp"];
    for name in mine {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, "mine").expect("written");
    }
    for bits in [8, 4] {
        let line = format!("rtn(bits={bits})");
        let _ = Compressor::new(recipe(&line)).with_force(true).run(&demo(), &out).expect("runs");
    }
    for name in mine {
        assert_eq!(fs::read(folder.path().join(name)).expect("is there"), b"mine");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 5);

    // A replaced folder that a kill left under the name of unfinished work goes with the next forced run.
    fs::rename(&out, partial_of(&out)).expect("renamed");
    let blocked = Compressor::new(recipe("rtn(bits=8)")).run(&demo(), &out);
    assert_eq!(blocked.expect_err("is asked for").kind(), ErrorKind::Exists);
    let forced = Compressor::new(recipe("rtn(bits=8)")).with_force(true);
    let _ = forced.run(&demo(), &out).expect("runs");
    assert!(!partial_of(&out).exists());
}

/// A stop, and then a model that is another one.
#[test]
fn a_model_that_is_written_to_is_an_error() {
    struct Meddle<F>(F);
    impl<F: FnMut(usize)> Progress for Meddle<F> {
        fn event(&mut self, event: Event<'_>) {
            if let Event::Block { block, .. } = event {
                self.0(block);
            }
        }
    }
    tensorpress::tensor::checkpoint::survive_cut_files();
    let parent = tempfile::tempdir().expect("a folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    let model = parent.path().join("model");
    fs::create_dir(&model).expect("a folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(demo.join(name), model.join(name)).expect("copied");
    }
    let weights = model.join("model.safetensors");
    let good = fs::read(&weights).expect("weights");
    let out = parent.path().join("out");
    let write = |len: usize, at: usize| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = fs::File::options().write(true).open(&weights).expect("opens");
        file.set_len(len as u64).expect("cut");
        file.seek(SeekFrom::Start(at as u64)).expect("sought");
        file.write_all(b"changed").expect("written");
    };
    for (len, at) in [(good.len(), good.len() - 7), (good.len() / 2, 8), (0, 0)] {
        fs::write(&weights, &good).expect("written");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let source = open_model(&model).expect("opens");
        let mut meddle = Meddle(|block| {
            if block == 2 {
                write(len, at)
            }
        });
        let compressor = Compressor::new(recipe("gptq(bits=4)")).with_calibration(calibration());
        let error = compressor.with_progress(&mut meddle).run(&source, &out).expect_err("moved");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.file().is_some_and(|f| f.ends_with("model.safetensors")), "{error}");
        assert!(!out.exists());
    }
    // What was made before is kept, for the same model and no other.
    fs::write(&weights, &good).expect("written");
    let source = open_model(&model).expect("opens");
    let compressor = Compressor::new(recipe("gptq(bits=4)")).with_calibration(calibration());
    let report = compressor.run(&source, &out).expect("resumes");
    assert_eq!(report.resumed_blocks, 2);
    let fresh = parent.path().join("fresh");
    let compressor = Compressor::new(recipe("gptq(bits=4)")).with_calibration(calibration());
    let _ = compressor.run(&source, &fresh).expect("runs");
    assert!(contents(&out) == contents(&fresh));
}
