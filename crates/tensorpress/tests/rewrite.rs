//! Rewrites through the pipeline: several in a row, one from outside the workspace, and work that is stopped anywhere and
//! taken up again.

mod tiny;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::embedded;
use tensorpress::pipeline::{CalibrationText, Event, Progress, partial_of};
use tensorpress::prelude::*;
use tensorpress::tensor::rewrite::{
    BlockView, Change, Decision, Edit, Judgement, ModelLayout, SharedInput,
};
use tensorpress::tensor::stage::{Keys, Knobs};
use tensorpress::tensor::stats::Needs;
use tensorpress::tensor::{RawTensor, Tensor};
use tiny::{Tiny, folder_bytes};

const WINDOWS: usize = 4;
const LENGTH: usize = 32;

fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(WINDOWS).with_length(LENGTH)
}

fn compressor<'a>(line: &str) -> Compressor<'a> {
    Compressor::new(Recipe::parse(line).unwrap()).with_calibration(calibration())
}

fn compress(line: &str, source: &Source, out: &Path) -> Result<Report> {
    Compressor::new(Recipe::parse(line)?).with_calibration(calibration()).run(source, out)
}

#[test]
fn rewrites_keep_their_order_and_see_what_is_left() {
    #[derive(Default)]
    struct Watch(Vec<(String, usize, usize)>);
    impl Progress for Watch {
        fn event(&mut self, event: Event<'_>) {
            if let Event::Judged { stage, block, blocks } = event {
                self.0.push((stage.to_owned(), block, blocks));
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let large =
        Tiny::deep("llama", 4, (8, 4), 4, 30, false, 3).source(&folder.path().join("large"));
    let run = |line: &str, name: &str| {
        let (mut watch, out) = (Watch::default(), folder.path().join(name));
        let report = compressor(line).with_progress(&mut watch).run(&large, &out).unwrap();
        (watch.0, report, open_model(&out).unwrap())
    };
    let (flap, dropped) = ("flap(sparsity=0.3)", "drop_blocks(count=2)");
    let judged = |stage: &str, blocks: usize| {
        (0..blocks).map(|block| (stage.to_owned(), block, blocks)).collect::<Vec<_>>()
    };
    let both = format!("{flap} | {dropped} | gptq(bits=4, group=8)");
    let (told, report, first) = run(&both, "first");
    assert_eq!(told, [judged(flap, 4), judged(dropped, 4)].concat());
    let kept: Vec<_> = report.blocks.iter().filter(|b| b.after.heads > 0).collect();
    assert_eq!((kept.len(), first.blocks(), report.layers.len()), (2, 2, 14));
    for (now, block) in kept.iter().enumerate() {
        assert_eq!(block.after, first.config().shape(now));
        assert!(block.after.intermediate < block.before.intermediate);
    }
    assert!(report.layers.iter().all(|l| l.method.contains("gptq")), "{:?}", report.layers[0]);
    assert_eq!(first.trees().len(), 14);
    let (told, _, second) = run(&format!("{dropped} | {flap}"), "second");
    assert_eq!(told, [judged(dropped, 4), judged(flap, 2)].concat());
    assert_eq!(second.blocks(), 2);

    // Two in a row are one after the other.
    let (_, report, at_once) = run(&format!("{flap} | {dropped}"), "at once");
    let (_, _, uneven) = run(flap, "uneven");
    let shapes: Vec<_> = (0..4).map(|block| uneven.config().shape(block)).collect();
    assert!(shapes.windows(2).any(|pair| pair[0] != pair[1]), "{shapes:?}");
    let out = folder.path().join("after");
    let _ = compress(dropped, &uneven, &out).unwrap();
    assert!(folder_bytes(&out) == folder_bytes(&folder.path().join("at once")));
    let kept: Vec<_> =
        report.blocks.iter().filter(|b| b.after.heads > 0).map(|b| b.after.clone()).collect();
    let shapes: Vec<_> = (0..2).map(|block| at_once.config().shape(block)).collect();
    assert_eq!(shapes, kept);
    assert!(at_once.decoder().is_ok());
    assert!(report.layers.iter().all(|l| l.method == format!("{flap} | {dropped}")));
}

/// Stops the work when it has been told this many things.
struct StopAfter {
    events: usize,
    judged: Vec<(String, usize)>,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAfter {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Judged { stage, block, .. } => self.judged.push((stage.to_owned(), block)),
            Event::Block { .. } => {}
            _ => return,
        }
        if self.events == 0 {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.events = self.events.saturating_sub(1);
    }
}

/// Runs until the work is told of its `events`-th step, if it comes so far; also what was judged on the way. `merge`: with
/// the rewrite from outside.
fn stopped(
    line: &str,
    merge: bool,
    source: &Source,
    out: &Path,
    events: usize,
) -> (Result<Report>, Vec<(String, usize)>) {
    let mut compressor = compressor(line);
    if merge {
        compressor = compressor.with_rewrite(MergeNeighbours).unwrap();
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let mut stop = StopAfter { events, judged: Vec::new(), cancel: cancel.clone() };
    let run = compressor.with_progress(&mut stop).with_cancel(cancel).run(source, out);
    (run, stop.judged)
}

#[test]
fn work_stopped_anywhere_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::deep("llama", 4, (4, 2), 4, 30, false, 5).source(&folder.path().join("tiny"));
    for (i, (line, steps)) in [
        ("flap(sparsity=0.3) | drop_blocks | gptq(bits=4, group=8)", 8),
        ("drop_blocks(count=2) | flap(sparsity=0.4, uniform=true)", 6),
        ("drop_blocks(count=2, score=output) | refit_head", 6),
        ("ziplm(sparsity=0.3) | gptq(bits=4, group=8)", 4),
        ("drop_blocks | best3", 4),
    ]
    .into_iter()
    .enumerate()
    {
        let path = |name: &str| folder.path().join(format!("{name}{i}"));
        let whole = compress(line, &tiny, &path("whole")).unwrap();
        let want = folder_bytes(&path("whole"));
        // Stopped once, at every step there is.
        for events in 0.. {
            let out = path(&format!("at{events}-"));
            let (run, _) = stopped(line, false, &tiny, &out, events);
            let Err(error) = run else {
                assert!(events >= steps + 2);
                break;
            };
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
            assert!(!out.exists() && partial_of(&out).exists());
            let resumed = compress(line, &tiny, &out).unwrap();
            assert_eq!((&resumed.layers, &resumed.blocks), (&whole.layers, &whole.blocks));
            assert!(folder_bytes(&out) == want, "{line}: stopped at step {events}");
        }
        // One step at a time: no block is judged twice.
        let (out, mut judged) = (path("steps"), Vec::new());
        for turn in 0.. {
            assert!(turn < 40);
            let (run, told) = stopped(line, false, &tiny, &out, 1);
            // The second it was told of was stopped.
            judged.extend(told.into_iter().take(1));
            if run.is_ok() {
                break;
            }
        }
        let once: BTreeSet<_> = judged.iter().collect();
        assert_eq!((judged.len(), once.len()), (steps, steps), "{judged:?}");
        assert!(folder_bytes(&out) == want, "{line}");
    }
}

#[test]
fn damaged_steps_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::deep("llama", 3, (4, 2), 4, 30, false, 6).source(&folder.path().join("tiny"));
    let line = "flap(sparsity=0.3) | drop_blocks | refit_head | rtn(bits=8)";
    let whole = folder.path().join("whole");
    let _ = compress(line, &tiny, &whole).unwrap();
    let names: Vec<String> = folder_bytes(&whole).into_keys().collect();
    assert!(!names.iter().any(|name| name.starts_with("tensorpress.")), "{names:?}");
    for file in [
        "rewrite-0.judged-00001",
        "rewrite-0.edit-00002",
        "rewrite-0.decisions",
        "rewrite-1.judged-00000",
        "rewrite-1.edit-00000",
        "rewrite-2.edit-00001",
        "rewrite-2.head",
    ] {
        for how in ["flipped", "cut", "gone"] {
            let out = folder.path().join(format!("{file}{how}"));
            // All rewrites are done, and a block.
            let (run, _) = stopped(line, false, &tiny, &out, 9);
            assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
            let path = partial_of(&out).join(format!("tensorpress.{file}"));
            let mut bytes = std::fs::read(&path).unwrap();
            match how {
                "flipped" => *bytes.last_mut().unwrap() ^= 4,
                "cut" => bytes.truncate(bytes.len() / 2),
                _ => {}
            }
            std::fs::remove_file(&path).unwrap();
            if how != "gone" {
                std::fs::write(&path, bytes).unwrap();
            }
            let _ = compress(line, &tiny, &out).unwrap();
            assert!(folder_bytes(&out) == folder_bytes(&whole), "{file} {how}");
        }
    }
}

/// A rewrite from outside: of each pair of neighbours the second goes, and the first becomes the mean of both.
#[derive(Debug)]
struct MergeNeighbours;

impl Knobs for MergeNeighbours {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

impl Method for MergeNeighbours {
    fn id(&self) -> &'static str {
        "merge_neighbours"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Rewrite for MergeNeighbours {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        match model.blocks.len() % 2 {
            0 => Ok(()),
            _ => Err(Error::unsupported("an odd number of blocks has no pairs")),
        }
    }

    fn judge(&self, _: &ModelLayout, _: &BlockView<'_>) -> Result<Judgement> {
        Ok(Judgement::new())
    }

    fn settle(&self, model: &ModelLayout, _: &[Judgement]) -> Result<Vec<Decision>> {
        let odd = |block: usize| Decision::new().with_dropped(block % 2 == 1);
        Ok((0..model.blocks.len()).map(odd).collect())
    }

    fn edit(
        &self,
        model: &ModelLayout,
        block: &BlockView<'_>,
        _: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        if decision.dropped {
            return Ok(Edit::dropped());
        }
        let mut edit = Edit::new().with_note(&block.layout().linears[0].name, "merged");
        let next = &model.blocks[block.layout().block + 1];
        for (first, second) in block.layout().linears.iter().zip(&next.linears) {
            let mean = (block.matrix(&first.name)? + block.matrix(&second.name)?) / 2.0;
            let dtype = block.tensor(&first.name)?.dtype();
            let tensor = RawTensor::from_f32(mean.view().into_dyn(), dtype)?;
            edit = edit.with_change(&first.name, Change::New(tensor));
        }
        Ok(edit)
    }
}

#[test]
fn a_rewrite_from_outside_runs_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let large =
        Tiny::deep("llama", 4, (4, 2), 4, 30, false, 9).source(&folder.path().join("large"));
    let merged = |recipe: Recipe| Compressor::new(recipe).with_rewrite(MergeNeighbours).unwrap();
    let out = folder.path().join("merged");
    let report = merged(Recipe::default()).run(&large, &out).unwrap();
    let small = open_model(&out).unwrap();
    assert_eq!(small.blocks(), 2);
    assert!(small.raw_config().get("quantization_config").is_none());
    let matrix = |source: &Source, name: &str| {
        source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
    };
    for block in 0..2 {
        let [now, first, second] = [(&small, block), (&large, 2 * block), (&large, 2 * block + 1)]
            .map(|(source, block)| matrix(source, &source.linears(block)[5].name));
        assert_eq!(now, (first + second) / 2.0);
    }
    let notes: BTreeMap<_, _> =
        report.layers.iter().map(|l| (&*l.name, l.fallback.as_deref())).collect();
    // Notes follow their blocks to the new numbers.
    assert_eq!(notes["model.layers.1.self_attn.q_proj.weight"], Some("merged"));
    assert_eq!(notes["model.layers.1.self_attn.k_proj.weight"], None);

    // After a rewrite of the recipe, before its quantiser; stopped and taken up.
    let line = "drop_blocks(count=2) | rtn(bits=8, group=8)";
    let both = || compressor(line).with_rewrite(MergeNeighbours).unwrap();
    let whole = folder.path().join("whole");
    let report = both().run(&large, &whole).unwrap();
    assert_eq!((open_model(&whole).unwrap().blocks(), report.layers.len()), (1, 7));
    for events in 0..7 {
        let out = folder.path().join(format!("stopped{events}"));
        let (run, _) = stopped(line, true, &large, &out, events);
        assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
        // Without it, it is other work.
        let error = compress(line, &large, &out).unwrap_err();
        assert!(error.message().contains("merge_neighbours"), "{error}");
        let _ = both().run(&large, &out).unwrap();
        assert!(folder_bytes(&out) == folder_bytes(&whole), "stopped at step {events}");
    }
    let odd = Tiny::deep("llama", 3, (4, 2), 4, 30, false, 9).source(&folder.path().join("odd"));
    let out = folder.path().join("refused");
    let error = merged(Recipe::default()).run(&odd, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(!out.exists() && !partial_of(&out).exists());
}

#[test]
fn impossible_work_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let large =
        Tiny::deep("qwen2", 3, (4, 2), 4, 30, false, 2).source(&folder.path().join("large"));
    let out = folder.path().join("out");
    for (line, part) in [
        ("drop_blocks(count=3)", "count = 3: allowed are 1 to 2, for the model has 3 blocks"),
        ("flap | drop_blocks(count=7) | rtn", "count = 7: allowed are 1 to 2"),
    ] {
        let error = compress(line, &large, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(part), "{line}: {error}");
        assert!(!out.exists() && !partial_of(&out).exists());
    }
    // What the first leaves is too little for the second.
    let error = compress("drop_blocks | drop_blocks(count=2)", &large, &out).unwrap_err();
    assert!(error.message().contains("count = 2: allowed are 1 to 1"), "{error}");
    let error =
        Compressor::new(Recipe::parse("drop_blocks").unwrap()).run(&large, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingCalibration);
    assert!(error.message().contains("`drop_blocks`"), "{error}");
    let _ = Compressor::new(Recipe::default()).run(&large, &out).unwrap_err();
}
