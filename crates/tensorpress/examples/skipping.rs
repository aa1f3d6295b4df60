//! What skipping costs, on a whole model: for each token half of the feed-forward channels are left out, by CHESS, by one
//! threshold for all of them, and by groups that a fitted router chooses (MoE-fication); then inputs of attention as well.
//! `cargo run --release -p tensorpress --example skipping -- [FOLDER CALIBRATION HELD_OUT]`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tensorpress::model::text::{Corpus, Limits, Windows};
use tensorpress::model::{Block, Decoder, Reference, SharedInput, calibrate, embedded};
use tensorpress::prelude::*;
use tensorpress::prune::activation::{
    Activation, Chess, FeedForward, Moefication, RoutedNetwork, Thresholds, choose,
};
use tensorpress::tensor::linalg::Par;
use tensorpress::tensor::ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress::tensor::node::{Dense, Input, Json, Mask, PlaneMap};
use tensorpress::tensor::stats::Needs;
use tensorpress::tensor::{Accum, PartSink, Scratch};

/// Changes what a matrix reads, or what it gives, of some tokens: inputs `[tokens, in]`, outputs `[tokens, out]`.
type Edit = dyn Fn(ArrayView2<'_, f32>, ArrayViewMut2<'_, f32>) + Send + Sync;

/// A matrix whose products are edited: what a kernel would skip is 0 here. silu(0) = 0, so that a gate that is set to 0 takes
/// its channel out.
struct Edited {
    node: Box<dyn Node>,
    inputs: Option<Thresholds>,
    outputs: Option<Box<Edit>>,
}

impl fmt::Debug for Edited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edited").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Node for Edited {
    fn shape(&self) -> [usize; 2] {
        self.node.shape()
    }
    fn decode_rows(
        &self,
        rows: std::ops::Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.node.decode_rows(rows, out, accum, scratch)
    }
    fn matmul_rows(
        &self,
        rows: std::ops::Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        assert!(rows.len() == self.shape()[0] && accum == Accum::Replace, "whole products");
        let mut kept = x.view().to_owned();
        if let Some(thresholds) = &self.inputs {
            for mut token in kept.rows_mut() {
                token.iter_mut().zip(thresholds.values()).for_each(|(v, least)| {
                    *v = if v.abs() < *least { 0.0 } else { *v };
                });
            }
        }
        self.node.matmul(kept.view(), y.view_mut(), accum, scratch)?;
        if let Some(edit) = &self.outputs {
            edit(x.view(), y);
        }
        Ok(())
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn describe(&self) -> Json {
        self.node.describe()
    }
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.node.parts(prefix, sink)
    }
    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.node.map_planes(f)
    }
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        self.node.keep(mask)
    }
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}

/// What is skipped.
#[derive(Clone, Copy)]
enum Rule {
    Channels(Chess),
    OneForAll(Chess),
    Groups(Moefication, usize),
}

/// Gates that were set to 0, and all.
type Counts = Arc<[AtomicU64; 2]>;

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}

/// Gates below their thresholds become 0.
fn by_threshold(thresholds: Thresholds, counts: Counts) -> Box<Edit> {
    Box::new(move |_, mut gates| {
        for ((_, channel), gate) in gates.indexed_iter_mut() {
            if silu(*gate).abs() < thresholds.values()[channel] {
                *gate = 0.0;
                counts[0].fetch_add(1, Relaxed);
            }
        }
        counts[1].fetch_add(gates.len() as u64, Relaxed);
    })
}

/// The edit of a block's gate, from what its feed-forward network read.
fn edit(block: &Block, rule: Rule, x: ArrayView2<'_, f32>, counts: Counts) -> Result<Box<Edit>> {
    let matrix = |part: &str| {
        let linear = block.linears().find(|linear| linear.name().contains(part));
        linear.ok_or_else(|| tensorpress::Error::unsupported(format!("no {part}")))?.decode()
    };
    let (gate, up, down) = (matrix("gate_proj")?, matrix("up_proj")?, matrix("down_proj")?);
    let network =
        FeedForward::new(Some(gate.view()), up.view(), down.view(), Activation::Silu, DType::F32)?;
    let mut scratch = Scratch::new(Par::Rayon);
    let all: Vec<usize> = (0..network.channels()).collect();
    Ok(match rule {
        Rule::Channels(chess) => {
            let mut collector = chess.collector(network.channels())?;
            let gates = network.gates(x, &mut scratch)?;
            collector.update(gates.view(), network.ups(x, &all, &mut scratch)?.view())?;
            by_threshold(collector.finish()?, counts)
        }
        Rule::OneForAll(chess) => {
            by_threshold(chess.inputs(network.gates(x, &mut scratch)?.view())?, counts)
        }
        Rule::Groups(how, chosen) => {
            let hidden = network.hidden(x, &all, &mut scratch)?;
            let partition = how.partition(network.contributions(hidden.view())?.view())?;
            let routed = RoutedNetwork::new(network, partition)?;
            let router = routed.fit_router(x, &mut scratch)?;
            Box::new(move |x, mut gates| {
                let chosen = choose(router.apply(x).expect("as wide").view(), chosen);
                for (mut gates, chosen) in gates.rows_mut().into_iter().zip(chosen) {
                    for (group, channels) in routed.partition().experts.iter().enumerate() {
                        if !chosen.contains(&group) {
                            channels.iter().for_each(|channel| gates[*channel] = 0.0);
                            counts[0].fetch_add(channels.len() as u64, Relaxed);
                        }
                    }
                }
                counts[1].fetch_add(gates.len() as u64, Relaxed);
            })
        }
    })
}

/// A model that skips, every block calibrated on what the blocks before it make, skipping too.
fn skipping(
    source: &Source,
    windows: &[Vec<u32>],
    rule: Rule,
    attention: Option<Chess>,
    counts: &Counts,
) -> Result<Decoder> {
    let mut model = source.decoder()?;
    let mut scratch = Scratch::new(Par::Rayon);
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let mut hidden = model.embedding().embed_sequences(windows, 0, &mut scratch)?;
    for block in model.blocks_mut() {
        let needs = |input| match input {
            SharedInput::Mlp | SharedInput::Attention | SharedInput::AttentionOutput => {
                Needs::samples(4096)
            }
            _ => Needs::NONE,
        };
        let seen = calibrate(block, hidden.view(), &lengths, &needs, 0, Par::Rayon)?;
        let gate = edit(block, rule, seen[&SharedInput::Mlp].samples()?.view(), counts.clone())?;
        let wrap = |linear: &mut tensorpress::model::Linear, inputs, outputs| {
            let node: Box<dyn Node> = Box::new(Dense::from(linear.decode()?));
            linear.replace(Box::new(Edited { node, inputs, outputs }))
        };
        let mut gate = Some(gate);
        for linear in block.linears_mut() {
            let name = linear.name().to_owned();
            let input = match (attention, &name) {
                (Some(chess), name) if name.contains("q_proj") => {
                    Some((chess, SharedInput::Attention))
                }
                (Some(chess), name) if name.contains("o_proj") => {
                    Some((chess, SharedInput::AttentionOutput))
                }
                _ => None,
            };
            if let Some((chess, input)) = input {
                wrap(linear, Some(chess.inputs(seen[&input].samples()?.view())?), None)?;
            } else if name.contains("gate_proj") {
                wrap(linear, None, gate.take())?;
            }
        }
        block.forward_sequences(hidden.view_mut(), &lengths, None, &mut scratch)?;
    }
    counts.iter().for_each(|count| count.store(0, Relaxed));
    Ok(model)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, calibration, held_out) = match &arguments[..] {
        [folder, calibration, held_out] => (
            Source::open(folder, &registry())?,
            Corpus::read(calibration.as_ref())?,
            Corpus::read(held_out.as_ref())?,
        ),
        _ => (
            Source::demo(&registry())?,
            Corpus::from_text(embedded::CALIBRATION, Path::new("calibration.txt"))?,
            Corpus::from_text(embedded::HELD_OUT, Path::new("heldout.jsonl"))?,
        ),
    };
    let windows = calibration.windows(&source, Default::default(), Windows::default())?;
    let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
    let held_out = held_out.segments(&source, Default::default(), limits)?;
    let original = source.decoder()?.materialise()?;
    let reference = Reference::new(&original, &held_out, &|_, _| {})?;
    let chess = |sparsity| Chess::default().with_sparsity(sparsity).with_sample(4096);
    // With a quarter that always runs, a third of 9 groups makes half.
    let groups = Moefication::default().with_experts(9);
    println!("mean KLD of {} segments, {} windows of calibration", held_out.len(), windows.len());
    for (name, rule, attention) in [
        ("nothing", Rule::Channels(chess(0.0)), None),
        ("30%, thresholds by channel", Rule::Channels(chess(0.3)), None),
        ("30%, one threshold", Rule::OneForAll(chess(0.3)), None),
        ("50%, thresholds by channel", Rule::Channels(chess(0.5)), None),
        ("50%, one threshold", Rule::OneForAll(chess(0.5)), None),
        ("70%, thresholds by channel", Rule::Channels(chess(0.7)), None),
        ("70%, one threshold", Rule::OneForAll(chess(0.7)), None),
        ("50%, thresholds by channel, attention", Rule::Channels(chess(0.5)), Some(chess(0.5))),
        ("50%, 3 of 9 groups, 25% always", Rule::Groups(groups, 3), None),
        ("25%, 6 of 9 groups, 25% always", Rule::Groups(groups, 6), None),
    ] {
        let counts = Counts::default();
        let model = skipping(&source, &windows, rule, attention, &counts)?;
        let judged = reference.judge(&model, &|_, _| {})?;
        let [skipped, all] = [0, 1].map(|i| counts[i].load(Relaxed) as f64);
        let kld = judged.kld_mean.unwrap_or(f64::NAN);
        println!("{name:40} skipped {:.3} KLD {kld:.4}", skipped / all);
        assert!(kld.is_finite() && skipped < all);
    }
    Ok(())
}
