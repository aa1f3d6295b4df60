//! What the tests of the program share.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The program.
pub fn tensorpress() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tensorpress"))
}

/// Runs the program with these arguments.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    tensorpress().args(args).output().expect("the program starts")
}

/// The one JSON object on standard output.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    let value: Value = serde_json::from_slice(&output.stdout).expect("standard output is JSON");
    assert!(value.is_object());
    value
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails unless the program ended with this code, and said all of this on standard error, and nothing on the other.
pub fn assert_fails(output: &Output, code: i32, says: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "standard output of a failure");
    for part in says {
        assert!(said.contains(part), "`{said}` lacks `{part}`");
    }
}

/// A folder with the demo model as anyone could have downloaded it.
pub fn model_folder(parent: &Path) -> PathBuf {
    let folder = parent.join("model");
    std::fs::create_dir(&folder).expect("a new folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), folder.join(name)).expect("a file of the demo model");
    }
    folder
}

/// A text of the demo model.
pub fn demo_text(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo").join(name)
}

/// Names of files and their contents.
pub type Contents = std::collections::BTreeMap<String, Vec<u8>>;

/// Files of a folder and their contents.
pub fn contents(folder: &Path) -> Contents {
    let listing = std::fs::read_dir(folder).expect("a folder");
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, std::fs::read(entry.path()).expect("a file"))
    };
    listing.map(|entry| read(entry.expect("an entry"))).collect()
}

/// Files that are in one of two folders alone, or differ: the name, and how many bytes there are of either.
fn unlike(mine: &Contents, other: &Contents) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = mine.keys().chain(other.keys()).collect();
    let unlike = names.into_iter().filter(|name| mine.get(*name) != other.get(*name));
    let len = |of: &Contents, name| of.get(name).map(Vec::len);
    unlike.map(|n| format!("{n}: {:?} and {:?} bytes", len(mine, n), len(other, n))).collect()
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Starts a command again and again, each of which ends in the same contents of `out`, and kills it at moments that a seed
/// draws, until it was killed so often; then lets it end. How often it came to the end before.
pub fn killed_comes_to_the_same(
    start: &dyn Fn() -> Command,
    takes: Duration,
    out: &Path,
    expected: &Contents,
    (kills, mut draw): (usize, u64),
) -> usize {
    let (mut killed, mut finished) = (0, 0);
    while killed < kills {
        // A linear congruence says when: within what is left of the work, as a rule.
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = 0.02 + 0.4 * (draw >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = start();
        let mut child =
            child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_secs_f64(takes.as_secs_f64() * part));
        if child.try_wait().expect("a status").is_none() {
            child.kill().expect("killed");
            killed += 1;
        }
        child.wait().expect("a status");
        if out.exists() {
            assert_eq!(unlike(&contents(out), expected), [""; 0], "after {killed} kills");
            std::fs::remove_dir_all(out).expect("removed");
            finished += 1;
        }
    }
    json(&start().output().expect("the program"));
    assert_eq!(unlike(&contents(out), expected), [""; 0], "after all kills");
    finished
}
