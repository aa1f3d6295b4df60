//! From stages to methods.

use std::sync::Arc;

use tensorpress_entropy::TileCoder;
use tensorpress_lowrank::{
    Factors, LowRank, Metric, Rank, asvd, eora, feature_mimicking, lord, svd, svd_llm,
};
use tensorpress_prune::{ChannelMetric, DropBlocks, Flap, Pattern, SparseGpt, magnitude, wanda};
use tensorpress_quant::{Awq, AwqClip, Clip, Gptq, GridSpec, Rtn};
use tensorpress_tensor::{DType, DynCompress, Error, Result, Rewrite, Select};

use super::chain::Chain;
use super::stage::Stage;
use super::table::Kind;
use super::value::{block, n_of_m};
use crate::compose::{Compose, JointSparseGpt, Kept};

/// How a stage becomes a method.
#[derive(Debug)]
pub(super) enum Build {
    /// By itself.
    Method(fn(&Stage) -> Result<Box<dyn DynCompress>>),
    /// Around the method of the stages after it (or before it, for residuals and coders).
    Wrap(fn(&Stage, Inner) -> Result<Box<dyn DynCompress>>),
    /// Before all of them, on the model as a whole.
    Structure(fn(&Stage) -> Box<dyn Rewrite>),
}

/// What a stage wraps.
pub(super) struct Inner {
    method: Box<dyn DynCompress>,
    name: &'static str,
    /// The grid it rounds to, if it has one.
    grid: Option<GridSpec>,
}

/// Transforms and the selector wrap the quantiser, the last one first; residuals and the coding wrap all of that.
pub(super) fn chain(chain: &Chain) -> Result<Box<dyn DynCompress>> {
    let (core, method) = match (chain.quantiser(), chain.alone(), chain.selector()) {
        (Some(stage), ..) => (stage, method(stage)?),
        (None, Some(stage), _) => (stage, rtn(stage)?),
        (None, None, Some(stage)) => (stage, selector_alone(stage)?),
        (None, None, None) => {
            let message = format!("`{chain}` rewrites the model, and compresses no matrix");
            return Err(Error::unsupported(message));
        }
    };
    let grid = rounds(core).then(|| grid(core));
    let mut inner = Inner { method, name: core.spec().name, grid };
    let stages = chain.stages();
    let before = stages.iter().rev().filter(|s| s.spec().kind < Kind::Quantiser);
    // A selector by itself is the method already.
    let before = before.filter(|s| s.spec().kind != Kind::Selector || !std::ptr::eq(*s, core));
    let before = before.filter(|s| s.spec().kind != Kind::Structured);
    let after = stages.iter().filter(|s| s.spec().kind > Kind::Quantiser);
    for stage in before.chain(after) {
        let Build::Wrap(wrap) = stage.spec().build else {
            unreachable!("only quantisers stand by themselves");
        };
        inner = Inner { method: wrap(stage, inner)?, name: stage.spec().name, grid };
    }
    Ok(inner.method)
}

/// Whether a stage has a grid.
fn rounds(stage: &Stage) -> bool {
    stage.has("bits") && stage.int("bits") > 0
}

fn method(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    match stage.spec().build {
        Build::Method(build) => build(stage),
        Build::Wrap(_) | Build::Structure(_) => unreachable!("quantisers stand by themselves"),
    }
}

/// The rewrite of a stage.
pub(super) fn structured(stage: &Stage) -> Box<dyn Rewrite> {
    match stage.spec().build {
        Build::Structure(build) => build(stage),
        _ => unreachable!("a rewrite"),
    }
}

pub(super) fn flap(stage: &Stage) -> Box<dyn Rewrite> {
    Box::new(flap_of(stage))
}

pub(super) fn drop_blocks(stage: &Stage) -> Box<dyn Rewrite> {
    Box::new(DropBlocks::default().with_count(stage.int("count")))
}

fn flap_of(stage: &Stage) -> Flap {
    let metric = match stage.word("metric").as_ref() {
        "ifv" => ChannelMetric::Ifv,
        "wifn" => ChannelMetric::Wifn,
        _ => ChannelMetric::Wifv,
    };
    Flap::new(stage.float("sparsity")).with_metric(metric).with_uniform(stage.flag("uniform"))
}

/// The grid that the keys of a quantiser describe.
fn grid(stage: &Stage) -> GridSpec {
    let clip = if stage.word("clip") == "mse" { Clip::Mse } else { Clip::MinMax };
    let scale = match stage.word("scale").as_ref() {
        "bf16" => DType::BF16,
        "f32" => DType::F32,
        _ => DType::F16,
    };
    GridSpec::new(stage.int("bits") as u8, stage.int("group"))
        .with_symmetric(stage.flag("symmetric"))
        .with_clip(clip)
        .with_scale(scale)
}

pub(super) fn rtn(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    Ok(Box::new(Rtn::new(grid(stage))))
}

pub(super) fn gptq(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    let method = Gptq::new(grid(stage))
        .with_act_order(stage.flag("act_order"))
        .with_static_groups(stage.flag("static_groups"))
        .with_damp(stage.float("damp") as f32)
        .with_block(stage.int("block"));
    Ok(Box::new(method))
}

pub(super) fn awq(stage: &Stage, inner: Inner) -> Result<Box<dyn DynCompress>> {
    let Some(grid) = inner.grid else {
        let message = format!("`awq` before `{}`: it needs a quantiser with a grid", inner.name);
        return Err(Error::unsupported(message));
    };
    let clip = if stage.word("clip") == "output" { AwqClip::Output } else { AwqClip::Off };
    let method = Awq::with_solver(grid, inner.method)
        .with_clip(clip)
        .with_ratios(stage.int("ratios"))
        .with_samples(stage.int("samples"));
    Ok(Box::new(method))
}

pub(super) fn coded(stage: &Stage, inner: Inner) -> Result<Box<dyn DynCompress>> {
    let coder = match stage.inner().map(|s| s.spec().name) {
        Some("huffman") => TileCoder::Huffman,
        Some("range") => TileCoder::Range,
        _ => TileCoder::Rans,
    };
    Ok(Box::new(inner.method.coded(coder)))
}

/// Refuses keys that leave nothing.
pub(super) fn check_flap(stage: &Stage) -> Result<()> {
    let name = stage.spec().name;
    flap_of(stage).check().map_err(|e| Error::new(e.kind(), format!("{name}: {}", e.message())))
}

/// The support that the keys of a selector describe.
pub(super) fn pattern(stage: &Stage) -> Result<Pattern> {
    let (word, sparsity) = (stage.word("pattern"), stage.float("sparsity"));
    if let Some((rows, cols)) = block(&word) {
        return Ok(Pattern::Block { rows, cols, sparsity });
    }
    let Some((n, m)) = n_of_m(&word) else { return Ok(Pattern::unstructured(sparsity)) };
    if sparsity != 1.0 - n as f64 / m as f64 {
        let name = stage.spec().name;
        let message =
            format!("{name}: sparsity = {sparsity} with pattern = {n}:{m}: allowed is one of them");
        return Err(Error::invalid(message));
    }
    Ok(Pattern::nm(n, m))
}

/// Refuses keys of a selector that contradict each other.
pub(super) fn check_selector(stage: &Stage) -> Result<()> {
    pattern(stage)?;
    if stage.has("bits") && stage.int("bits") == 1 {
        let name = stage.spec().name;
        return Err(Error::invalid(format!("{name}: bits = 1: allowed are 0, and 2 to 8")));
    }
    Ok(())
}

fn sparse_gpt(stage: &Stage, pattern: Pattern) -> SparseGpt {
    SparseGpt::new(pattern).with_damp(stage.float("damp") as f32).with_block(stage.int("block"))
}

fn select(stage: &Stage) -> Result<Box<dyn Select>> {
    let pattern = pattern(stage)?;
    Ok(match stage.spec().name {
        "magnitude" => Box::new(magnitude(pattern)),
        "wanda" => Box::new(wanda(pattern)),
        _ => Box::new(sparse_gpt(stage, pattern)),
    })
}

/// With bits, mask and codes are chosen in one sweep.
fn selector_alone(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    if rounds(stage) {
        let prune = sparse_gpt(stage, pattern(stage)?);
        return Ok(Box::new(JointSparseGpt::new(prune, grid(stage))));
    }
    Ok(Box::new(Kept(select(stage)?)))
}

pub(super) fn selector(stage: &Stage, inner: Inner) -> Result<Box<dyn DynCompress>> {
    Ok(Box::new(select(stage)?.then(inner.method)))
}

/// The rank that the keys of a factoriser describe.
fn rank(stage: &Stage) -> Result<Rank> {
    let energy = if stage.has("energy") { stage.float("energy") } else { 0.0 };
    let ratio = if stage.has("ratio") { stage.float("ratio") } else { 0.0 };
    match (stage.int("rank"), energy > 0.0, ratio > 0.0) {
        (0, false, _) => Ok(Rank::Ratio(ratio)),
        (0, true, false) => Ok(Rank::Energy(energy)),
        (rank, false, false) => Ok(Rank::Number(rank)),
        (rank, ..) => Err(Error::invalid(format!(
            "{}: rank = {rank}, energy = {energy} and ratio = {ratio}: allowed is one of them",
            stage.spec().name
        ))),
    }
}

/// Refuses keys of a factoriser that contradict each other.
pub(super) fn check_factoriser(stage: &Stage) -> Result<()> {
    rank(stage)?;
    let default = if stage.spec().kind == Kind::Correction { "f32" } else { "source" };
    match (stage.inner(), stage.word("factors")) {
        (Some(inner), factors) if factors != default => Err(Error::invalid(format!(
            "{}: factors = {factors} with `{inner}`, which decides how they are stored",
            stage.spec().name
        ))),
        _ => Ok(()),
    }
}

pub(super) fn factoriser(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    low_rank(stage, stage.spec().kind == Kind::Correction)
}

fn low_rank(stage: &Stage, always: bool) -> Result<Box<dyn DynCompress>> {
    let factors = match (stage.inner(), stage.word("factors").as_ref()) {
        (Some(inner), _) => Factors::By(Arc::from(method(inner)?)),
        (None, "f16") => Factors::Float(DType::F16),
        (None, "bf16") => Factors::Float(DType::BF16),
        (None, "f32") => Factors::Float(DType::F32),
        (None, _) => Factors::Source,
    };
    fn boxed<M: Metric + 'static>(method: LowRank<M>) -> Box<dyn DynCompress> {
        Box::new(method)
    }
    let rank = rank(stage)?;
    Ok(match stage.spec().name {
        "svd" => boxed(svd(rank).with_factors(factors).with_always(always)),
        "asvd" => {
            let method = asvd(rank, stage.float("alpha") as f32);
            boxed(method.with_factors(factors).with_always(always))
        }
        "lord" => boxed(lord(rank).with_factors(factors).with_always(always)),
        "feature_mimicking" => {
            boxed(feature_mimicking(rank).with_factors(factors).with_always(always))
        }
        "eora" => boxed(eora(stage.int("rank")).with_factors(factors)),
        _ => boxed(svd_llm(rank).with_factors(factors).with_always(always)),
    })
}

pub(super) fn residual(stage: &Stage, inner: Inner) -> Result<Box<dyn DynCompress>> {
    if inner.name == "feature_mimicking" {
        let message =
            "`residual` after `feature_mimicking`: its bias makes good for the mean already";
        return Err(Error::unsupported(message));
    }
    let correction = stage.inner().expect("read with one inside");
    // A correction is asked for: it is never left out to save bytes.
    let factors = correction.has("rank");
    let correction = if factors { low_rank(correction, true)? } else { method(correction)? };
    Ok(Box::new(inner.method.residual(correction)))
}

pub(super) fn inner_only(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    unreachable!("`{}` stands inside another stage only", stage.spec().name)
}
