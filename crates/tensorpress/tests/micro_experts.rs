//! Experts become narrower through the pipeline: the smaller model computes what the whole one does with the columns of what
//! went set to zero.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorpress::model::backward::{
    Backward, Collector, Gradients, InMemory, Labels, SecondMoment, Wanted,
};
use tensorpress::model::text::{Corpus, Limits, Windows};
use tensorpress::model::{Collecting, Observer, Routing, compare};
use tensorpress::pipeline::{CalibrationText, DEFAULT_CHARS, Event, Progress};
use tensorpress::prelude::*;
use tensorpress::tensor::linalg::{Par, SplitMix};
use tensorpress::tensor::ndarray::{Array2, ArrayView2};
use tensorpress::tensor::rewrite::{BlockLayout, Change, Edit, Role, SharedInput};
use tensorpress::tensor::stats::{Needs, Supplied, Supply};
use tensorpress::tensor::{RawTensor, Scratch, Tensor};
use tensorpress::{ErrorKind, Result};
use tensorpress_tensor::testing::data;

/// Models of golden vectors with experts; and whether a config can say that all of them are narrower.
const MODELS: [(&str, bool); 8] = [
    ("mixtral", true),
    ("olmoe", true),
    ("qwen2-moe", true),
    ("qwen3-moe", true),
    ("gpt-oss", true),
    ("deepseek-v2-lite", false),
    ("deepseek-v3", false),
    ("llama4-text", false),
];
const STAGES: [&str; 3] = ["camera", "heapr", "slim_moe"];

fn folder(name: &str) -> Option<PathBuf> {
    data::find(&format!("golden/models/{name}"))
}

fn compressor<'a>(line: &str, folder: &Path) -> Result<Compressor<'a>> {
    let corpus = Corpus::read(&folder.join("expected.safetensors"))?;
    let text = CalibrationText::new(corpus).with_length(24);
    Ok(Compressor::new(Recipe::parse(line)?).with_calibration(text))
}

/// The down matrix `[out, channels]` of an expert.
fn down(source: &Source, layout: &BlockLayout, index: usize) -> Array2<f32> {
    let spec = layout.of_expert(index).find(|spec| spec.role == Role::Down).unwrap();
    source.stored(spec).unwrap().to_matrix().unwrap()
}

/// For each expert of a block the channels of `before` that are those of `after`, in its order, by their columns.
fn kept(before: &Source, after: &Source, block: usize) -> Vec<Vec<usize>> {
    let layouts = [before, after].map(|source| source.layout(false).blocks[block].clone());
    let of = |index: usize| {
        let (old, new) = (down(before, &layouts[0], index), down(after, &layouts[1], index));
        let same = |column| old.columns().into_iter().position(|other| other == column).unwrap();
        new.columns().into_iter().map(same).collect()
    };
    (0..layouts[0].expert_widths().len()).map(of).collect()
}

/// Sets the columns of all other channels to zero.
fn masked(source: &Source, kept: &[Vec<Vec<usize>>]) -> Source {
    let edit = |layout: &BlockLayout| {
        let Some(experts) = &layout.experts else { return Edit::new() };
        // A shape of its own, so that the edit is one of experts.
        let mut edit = Edit::new().with_shape(layout.shape.clone().with_experts(experts.count));
        let mut stacks: Vec<(String, RawTensor, Vec<f32>)> = Vec::new();
        for (index, kept) in kept[layout.block].iter().enumerate() {
            let spec = layout.of_expert(index).find(|spec| spec.role == Role::Down).unwrap();
            let mut matrix = down(source, layout, index);
            for channel in (0..matrix.ncols()).filter(|channel| !kept.contains(channel)) {
                matrix.column_mut(channel).fill(0.0);
            }
            let name = spec.place.as_ref().map_or(&spec.name, |place| &place.tensor);
            let stored = source.checkpoint().tensor(name).unwrap();
            let turned = spec.place.as_ref().is_some_and(|place| place.transposed);
            let values: Vec<f32> = if turned {
                matrix.t().iter().copied().collect()
            } else {
                matrix.iter().copied().collect()
            };
            match stacks.last_mut().filter(|(of, ..)| of == name) {
                Some((_, _, all)) => all.extend(values),
                None => stacks.push((name.clone(), stored, values)),
            }
        }
        for (name, stored, values) in stacks {
            let mut bytes = Vec::new();
            stored.dtype().write_f32(&values, &mut bytes).unwrap();
            let new = RawTensor::new(stored.dtype(), stored.shape().to_vec(), bytes.into());
            edit = edit.with_change(&name, Change::New(new.unwrap()));
        }
        edit
    };
    let edits: Vec<Edit> = source.layout(false).blocks.iter().map(edit).collect();
    source.edited(&edits, false).unwrap()
}

fn hidden(source: &Source) -> Array2<f32> {
    let ids = [1, 5, 3, 2, 9, 4, 7, 7, 6, 1, 8];
    source.decoder().unwrap().hidden(&ids, &mut Scratch::default()).unwrap()
}

#[test]
fn the_smaller_model_is_the_masked_one() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    for (name, sayable) in MODELS {
        let Some(folder) = folder(name) else { continue };
        let source = open_model(&folder).unwrap();
        for stage in STAGES {
            let line = format!("{stage}(sparsity=0.4)");
            let run = compressor(&line, &folder).unwrap().with_force(true);
            let report = run.run(&source, &out).unwrap_or_else(|e| panic!("{name}, {line}: {e}"));
            assert!(report.bytes_after < report.bytes_before, "{name}, {line}");
            // Nothing but stacks that keep as many of each is less than asked.
            for layer in &report.layers {
                let fine = layer.fallback.as_ref().is_none_or(|note| note.contains("one stack"));
                assert!(fine, "{name}, {line}: {:?}", layer.fallback);
            }
            let after = open_model(&out).unwrap();
            let layout = source.layout(false);
            let all: Vec<_> =
                (0..source.blocks()).map(|block| kept(&source, &after, block)).collect();
            let (mut left, mut whole, mut differ) = (0, 0, false);
            for (of, kept) in layout.blocks.iter().zip(&all) {
                let widths = of.expert_widths();
                assert!(kept.iter().flat_map(|of| of.windows(2)).all(|pair| pair[0] < pair[1]));
                let (now, was): (usize, usize) =
                    (kept.iter().map(Vec::len).sum(), widths.iter().sum());
                left += now;
                whole += was;
                let gone = |wide: usize| (wide as f64 * 0.4 + 1e-9) as usize;
                match stage {
                    "slim_moe" => {
                        for (kept, wide) in kept.iter().zip(&widths) {
                            assert_eq!(kept.len(), wide - gone(*wide), "{name}, {line}");
                        }
                    }
                    "camera" if !of.has_stacks() => assert_eq!(now, was - gone(was), "{name}"),
                    _ => {}
                }
                let even = kept.windows(2).all(|pair| pair[0].len() == pair[1].len());
                differ |= !even;
                assert!(even || !of.has_stacks(), "{name}, {line}");
            }
            let stacks = layout.blocks.iter().any(BlockLayout::has_stacks);
            if stage == "heapr" && !stacks {
                assert_eq!(left, whole - (whole as f64 * 0.4 + 1e-9) as usize, "{name}");
            }
            assert!(differ != (stacks || stage == "slim_moe"), "{name}, {line}: widths");
            // A config that others read where it can say so, and only then.
            let config = std::fs::read_to_string(out.join("config.json")).unwrap();
            let plain = stage == "slim_moe" && sayable;
            assert_eq!(!config.contains("quantization_config"), plain, "{name}, {line}");
            assert_eq!(config.contains("expert_widths"), !plain, "{name}, {line}");
            let (small, mask) = (hidden(&after), hidden(&masked(&source, &all)));
            let apart = |a: &Array2<f32>, b: &Array2<f32>| {
                (a - b).iter().fold(0.0_f32, |most, d| most.max(d.abs()))
            };
            assert!(apart(&small, &mask) < 1e-4, "{name}, {line}: {}", apart(&small, &mask));
            assert!(apart(&small, &hidden(&source)) > 1e-4, "{name}, {line}: nothing went");
        }
    }
}

/// What experts were sent, and what their down matrices read, as a pass shows it.
#[derive(Default)]
struct Watch {
    routing: Option<Routing>,
    inside: BTreeMap<usize, Array2<f32>>,
}

impl Observer for Watch {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if let SharedInput::ExpertOutput(index) = input {
            self.inside.insert(index, x.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    }

    fn routed(&mut self, routing: &Routing) {
        self.routing = Some(routing.clone());
    }
}

/// What is collected of channels is what the pass showed, with the factors of the router; where these are on what experts
/// read, they are not counted twice.
#[test]
fn channels_are_seen_with_the_factors_of_their_tokens() {
    for (name, weighed) in [("mixtral", false), ("qwen2-moe", false), ("llama4-text", true)] {
        let Some(folder) = folder(name) else { continue };
        let source = open_model(&folder).unwrap();
        let blocks = source.layout(false).blocks;
        let block = blocks.iter().position(|block| block.experts.is_some()).unwrap();
        let (loaded, hidden) = (source.block(block).unwrap(), source.config().hidden);
        let states = Array2::from_shape_fn((13, hidden), |(t, c)| {
            ((t * 37 + c * 11) % 23) as f32 / 11.0 - 1.0
        });
        let run = |observer: &mut dyn Observer| {
            let (mut states, mut scratch) = (states.clone(), Scratch::default());
            let view = states.view_mut();
            loaded.forward_sequences(view, &[13], Some(observer), &mut scratch).unwrap();
        };
        let experts = blocks[block].experts.as_ref().unwrap().count;
        let mut collecting =
            Collecting::new(&loaded, &|_| Needs::NONE, 0, Par::Seq).with_experts(experts);
        let mut watch = Watch::default();
        run(&mut collecting);
        run(&mut watch);
        let (seen, routing) = (collecting.experts().unwrap(), watch.routing.unwrap());
        let mut used = 0;
        for expert in 0..experts {
            let places = routing.experts.iter().zip(&routing.factors);
            let factors: Vec<f32> =
                places.filter(|(at, _)| **at == expert).map(|(_, factor)| *factor).collect();
            let Some(values) = watch.inside.get(&expert) else {
                assert!(seen.channels(expert).is_empty() && factors.is_empty());
                continue;
            };
            used += 1;
            for (channel, seen) in seen.channels(expert).iter().enumerate() {
                let (mut squares, mut sent, mut peak) = (0.0, 0.0, 0.0_f64);
                for (value, factor) in values.column(channel).iter().zip(&factors) {
                    let value = f64::from(*value);
                    let factor = if weighed { 1.0 } else { f64::from(*factor) };
                    squares += value * value;
                    sent += (factor * value).powi(2);
                    peak = peak.max((factor * value).abs());
                }
                let pairs = [(seen.squares, squares), (seen.weighted, sent), (seen.peak, peak)];
                let near = pairs.iter().all(|(a, b)| (a - b).abs() <= 1e-12 * b.max(1e-6));
                assert!(near, "{name}, channel {channel} of {expert}: {pairs:?}");
            }
        }
        assert!(used > 1, "{name}: tokens go to several");
    }
}

/// What a caller would supply who ran the pass himself.
#[derive(Debug)]
struct Own(Supply, BTreeMap<String, Array2<f32>>);

impl Supplied for Own {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        Ok(self.1.get(tensor).filter(|_| supply == self.0).cloned())
    }

    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        hash.write(b"a pass of the caller's");
        Ok(())
    }
}

/// What the pipeline finds is what a caller's own pass gives: second moments with labels that the model draws, by the seed, of
/// the down matrices; and gradients with the next tokens. Others give another model.
#[test]
fn gradients_are_those_of_a_pass_or_the_callers() {
    const SEED: u64 = 7;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trainer/models/moe");
    let Some(text) = data::find("data/text/tinystories_train_2MB_calib.txt") else { return };
    let (source, parent) = (open_model(&folder).unwrap(), tempfile::tempdir().unwrap());
    let corpus = || Corpus::read(&text).unwrap();
    let cut = Windows { chars: DEFAULT_CHARS, windows: 4, length: 32 };
    let windows = corpus().windows(&source, Default::default(), cut).unwrap();
    let passes = [
        (
            "heapr(sparsity=0.3)",
            Supply::OUTPUT_FISHER,
            Labels::Sampled { seed: SEED },
            Wanted::NONE.with_second_moments(1024),
        ),
        ("slim_moe(sparsity=0.3)", Supply::GRADIENT, Labels::Next, Wanted::NONE.with_mean()),
    ];
    for (line, supply, labels, wanted) in passes {
        let mut own = BTreeMap::new();
        let give = |name: &str, found: Gradients| {
            let moment = found.second_moment.map(|moment| match moment {
                SecondMoment::Full(all) => all,
                SecondMoment::Diagonal(_) => panic!("all of 128 outputs"),
            });
            own.insert(name.to_owned(), found.mean.or(moment).unwrap());
            Ok(())
        };
        let of = |name: &str| if name.contains("experts") { wanted } else { Wanted::NONE };
        let mut collector = Collector::new(of, give);
        let backward = Backward::default().with_labels(labels);
        let go_on = |_, _| ControlFlow::Continue(());
        let mut states = InMemory::default();
        backward.run(&source, &windows, &mut states, &mut collector, &go_on).unwrap();
        drop(collector);
        assert_eq!(own.len(), 3 * 8 * 3);
        let weights = |supplied: Option<Own>, seed: u64| {
            let text = CalibrationText::new(corpus()).with_windows(4).with_length(32);
            let run = Compressor::new(Recipe::parse(line).unwrap()).with_calibration(text);
            let mut run = run.with_seed(seed).with_force(true);
            if let Some(supplied) = supplied {
                run = run.with_supplied(Arc::new(supplied));
            }
            let out = parent.path().join("out");
            let report = run.run(&source, &out).unwrap();
            assert!(report.layers.iter().all(|layer| layer.fallback.is_none()), "{line}");
            let mut files: Vec<_> = std::fs::read_dir(&out).unwrap().map(|f| f.unwrap()).collect();
            files.retain(|file| file.file_name().to_string_lossy().ends_with(".safetensors"));
            files.sort_by_key(std::fs::DirEntry::file_name);
            files.iter().map(|file| std::fs::read(file.path()).unwrap()).collect::<Vec<_>>()
        };
        let found = weights(None, SEED);
        let others = own.iter().map(|(name, of)| (name.clone(), of.mapv(|g| (g * 1e3).cos())));
        assert!(found != weights(Some(Own(supply, others.collect())), SEED), "{line}: they decide");
        assert!(found == weights(Some(Own(supply, own)), SEED), "{line}: they are those of a pass");
        assert_eq!(found == weights(None, SEED + 1), labels == Labels::Next, "{line}: the seed");
    }
}

/// Stops a run behind the first block that was judged.
struct Stop(Arc<std::sync::atomic::AtomicBool>);

impl Progress for Stop {
    fn event(&mut self, event: Event<'_>) {
        if matches!(event, Event::Judged { block: 1, .. }) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

#[test]
fn recipes_go_on_behind_it_and_are_taken_up_again() {
    for (name, line) in [
        ("mixtral", "heapr(sparsity=0.3) | reap(sparsity=0.34) | rtn(bits=4, group=16)"),
        ("gpt-oss", "camera(sparsity=0.3) | wanda(sparsity=0.3) | rtn(bits=4, group=16)"),
    ] {
        let Some(folder) = folder(name) else { continue };
        let parent = tempfile::tempdir().unwrap();
        let source = open_model(&folder).unwrap();
        let (whole, parts) = (parent.path().join("whole"), parent.path().join("parts"));
        let report = compressor(line, &folder).unwrap().run(&source, &whole).unwrap();
        let after = open_model(&whole).unwrap();
        assert!(report.bits_per_weight < 6.0 && hidden(&after).iter().all(|v| v.is_finite()));
        let shape = after.config().shape(0);
        let experts = after.layout(false).blocks[0].experts.clone().unwrap().count;
        assert_eq!(shape.expert_widths.len(), experts, "{name}: {shape:?}");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut tells = Stop(stop.clone());
        let stopped = compressor(line, &folder).unwrap().with_progress(&mut tells);
        let stopped = stopped.with_cancel(stop).run(&source, &parts).unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::Interrupted);
        let _ = compressor(line, &folder).unwrap().run(&source, &parts).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&whole).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let read = |folder: &Path| std::fs::read(folder.join(&name)).unwrap();
            assert!(read(&whole) == read(&parts), "{name:?} differs");
        }
    }
}

#[test]
fn what_has_no_experts_is_refused() {
    let Some(folder) = folder("llama3-rope") else { return };
    let parent = tempfile::tempdir().unwrap();
    let source = open_model(&folder).unwrap();
    for stage in STAGES {
        let run = compressor(&format!("{stage}(sparsity=0.25)"), &folder).unwrap();
        let error = run.run(&source, &parent.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("no experts"), "{error}");
    }
}

/// Experts of different widths have no mean; and those that no longer lie in their stack are not changed by it.
#[test]
fn what_has_changed_too_much_is_refused() {
    let (Some(mixtral), Some(stacked)) = (folder("mixtral"), folder("gpt-oss")) else { return };
    let parent = tempfile::tempdir().unwrap();
    let out = |name: &str| parent.path().join(name);
    let run = compressor("camera(sparsity=0.4) | stun", &mixtral).unwrap();
    let error = run.run(&open_model(&mixtral).unwrap(), &out("mean")).unwrap_err();
    assert!(error.to_string().contains("differ in width"), "{error}");
    let rounded = Compressor::new(Recipe::parse("rtn(bits=8, group=16)").unwrap());
    let _ = rounded.run(&open_model(&stacked).unwrap(), &out("rounded")).unwrap();
    let rounded = open_model(out("rounded")).unwrap();
    for stage in ["reap(sparsity=0.34)", "camera(sparsity=0.25)"] {
        let run = compressor(stage, &stacked).unwrap().with_from_quantized(true);
        let error = run.run(&rounded, &out("fewer")).unwrap_err();
        assert!(error.to_string().contains("stack"), "{stage}: {error}");
    }
}

/// A folder whose experts differ in width is read as it says, and refused where it says what is not so; what has no words for
/// it does not get it.
#[test]
fn a_config_that_lies_is_refused() {
    let Some(folder) = folder("mixtral") else { return };
    let parent = tempfile::tempdir().unwrap();
    let (source, out) = (open_model(&folder).unwrap(), parent.path().join("out"));
    let _ = compressor("camera(sparsity=0.4)", &folder).unwrap().run(&source, &out).unwrap();
    let path = out.join("config.json");
    let fine: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let widths = fine["quantization_config"]["blocks"][0]["expert_widths"].clone();
    let mut wider = widths.clone();
    wider[0] = serde_json::json!(widths[0].as_u64().unwrap() + 1);
    let open = |key: &str, value: serde_json::Value| {
        let mut config = fine.clone();
        config["quantization_config"]["blocks"][0][key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        open_model(&out).and_then(|model| model.decoder().map(drop))
    };
    open("expert_widths", widths).unwrap();
    for (key, value, says) in [
        ("expert_widths", serde_json::json!([3, 3]), "one for each of 6 experts"),
        ("expert_widths", serde_json::json!([0, 1, 1, 1, 1, 1]), "one for each of 6 experts"),
        ("expert_widths", serde_json::json!([1_u64 << 60, 1, 1, 1, 1, 1]), "one for each"),
        ("expert_widths", serde_json::json!("wide"), "expert_widths"),
        ("expert_widths", serde_json::json!([-1]), "expert_widths"),
        ("expert_widths", wider, "implies"),
        ("num_experts_per_tok", serde_json::json!(3), "allowed are 1 to 2"),
        ("num_experts_per_tok", serde_json::json!(-1), "num_experts_per_tok"),
    ] {
        let error = open(key, value.clone()).unwrap_err();
        assert!(error.to_string().contains(says), "{key}: {value}: {error}");
    }
    open("num_experts_per_tok", serde_json::json!(1)).unwrap();
}

/// Formats that have no words for experts of different widths do not get them.
#[cfg(feature = "formats")]
#[test]
fn what_others_cannot_read_is_not_written() {
    let Some(folder) = folder("mixtral") else { return };
    let parent = tempfile::tempdir().unwrap();
    let (source, out) = (open_model(&folder).unwrap(), parent.path().join("out"));
    let _ = compressor("camera(sparsity=0.4)", &folder).unwrap().run(&source, &out).unwrap();
    let after = open_model(&out).unwrap();
    for to in ["gguf", "safetensors", "gptq", "tensorpress"] {
        let job = tensorpress::pipeline::Convert::new(to.parse().unwrap());
        let written = parent.path().join(to);
        match job.run(&after, &written) {
            Ok(_) => {
                assert_eq!(to, "tensorpress");
                assert_eq!(hidden(&open_model(&written).unwrap()), hidden(&after));
            }
            Err(error) => {
                assert_ne!(to, "tensorpress", "{error}");
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
                assert!(error.to_string().contains("shapes"), "{to}: {error}");
            }
        }
    }
}

/// On a mixture that was trained: each loses less than channels drawn at random; CAMERA and HEAPr by far, and less than whole
/// experts by REAP. (Where training ended, sums of weights times gradients are small and say little.)
#[test]
fn each_loses_less_than_chance() {
    let texts = ["tinystories_train_2MB_calib.txt", "tinystories_val_250stories.jsonl"];
    let [Some(calibration), Some(held_out)] =
        texts.map(|name| data::find(&format!("data/text/{name}")))
    else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trainer/models/moe");
    let (source, parent) = (open_model(&folder).unwrap(), tempfile::tempdir().unwrap());
    let limits = Limits { max_segments: Some(12), max_tokens: Some(200) };
    let corpus = Corpus::read(&held_out).unwrap();
    let segments = corpus.segments(&source, Default::default(), limits).unwrap();
    let whole = source.decoder().unwrap().materialise().unwrap();
    let divergence = |source: &Source| {
        let model = source.decoder().unwrap().materialise().unwrap();
        compare(&whole, &model, &segments, &|_, _| {}).unwrap().kld_mean.unwrap()
    };
    let by = |stage: &str| {
        let text = CalibrationText::new(Corpus::read(&calibration).unwrap()).with_windows(24);
        let out = parent.path().join(stage);
        let recipe = Recipe::parse(&format!("{stage}(sparsity=0.25)")).unwrap();
        let _ = Compressor::new(recipe).with_calibration(text).run(&source, &out).unwrap();
        divergence(&open_model(&out).unwrap())
    };
    let reap = by("reap");
    let chance = |seed: u64| {
        let mut random = SplitMix::new(seed);
        let edit = |block: &BlockLayout| {
            let kept = block.expert_widths().into_iter().map(|width| {
                let mut kept: Vec<usize> = (0..width).collect();
                for _ in 0..width / 4 {
                    kept.remove((random.next_u64() % kept.len() as u64) as usize);
                }
                kept
            });
            Edit::expert_channels(block, &kept.collect::<Vec<_>>()).unwrap()
        };
        let edits: Vec<Edit> = source.layout(true).blocks.iter().map(edit).collect();
        divergence(&source.edited(&edits, true).unwrap())
    };
    let draws: Vec<f64> = (1..=4).map(chance).collect();
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    for stage in STAGES {
        let lost = by(stage);
        println!("{stage} {lost:.4}, reap {reap:.4}, chance {draws:.4?}");
        let by_far = stage == "slim_moe" || lost < 0.5 * mean && lost < 0.7 * reap;
        assert!(lost < mean && by_far, "{stage}: {lost}, {reap}, {mean}");
    }
}
