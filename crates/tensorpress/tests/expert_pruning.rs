//! Dropping experts through the pipeline: a plain smaller model is left, which computes what the model did where tokens may
//! not go to the experts that went.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tensorpress::model::text::{Corpus, Limits};
use tensorpress::model::{Observer, Routing, compare};
use tensorpress::pipeline::{CalibrationText, Event, Progress};
use tensorpress::prelude::*;
use tensorpress::tensor::linalg::SplitMix;
use tensorpress::tensor::ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use tensorpress::tensor::rewrite::{BlockLayout, Edit, Expert, ModelLayout, Role, SharedInput};
use tensorpress::tensor::{Scratch, Tensor};
use tensorpress::{ErrorKind, Result};
use tensorpress_tensor::testing::data;

/// Models of golden vectors with experts, and by what fraction they can lose.
const MODELS: [(&str, f64); 7] = [
    ("mixtral", 0.5),
    ("olmoe", 0.5),
    ("qwen2-moe", 0.34),
    ("qwen3-moe", 0.25),
    ("deepseek-v2-lite", 0.5),
    ("gpt-oss", 0.34),
    ("llama4-text", 0.5),
];
const STAGES: [&str; 4] = ["reap", "expert_usage", "collaborative", "stun"];

fn folder(name: &str) -> Option<PathBuf> {
    data::find(&format!("golden/models/{name}"))
}

fn compressor<'a>(line: &str, folder: &Path) -> Result<Compressor<'a>> {
    let corpus = Corpus::read(&folder.join("expected.safetensors"))?;
    let text = CalibrationText::new(corpus).with_length(24);
    Ok(Compressor::new(Recipe::parse(line)?).with_calibration(text))
}

/// For each block the experts of `before` that are those of `after`, in its order, by their matrices.
fn kept(before: &Source, after: &Source) -> Vec<Vec<usize>> {
    let first = |source: &Source, block: usize| -> Vec<Array2<f32>> {
        let specs = source.linears(block).into_iter();
        let down = specs.filter(|spec| {
            matches!(spec.expert, Some(Expert::Routed(_))) && spec.input != SharedInput::Mlp
        });
        let outputs = down.filter(|spec| format!("{:?}", spec.role) == "Down");
        outputs.map(|spec| source.stored(&spec).unwrap().to_matrix().unwrap()).collect()
    };
    let of = |block| {
        let all = first(before, block);
        let same = |matrix: &Array2<f32>| all.iter().position(|other| other == matrix).unwrap();
        first(after, block).iter().map(same).collect()
    };
    (0..before.blocks()).map(of).collect()
}

#[test]
fn experts_go_and_a_plain_model_is_left() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    for (name, sparsity) in MODELS {
        let Some(folder) = folder(name) else { continue };
        let source = open_model(&folder).unwrap();
        for stage in STAGES {
            let line = match stage {
                "stun" => format!("{stage}(sparsity={sparsity}, mean=0)"),
                _ => format!("{stage}(sparsity={sparsity})"),
            };
            let run = compressor(&line, &folder).unwrap().with_force(true);
            let report = run.run(&source, &out).unwrap_or_else(|e| panic!("{name}, {line}: {e}"));
            let after = open_model(&out).unwrap();
            let layout = after.layout(true);
            for (block, kept) in kept(&source, &after).iter().enumerate() {
                let Some(of) = source.layout(true).blocks[block].experts.clone() else {
                    assert!(kept.is_empty() && layout.blocks[block].experts.is_none());
                    continue;
                };
                let gone = (of.count as f64 * sparsity + 1e-9) as usize;
                assert!(gone > 0 && kept.len() == of.count - gone, "{name}, {line}: {kept:?}");
                assert!(kept.windows(2).all(|pair| pair[0] < pair[1]), "in their order: {kept:?}");
                // Rows of the router, and what stands beside it.
                let rows = |source: &Source, name: &str| {
                    source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
                };
                let now = layout.blocks[block].experts.as_ref().unwrap();
                let chosen = match stage {
                    "collaborative" => (of.chosen * kept.len()).div_ceil(of.count),
                    _ => of.chosen,
                };
                assert_eq!((now.count, now.chosen), (kept.len(), chosen));
                let (old, new) = (rows(&source, &of.router), rows(&after, &now.router));
                for (at, expert) in kept.iter().enumerate() {
                    assert_eq!(new.row(at), old.row(*expert), "{name}: {}", of.router);
                }
                for (old, new) in of.beside.iter().zip(&now.beside) {
                    let (old, new) = (rows(&source, old), rows(&after, new));
                    let entries: Vec<f32> = kept.iter().map(|expert| old[[0, *expert]]).collect();
                    assert_eq!(new.as_slice().unwrap(), entries);
                }
            }
            // Every key of the config that others read says so, and nothing of ours stands in it.
            let config = std::fs::read_to_string(out.join("config.json")).unwrap();
            assert!(!config.contains("quantization_config"), "{name}: {config}");
            assert!(report.bytes_after < report.bytes_before, "{name}, {line}");
            let (model, mut scratch) = (after.decoder().unwrap(), Scratch::default());
            let hidden = model.hidden(&[1, 5, 3, 2, 9], &mut scratch).unwrap();
            assert!(hidden.iter().all(|value| value.is_finite()), "{name}, {line}");
        }
    }
}

/// Lets tokens go to some experts alone: what a router makes of an input is looked at first, then decided.
struct Only<'a> {
    /// Rows of the router of those that stay, and their numbers.
    router: &'a Array2<f32>,
    kept: &'a [usize],
    /// Factors of those that are chosen sum to 1.
    renormalised: bool,
    seen: Option<Routing>,
    input: Option<Array2<f32>>,
}

impl Observer for Only<'_> {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if input == SharedInput::Mlp {
            self.input = Some(x.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    }

    fn routed(&mut self, routing: &Routing) {
        self.seen = Some(routing.clone());
    }

    fn route(&mut self) -> Option<Routing> {
        let (mut routing, x) = (self.seen.clone()?, self.input.take()?);
        routing.experts.clear();
        routing.factors.clear();
        for token in x.rows() {
            let logit = |expert: &usize| self.router.row(*expert).dot(&token);
            let logits: Vec<f32> = self.kept.iter().map(logit).collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            order.truncate(routing.chosen);
            let factors = order.iter().map(|at| (logits[*at] - most).exp() / all);
            let factors: Vec<f32> = factors.collect();
            let sum: f32 = if self.renormalised { factors.iter().sum() } else { 1.0 };
            routing.experts.extend(order.iter().map(|at| self.kept[*at]));
            routing.factors.extend(factors.iter().map(|factor| factor / sum));
        }
        Some(routing)
    }
}

#[test]
fn the_smaller_model_is_the_masked_one() {
    let parent = tempfile::tempdir().unwrap();
    for (name, renormalised) in [("mixtral", true), ("olmoe", false), ("qwen3-moe", true)] {
        let Some(folder) = folder(name) else { continue };
        let (source, out) = (open_model(&folder).unwrap(), parent.path().join(name));
        let _ = compressor("reap(sparsity=0.34)", &folder).unwrap().run(&source, &out).unwrap();
        let after = open_model(&out).unwrap();
        let kept = kept(&source, &after);
        let mut scratch = Scratch::default();
        for block in 0..source.blocks() {
            let hidden = source.config().hidden;
            let states = Array2::from_shape_fn((11, hidden), |(t, c)| {
                ((t * 37 + c * 11) % 23) as f32 / 11.0 - 1.0
            });
            let run =
                |source: &Source, observer: Option<&mut dyn Observer>, scratch: &mut Scratch| {
                    let mut states = states.clone();
                    let view: ArrayViewMut2<'_, f32> = states.view_mut();
                    source
                        .block(block)
                        .unwrap()
                        .forward_sequences(view, &[11], observer, scratch)
                        .unwrap();
                    states
                };
            let experts = source.layout(true).blocks[block].experts.clone().unwrap();
            let router = source.checkpoint().tensor(&experts.router).unwrap().to_matrix().unwrap();
            let mut only =
                Only { router: &router, kept: &kept[block], renormalised, seen: None, input: None };
            // Once to see how a routing looks.
            run(&source, Some(&mut only), &mut scratch);
            let masked = run(&source, Some(&mut only), &mut scratch);
            let (small, whole) =
                (run(&after, None, &mut scratch), run(&source, None, &mut scratch));
            let apart = |a: &Array2<f32>, b: &Array2<f32>| {
                (a - b).iter().fold(0.0_f32, |most, d| most.max(d.abs()))
            };
            assert!(
                apart(&small, &masked) < 1e-4,
                "{name}, block {block}: {}",
                apart(&small, &masked)
            );
            assert!(apart(&small, &whole) > 1e-3, "{name}, block {block}: nothing went");
        }
    }
}

/// One pair of experts of each block becomes one: rows of the router, biases and matrices are the mean of the pair's, all
/// others are as they were.
#[test]
fn means_of_clusters_stay_where_these_are_few() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    for (name, sparsity) in
        [("mixtral", 0.17), ("qwen3-moe", 0.13), ("gpt-oss", 0.17), ("llama4-text", 0.25)]
    {
        let Some(folder) = folder(name) else { continue };
        let source = open_model(&folder).unwrap();
        let line = format!("stun(sparsity={sparsity}, mean=100)");
        let _ = compressor(&line, &folder).unwrap().with_force(true).run(&source, &out).unwrap();
        let after = open_model(&out).unwrap();
        let layouts = [source.layout(true), after.layout(true)];
        for block in 0..source.blocks() {
            let Some(of) = layouts[0].blocks[block].experts.clone() else { continue };
            let now = layouts[1].blocks[block].experts.clone().unwrap();
            assert_eq!(now.count, of.count - 1, "{name}");
            let router = |source: &Source, name: &str| {
                source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
            };
            let (old, new) = (router(&source, &of.router), router(&after, &now.router));
            // As near as the stored type can come.
            let half = source.checkpoint().dtype(&of.router).unwrap().size() == 2;
            let within = if half { 4e-3 } else { 1e-6 };
            let mean = |members: &[usize], part: &dyn Fn(usize) -> Array2<f32>| {
                let sum = members.iter().map(|index| part(*index)).reduce(|a, b| a + b);
                sum.unwrap() / members.len() as f32
            };
            let apart = |a: &Array2<f32>, b: &Array2<f32>| {
                (a - b).iter().fold(0.0_f32, |most, d| most.max(d.abs()))
            };
            let row = |of: &Array2<f32>, at: usize| of.row(at).to_owned().insert_axis(Axis(0));
            let pairs = (0..of.count).flat_map(|a| (a + 1..of.count).map(move |b| vec![a, b]));
            let candidates: Vec<Vec<usize>> =
                (0..of.count).map(|one| vec![one]).chain(pairs).collect();
            let mut pair = None;
            for at in 0..now.count {
                let from = |members: &Vec<usize>| {
                    apart(&row(&new, at), &mean(members, &|index| row(&old, index)))
                };
                let nearest = |a: &&Vec<usize>, b: &&Vec<usize>| from(a).total_cmp(&from(b));
                let members = candidates.iter().min_by(nearest).expect("some");
                assert!(from(members) < within, "{name}, block {block}: row {at} is no mean");
                if members.len() == 2 {
                    assert!(pair.replace(members.clone()).is_none(), "one pair");
                }
                for role in [Role::Down, Role::Gate, Role::GateUp] {
                    let matrix = |source: &Source, layout: &ModelLayout, index: usize| {
                        let spec = layout.blocks[block].of_expert(index).find(|s| s.role == role);
                        Some(source.stored(spec?).unwrap().to_matrix().unwrap())
                    };
                    let Some(is) = matrix(&after, &layouts[1], at) else { continue };
                    let was = mean(members, &|index| matrix(&source, &layouts[0], index).unwrap());
                    assert!(apart(&is, &was) < within, "{name}, block {block}: {role:?} of {at}");
                }
            }
            assert!(pair.is_some(), "{name}, block {block}: none was averaged");
        }
    }
}

/// Stops a run behind the first block that was judged.
struct Stop(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Progress for Stop {
    fn event(&mut self, event: Event<'_>) {
        if matches!(event, Event::Judged { block: 1, .. }) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

#[test]
fn recipes_go_on_behind_it_and_are_taken_up_again() {
    let Some(folder) = folder("mixtral") else { return };
    let parent = tempfile::tempdir().unwrap();
    let (source, line) = (
        open_model(&folder).unwrap(),
        "reap(sparsity=0.34) | wanda(pattern=2:4) | rtn(bits=4, group=16)",
    );
    let (whole, parts) = (parent.path().join("whole"), parent.path().join("parts"));
    let report = compressor(line, &folder).unwrap().run(&source, &whole).unwrap();
    assert!(report.bits_per_weight < 5.0 && open_model(&whole).unwrap().decoder().is_ok());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tells = Stop(stop.clone());
    let stopped = compressor(line, &folder).unwrap().with_progress(&mut tells).with_cancel(stop);
    assert_eq!(stopped.run(&source, &parts).unwrap_err().kind(), ErrorKind::Interrupted);
    let _ = compressor(line, &folder).unwrap().run(&source, &parts).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(&whole).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let read = |folder: &Path| std::fs::read(folder.join(&name)).unwrap();
        assert!(read(&whole) == read(&parts), "{name:?} differs");
    }
}

#[test]
fn what_has_no_experts_or_needs_them_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let refused = |name: &str, line: &str| {
        let folder = folder(name)?;
        let source = open_model(&folder).unwrap();
        Some(compressor(line, &folder).unwrap().run(&source, &out).unwrap_err())
    };
    for (name, line, says) in [
        ("llama3-rope", "reap(sparsity=0.25)", "no experts"),
        ("mixtral", "reap(sparsity=0.9)", "2 of 6 experts"),
        // Three of each token's experts lie in two groups of two.
        ("deepseek-v3", "stun(sparsity=0.5)", "in 2 of 4 groups"),
        ("mixtral", "reap(sparsity=0.34) | drop_blocks(count=1)", "cannot be removed"),
    ] {
        let Some(error) = refused(name, line) else { continue };
        assert!(error.to_string().contains(says), "{name}, {line}: {error}");
    }
}

/// On a mixture that was trained: REAP loses less than by usage, and less than by chance.
#[test]
fn reap_loses_less_than_usage_and_chance() {
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
    let (reap, usage) = (by("reap"), by("expert_usage"));
    let layout = source.layout(true);
    let chance = |seed: u64| {
        let mut random = SplitMix::new(seed);
        let edit = |block: &BlockLayout| {
            let mut kept: Vec<usize> = (0..8).collect();
            for _ in 0..2 {
                kept.remove((random.next_u64() % kept.len() as u64) as usize);
            }
            Edit::experts(block, &kept).unwrap()
        };
        let edits: Vec<Edit> = layout.blocks.iter().map(edit).collect();
        divergence(&source.edited(&edits, true).unwrap())
    };
    let draws: Vec<f64> = (1..=6).map(chance).collect();
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    println!("reap {reap:.4}, usage {usage:.4}, chance {draws:.4?}");
    assert!(reap < usage && reap < 0.7 * mean, "{reap}, {usage}, {mean}");
}
