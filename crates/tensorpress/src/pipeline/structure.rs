//! The structured step: which heads and channels go is decided on the whole model as it is, before anything else is
//! done. What comes after works on the smaller model, a view on the source that takes no room.

use std::collections::BTreeMap;

use tensorpress_model::{BlockCut, Calibrations, LinearSpec, SharedInput, Source};
use tensorpress_prune::flap::{
    BlockScores, BlockSupport, HeadLayout, InputStatistics, compensation,
};
use tensorpress_prune::{ChannelMetric, Flap};
use tensorpress_tensor::ndarray::{Array1, Array2};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Context as _, ErrorKind, Method, Result, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::advance::Stream;
use super::report::{BlockReport, LayerReport};

/// The smaller model, and what there is to say about it.
pub(super) struct Structure {
    /// The stage.
    text: String,
    pub(super) source: Source,
    /// What is left of each block.
    pub(super) blocks: Vec<BlockReport>,
    /// Why less was done than asked, by weight.
    notes: BTreeMap<String, String>,
    /// Of all that was decided.
    pub(super) hash: String,
}

impl Structure {
    /// Adds what there is to say about the matrices of a block: a line for those that are not compressed, and notes.
    pub(super) fn report(&self, block: usize, layers: &mut Vec<LayerReport>) {
        for spec in self.source.linears(block) {
            if !layers.iter().any(|layer| layer.name == spec.name) {
                let bytes = self.source.checkpoint().stored_bytes(&spec.name).unwrap_or(0);
                layers.push(LayerReport {
                    method: self.text.clone(),
                    bits_per_weight: 8.0 * bytes as f64 / (spec.shape[0] * spec.shape[1]) as f64,
                    error: None,
                    fallback: None,
                    name: spec.name,
                });
            }
        }
        for layer in layers {
            if let Some(note) = self.notes.get(&layer.name) {
                let more =
                    layer.fallback.take().map_or(String::new(), |later| format!("; {later}"));
                layer.fallback = Some(format!("{note}{more}"));
            }
        }
    }
}

/// The matrices whose inputs are judged: the channels of one belong to heads, those of the other are on their own.
const JUDGED: [SharedInput; 2] = [SharedInput::AttentionOutput, SharedInput::MlpOutput];

/// The input channels of one matrix.
struct Judged {
    spec: LinearSpec,
    scores: Vec<f64>,
    /// Means of the inputs; nothing is known of them where there is none.
    mean: Option<Array1<f64>>,
}

/// Removes heads and channels as the stage `text` says. `windows` calibrate: their hidden states run through the blocks
/// as they are. `plain`: the result is to be written with a config that others read. `begins` is told of every block
/// and may stop the work.
pub(super) fn prune(
    source: &Source,
    (text, flap): (&str, &Flap),
    windows: &[Vec<u32>],
    plain: bool,
    begins: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Structure> {
    let mut pruning = Pruning { source, flap, plain, notes: BTreeMap::new() };
    let mut stream = Stream::begin(source, windows, None, false)?;
    let (mut judged, mut scores) = (Vec::new(), Vec::new());
    for index in 0..source.blocks() {
        begins(index)?;
        let needs = |input| if JUDGED.contains(&input) { flap.needs() } else { Needs::NONE };
        let calibrations = stream.watch(&source.block(index)?, &needs)?;
        let [attention, mlp] = JUDGED.map(|input| pruning.judge(index, input, &calibrations));
        let (attention, mlp) = (attention?, mlp?);
        scores.push(pruning.scores(index, &attention, &mlp)?);
        judged.push((attention, mlp));
        source.checkpoint().release();
    }
    drop(stream);
    let mut cuts = Vec::new();
    for (index, kept) in flap.select(&scores)?.into_iter().enumerate() {
        let (attention, mlp) = &judged[index];
        cuts.push(pruning.cut(index, kept, attention, mlp)?);
        source.checkpoint().release();
    }
    let narrowed = source.narrowed(&cuts, plain)?;
    let report = |block| {
        let (before, after) = (source.config().shape(block), narrowed.config().shape(block));
        BlockReport { block, before, after }
    };
    let blocks = (0..source.blocks()).map(report).collect();
    let (text, notes) = (text.to_owned(), pruning.notes);
    Ok(Structure { text, source: narrowed, blocks, notes, hash: hash(&cuts) })
}

/// What the steps of a run share.
struct Pruning<'a> {
    source: &'a Source,
    flap: &'a Flap,
    plain: bool,
    notes: BTreeMap<String, String>,
}

impl Pruning<'_> {
    /// Judges the channels of an input; by the weights alone where nothing is known of them.
    fn judge(
        &mut self,
        block: usize,
        input: SharedInput,
        calibrations: &Calibrations,
    ) -> Result<Judged> {
        let mut specs = self.source.linears(block).into_iter();
        let spec = specs.find(|spec| spec.input == input).expect("every input is read");
        let weight = matrix(self.source, &spec)?;
        let calibration = &calibrations[&input];
        let inputs = match calibration.moments() {
            _ if calibration.tokens() == 0 => Err("saw no calibration token".to_owned()),
            Ok(moments) => Ok(InputStatistics::from(moments)),
            Err(e) if e.kind() == ErrorKind::Numerical => Err(e.message().to_owned()),
            Err(e) => return Err(e).in_tensor(&spec.name),
        };
        let scores = match &inputs {
            Ok(inputs) => self.flap.metric.scores(weight.view(), inputs),
            Err(reason) => {
                let why =
                    format!("{reason}: judged by the norms of its columns, and no bias added");
                self.note(&spec.name, why);
                ChannelMetric::by_weight(weight.view())
            }
        };
        let scores = scores.in_tensor(&spec.name)?.to_vec();
        Ok(Judged { scores, mean: inputs.ok().map(|inputs| inputs.mean), spec })
    }

    /// The scores of a block, as heads and channels.
    fn scores(&self, block: usize, attention: &Judged, mlp: &Judged) -> Result<BlockScores> {
        let config = self.source.config();
        let shape = config.shape(block);
        let layout = HeadLayout::new(shape.heads, shape.kv_heads, config.head_dim)?;
        let of_mlp =
            |spec: &LinearSpec| [SharedInput::Mlp, SharedInput::MlpOutput].contains(&spec.input);
        let matrices = self.source.linears(block).iter().filter(|spec| of_mlp(spec)).count();
        Ok(BlockScores::new(layout, attention.scores.clone(), mlp.scores.clone())
            .with_mlp_matrices(matrices)
            .with_whole_attention(self.heads_cannot_be_said()))
    }

    /// The config of the result has no key for the width of a head, so that all heads stay.
    fn heads_cannot_be_said(&self) -> bool {
        self.plain && !self.source.config().architecture.has_head_dim()
    }

    /// What stays, with the biases that make good for the rest.
    fn cut(
        &mut self,
        block: usize,
        kept: BlockSupport,
        attention: &Judged,
        mlp: &Judged,
    ) -> Result<BlockCut> {
        let config = self.source.config();
        let (shape, kind) = (config.shape(block), config.architecture);
        if self.flap.uniform && self.flap.sparsity > 0.0 && kept.heads.len() == shape.heads {
            let why = match self.heads_cannot_be_said() {
                true => format!("config.json of {kind:?} has no key for the width of a head"),
                false => format!(
                    "{} of {} heads in {} groups is none that can go",
                    self.flap.sparsity, shape.heads, shape.kv_heads
                ),
            };
            self.note(&attention.spec.name, format!("all heads stay: {why}"));
        }
        let wide = |keep: bool| vec![keep; config.head_dim];
        let heads: Vec<bool> = flags(shape.heads, &kept.heads).into_iter().flat_map(wide).collect();
        let channels = flags(shape.intermediate, &kept.channels);
        Ok(BlockCut {
            attention_bias: self.bias(attention, &heads, kind.has_output_bias())?,
            mlp_bias: self.bias(mlp, &channels, kind.has_mlp_bias())?,
            heads: kept.heads,
            kv_heads: kept.kv_heads,
            channels: kept.channels,
        })
    }

    /// What is added for the inputs that go; nothing if none go, none are known, or a plain config cannot say it.
    fn bias(
        &mut self,
        judged: &Judged,
        keep: &[bool],
        can_be_said: bool,
    ) -> Result<Option<Vec<f32>>> {
        let Some(mean) = judged.mean.as_ref().filter(|_| keep.contains(&false)) else {
            return Ok(None);
        };
        if self.plain && !can_be_said {
            let kind = self.source.config().architecture;
            let why = format!(
                "no bias makes good for what goes: config.json of {kind:?} has no key for one (uniform = false keeps it)"
            );
            self.note(&judged.spec.name, why);
            return Ok(None);
        }
        let weight = matrix(self.source, &judged.spec)?;
        Ok(Some(compensation(weight.view(), mean.view(), keep).to_vec()))
    }

    fn note(&mut self, weight: &str, text: String) {
        let all = self.notes.entry(weight.to_owned()).or_default();
        if !all.is_empty() {
            all.push_str("; ");
        }
        all.push_str(&text);
    }
}

fn matrix(source: &Source, spec: &LinearSpec) -> Result<Array2<f32>> {
    source.checkpoint().tensor(&spec.name)?.to_matrix().in_tensor(&spec.name)
}

fn flags(all: usize, kept: &[usize]) -> Vec<bool> {
    let mut flags = vec![false; all];
    kept.iter().for_each(|i| flags[*i] = true);
    flags
}

fn hash(cuts: &[BlockCut]) -> String {
    let mut hash = Xxh3::new();
    for cut in cuts {
        for indices in [&cut.heads, &cut.kv_heads, &cut.channels] {
            hash.update(&(indices.len() as u64).to_le_bytes());
            indices.iter().for_each(|i| hash.update(&(*i as u64).to_le_bytes()));
        }
        for bias in [&cut.attention_bias, &cut.mlp_bias] {
            hash.update(&[u8::from(bias.is_some())]);
            bias.iter().flatten().for_each(|value| hash.update(&value.to_le_bytes()));
        }
    }
    format!("{:032x}", hash.digest128())
}
