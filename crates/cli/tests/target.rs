//! A target in place of a recipe: sizes, bits, levels, and work that was stopped.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::{arg, assert_fails, contents, json, killed_comes_to_the_same, run, tensorpress};

fn to_size(size: &str, out: &Path) -> Command {
    let mut command = tensorpress();
    let windows = ["--calib-windows", "6", "--calib-length", "128", "--json"];
    command.args(["compress", "demo", "--target-size", size, "--out", arg(out)]).args(windows);
    command
}

/// The same bytes from any number of threads, and however often the work was killed: while losses are measured, on the way
/// back, in a block, between files.
#[test]
fn the_same_size_is_the_same_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    let report = json(&to_size("300 kB", &whole).output().expect("the program"));
    let takes = begun.elapsed();
    let bytes = report["bytes_after"].as_u64().expect("bytes");
    assert!((294_000..=300_000).contains(&bytes), "{bytes}");
    let inspected = json(&run(&["inspect", arg(&whole), "--json"]));
    assert_eq!(inspected["file_bytes"], report["bytes_after"]);
    let expected = contents(&whole);
    let one = folder.path().join("one");
    json(&to_size("300kB", &one).env("RAYON_NUM_THREADS", "1").output().expect("the program"));
    assert!(contents(&one) == expected, "other bytes of one thread");
    let out = folder.path().join("out");
    let start = || to_size("300kB", &out);
    killed_comes_to_the_same(&start, takes, &out, &expected, (8, 0x517c_c1b7));
}

/// Found on one half of the segments, and told of the other.
#[test]
fn a_divergence_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let levels = "rtn(bits=3, group=64); rtn(bits=4, group=64); rtn(bits=5, group=64); rtn(bits=8)";
    let base = ["compress", "demo", "--out", arg(&out), "--levels", levels, "--max-kld", "0.03"];
    let report = json(&run(&[&base[..], &["--eval", "--json"]].concat()));
    let is = report["after"]["kld_mean"].as_f64().expect("a divergence");
    assert!(is < 0.033 && is > 0.02, "{is}");
    assert_fails(&run(&base), 2, &["--eval"]);
    let nothing = ["--eval", "--force", "--max-kld=-1"];
    assert_fails(&run(&[&base[..6], &nothing[..]].concat()), 1, &["above 0"]);
}

/// A file of types that differ, of no more bytes than said, which no level has to be named for.
#[test]
fn a_file_of_mixed_types() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("demo.gguf");
    let base = ["compress", "demo", "--format", "gguf", "--target-size", "1MB", "--out", arg(&out)];
    let less = ["--calib-windows", "6", "--calib-length", "128", "--json"];
    let report = json(&run(&[&base[..], &less].concat()));
    let length = std::fs::metadata(&out).expect("a file").len();
    assert_eq!(report["bytes_after"].as_u64(), Some(length));
    assert!((980_000..=1_000_000).contains(&length), "{length}");
    let inspected = json(&run(&["inspect", arg(&out), "--json"]));
    assert_eq!(inspected["file_bytes"].as_u64(), Some(length), "as long as it is");
    let other = folder.path().join("gptq");
    let base = ["compress", "demo", "--format", "gptq", "--target-size", "1MB", "--out"];
    assert_fails(&run(&[&base[..], &[arg(&other)]].concat()), 1, &["one kind"]);
}

#[test]
fn levels_and_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let levels = "rtn(bits=3, group=64); rtn(bits=4, group=64); rtn(bits=8)";
    let base = ["compress", "demo", "--out", arg(&out), "--levels", levels];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let report = json(&with(&["--target-bpw", "4", "--json"]));
    let bits = report["bits_per_weight"].as_f64().expect("bits");
    assert!(bits <= 4.0 && bits > 3.95, "{bits}");
    let methods = report["layers"].as_array().expect("layers").iter();
    let methods: std::collections::BTreeSet<_> = methods.map(|l| l["method"].to_string()).collect();
    assert!(methods.len() > 1, "a mix: {methods:?}");
    assert_fails(&with(&["--target-bpw", "1", "--force"]), 1, &["too few", "about 3.3"]);
    assert_fails(&with(&["--target-size", "10kB", "--force"]), 1, &["too small", "about"]);
    assert_fails(&with(&["--target-size", "9GB", "--force"]), 1, &["has only"]);
    for wrong in [
        &["--target-bpw", "3", "--target-size", "1MB"][..],
        &["--target-bpw", "3", "--recipe", "w4"],
        &["--target-size", "much"],
        &[],
    ] {
        assert_fails(&with(wrong), 2, &[]);
    }
    let unknown = ["compress", "demo", "--out", "x", "--target-bpw", "3", "--levels", "w4; none"];
    assert_fails(&run(&unknown), 2, &["--levels", "none"]);
}
