//! The curve of the best mixes: what is judged of it, what is expected of the rest, and searches that time ends.

mod judged;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use judged::{divergence, held_out};
use tensorpress::model::embedded;
use tensorpress::pipeline::{
    Budget, CalibrationText, Compressor, Event, Frontier, Mix, Points, Progress, Target,
};
use tensorpress::prelude::*;
use tensorpress::{ErrorKind, Result, registry};

const ROUNDING: [&str; 5] = [
    "rtn(bits=2, group=32)",
    "rtn(bits=3, group=64)",
    "rtn(bits=4, group=64)",
    "rtn(bits=6, group=64)",
    "rtn(bits=8, group=64)",
];

fn demo() -> Source {
    Source::demo(&registry()).expect("the demo")
}

fn compressor<'a>(mix: Mix, segments: &[Vec<u32>]) -> Compressor<'a> {
    let mix = mix.with_levels(ROUNDING).expect("levels");
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(8).with_length(128);
    Compressor::within(mix).with_judged_on(segments).with_calibration(text)
}

fn frontier(compressor: Compressor<'_>, source: &Source, out: &Path) -> Result<Frontier> {
    let mut published = 0;
    let made = compressor.frontier(source, out, &mut |_| {
        published += 1;
        Ok(())
    })?;
    assert_eq!(published, 1, "once, at the end");
    assert!(!out.with_extension("partial").exists(), "nothing is left behind");
    Ok(made)
}

/// Stops a run when a model was judged.
struct Stop(Arc<AtomicBool>);

impl Progress for Stop {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Tried { .. } = event {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Stops a run in the third block after a model was judged.
struct AfterTried(Arc<AtomicBool>, bool);

impl Progress for AfterTried {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Tried { .. } => self.1 = true,
            Event::Block { block: 2, .. } if self.1 => self.0.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// Larger ones lose less; what is expected of the others is what they lose; the same if it was stopped after each model.
#[test]
fn the_curve_is_what_models_lose() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let segments = held_out(&source);
    let points = Points::new(7).with_judged(4);
    let out = folder.path().join("curve");
    let made = frontier(compressor(Mix::along(points.clone()), &segments), &source, &out)
        .expect("a curve");
    let curve = &made.points;
    assert_eq!(curve.len(), 7);
    assert_eq!(curve.iter().filter(|point| point.divergence.is_some()).count(), 4);
    let falls = |pair: &[tensorpress::pipeline::Point]| {
        pair[0].bytes < pair[1].bytes && pair[0].expected > pair[1].expected
    };
    assert!(curve.windows(2).all(falls), "{curve:?}");
    assert!(curve[0].divergence.is_some() && curve[6].divergence.is_some(), "both ends");
    assert_eq!(made.outlook.uniform.len(), ROUNDING.len());
    // What nobody made is about what it comes to.
    for point in curve.iter().filter(|point| point.divergence.is_none()) {
        let at = folder.path().join("at");
        let within = compressor(Mix::new(Budget::FileBytes(point.bytes)), &[]).with_force(true);
        let fits = within.run(&source, &at).expect("fits").bytes_after;
        assert!(fits <= point.bytes);
        let is = divergence(&source, &at, &segments);
        println!("{} bytes: {:.5} expected, {is:.5}", point.bytes, point.expected);
        assert!(is < 1.2 * point.expected && is > point.expected / 1.2);
    }
    let again = folder.path().join("again");
    let mut stops = 0;
    let resumed = loop {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = Stop(cancel.clone());
        let stopped = compressor(Mix::along(points.clone()), &segments);
        let stopped = stopped.with_cancel(cancel).with_progress(&mut stop);
        match frontier(stopped, &source, &again) {
            Ok(made) => break made,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
        }
        stops += 1;
    };
    assert_eq!(stops, 3, "after each but the last");
    assert_eq!(resumed.points, made.points);
    assert_eq!(resumed.outlook, made.outlook);
}

/// Sizes that are named, of a file; and what is asked for wrongly.
#[test]
fn named_sizes_and_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let segments = held_out(&source)[..2].to_vec();
    let out = folder.path().join("curve");
    let levels = ["rtn(bits=4, group=32, symmetric=true)", "rtn(bits=8, group=32, symmetric=true)"];
    let sizes = Points::of([1_300_000, 900_000, 900_000]);
    let mix = Mix::along(sizes).with_levels(levels).expect("levels");
    let within = Compressor::within(mix).with_judged_on(segments.as_slice());
    let made = frontier(within.with_format(Target::Gguf(None)), &source, &out).expect("a curve");
    let bytes: Vec<u64> = made.points.iter().map(|point| point.bytes).collect();
    assert!(matches!(bytes[..], [880_000..=900_000, 1_270_000..=1_300_000]), "{bytes:?}");

    let refused = |compressor: Compressor<'_>| {
        let error = frontier(compressor, &source, &out).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        error.to_string()
    };
    let none = compressor(Mix::along(Points::of([])), &segments);
    assert!(refused(none).contains("no sizes"));
    let budget = compressor(Mix::new(Budget::BitsPerWeight(4.0)), &segments);
    assert!(refused(budget).contains("several sizes"));
    assert!(refused(compressor(Mix::along(Points::new(2)), &[])).contains("judged on"));
    let model = compressor(Mix::along(Points::new(2)), &segments).run(&source, &out);
    assert!(model.expect_err("no model").to_string().contains("not a model"));
    assert!(refused(compressor(Mix::along(Points::of([1])), &[])).contains("judged on"));
    // Out of reach: the nearest, once.
    let far = Points::of([1, 2, 30_000_000]);
    let made = frontier(compressor(Mix::along(far), &segments), &source, &out).expect("a curve");
    assert_eq!(made.points.len(), 2);
    assert!(made.notes.iter().any(|note| note.contains("sizes reach from")), "{:?}", made.notes);
}

/// Where time is over, no further model is made.
#[test]
fn time_ends_searches() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let segments = held_out(&source);
    let out = folder.path().join("curve");
    let at_once = Duration::from_nanos(1);
    let along = Mix::along(Points::new(5).with_judged(5)).with_max_time(at_once);
    let made = frontier(compressor(along, &segments), &source, &out).expect("a curve");
    assert_eq!(made.points.iter().filter(|point| point.divergence.is_some()).count(), 1);

    // One that keeps the limit is taken; where none does, the same call goes on. And what is stopped while the best is made
    // again goes on with that.
    let out = folder.path().join("model");
    let mut runs = 0;
    loop {
        runs += 1;
        assert!(runs < 12, "it never ends");
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = AfterTried(cancel.clone(), false);
        let mix = Mix::new(Budget::Divergence(0.02)).with_max_time(at_once);
        let search = compressor(mix, &segments).with_cancel(cancel).with_progress(&mut stop);
        match search.run(&source, &out) {
            Ok(report) => break println!("{} bytes after {runs} runs", report.bytes_after),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
        }
    }
    let is = divergence(&source, &out, &segments);
    assert!(is <= 0.02, "{is}");
    let measured = Mix::new(Budget::BitsPerWeight(4.0)).with_measured(true).with_max_time(at_once);
    let bits = folder.path().join("bits");
    let report = compressor(measured, &[]).run(&source, &bits).expect("by what two blocks say");
    assert!(report.bits_per_weight <= 4.0);
}
