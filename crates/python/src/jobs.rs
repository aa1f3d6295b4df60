//! Whole models: compressed, converted, judged.

use std::path::PathBuf;

use pyo3::prelude::*;
use serde_json::{Value, json};
use tensorpress::formats::imatrix::Imatrix;
use tensorpress::kvcache::KvRecipe;
use tensorpress::model::text::Limits;
use tensorpress::model::{Decoder, Judged, Source, ThroughCache};
use tensorpress::pipeline::{
    CalibrationText, Compressor, Convert, Event, Progress, Target, float_type,
};
use tensorpress::recipe::Recipe;
use tensorpress::tensor::Scratch;
use tensorpress::tensor::ndarray::Array2;
use tensorpress::{Error, ErrorKind};

use crate::json::report;
use crate::model::Given;
use crate::text::Text;
use crate::work::{Watch, watched};

/// Passes on what the pipeline tells.
struct Teller<'a>(&'a Watch);

impl Progress for Teller<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Some(event) = told(event) {
            self.0.tell(|| event);
        }
    }
}

fn told(event: Event<'_>) -> Option<Value> {
    Some(match event {
        Event::Begun { blocks, resumed } => {
            json!({ "event": "begun", "blocks": blocks, "resumed": resumed })
        }
        Event::Judged { stage, block, blocks } => {
            json!({ "event": "judged", "stage": stage, "block": block, "blocks": blocks })
        }
        Event::Backward { done, steps } => {
            json!({ "event": "backward", "done": done, "steps": steps })
        }
        Event::Rated { block, blocks } => {
            json!({ "event": "rated", "block": block, "blocks": blocks })
        }
        Event::Block { block, blocks } => {
            json!({ "event": "block", "block": block, "blocks": blocks })
        }
        Event::Layer(layer) => {
            let mut told = json!(layer);
            told["event"] = json!("layer");
            told
        }
        Event::Finished => json!({ "event": "finished" }),
        _ => return None,
    })
}

/// Compresses a model by a recipe into the folder `out`, block by block, in bounded memory.
///
/// `model` is a `Model` or a path. `recipe` is a line, a preset, or the path of a TOML file. `calibration_text`, for methods
/// that want one, is a text (`str`), a file of texts (a `Path`; see docs/texts.md), or a sequence of texts or of sequences of
/// token ids; `calibration_windows`, `calibration_length` and `calibration_chars` bound what is read of it.
/// `calibration_inputs` says whose inputs calibrate a block: `compressed`, what the compressed blocks before it make, or
/// `original`, what the original model makes. `from_quantized` takes what a compressed model decodes to for the original. `format` writes the result as `convert` does (a file where it is
/// `gguf`).
///
/// Returns the report as a dictionary: `layers` with `name`, `method`, `bits_per_weight` and `error` each, `bytes_before`,
/// `bytes_after`, `bits_per_weight`, `seconds`.
///
/// The work is done without the interpreter's lock. `progress` is called with dictionaries on the calling thread: `event` is
/// `begun` (`blocks`, `resumed`), `judged`, `backward` (`done`, `steps`), `rated`, `block` (`block`, `blocks`), `layer` (as in the report) or `finished`. Where it
/// raises, or Ctrl-C is pressed, the work stops soon (within a block) and that is raised; what is done is kept beside the
/// target, in `out.partial`, and the same call goes on from there, to the same bytes.
///
/// Raises `ExistsError` if `out` is there and `force` is not set, `MissingCalibrationError`, `UnsupportedError`,
/// `InvalidArgumentError`, `NumericalError`, `IoError`; each names tensor and file where known.
#[pyfunction]
#[pyo3(signature = (
    model, recipe, out, *, calibration_text=None, calibration_windows=None, calibration_length=None,
    calibration_chars=None, calibration_inputs="compressed", seed=0, force=false, from_quantized=false, format=None, progress=None
))]
pub(crate) fn compress_model<'py>(
    py: Python<'py>,
    model: Given,
    recipe: &str,
    out: PathBuf,
    calibration_text: Option<&Bound<'py, PyAny>>,
    calibration_windows: Option<usize>,
    calibration_length: Option<usize>,
    calibration_chars: Option<usize>,
    calibration_inputs: &str,
    seed: u64,
    force: bool,
    from_quantized: bool,
    format: Option<&str>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let text = calibration_text.map(Text::of).transpose()?;
    let done = watched(py, progress, |watch| {
        let recipe = Recipe::read(recipe)?;
        let inputs = calibration_inputs.parse()?;
        let source = model.open()?;
        let mut tell = Teller(watch);
        let mut compressor = Compressor::new(recipe)
            .with_inputs(inputs)
            .with_seed(seed)
            .with_force(force)
            .with_from_quantized(from_quantized)
            .with_cancel(watch.cancel())
            .with_progress(&mut tell);
        if let Some(format) = format {
            compressor = compressor.with_format(format.parse()?);
        }
        if let Some(text) = text {
            let mut text = CalibrationText::new(text.read()?);
            if let Some(windows) = calibration_windows {
                text = text.with_windows(windows);
            }
            if let Some(length) = calibration_length {
                text = text.with_length(length);
            }
            if let Some(chars) = calibration_chars {
                text = text.with_chars(chars);
            }
            compressor = compressor.with_calibration(text);
        }
        compressor.run(&source, &out)
    })?;
    report(py, &done)
}

/// Converts a model to another format: `to` is `gguf` or `gguf(Q4_K)` (then `out` is a file), `gptq`, `awq`,
/// `compressed-tensors`, `bnb`, `tensorpress` or `safetensors` (a folder).
///
/// Every weight keeps its values, or the call says why it cannot; with `requantize` what the target cannot hold is rounded
/// anew. `dtype` (`f32`, `f16`, `bf16`) is the type of what stays floats. `imatrix` is a file of importances for GGUF.
/// `shard_size` bounds the length of each file of a folder, in bytes.
///
/// Returns the report as a dictionary: `tensors` with `name`, `from`, `to`, `lossless` and `error` each, `lossless` for all
/// of them, `bytes_before`, `bytes_after`, `notes`, `seconds`. Progress, Ctrl-C and errors are those of `compress_model`.
#[pyfunction]
#[pyo3(signature = (
    model, to, out, *, dtype=None, requantize=false, imatrix=None, shard_size=None, force=false, progress=None
))]
pub(crate) fn convert<'py>(
    py: Python<'py>,
    model: Given,
    to: &str,
    out: PathBuf,
    dtype: Option<&str>,
    requantize: bool,
    imatrix: Option<PathBuf>,
    shard_size: Option<u64>,
    force: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let done = watched(py, progress, |watch| {
        let target: Target = to.parse()?;
        let dtype = dtype.map(float_type).transpose()?;
        let source = model.open()?;
        let mut tell = Teller(watch);
        let mut job = Convert::new(target)
            .with_requantize(requantize)
            .with_force(force)
            .with_cancel(watch.cancel())
            .with_progress(&mut tell);
        if let Some(path) = &imatrix {
            let bytes = std::fs::read(path).map_err(|e| Error::io("read the file", path, e))?;
            job = job.with_importance(Imatrix::read(bytes).map_err(|e| e.in_file(path))?);
        }
        if let Some(bytes) = shard_size {
            job = job.with_shard_size(bytes);
        }
        if let Some(dtype) = dtype {
            job = job.with_dtype(dtype);
        }
        let done = job.run(&source, &out);
        source.checkpoint().check_unmoved()?;
        done
    })?;
    let lossless = done.tensors.iter().all(|tensor| tensor.lossless);
    let done = report(py, &done)?;
    done.set_item("lossless", lossless)?;
    Ok(done)
}

/// A model that is asked for no more once the work shall stop.
struct Stoppable<'a>(&'a dyn Judged, &'a Watch);

impl Judged for Stoppable<'_> {
    fn decoder(&self) -> &Decoder {
        self.0.decoder()
    }

    fn hidden(&self, ids: &[u32], scratch: &mut Scratch) -> tensorpress::Result<Array2<f32>> {
        self.1.check()?;
        self.0.hidden(ids, scratch)
    }
}

/// f32 weights up to this size are decoded once.
const DECODED: u64 = 2 << 30;

/// The model, decoded if it is small.
fn decoder(source: &Source) -> tensorpress::Result<Decoder> {
    source.need_head()?;
    source.decoder()?.materialise_within(DECODED)
}

/// Judges a language model on a text: perplexity, and with a `reference` how far its predictions are from that model's.
///
/// `model` and `reference` are `Model`s or paths; `text` is as `calibration_text` of `compress_model`. `max_segments` and
/// `max_tokens` bound what is read of it. `kv` is a recipe for the cache behind which the model is judged.
///
/// Returns a dictionary: `perplexity`, `reference_perplexity`, `kld_mean`, `kld_p99` (in nats), `top1_agreement` (0 to 1),
/// `tokens`; what needs a reference is `None` without one. `progress` is called with `{"event": "judged", "done", "of"}`;
/// Ctrl-C stops between texts.
///
/// Raises `InsufficientDataError` where there is nothing to predict, `UnsupportedError` for encoders,
/// `InvalidArgumentError` if the vocabularies differ.
#[pyfunction]
#[pyo3(signature = (
    model, text, *, reference=None, kv=None, max_segments=None, max_tokens=None, progress=None
))]
pub(crate) fn evaluate<'py>(
    py: Python<'py>,
    model: Given,
    text: &Bound<'py, PyAny>,
    reference: Option<Given>,
    kv: Option<&str>,
    max_segments: Option<usize>,
    max_tokens: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let text = Text::of(text)?;
    let judgement = watched(py, progress, |watch| {
        let kv = kv.map(str::parse::<KvRecipe>).transpose()?;
        let (source, corpus) = (model.open()?, text.read()?);
        let limits = Limits { max_segments, max_tokens };
        let segments = corpus.segments(&source, Default::default(), limits)?;
        let model = decoder(&source)?;
        let cached = kv.as_ref().map(|recipe| ThroughCache::new(&model, recipe)).transpose()?;
        let judged = Stoppable(cached.as_ref().map_or(&model, |cached| cached), watch);
        let tell = |done: usize, of: usize| {
            watch.tell(|| json!({ "event": "judged", "done": done, "of": of }));
        };
        let judgement = match &reference {
            None => tensorpress::model::perplexity(&judged, &segments, &tell),
            Some(reference) => {
                let reference = decoder(&*reference.open()?)?;
                tensorpress::model::compare(&reference, &judged, &segments, &tell)
            }
        };
        match judgement {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                source.checkpoint().check_unmoved()?;
                Err(error)
            }
            judgement => judgement,
        }
    })?;
    report(py, &judgement)
}
