//! A budget in place of a recipe: never a byte over it, hardly one under, and less lost than by one level for all.

mod judged;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use judged::{divergence, held_out};
use tensorpress::model::embedded;
use tensorpress::pipeline::{
    Budget, CalibrationText, Compressor, Event, LayerReport, Mix, Progress, Report,
};
use tensorpress::prelude::*;
use tensorpress::tensor::linalg::SplitMix;
use tensorpress::{ErrorKind, Result, registry};
use tensorpress_tensor::testing::data;

const ROUNDING: [&str; 5] = [
    "rtn(bits=2, group=32)",
    "rtn(bits=3, group=64)",
    "rtn(bits=4, group=64)",
    "rtn(bits=6, group=64)",
    "rtn(bits=8, group=64)",
];

fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(8).with_length(128)
}

fn weights_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file"));
    let weights = files.filter(|file| file.path().extension().is_some_and(|e| e == "safetensors"));
    weights.map(|file| file.metadata().expect("a length").len()).sum()
}

fn run(mix: Mix, out: &Path) -> Result<Report> {
    let source = Source::demo(&registry())?;
    Compressor::within(mix).with_force(true).run(&source, out)
}

fn rounding(budget: Budget) -> Mix {
    Mix::new(budget).with_levels(ROUNDING).expect("levels")
}

/// Whatever the target between the least and the most that levels make: it is kept, and used.
#[test]
fn targets_are_kept_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let most =
        run(rounding(Budget::FileBytes(2_600_000)), &out).expect("all of the best").bytes_after;
    let refused = run(rounding(Budget::FileBytes(1)), &out).unwrap_err().to_string();
    let least: f64 = refused.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("the least");
    let mut random = SplitMix::new(3);
    let targets = (0..12).map(|_| least + 1000.0 + random.next_f64() * (most as f64 - least));
    for target in targets.map(|target| target as u64) {
        let report = run(rounding(Budget::FileBytes(target)), &out).expect("fits");
        let used = report.bytes_after as f64 / target.min(most) as f64;
        println!("{target}: {} bytes, {used:.4}", report.bytes_after);
        assert_eq!(report.bytes_after, weights_of(&out), "what the report says is on the disk");
        assert!(report.bytes_after <= target, "{} of {target}", report.bytes_after);
        assert!(used >= 0.98, "{} of {target} and {most}", report.bytes_after);
        assert_eq!(report.notes, [""; 0], "nothing is missed");
    }
    // So near to the least that what is known of headers decides: kept or refused.
    for more in [-3000.0, -1000.0, 0.0, 300.0] {
        let target = (least + more) as u64;
        match run(rounding(Budget::FileBytes(target)), &out) {
            Ok(report) => {
                assert!(report.bytes_after <= target, "{} of {target}", report.bytes_after)
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}"),
        }
    }
    for bits in [2.7, 3.3, 4.0, 5.5, 7.9] {
        let report = run(rounding(Budget::BitsPerWeight(bits)), &out).expect("fits");
        let is = report.bits_per_weight;
        println!("{bits} bits: {is:.4}");
        assert!(is <= bits && is > 0.99 * bits, "{is} of {bits}");
        assert!(report.layers.iter().all(|layer| !layer.name.contains("embed")));
    }
}

/// Sizes that depend on what is coded are kept too, with a table of embeddings that is the head.
#[test]
fn coded_grids_keep_targets() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let source = Source::demo(&registry()).expect("the demo");
    for target in [250_000, 430_000] {
        let compressor = Compressor::within(Mix::new(Budget::FileBytes(target)));
        let compressor = compressor.with_calibration(calibration()).with_force(true);
        let report = compressor.run(&source, &out).expect("fits");
        println!("{target}: {} bytes, {:.3} bits", report.bytes_after, report.bits_per_weight);
        assert_eq!(report.bytes_after, weights_of(&out));
        assert!(report.bytes_after <= target && report.bytes_after as f64 > 0.98 * target as f64);
        assert!(report.layers.iter().any(|layer| layer.name.contains("embed_tokens")));
    }
}

/// Stops a run when a model was tried.
struct Stop(Arc<AtomicBool>, usize);

impl Progress for Stop {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Tried { bytes, divergence } = event {
            println!("tried: {bytes} bytes, {divergence:.5}");
            self.1 += 1;
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Looks for the smallest model that keeps a limit.
fn search<'a>(limit: f64, segments: &[Vec<u32>]) -> Compressor<'a> {
    let mix = rounding(Budget::Divergence(limit));
    Compressor::within(mix).with_judged_on(segments)
}

/// The smallest model that keeps a divergence; the same one where the search is stopped after each of its runs.
#[test]
fn divergences_are_kept_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("the demo");
    let segments = held_out(&source);
    for limit in [0.1, 0.02] {
        let out = folder.path().join(format!("{limit}"));
        let mut watch = Stop(Arc::new(AtomicBool::new(false)), 0);
        let found = search(limit, &segments).with_progress(&mut watch).run(&source, &out);
        let report = found.expect("kept");
        let is = divergence(&source, &out, &segments);
        println!("{limit}: {is:.5} at {} bytes", report.bytes_after);
        assert!(is <= limit && is > 0.8 * limit, "{is} of {limit}");
        let again = folder.path().join(format!("{limit}-again"));
        let mut tries = 0;
        loop {
            let cancel = Arc::new(AtomicBool::new(false));
            let mut stop = Stop(cancel.clone(), 0);
            let done = search(limit, &segments)
                .with_cancel(cancel)
                .with_progress(&mut stop)
                .run(&source, &again);
            tries += stop.1;
            match done {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
            }
        }
        assert!((2..=7).contains(&tries), "{tries} runs");
        let same = |name: &str| {
            let read = |out: &Path| std::fs::read(out.join(name)).expect("a file");
            read(&out) == read(&again)
        };
        assert!((1..=7).all(|n| same(&format!("model-{n:05}-of-00007.safetensors"))));
    }
    let out = folder.path().join("none");
    let refused = |mix: Mix, segments: Vec<Vec<u32>>| {
        let run = Compressor::within(mix).with_judged_on(segments).run(&source, &out);
        let error = run.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        error.to_string()
    };
    let coarse = Mix::new(Budget::Divergence(1e-6)).with_levels(&ROUNDING[..2]).expect("levels");
    let beyond = refused(coarse, segments.clone());
    assert!(beyond.contains("cannot be kept: the least that was reached"), "{beyond}");
    assert!(refused(rounding(Budget::Divergence(0.1)), Vec::new()).contains("judged on"));
    assert!(refused(rounding(Budget::Divergence(f64::NAN)), segments).contains("above 0"));
}

/// With levels of one family the mix loses less than the level for all that takes no less.
#[test]
fn the_mix_is_better_than_one_level() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("the demo");

    let segments = held_out(&source);
    let judge = |out: &Path| divergence(&source, out, &segments);
    let levels = ["gptq(bits=2, group=64)", "gptq(bits=3, group=64)", "gptq(bits=4, group=64)"];
    let one = folder.path().join("one");
    let uniform = Compressor::new(Recipe::parse(levels[1]).expect("a recipe"))
        .with_calibration(calibration())
        .run(&source, &one)
        .expect("compressed");
    let mut losses = vec![judge(&one)];
    for measured in [false, true] {
        let mix = Mix::new(Budget::BitsPerWeight(uniform.bits_per_weight)).with_levels(levels);
        let out = folder.path().join(format!("mix-{measured}"));
        let report = Compressor::within(mix.expect("levels").with_measured(measured))
            .with_calibration(calibration())
            .run(&source, &out)
            .expect("compressed");
        assert!(report.bits_per_weight <= uniform.bits_per_weight);
        losses.push(judge(&out));
    }
    println!("KLD of one level, of a mix by the law, of a mix by measurement: {losses:?}");
    assert!(losses[1] < losses[0] && losses[2] < losses[0], "{losses:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let refused = |mix: Mix, says: &[&str]| {
        let error = run(mix, &out).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
        says.iter().for_each(|part| assert!(text.contains(part), "`{text}` lacks `{part}`"));
        assert!(!out.exists() && !folder.path().join("out.partial").exists());
    };
    refused(rounding(Budget::FileBytes(10_000)), &["10000", "too small", "about"]);
    refused(rounding(Budget::FileBytes(u64::MAX)), &["the model has only 2630760"]);
    refused(rounding(Budget::BitsPerWeight(0.5)), &["0.5 bits", "too few", "about 2.5"]);
    for bits in [0.0, -1.0, f64::NAN, f64::INFINITY, 33.0] {
        refused(rounding(Budget::BitsPerWeight(bits)), &["allowed"]);
    }
    let levels = |levels: &[&str]| Mix::new(Budget::BitsPerWeight(4.0)).with_levels(levels);
    // Groups that divide no row: no level is left.
    let none = levels(&["mxfp4(group=7)"]);
    assert!(none.is_err(), "no such stage");
    let twice = levels(&["w4", "gptq(bits=4, group=128, clip=mse)"]).unwrap_err().to_string();
    assert!(twice.contains("twice"), "{twice}");
    let rewriting = levels(&["flap(sparsity=0.2) | rtn(bits=4)"]).unwrap_err().to_string();
    assert!(rewriting.contains("whole blocks"), "{rewriting}");
    let twice = levels(&["drop", "rtn(bits=4)", "drift | drop"]).unwrap_err().to_string();
    assert!(twice.contains("leaves nothing"), "{twice}");
    let ruled = Recipe::from_toml("[[layer]]\nmatch = '*q_proj*'\nstage = ['rtn(bits=3)']\n");
    let ruled = Mix::new(Budget::BitsPerWeight(4.0)).with_recipes([ruled.expect("a recipe")]);
    assert!(ruled.unwrap_err().to_string().contains("without rules"));
    // Calibrated levels without a text.
    let error = run(levels(&["gptq(bits=3)", "rtn(bits=4)"]).expect("levels"), &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingCalibration, "{error}");
}

/// Whatever the model is built of: experts in stacks, heads of their own, encoders, images.
#[test]
fn models_of_all_kinds_keep_targets() {
    let Some(models) = data::find("golden/models") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let mut kept = 0;
    for model in std::fs::read_dir(models).expect("models").map(|model| model.expect("one").path())
    {
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(source) = tensorpress::open_model(&model) else { continue };
        let within = |budget: Budget| {
            let mix =
                Mix::new(budget).with_levels(["rtn(bits=3, group=16)", "rtn(bits=8, group=16)"]);
            Compressor::within(mix.expect("levels")).with_force(true).run(&source, &out)
        };
        let refused = within(Budget::FileBytes(1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{name}: {refused}");
        let Some(least) = refused.to_string().rsplit(' ').next().and_then(|n| n.parse().ok())
        else {
            println!("{name}: {refused}");
            continue;
        };
        let (least, most): (f64, u64) = (least, source.checkpoint().file_bytes());
        let target = (least + 0.1 * (most as f64 - least)) as u64;
        let report = within(Budget::FileBytes(target)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report.bytes_after <= target, "{name}: {} of {target}", report.bytes_after);
        let bits = within(Budget::BitsPerWeight(5.0)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(bits.bits_per_weight <= 5.0, "{name}: {}", bits.bits_per_weight);
        let all = ["rtn(bits=3, group=16)", "rtn(bits=8, group=16)", "drop"];
        let mix = Mix::new(Budget::BitsPerWeight(1.0)).with_levels(all).expect("levels");
        let less = Compressor::within(mix).with_force(true).run(&source, &out);
        let less = less.unwrap_or_else(|e| panic!("{name}: {e}")).bits_per_weight;
        assert!(less <= 1.0, "{name}: {less}");
        println!("{name}: {} of {target}, {:.3} bits", report.bytes_after, bits.bits_per_weight);
        kept += 1;
    }
    assert!(kept > 20, "only {kept} models");
}

/// A single level, and one that some matrices cannot have.
#[test]
fn one_level_and_none_for_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let one = Mix::new(Budget::BitsPerWeight(5.0)).with_levels(["rtn(bits=4, group=64)"]);
    let report = run(one.expect("a level"), &out).expect("compressed");
    assert!(report.layers.iter().all(|layer| layer.method.contains("bits=4")));
}

/// With nothing as a level: smaller than any other makes a model, and what goes of a block goes as a whole.
#[test]
fn what_takes_more_than_it_gives_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let source = Source::demo(&registry()).expect("the demo");
    let levels = [&ROUNDING[..], &["drop"]].concat();
    for bits in [0.0, 0.7, 1.5, 2.2] {
        let budget = Budget::BitsPerWeight(bits);
        let mix = Mix::new(budget).with_levels(&levels).expect("levels");
        let compressor = Compressor::within(mix).with_calibration(calibration()).with_force(true);
        if bits == 0.0 {
            assert_eq!(
                compressor.run(&source, &out).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
            continue;
        }
        let report = compressor.run(&source, &out).expect("fits");
        assert!(report.bits_per_weight <= bits, "{} of {bits}", report.bits_per_weight);
        let gone = |layer: &&LayerReport| layer.method == "drop";
        let dropped: Vec<&LayerReport> = report.layers.iter().filter(gone).collect();
        println!("{bits}: {:.3}, {} gone", report.bits_per_weight, dropped.len());
        assert!(dropped.iter().all(|layer| layer.bits_per_weight == 0.0) && !dropped.is_empty());
        for one in &dropped {
            let part = if one.name.contains("self_attn") { "self_attn" } else { "mlp" };
            let prefix = one.name.split(part).next().expect("a prefix");
            let of = format!("{prefix}{part}");
            let all = report.layers.iter().filter(|layer| layer.name.starts_with(&of));
            assert!(all.clone().count() > 2 && all.clone().all(|it| gone(&it)), "{of}");
        }
        let is = divergence(&source, &out, &held_out(&source));
        assert!(is.is_finite() && is > 0.0, "{is}");
    }
    // A head stays, however small the file is to be.
    let mix = Mix::new(Budget::FileBytes(120_000)).with_levels(&levels).expect("levels");
    let compressor = Compressor::within(mix).with_calibration(calibration()).with_force(true);
    let report = compressor.run(&source, &out).expect("fits");
    assert!(report.bytes_after <= 120_000, "{}", report.bytes_after);
    let head = report.layers.iter().find(|layer| layer.name.contains("embed_tokens"));
    assert!(head.is_some_and(|head| head.method.starts_with("rtn")), "{head:?}");
}

/// Rounding within a budget, behind a recipe.
fn behind<'a>(budget: Budget, recipe: &str) -> Result<Compressor<'a>> {
    let compressor = Compressor::within(rounding(budget)).with_calibration(calibration());
    compressor.with_rewrites_of(Recipe::parse(recipe)?)
}

/// Whole blocks and channels go first, and what is left gets the budget; what is lost is lost of the source.
#[test]
fn blocks_change_before_a_budget_is_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("the demo");
    let out = folder.path().join("out");
    let target = 500_000;
    let run = |cancel: Option<Arc<AtomicBool>>| {
        let chain = "drop_blocks(count=1) | flap(sparsity=0.25)";
        let compressor = behind(Budget::FileBytes(target), chain).expect("rewrites");
        match cancel {
            None => compressor.run(&source, &out),
            Some(cancel) => {
                let mut stop = AtBlock(cancel.clone());
                let compressor = compressor.with_cancel(cancel).with_progress(&mut stop);
                compressor.run(&source, &out)
            }
        }
    };
    let stopped = run(Some(Arc::default())).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Interrupted, "{stopped}");
    let report = run(None).expect("fits");
    assert!(report.bytes_after <= target && report.bytes_after as f64 > 0.97 * target as f64);
    let left = tensorpress::open_model(&out).expect("a model");
    assert_eq!(left.blocks(), source.blocks() - 1);
    let files = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let all =
            std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("one").path());
        all.map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
    };
    let stopped = files(&out);
    std::fs::remove_dir_all(&out).expect("removed");
    let _ = run(None).expect("fits");
    assert!(files(&out) == stopped, "taken up again, other bytes");
    // What channels lose alone is more than this limit allows rounding, so that it must be judged from the source.
    let segments = held_out(&source);
    std::fs::remove_dir_all(&out).expect("removed");
    let alone = Compressor::new(Recipe::parse("flap(sparsity=0.05)").expect("a recipe"));
    let _ = alone.with_calibration(calibration()).run(&source, &out).expect("pruned");
    let lost = divergence(&source, &out, &segments);
    let limit = 1.5 * lost;
    let search = behind(Budget::Divergence(limit), "flap(sparsity=0.05)").expect("a rewrite");
    let search = search.with_judged_on(&segments[..]).with_force(true);
    let _ = search.run(&source, &out).expect("kept");
    let is = divergence(&source, &out, &segments);
    println!("flap alone {lost:.5}, limit {limit:.5}, found {is:.5}");
    assert!(is <= limit && is > lost, "{is} of {limit}");
    // Hardly more than that, and less.
    for (limit, kept) in [(1.1 * lost, true), (0.9 * lost, false)] {
        let search = behind(Budget::Divergence(limit), "flap(sparsity=0.05)").expect("a rewrite");
        let found = search.with_judged_on(&segments[..]).with_force(true).run(&source, &out);
        match found {
            Ok(_) => assert!(kept && divergence(&source, &out, &segments) <= limit),
            Err(e) => assert!(!kept && e.to_string().contains("alone lose"), "{limit}: {e}"),
        }
    }
    for recipe in ["rtn(bits=4)", "flap(sparsity=0.1) | rtn(bits=4)", "best3"] {
        let error = behind(Budget::FileBytes(target), recipe).unwrap_err();
        assert!(error.to_string().contains("whole blocks"), "{error}");
    }
}

/// Stops at the second block.
struct AtBlock(Arc<AtomicBool>);

impl Progress for AtBlock {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Block { block: 1, .. } = event {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
