//! The best presets as users run them: the size asked for, the same bytes always, through any kill.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::{arg, contents, json, killed_comes_to_the_same, tensorpress};

fn best(preset: &str, out: &Path) -> Command {
    let mut command = tensorpress();
    let windows = ["--calib-windows", "12", "--json"];
    command.args(["compress", "demo", "--recipe", preset, "--out", arg(out)]).args(windows);
    command
}

#[test]
fn presets_take_the_bits_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut losses = Vec::new();
    for (preset, bits) in [("best2", 2.25), ("best3", 3.0), ("best4", 4.0)] {
        let out = folder.path().join(preset);
        let report = json(&best(preset, &out).arg("--eval").output().expect("the program"));
        let taken = report["bits_per_weight"].as_f64().expect("a number");
        assert!((taken / bits - 1.0).abs() < 0.015, "{preset}: {taken} bits");
        losses.push(report["after"]["kld_mean"].as_f64().expect("a number"));
    }
    let rtn = folder.path().join("rtn4");
    let plain = json(
        &best("rtn(bits=4, group=64, clip=mse)", &rtn).arg("--eval").output().expect("the program"),
    );
    let plain = plain["after"]["kld_mean"].as_f64().expect("a number");
    assert!(losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
    assert!(losses[2] < 0.5 * plain, "at 4 bits {} against {plain}", losses[2]);
}

#[test]
fn threads_make_no_difference_and_an_instruction_set_makes_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = |name: &str, threads: &str, isa: Option<&str>| {
        let out = folder.path().join(name);
        let mut command = best("best3", &out);
        command.env("RAYON_NUM_THREADS", threads);
        isa.map(|isa| command.env("TENSORPRESS_ISA", isa));
        json(&command.output().expect("the program"));
        contents(&out)
    };
    let one = made("one", "1", None);
    assert!(one == made("two", "2", None), "threads make a difference");
    assert!(one == made("again", "2", None), "twice is not once");
    let mut sets = Vec::new();
    for isa in ["generic", "avx2", "avx512"] {
        let there = match isa {
            #[cfg(target_arch = "x86_64")]
            "avx2" => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            "avx512" => is_x86_feature_detected!("avx512bw"),
            name => name == "generic",
        };
        if there {
            let one = made(&format!("{isa}1"), "1", Some(isa));
            assert!(one == made(&format!("{isa}2"), "2", Some(isa)), "{isa}");
            sets.push(format!("{isa}1"));
        }
    }
    // Sums come out differently across sets, and now and then a code with them, or a step, and then all that its column
    // feeds: how many, and that it costs nothing.
    let mut losses = Vec::new();
    let first = weights(&folder.path().join(&sets[0]));
    for set in &sets {
        let out = folder.path().join(set);
        let text = common::demo_text("heldout.jsonl");
        let args = ["eval", arg(&out), "--reference", "demo", "--text", arg(&text), "--json"];
        let judged = json(&common::run(&args));
        let others = weights(&out);
        let differ = first.iter().zip(&others).filter(|(a, b)| a != b).count();
        let (all, kld) = (first.len(), &judged["kld_mean"]);
        println!("{set}: {differ} of {all} weights are not those of {}, KLD {kld}", sets[0]);
        assert!(differ < all / 4, "{set}: another model, not other roundings");
        losses.push(judged["kld_mean"].as_f64().expect("judged"));
    }
    assert!(losses.iter().all(|loss| (loss / losses[0] - 1.0).abs() < 0.05), "{losses:?}");
}

/// All compressed weights, decoded.
fn weights(folder: &Path) -> Vec<u32> {
    let registry = tensorpress::registry();
    let source = tensorpress::open_model_with(folder, &registry).expect("a model");
    let mut all = Vec::new();
    for spec in (0..source.blocks()).flat_map(|block| source.linears(block)) {
        let node = source.weight(&spec.name).expect("a node");
        let matrix = tensorpress::tensor::node::decode(&*node).expect("decodes");
        all.extend(matrix.iter().map(|w| w.to_bits()));
    }
    all
}

/// Twenty kills at any moment: in calibration, on the way back, while rates are found, in a block, between files.
#[test]
fn killed_at_any_moment_it_comes_to_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    json(&best("best3", &whole).output().expect("the program"));
    let takes = begun.elapsed();
    let expected = contents(&whole);
    let out = folder.path().join("out");
    let start = || best("best3", &out);
    let finished = killed_comes_to_the_same(&start, takes, &out, &expected, (20, 0x9e37_79b9));
    println!("20 kills, {} times to the end", finished + 1);
}
