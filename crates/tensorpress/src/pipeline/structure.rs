//! The structured step: which heads and channels go is decided on the whole model as it is, before anything else is
//! done. What comes after works on the smaller model, a view on the source that takes no room.

use std::collections::BTreeMap;

use tensorpress_model::{BlockCut, LinearSpec, SharedInput, Source};
use tensorpress_prune::flap::{BlockScores, HeadLayout, InputStatistics, compensation};
use tensorpress_prune::{ChannelMetric, Flap};
use tensorpress_tensor::ndarray::{Array1, Array2};
use tensorpress_tensor::stats::{Calibration, Needs};
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

/// Removes heads and channels as the stage `text` says. `windows` calibrate: their hidden states run through the blocks as they are. `plain`: the
/// result is to be written with a config that others read. `begins` is told of every block and may stop the work.
pub(super) fn prune(
    source: &Source,
    (text, flap): (&str, &Flap),
    windows: &[Vec<u32>],
    plain: bool,
    begins: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Structure> {
    let config = source.config();
    let kind = config.architecture;
    let mut notes = BTreeMap::new();
    let mut stream = Stream::begin(source, windows, None)?;
    let mut judged = Vec::with_capacity(source.blocks());
    let mut scores = Vec::with_capacity(source.blocks());
    for index in 0..source.blocks() {
        begins(index)?;
        let block = source.block(index)?;
        let needs = |input| if JUDGED.contains(&input) { flap.needs() } else { Needs::NONE };
        let calibrations = stream.watch(&block, &needs)?;
        let shape = config.shape(index);
        let linears = source.linears(index);
        let mut judge = |input: SharedInput| {
            let spec =
                linears.iter().find(|spec| spec.input == input).expect("each is read").clone();
            judge(source, flap.metric, spec, &calibrations[&input], &mut notes)
        };
        let [attention, mlp] = [judge(JUDGED[0])?, judge(JUDGED[1])?];
        let mlp_inputs = [SharedInput::Mlp, SharedInput::MlpOutput];
        let matrices = linears.iter().filter(|spec| mlp_inputs.contains(&spec.input));
        let layout = HeadLayout::new(shape.heads, shape.kv_heads, config.head_dim)?;
        scores.push(
            BlockScores::new(layout, attention.scores.clone(), mlp.scores.clone())
                .with_mlp_matrices(matrices.count())
                .with_whole_attention(plain && !kind.has_head_dim()),
        );
        judged.push([attention, mlp]);
        source.checkpoint().release();
    }
    drop(stream);

    let mut cuts = Vec::with_capacity(judged.len());
    for (index, (kept, [attention, mlp])) in
        flap.select(&scores)?.into_iter().zip(&judged).enumerate()
    {
        let (shape, dim) = (config.shape(index), config.head_dim);
        if kept.heads.len() == shape.heads && flap.uniform && flap.sparsity > 0.0 {
            let why = match plain && !kind.has_head_dim() {
                true => format!("config.json of {kind:?} has no key for the width of a head"),
                false => format!(
                    "{} of {} heads in {} groups is none that can go",
                    flap.sparsity, shape.heads, shape.kv_heads
                ),
            };
            note(&mut notes, &attention.spec.name, format!("all heads stay: {why}"));
        }
        let heads = flags(shape.heads, &kept.heads);
        let heads: Vec<bool> = heads.into_iter().flat_map(|keep| vec![keep; dim]).collect();
        let channels = flags(shape.intermediate, &kept.channels);
        let mut repair = |judged: &Judged, keep: &[bool], sayable: bool| {
            let Some(mean) = judged.mean.as_ref().filter(|_| keep.contains(&false)) else {
                return Ok(None);
            };
            if plain && !sayable {
                let why = format!(
                    "no bias makes good for what goes: config.json of {kind:?} has no key for one (uniform = false \
                     keeps it)"
                );
                note(&mut notes, &judged.spec.name, why);
                return Ok(None);
            }
            let weight = matrix(source, &judged.spec)?;
            Ok(Some(compensation(weight.view(), mean.view(), keep).to_vec()))
        };
        let attention_bias = repair(attention, &heads, kind.has_output_bias())?;
        let mlp_bias = repair(mlp, &channels, kind.has_mlp_bias())?;
        source.checkpoint().release();
        cuts.push(BlockCut {
            heads: kept.heads,
            kv_heads: kept.kv_heads,
            channels: kept.channels,
            attention_bias,
            mlp_bias,
        });
    }
    let narrowed = source.narrowed(&cuts, plain)?;
    let report = |block| {
        let (before, after) = (config.shape(block), narrowed.config().shape(block));
        BlockReport { block, before, after }
    };
    let blocks = (0..source.blocks()).map(report).collect();
    Ok(Structure { text: text.to_owned(), source: narrowed, blocks, notes, hash: hash(&cuts) })
}

/// Judges the inputs of a matrix; by the weights alone where nothing is known of the inputs.
fn judge(
    source: &Source,
    metric: ChannelMetric,
    spec: LinearSpec,
    calibration: &Calibration,
    notes: &mut BTreeMap<String, String>,
) -> Result<Judged> {
    let weight = matrix(source, &spec)?;
    let inputs = match calibration.moments() {
        _ if calibration.tokens() == 0 => Err("saw no calibration token".to_owned()),
        Ok(moments) => Ok(InputStatistics::from(moments)),
        Err(e) if e.kind() == ErrorKind::Numerical => Err(e.message().to_owned()),
        Err(e) => return Err(e).in_tensor(&spec.name),
    };
    let scores = match &inputs {
        Ok(inputs) => metric.scores(weight.view(), inputs),
        Err(reason) => {
            let why = format!("{reason}: judged by the norms of its columns, and no bias added");
            note(notes, &spec.name, why);
            ChannelMetric::by_weight(weight.view())
        }
    };
    let scores = scores.in_tensor(&spec.name)?.to_vec();
    Ok(Judged { scores, mean: inputs.ok().map(|inputs| inputs.mean), spec })
}

fn matrix(source: &Source, spec: &LinearSpec) -> Result<Array2<f32>> {
    source.checkpoint().tensor(&spec.name)?.to_matrix().in_tensor(&spec.name)
}

fn note(notes: &mut BTreeMap<String, String>, weight: &str, text: String) {
    let all = notes.entry(weight.to_owned()).or_default();
    if !all.is_empty() {
        all.push_str("; ");
    }
    all.push_str(&text);
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
