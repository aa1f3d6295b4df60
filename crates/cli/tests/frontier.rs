//! The curve of a model, and pages about what was done.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::{arg, assert_fails, contents, json, killed_comes_to_the_same, run, tensorpress};

const LEVELS: &str = "rtn(bits=2, group=32); rtn(bits=4, group=64); rtn(bits=8, group=64)";

fn along(out: &Path) -> Command {
    let mut command = tensorpress();
    let sizes = ["--points", "5", "--judged", "3", "--max-segments", "6", "--json"];
    let windows = ["--calib-windows", "4", "--calib-length", "128"];
    command.args(["frontier", "demo", "--levels", LEVELS, "--out", arg(out)]);
    command.args(sizes).args(windows);
    command
}

/// A file and a page, the same however often the work was killed.
#[test]
fn a_curve_is_the_same_after_kills() {
    let folder = tempfile::tempdir().expect("a folder");
    // The page says how it was made.
    let whole = folder.path().join("curve");
    let begun = Instant::now();
    let printed = json(&along(&whole).output().expect("the program"));
    let takes = begun.elapsed();
    let text = std::fs::read_to_string(whole.join("frontier.json")).expect("a curve");
    let curve: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(curve["points"], printed["points"]);
    assert_eq!(curve["points"].as_array().map(Vec::len), Some(5));
    let page = std::fs::read_to_string(whole.join("report.html")).expect("a page");
    assert!(page.contains("tensorpress frontier demo") && page.contains("3 judged"));
    let plot = std::fs::read_to_string(whole.join("curve.svg")).expect("a plot");
    assert!(plot.starts_with("<svg"), "{}", &plot[..80]);
    let expected = contents(&whole);
    std::fs::remove_dir_all(&whole).expect("removed");
    let start = || along(&whole);
    killed_comes_to_the_same(&start, takes, &whole, &expected, (6, 0x2f1d_9a43));
    assert_fails(&along(&whole).output().expect("the program"), 1, &["exists already"]);
    for wrong in [&["--sizes", "1MB", "--points", "3"][..], &["--points", "0"]] {
        let base = ["frontier", "demo", "--out", "x"];
        assert_fails(&run(&[&base[..], wrong].concat()), 2, &[]);
    }
}

/// What each matrix became and why; a page that cannot be written is said before the work.
#[test]
fn a_page_about_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, page) = (folder.path().join("out"), folder.path().join("page.html"));
    let base = ["compress", "demo", "--out", arg(&out), "--target-bpw", "4", "--levels", LEVELS];
    let rivals = ["--rival", "of = others=200kB:0.1", "--rival", "Q4_K=150kB:0.25"];
    let with = ["--eval", "--max-segments", "6", "--json", "--report"];
    let with = [&rivals[..], &with].concat();
    let report = json(&run(&[&base[..], &with, &[arg(&page)]].concat()));
    let html = std::fs::read_to_string(&page).expect("a page");
    let kld = format!("{:.6}", report["after"]["kld_mean"].as_f64().expect("a divergence"));
    for text in [
        "model.layers.0.mlp.down_proj.weight",
        "would gain",
        &kld,
        "--target-bpw 4",
        "<svg",
        "of = others",
        "150,000",
    ] {
        assert!(html.contains(text), "no `{text}`");
    }
    let refused =
        run(&[&base[..], &["--force", "--report", arg(&folder.path().join("no/page"))]].concat());
    assert_fails(&refused, 1, &["no folder to write a page into"]);
    let other = folder.path().join("other");
    let recipe = ["compress", "demo", "--recipe", "rtn(bits=4)", "--out", arg(&other), "--report"];
    assert_fails(&run(&[&recipe[..], &[arg(&page)]].concat()), 1, &["exists already"]);
    let plain = folder.path().join("plain.html");
    assert!(run(&[&recipe[..], &[arg(&plain)], &rivals[..2]].concat()).status.success());
    let html = std::fs::read_to_string(&plain).expect("a page");
    assert!(html.contains("rtn(bits=4)") && !html.contains("would gain"));
    assert!(html.contains("of = others") && html.contains("<svg"), "a curve of rivals alone");
    for wrong in ["x", "x=9MB", "=9MB:1", "x=9MB:0", "x=9MB:nan", "x=MB:1"] {
        let with = ["--rival", wrong];
        assert_fails(
            &run(&[&recipe[..], &[arg(&plain), "--force"], &with].concat()),
            2,
            &["--rival"],
        );
    }
    assert_fails(&run(&[&recipe[..recipe.len() - 1], &rivals[..2]].concat()), 2, &["--report"]);
    let levels = ["compress", "demo", "--recipe", "w4", "--out", "x", "--levels", LEVELS];
    assert_fails(&run(&levels), 2, &["for targets"]);
}
