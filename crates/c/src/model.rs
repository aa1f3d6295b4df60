//! Models: whatever tensorpress opens.

use std::collections::BTreeSet;
use std::ffi::c_char;

use press::model::Source;

use crate::context::{call, close, copy_text, tp_context};
use crate::memory::{place, text, write};
use crate::status::{Failure, Outcome, tp_error, tp_status};

/// An open model; 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_model {
    /// The number of the handle.
    pub id: u64,
}

/// A model and the names of what is in it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) source: Source,
    names: Vec<String>,
}

impl Model {
    fn open(path: &str) -> Outcome<Self> {
        let source = press::open_model(path)?;
        let trees = source.trees();
        // Parts of a compressed weight are called by its name, a point, and theirs.
        let is_part = |name: &str| {
            name.match_indices('.').any(|(point, _)| trees.contains_key(&name[..point]))
        };
        let plain = source.checkpoint().names().filter(|name| !is_part(name));
        let names: BTreeSet<&str> = plain.chain(trees.keys().map(String::as_str)).collect();
        let names = names.into_iter().map(str::to_owned).collect();
        Ok(Self { names, source })
    }
}

/// Opens a model: a Hugging Face folder (compressed by tensorpress or not; quantised by GPTQ, AWQ, compressed-tensors or
/// bitsandbytes), a packed file of one (`.tpk`), a GGUF file, or a safetensors file. Weights are mapped, or lie coded,
/// until a layer is opened; the files must not be cut meanwhile.
///
/// Errors: `IO`, `INSUFFICIENT_DATA`, `CORRUPTION`, `VERSION` and `UNSUPPORTED`, naming file and tensor; `BAD_UTF8`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_model_open(
    context: *const tp_context,
    path: *const c_char,
    model: *mut tp_model,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("model", model)?;
        // SAFETY: the caller's promise.
        let path = unsafe { text("path", path)? };
        let opened = context.on_threads(|| Model::open(path))?;
        let id = context.models.insert(&context.ids, opened);
        // SAFETY: the caller's promise.
        unsafe { write("model", model, tp_model { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes a model, whose handle becomes zero. Layers that were opened stay.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_model_close(
    context: *const tp_context,
    model: *mut tp_model,
    error: *mut tp_error,
) -> tp_status {
    // SAFETY: the caller's promise; a handle is its number.
    unsafe { call(context, error, |context| close(&context.models, "model", model.cast())) }
}

/// Counts what a model has by name: weights, compressed or not, and whatever else is stored (norms, biases, embeddings).
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_model_count(
    context: *const tp_context,
    model: tp_model,
    count: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("count", count)?;
        let names = context.models.get(model.id)?.names.len();
        // SAFETY: the caller's promise.
        unsafe { write("count", count, names) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Copies the name with this index, below the count, into a text buffer. Names are in the order of their bytes.
///
/// Errors: `INVALID_ARGUMENT` for an index that is too large; `BUFFER_TOO_SMALL`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_model_name(
    context: *const tp_context,
    model: tp_model,
    index: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let text = |context: &tp_context| {
        let model = context.models.get(model.id)?;
        model.names.get(index).cloned().ok_or_else(|| {
            let message = format!("index = {index}: there are {} names", model.names.len());
            Failure::new(tp_status::InvalidArgument, message)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { copy_text(context, error, buffer, capacity, length, text) }
}

/// Copies the model's `config.json`, as it stands or as it would be for a GGUF file, into a text buffer; `{}` where
/// there is none.
///
/// Errors: `BUFFER_TOO_SMALL`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_model_config(
    context: *const tp_context,
    model: tp_model,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let text =
        |context: &tp_context| Ok(context.models.get(model.id)?.source.raw_config().to_string());
    // SAFETY: the caller's promise.
    unsafe { copy_text(context, error, buffer, capacity, length, text) }
}
