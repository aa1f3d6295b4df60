//! Bits that all matrices of a model share: one step for all, found before the work and kept to while it goes on.

mod tiny;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::embedded;
use tensorpress::pipeline::{CalibrationText, Event, Progress, Report};
use tensorpress::prelude::*;
use tensorpress::recipe::LayerRule;
use tiny::{Tiny, folder_bytes};

fn compressor<'a>(line: &str) -> Compressor<'a> {
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(32);
    Compressor::new(Recipe::parse(line).unwrap()).with_calibration(text)
}

fn spread(report: &Report) -> f64 {
    let bits = report.layers.iter().map(|layer| layer.bits_per_weight);
    bits.clone().fold(0.0, f64::max) - bits.fold(f64::MAX, f64::min)
}

#[test]
fn the_demo_takes_the_bits_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    for (bits, line) in [
        (2.5, "watersic(bits=2.5) | coded(rans)"),
        (4.0, "drift | watersic(bits=4, states=0) | coded(rans)"),
    ] {
        let out = folder.path().join(format!("{bits}"));
        let report = compressor(line).run(&source, &out).unwrap();
        assert!(report.layers.iter().all(|l| l.fallback.is_none()), "{:?}", report.layers[0]);
        let off = report.bits_per_weight / bits - 1.0;
        assert!(off.abs() < 0.02, "{line}: {} bits", report.bits_per_weight);
        let each = line.replace("watersic(", "watersic(each=true, ");
        let alike = compressor(&each).run(&source, &out.with_extension("each")).unwrap();
        assert!(spread(&report) > 2.0 * spread(&alike), "bits go where they count");
    }
}

/// Stops the work when it is told of its step so-and-so.
struct StopAt {
    steps: usize,
    rated: usize,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Rated { block, blocks } => {
                assert!(block < blocks);
                self.rated += 1;
            }
            Event::Block { .. } => {}
            _ => return,
        }
        if self.steps == 0 {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.steps = self.steps.saturating_sub(1);
    }
}

#[test]
fn a_run_that_is_stopped_anywhere_comes_to_the_same() {
    const LINE: &str = "drift | watersic(bits=3, states=4) | coded(rans)";
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny::deep("llama", 4, (8, 4), 4, 30, false, 3);
    let source = model.source(&folder.path().join("model"));
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let _ = compressor(LINE).run(&source, &whole).unwrap();
    for steps in 0..9 {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { steps, rated: 0, cancel: cancel.clone() };
        let run = compressor(LINE).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        if steps == 8 {
            let _ = run.unwrap();
            assert_eq!(stop.rated, 4);
        } else {
            assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
            assert_eq!(stop.rated, 4.min(steps + 1));
            let mut again = StopAt { steps: usize::MAX, rated: 0, cancel: Arc::default() };
            let _ = compressor(LINE).with_progress(&mut again).run(&source, &out).unwrap();
            assert!(again.rated <= 4 - stop.rated + 1, "what is known is not found again");
        }
        assert!(folder_bytes(&whole) == folder_bytes(&out), "stopped at step {steps}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn one_thread_or_two_and_other_methods_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    let line = |line: &str| Recipe::parse(line).unwrap();
    let rule =
        |pattern: &str, of: &str| LayerRule::new(pattern, line(of).chain().cloned()).unwrap();
    let recipe = line("watersic(bits=3) | coded(rans)")
        .with_layer(rule("*.o_proj.weight", "rtn(bits=4, group=32)"))
        .with_layer(rule("*.down_proj.weight", "watersic(bits=4.5) | coded(rans)"));
    let run = |threads: usize, out: &str| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let out = folder.path().join(out);
        let text = CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(32);
        let run =
            || Compressor::new(recipe.clone()).with_calibration(text.clone()).run(&source, &out);
        let report = pool.install(run).unwrap();
        (report, folder_bytes(&out))
    };
    let (report, one) = run(1, "one");
    let (_, two) = run(2, "two");
    assert!(one == two, "threads make no difference");
    let of = |is_down: bool| {
        let (mut bits, mut weights) = (0.0, 0.0);
        for spec in (0..source.blocks()).flat_map(|block| source.linears(block)) {
            let down = spec.name.ends_with("down_proj.weight");
            if down != is_down || spec.name.ends_with("o_proj.weight") {
                continue;
            }
            let layer = report.layers.iter().find(|layer| layer.name == spec.name).unwrap();
            let size = (spec.shape[0] * spec.shape[1]) as f64;
            bits += layer.bits_per_weight * size;
            weights += size;
        }
        bits / weights
    };
    let (down, rest) = (of(true), of(false));
    assert!((down - 4.5).abs() < 0.15, "{down} bits of 4.5");
    assert!((rest - 3.0).abs() < 0.1, "{rest} bits of 3");
}
