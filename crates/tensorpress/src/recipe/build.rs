//! From stages to methods.

use tensorpress_entropy::{TileCoder, coded as coded_node};
use tensorpress_quant::{Awq, AwqClip, Clip, Gptq, GridSpec, Rtn};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, DynCompress, Error, Group, Method, Node, Result,
};

use super::chain::Chain;
use super::stage::Stage;
use super::table::Kind;

/// How a stage becomes a method.
#[derive(Debug)]
pub(super) enum Build {
    /// By itself.
    Method(fn(&Stage) -> Result<Box<dyn DynCompress>>),
    /// Around the method of the stages after it (or before it, for residuals and coders).
    Wrap(fn(&Stage, Inner) -> Result<Box<dyn DynCompress>>),
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
    let (quantiser, method) = match (chain.quantiser(), chain.alone()) {
        (Some(stage), _) => (stage, method(stage)?),
        (None, Some(stage)) => (stage, rtn(stage)?),
        (None, None) => unreachable!("a chain without a quantiser is refused when it is read"),
    };
    let grid = quantiser.has("bits").then(|| grid(quantiser));
    let mut inner = Inner { method, name: quantiser.spec().name, grid };
    let stages = chain.stages();
    let before = stages.iter().rev().filter(|s| s.spec().kind < Kind::Quantiser);
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
        Build::Wrap(_) => unreachable!("quantisers stand by themselves"),
    }
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
