//! From stages to methods.

use tensorpress_entropy::{TileCoder, coded as coded_node};
use tensorpress_prune::{ChannelMetric, Flap, Pattern, SparseGpt, magnitude, prune_group, wanda};
use tensorpress_quant::{Awq, AwqClip, Clip, Gptq, GridSpec, Rtn};
use tensorpress_tensor::node::Masked;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, DynCompress, Error, Group, Method, Node,
    Result, Select, Target,
};

use super::chain::Chain;
use super::stage::Stage;
use super::table::Kind;
use super::value::n_of_m;

/// How a stage becomes a method.
#[derive(Debug)]
pub(super) enum Build {
    /// By itself.
    Method(fn(&Stage) -> Result<Box<dyn DynCompress>>),
    /// Around the method of the stages after it (or before it, for residuals and coders).
    Wrap(fn(&Stage, Inner) -> Result<Box<dyn DynCompress>>),
    /// Before all of them, on the model as a whole.
    Structure(fn(&Stage) -> Flap),
}

/// What a stage wraps.
pub(super) struct Inner {
    method: Box<dyn DynCompress>,
    name: &'static str,
    /// The grid it rounds to, if it has one.
    grid: Option<GridSpec>,
}

/// Transforms and the selector wrap the quantiser, the last one first; residuals and the coder wrap all of that.
pub(super) fn chain(chain: &Chain) -> Result<Box<dyn DynCompress>> {
    let (quantiser, method) = match (chain.quantiser(), chain.alone(), chain.selector()) {
        (Some(stage), ..) => (stage, method(stage)?),
        (None, Some(stage), _) => (stage, rtn(stage)?),
        (None, None, Some(stage)) => {
            (stage, Box::new(Kept(select(stage)?)) as Box<dyn DynCompress>)
        }
        (None, None, None) => {
            let message = format!("`{chain}` removes heads and channels, and compresses no matrix");
            return Err(Error::unsupported(message));
        }
    };
    let grid = quantiser.has("bits").then(|| grid(quantiser));
    let mut inner = Inner { method, name: quantiser.spec().name, grid };
    let stages = chain.stages();
    let before = stages.iter().rev().filter(|s| s.spec().kind < Kind::Quantiser);
    // A selector by itself is the method already.
    let before = before.filter(|s| s.spec().kind != Kind::Selector || !std::ptr::eq(*s, quantiser));
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

fn method(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    match stage.spec().build {
        Build::Method(build) => build(stage),
        Build::Wrap(_) | Build::Structure(_) => unreachable!("quantisers stand by themselves"),
    }
}

/// The structured pruner of a chain.
pub(super) fn structured(stage: &Stage) -> Flap {
    match stage.spec().build {
        Build::Structure(build) => build(stage),
        _ => unreachable!("a structured pruner"),
    }
}

pub(super) fn flap(stage: &Stage) -> Flap {
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
    let method = Awq::with_solver(grid, Boxed(inner.method))
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
    Ok(Box::new(Coded { method: inner.method, coder }))
}

/// The support that the keys of a selector describe.
pub(super) fn pattern(stage: &Stage) -> Result<Pattern> {
    let Some((n, m)) = n_of_m(&stage.word("pattern")) else {
        return Ok(Pattern::unstructured(stage.float("sparsity")));
    };
    let sparsity = stage.float("sparsity");
    if sparsity != 1.0 - n as f64 / m as f64 {
        let name = stage.spec().name;
        let message =
            format!("{name}: sparsity = {sparsity} with pattern = {n}:{m}: allowed is one of them");
        return Err(Error::invalid(message));
    }
    Ok(Pattern::nm(n, m))
}

fn select(stage: &Stage) -> Result<Box<dyn Select>> {
    let pattern = pattern(stage)?;
    Ok(match stage.spec().name {
        "magnitude" => Box::new(magnitude(pattern)),
        "wanda" => Box::new(wanda(pattern)),
        _ => Box::new(
            SparseGpt::new(pattern)
                .with_damp(stage.float("damp") as f32)
                .with_block(stage.int("block")),
        ),
    })
}

pub(super) fn selector(stage: &Stage, inner: Inner) -> Result<Box<dyn DynCompress>> {
    Ok(Box::new(Selected { select: select(stage)?, method: inner.method }))
}

/// What a selector keeps, in its stored type.
#[derive(Debug)]
struct Kept(Box<dyn Select>);

impl Method for Kept {
    fn id(&self) -> &'static str {
        self.0.id()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}

impl Compress for Kept {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(&*self.0, group)
    }
}

/// A support fixed first, then a method for what stays.
#[derive(Debug)]
struct Selected {
    select: Box<dyn Select>,
    method: Box<dyn DynCompress>,
}

impl Method for Selected {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn needs(&self) -> Needs {
        self.select.needs().union(self.method.needs())
    }
}

impl Compress for Selected {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        // A sweep factors the Gram matrix in its own memory; the method after it needs one too.
        let both = self.select.needs().gram && self.method.needs().gram;
        let spare = both.then(|| group.calibration.clone());
        let selections = self.select.select_group(&mut group)?;
        let Group { targets, calibration, fold, seed, par } = group;
        let chosen = targets.iter().zip(&selections).map(|(target, selection)| Target {
            weight: selection.weight.as_ref().map_or(target.weight, |w| w.view()),
            mask: Some(&selection.mask),
            ..target.clone()
        });
        let group = Group {
            targets: chosen.collect(),
            calibration: spare.unwrap_or(calibration),
            fold,
            seed,
            par,
        };
        let CompressedGroup { layers, folded } = self.method.compress_group_dyn(group)?;
        let pairs = layers.into_iter().zip(&selections).zip(&targets);
        let layers = pairs.map(|((layer, selection), target)| {
            let node = Masked::new(selection.mask.clone(), layer.node).in_tensor(target.name)?;
            let notes = [selection.fallback.clone(), layer.fallback];
            let notes: Vec<String> = notes.into_iter().flatten().collect();
            let fallback = (!notes.is_empty()).then(|| notes.join("; "));
            Ok(Compressed { bias: layer.bias, fallback, node: node.boxed() })
        });
        Ok(CompressedGroup { layers: layers.collect::<Result<_>>()?, folded })
    }
}

pub(super) fn inner_only(stage: &Stage) -> Result<Box<dyn DynCompress>> {
    unreachable!("`{}` stands inside another stage only", stage.spec().name)
}

/// What a method returns, entropy-coded.
#[derive(Debug)]
struct Coded {
    method: Box<dyn DynCompress>,
    coder: TileCoder,
}

impl Method for Coded {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn needs(&self) -> Needs {
        self.method.needs()
    }
}

impl Compress for Coded {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let CompressedGroup { layers, folded } = self.method.compress_group_dyn(group)?;
        let code = |layer: Compressed| {
            Ok(Compressed { node: coded_node(layer.node, self.coder)?, ..layer })
        };
        Ok(CompressedGroup { layers: layers.into_iter().map(code).collect::<Result<_>>()?, folded })
    }
}

/// A boxed method as the part of another.
#[derive(Debug)]
struct Boxed(Box<dyn DynCompress>);

impl Method for Boxed {
    fn id(&self) -> &'static str {
        self.0.id()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}

impl Compress for Boxed {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.0.compress_group_dyn(group)
    }
}
