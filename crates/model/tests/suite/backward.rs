//! Gradients of the backward pass: against finite differences, and what is promised of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tensorpress_model::backward::{
    Backward, Collector, GradientObserver, Gradients, HiddenStates, InFile, InMemory, Labels,
    Model, Passed, Piece, Wanted,
};
use tensorpress_model::{Decoder, Linear, Source, perplexity};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Error, ErrorKind, Registry, Result};

use crate::common::{Tiny, logits, open};
use crate::slow::{Kind, Nudge, Slow};

/// x and g of a layer, window by window.
pub type Pieces = Vec<(Array2<f32>, Array2<f32>)>;

/// Those of every layer.
#[derive(Default)]
pub struct Seen {
    pub pieces: BTreeMap<String, Pieces>,
    pub finished: Vec<String>,
}

impl GradientObserver for Seen {
    fn see(&mut self, pieces: &[Piece<'_>], _: Par) -> Result<()> {
        for piece in pieces {
            assert_eq!(piece.x.nrows(), piece.g.nrows());
            assert_eq!([piece.g.ncols(), piece.x.ncols()], piece.layer.shape());
            let all = self.pieces.entry(piece.layer.name().to_owned()).or_default();
            all.push((piece.x.to_owned(), piece.g.to_owned()));
        }
        Ok(())
    }

    fn finished(&mut self, layers: &[&Linear], _: u64) -> Result<()> {
        self.finished.extend(layers.iter().map(|layer| layer.name().to_owned()));
        Ok(())
    }
}

pub fn go_on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn run(
    how: Backward,
    model: &dyn Model,
    windows: &[Vec<u32>],
    observer: &mut dyn GradientObserver,
) -> Result<Passed> {
    how.run(model, windows, &mut InMemory::default(), observer, &go_on)
}

/// Windows of these lengths, of tokens that are neither first nor last in the vocabulary.
pub fn windows(vocab: usize, lengths: &[usize]) -> Vec<Vec<u32>> {
    let token = |i: usize| (3 + (i * 7919 + i * i * 31) % (vocab - 3)) as u32;
    let mut next = 0;
    let mut one = |length: &usize| {
        (0..*length)
            .map(|_| {
                next += 1;
                token(next)
            })
            .collect()
    };
    lengths.iter().map(&mut one).collect()
}

fn noise(seed: u64, shape: (usize, usize)) -> Array2<f64> {
    Array2::from_shape_fn(shape, |(i, j)| gaussian(seed, (i * shape.1 + j) as u64))
}

pub fn product(g: &Array2<f32>, x: &Array2<f32>) -> Array2<f64> {
    g.mapv(f64::from).t().dot(&x.mapv(f64::from))
}

pub fn dot(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn length(a: &Array2<f64>) -> f64 {
    dot(a, a).sqrt()
}

/// Compares gradients by outputs and by weights with central differences of an independent forward pass in f64.
fn check(name: &str, source: &Source, kind: Kind) {
    const STEP: f64 = 1e-5;
    let decoder = source.decoder().unwrap().materialise().unwrap();
    let windows = windows(decoder.config().vocab, &[19, 1, 11]);
    let mut seen = Seen::default();
    let how = Backward::default().with_labels(Labels::Sampled { seed: 5 });
    let passed = run(how, &decoder, &windows, &mut seen).unwrap();
    assert_eq!(passed.tokens, 31);
    let mut slow = Slow::new(source, kind);
    let loss = slow.loss(&windows, &passed.labels);
    assert!((passed.loss * 31.0 / loss - 1.0).abs() < 1e-5, "{} {loss}", passed.loss * 31.0);
    let (mut worst, mut matrices) = ([0.0f64; 2], 0);
    let head = decoder.head().linear().name();
    for (layer, pieces) in &seen.pieces {
        let key = if layer == head { "head" } else { layer };
        // By the outputs of each window, along a random direction.
        let mut of_window = pieces.iter();
        for (window, ids) in windows.iter().enumerate() {
            let routed = layer.contains("experts.");
            let Some((_, g)) = (if routed { None } else { of_window.next() }) else { continue };
            assert_eq!(g.nrows(), ids.len());
            let direction = noise(window as u64, g.dim());
            let mut sides = [STEP, -STEP].map(|step| {
                let by = &direction * step;
                slow.nudge = Some(Nudge { layer: key.to_owned(), window, by });
                slow.loss(&windows, &passed.labels)
            });
            slow.nudge = None;
            let g = g.mapv(f64::from);
            sides[0] -= sides[1];
            let apart = (sides[0] / (2.0 * STEP) - dot(&g, &direction)).abs();
            // Of a single token nothing goes through queries and keys: 0 is 0.
            let apart = apart / (length(&g) + 1e-5);
            worst[0] = worst[0].max(apart);
        }
        let mut gradient = Array2::<f64>::zeros((pieces[0].1.ncols(), pieces[0].0.ncols()));
        pieces.iter().for_each(|(x, g)| gradient += &product(g, x));
        for seed in 0..2 {
            let direction = noise(100 + seed, gradient.dim());
            let mut sides = [STEP, -STEP].map(|step| {
                let by = &direction * step;
                let weight = match key {
                    "head" => &mut slow.head,
                    _ => slow.tensors.get_mut(key).unwrap(),
                };
                let before = weight.clone();
                *weight += &by;
                let loss = slow.loss(&windows, &passed.labels);
                match key {
                    "head" => slow.head = before,
                    _ => drop(slow.tensors.insert(key.to_owned(), before)),
                }
                loss
            });
            sides[0] -= sides[1];
            let apart = sides[0] / (2.0 * STEP) - dot(&gradient, &direction);
            worst[1] = worst[1].max(apart.abs() / length(&gradient));
        }
        matrices += 1;
    }
    // Nothing was left out but experts that no token goes to.
    let all: Vec<&Linear> = decoder.blocks().iter().flat_map(|block| block.linears()).collect();
    assert_eq!(seen.finished.len(), all.len() + 1);
    for layer in all {
        let there = seen.pieces.contains_key(layer.name());
        assert!(there || layer.name().contains("experts."), "{}", layer.name());
    }
    println!(
        "checked: {name}, {matrices} matrices, by outputs {:.1e}, by weights {:.1e}",
        worst[0], worst[1]
    );
    assert!(worst.iter().all(|worst| *worst < 1e-4), "{name}: {worst:?}");
}

pub fn llama(heads: usize, kv_heads: usize, head_dim: usize) -> Kind {
    Kind {
        heads,
        kv_heads,
        head_dim,
        theta: 1e4,
        eps: 1e-5,
        gemma: false,
        scale: 1.0 / (head_dim as f64).sqrt(),
        caps: None,
        window: None,
        experts: None,
    }
}

#[test]
fn gradients_of_a_llama_are_finite_differences() {
    let Some(folder) = data::find("data/models/stories260k") else { return };
    check("stories260k", &open(folder).unwrap(), llama(8, 4, 8));
}

#[test]
fn gradients_of_a_gemma_are_finite_differences() {
    let Some(folder) = data::find("golden/models/gemma2") else { return };
    let kind = Kind {
        gemma: true,
        eps: 1e-6,
        scale: 20f64.powf(-0.5),
        caps: Some([2.0, 3.0]),
        window: Some((8, 2)),
        ..llama(4, 2, 12)
    };
    check("gemma2", &open(folder).unwrap(), kind);
}

#[test]
fn gradients_of_mixtures_are_finite_differences() {
    let Some(folder) = data::find("golden/models/mixtral") else { return };
    let plain = llama(4, 2, 12);
    let kind = Kind { theta: 1e6, window: Some((8, 1)), experts: Some((2, true)), ..plain };
    check("mixtral", &open(folder).unwrap(), kind);
    let Some(folder) = data::find("golden/models/qwen2-moe") else { return };
    let kind = Kind { eps: 1e-6, experts: Some((3, false)), ..llama(4, 2, 8) };
    check("qwen2-moe", &open(folder).unwrap(), kind);
}

/// The loss of given labels by the crate's own forward pass, in f32.
fn loss(model: &Decoder, windows: &[Vec<u32>], labels: &[Vec<Option<u32>>]) -> f64 {
    let mut sum = 0.0;
    for (ids, labels) in windows.iter().zip(labels) {
        for (row, label) in logits(model, ids).unwrap().rows().into_iter().zip(labels) {
            let Some(label) = label else { continue };
            let top = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let all: f64 = row.iter().map(|z| f64::from(z - top).exp()).sum();
            sum += all.ln() - f64::from(row[*label as usize] - top);
        }
    }
    sum
}

/// Every golden decoder, by differences of the crate's own forward pass: f32 allows no more than a percent.
#[test]
fn gradients_of_all_golden_decoders_are_near_differences() {
    let Some(all) = data::find("golden/models") else { return };
    let mut folders: Vec<_> = std::fs::read_dir(all).unwrap().map(|e| e.unwrap().path()).collect();
    folders.retain(|path| path.join("config.json").exists());
    folders.sort();
    let (mut wrong, mut refused, mut checked) = (Vec::new(), Vec::new(), 0);
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let source = open(&folder).unwrap();
        if !source.config().architecture.is_decoder() || !source.has_head() {
            continue;
        }
        let mut model = source.decoder().unwrap().materialise().unwrap();
        let windows = windows(model.config().vocab, &[13]);
        let mut seen = Seen::default();
        let passed = match run(Backward::default(), &model, &windows, &mut seen) {
            Ok(passed) => passed,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
                refused.push(name);
                continue;
            }
        };
        let (mut worst, mut of) = (0.0f64, String::new());
        for (layer, pieces) in &seen.pieces {
            let mut gradient = Array2::<f64>::zeros((pieces[0].1.ncols(), pieces[0].0.ncols()));
            pieces.iter().for_each(|(x, g)| gradient += &product(g, x));
            let size = length(&gradient);
            if size < 1e-3 {
                continue;
            }
            let random = noise(3, gradient.dim());
            let direction = &gradient / size + &random / length(&random);
            let mut model_blocks = model.blocks().iter();
            let Some(block) = model_blocks.position(|b| b.linears().any(|l| l.name() == layer))
            else {
                continue;
            };
            // Little enough for the routing not to change, yet enough for the rounding of f32 not to count: one of these.
            let apart = |step: f64| {
                let step = (step / size).min(2.0 * step);
                let mut sides = [step, -step].map(|step| {
                    let linear = model.blocks_mut()[block].linear_mut(layer).unwrap();
                    let before = linear.decode().unwrap();
                    let moved = &before + &(&direction * step).mapv(|v| v as f32);
                    linear.replace(Box::new(Dense::from(moved))).unwrap();
                    let loss = loss(&model, &windows, &passed.labels);
                    let linear = model.blocks_mut()[block].linear_mut(layer).unwrap();
                    linear.replace(Box::new(Dense::from(before))).unwrap();
                    loss
                });
                sides[0] -= sides[1];
                (sides[0] / (2.0 * step) - dot(&gradient, &direction)).abs() / size
            };
            let steps = [0.01, 0.002, 0.0005].into_iter();
            let apart = steps.map(apart).fold(1.0, |least: f64, apart| match least < 1e-3 {
                true => least,
                false => least.min(apart),
            });
            if apart > worst {
                (worst, of) = (apart, layer.clone());
            }
            checked += 1;
        }
        println!("checked: {name}, {worst:.1e} ({of})");
        if worst.is_nan() || worst > 0.01 {
            wrong.push(format!("{name}: {worst} ({of})"));
        }
    }
    println!("checked: {checked} matrices; refused: {refused:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(refused, ["mamba", "mamba2"]);
}

pub const EVERYTHING: Wanted =
    Wanted::NONE.with_second_moments(100).with_fisher().with_mean().with_guided_grams(3);

pub fn collect(
    how: Backward,
    model: &dyn Model,
    windows: &[Vec<u32>],
) -> BTreeMap<String, Gradients> {
    collect_in(how, model, windows, &mut InMemory::default())
}

pub fn collect_in(
    how: Backward,
    model: &dyn Model,
    windows: &[Vec<u32>],
    states: &mut dyn HiddenStates,
) -> BTreeMap<String, Gradients> {
    let mut found = BTreeMap::new();
    let mut collector = Collector::new(
        |_| EVERYTHING,
        |name, gradients| {
            assert!(found.insert(name.to_owned(), gradients).is_none());
            Ok(())
        },
    );
    how.run(model, windows, states, &mut collector, &go_on).unwrap();
    drop(collector);
    found
}

/// Threads, chunks, a file in place of memory and blocks made for the occasion change no byte.
#[test]
fn bytes_depend_on_nothing_but_the_windows() {
    let mut all = vec![Source::demo(&Registry::default()).unwrap()];
    all.extend(data::find("golden/models/qwen2-moe").map(|folder| open(folder).unwrap()));
    for source in all {
        let windows = windows(source.config().vocab, &[70, 3, 1, 40, 64, 5]);
        let decoder = source.decoder().unwrap().materialise().unwrap();
        let plain = Backward::default().with_chunk(1).with_par(Par::Seq);
        let expected = collect(plain, &decoder, &windows);
        assert!(expected.len() > 5 * source.blocks());
        for (chunk, par) in [(1, Par::Threads(3)), (80, Par::Threads(2)), (10_000, Par::Rayon)] {
            let how = plain.with_chunk(chunk).with_par(par);
            assert!(collect(how, &decoder, &windows) == expected, "{chunk} {par:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("states");
        let mut file = InFile::create(&path).unwrap();
        assert!(collect_in(plain.with_chunk(80), &source, &windows, &mut file) == expected);
        let states = (source.blocks() + 1) * 183 * source.config().hidden * 4;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), states as u64);
        // And once more in the same file, where other states lie.
        let other = plain.with_labels(Labels::Sampled { seed: 1 });
        let others = collect_in(other, &source, &windows, &mut file);
        assert!(others != expected && others == collect(other, &decoder, &windows));
    }
}

/// What sampled labels mean: in the mean gradients vanish, and the loss is the entropy.
#[test]
fn sampled_labels_follow_the_predictions() {
    let model = Tiny::new(4, 2, 6).decoder();
    let windows = windows(61, &[40; 100]);
    let mut nothing = Collector::new(|_| Wanted::NONE, |_, _| Ok(()));
    let passed = run(Backward::default(), &model, &windows, &mut nothing).unwrap();
    let (mut entropy, mut probability, mut counts) = (0.0, vec![0.0; 61], vec![0.0; 61]);
    for (ids, labels) in windows.iter().zip(&passed.labels) {
        for (row, label) in logits(&model, ids).unwrap().rows().into_iter().zip(labels) {
            let top = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = row.iter().map(|z| f64::from(z - top).exp()).sum();
            for (i, z) in row.iter().enumerate() {
                let p = f64::from(z - top).exp() / sum;
                entropy -= p * p.max(1e-300).ln();
                probability[i] += p;
            }
            counts[label.unwrap() as usize] += 1.0;
        }
    }
    assert!((passed.loss - entropy / 4000.0).abs() < 0.05, "{} {}", passed.loss, entropy / 4000.0);
    // Chi-square with 60 degrees of freedom: beyond 110 once in ten thousand seeds.
    let pairs = counts.iter().zip(&probability);
    let chi: f64 = pairs.map(|(n, e): (&f64, &f64)| (n - e).powi(2) / e.max(1e-9)).sum();
    assert!(chi < 110.0, "{chi}");
    // The labels of a window do not depend on the windows behind it, those of another seed are others.
    let fewer = run(Backward::default(), &model, &windows[..7], &mut nothing).unwrap();
    assert_eq!(fewer.labels, passed.labels[..7]);
    let how = Backward::default().with_labels(Labels::Sampled { seed: 1 });
    assert_ne!(run(how, &model, &windows[..7], &mut nothing).unwrap().labels, fewer.labels);
}

#[test]
fn next_tokens_as_labels_are_the_usual_loss() {
    let model = Tiny::new(4, 2, 6).decoder();
    let windows = windows(61, &[20, 1, 30]);
    let how = Backward::default().with_labels(Labels::Next);
    let mut nothing = Collector::new(|_| Wanted::NONE, |_, _| Ok(()));
    let passed = run(how, &model, &windows, &mut nothing).unwrap();
    assert_eq!(passed.tokens, 48);
    assert_eq!(passed.labels[0][..2], [Some(windows[0][1]), Some(windows[0][2])]);
    assert_eq!((passed.labels[1].as_slice(), passed.labels[2][29]), (&[None][..], None));
    let judged = perplexity(&model, &windows, &|_, _| {}).unwrap();
    assert!((passed.loss - judged.perplexity.ln()).abs() < 1e-6);
    let error = run(how, &model, &windows[1..2], &mut nothing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
}

/// States that nobody may touch.
struct Untouched;

impl HiddenStates for Untouched {
    fn begin(&mut self, _: usize, _: usize, _: usize) -> Result<()> {
        panic!("no work was to be done")
    }
    fn put(&mut self, _: usize, _: usize, _: ArrayView2<'_, f32>) -> Result<()> {
        panic!("no work was to be done")
    }
    fn get(&mut self, _: usize, _: usize, _: ArrayViewMut2<'_, f32>) -> Result<()> {
        panic!("no work was to be done")
    }
}

#[test]
fn what_cannot_be_run_is_refused_before_any_work() {
    let mut observer = Seen::default();
    let mut refuse = |model: &dyn Model, windows: &[Vec<u32>]| {
        let how = Backward::default();
        how.run(model, windows, &mut Untouched, &mut observer, &go_on).unwrap_err()
    };
    let model = Tiny::new(4, 2, 6).decoder();
    assert_eq!(refuse(&model, &[]).kind(), ErrorKind::InsufficientData);
    let error = refuse(&model, &[vec![5], vec![]]);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("window 1"), "{error}");
    assert_eq!(refuse(&model, &[vec![5; 97]]).kind(), ErrorKind::InvalidArgument);
    for (name, what) in [("mamba", "scan"), ("bert", "encoder")] {
        let Some(folder) = data::find(&format!("golden/models/{name}")) else { return };
        let error = refuse(&open(folder).unwrap(), &[vec![5; 3]]);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(what) && error.tensor().is_some(), "{error}");
    }
}

#[test]
fn what_is_not_finite_is_named() {
    let windows = windows(61, &[8, 5]);
    let refused = |model: &dyn Model, name: &str| {
        let error = run(Backward::default(), model, &windows, &mut Seen::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerical, "{error}");
        assert_eq!(error.tensor(), Some(name), "{error}");
    };
    for name in [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "lm_head.weight",
    ] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut tiny = Tiny::new(4, 2, 6);
            tiny.tensors.get_mut(name).unwrap().1[3] = bad;
            let (_folder, source) = tiny.source();
            let source = source.unwrap();
            refused(&source, name);
            refused(&source.decoder().unwrap(), name);
        }
    }
    // Norms and biases that are not finite are refused as they are read; these came later.
    let name = "model.layers.1.input_layernorm.weight";
    let mut model = Tiny::new(4, 2, 6).decoder();
    let norm = model.blocks_mut()[1].norm_mut(name).unwrap();
    let mut weight = norm.weight().to_vec();
    weight[3] = f32::NAN;
    norm.set_weight(weight).unwrap();
    refused(&model, name);
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut model = Tiny::new(4, 2, 6).decoder();
    let linear = model.blocks_mut()[0].linear_mut(name).unwrap();
    linear.set_bias(Some(vec![f32::INFINITY; 40])).unwrap();
    refused(&model, name);
    let error = run(
        Backward::default(),
        &Tiny::new(4, 2, 6).decoder(),
        &[vec![5, 61]],
        &mut Seen::default(),
    );
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// Asks for one layer, and fails when told to.
struct Only {
    name: &'static str,
    fails: bool,
    seen: usize,
}

impl GradientObserver for Only {
    fn wants(&self, layer: &Linear) -> bool {
        layer.name() == self.name
    }

    fn see(&mut self, pieces: &[Piece<'_>], _: Par) -> Result<()> {
        assert!(pieces.iter().all(|piece| piece.layer.name() == self.name));
        self.seen += pieces.len();
        if self.fails { Err(Error::invalid("enough of it")) } else { Ok(()) }
    }
}

#[test]
fn a_pass_goes_as_far_as_is_wanted_and_can_be_stopped() {
    let (model, windows) = (Tiny::new(4, 2, 6).decoder(), windows(61, &[8, 5, 9]));
    let steps = |name, fails| {
        let (mut only, all) = (Only { name, fails, seen: 0 }, std::cell::Cell::new((0, 0)));
        let progress = |done, of| {
            assert_eq!(done, all.get().0 + 1);
            all.set((done, of));
            ControlFlow::Continue(())
        };
        let mut states = InMemory::default();
        let how = Backward::default().with_chunk(13);
        let passed = how.run(&model, &windows, &mut states, &mut only, &progress);
        (passed.map(|passed| passed.tokens), all.get(), only.seen)
    };
    // Two groups of windows: embedding, two blocks, head, and blocks on the way back.
    let (passed, done, seen) = steps("model.layers.0.mlp.up_proj.weight", false);
    assert_eq!((passed.unwrap(), done, seen), (22, (12, 12), 3));
    assert_eq!(steps("model.layers.1.mlp.up_proj.weight", false).1, (10, 10));
    let (passed, done, seen) = steps("lm_head.weight", false);
    assert_eq!((passed.unwrap(), done, seen), (22, (8, 8), 3));
    let (passed, done, _) = steps("model.layers.0.mlp.up_proj.weight", true);
    assert_eq!(passed.unwrap_err().message(), "enough of it");
    assert_eq!(done, (10, 12));
    for at in 1..=12 {
        let stop = |done, _| if done == at { ControlFlow::Break(()) } else { go_on(0, 0) };
        let (mut states, mut seen) = (InMemory::default(), Seen::default());
        let how = Backward::default().with_chunk(13);
        let error = how.run(&model, &windows, &mut states, &mut seen, &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}

#[test]
fn all_can_be_sent_to_threads() {
    fn check<T: Send + Sync>() {}
    check::<(Backward, Passed, Gradients, InMemory, InFile)>();
    check::<(Collector<'_>, Piece<'_>, Source, Decoder)>();
}
