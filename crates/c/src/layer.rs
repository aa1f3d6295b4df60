//! Layers: compressed matrices W `[rows, cols]`.

use std::ffi::c_char;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use press::tensor::ndarray::ArrayViewMut2;
use press::tensor::node::{Accum, Multiply, Node, Scratch};
use press::tensor::{Compressed, Storage};

use crate::context::{call, close, copy_text, tp_context};
use crate::memory::{expect_length, place, slice_mut, text, write};
use crate::model::tp_model;
use crate::status::{Failure, Outcome, tp_error, tp_status};

/// An open layer; 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_layer {
    /// The number of the handle.
    pub id: u64,
}

/// What a layer is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_layer_info {
    /// Outputs of the layer.
    pub rows: usize,
    /// Inputs of the layer.
    pub cols: usize,
    /// Bytes of all that is stored of it: codes, scales, tables, masks.
    pub bytes: u64,
    /// 8 x these bytes over rows x cols.
    pub bits_per_weight: f64,
    /// 1 if products are computed over the stored form, 0 if tiles of rows are decoded for them.
    pub fused: i32,
}

/// A node, and what there is to know beside it.
#[derive(Debug)]
pub(crate) struct Layer {
    /// None once laying it out anew has failed.
    node: RwLock<Option<Box<dyn Node>>>,
    /// What a method adds to the layer's bias.
    bias: Option<Vec<f32>>,
    /// Why it did less than asked.
    note: Option<String>,
}

impl Layer {
    pub(crate) fn new(node: Box<dyn Node>) -> Self {
        Self { node: RwLock::new(Some(node)), bias: None, note: None }
    }

    /// Calls `work` with the node, at the same time as other readers.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&dyn Node) -> Outcome<R>) -> Outcome<R> {
        // Readers change nothing, so their panics leave nothing behind; a writer's leaves no node.
        let node: RwLockReadGuard<'_, _> = self.node.read().unwrap_or_else(PoisonError::into_inner);
        work(node.as_deref().ok_or_else(lost)?)
    }

    /// Puts what `work` makes of the node in its place.
    fn change(&self, work: impl FnOnce(Box<dyn Node>) -> press::Result<Box<dyn Node>>) -> Outcome {
        let mut place = self.node.write().unwrap_or_else(PoisonError::into_inner);
        let node = place.take().ok_or_else(lost)?;
        *place = Some(work(node)?);
        Ok(())
    }
}

impl From<Compressed> for Layer {
    fn from(made: Compressed) -> Self {
        Self { bias: made.bias, note: made.fallback, ..Self::new(made.node) }
    }
}

fn lost() -> Failure {
    Failure::new(tp_status::Closed, "this layer was lost when it was laid out anew")
}

/// Rows of a matrix, where it has them.
pub(crate) fn check_rows(first: usize, rows: usize, all: usize) -> Outcome<std::ops::Range<usize>> {
    match first.checked_add(rows).filter(|end| *end <= all) {
        Some(end) => Ok(first..end),
        None => {
            let message = format!("{rows} rows from {first}: the layer has {all}");
            Err(Failure::new(tp_status::InvalidArgument, message))
        }
    }
}

/// Opens a weight of a model by its name (`tp_model_name`); nothing is decoded, and a mapped file is not copied. A vector
/// is a layer of one row; of more than two axes, all but the first count as columns.
///
/// Errors: `INSUFFICIENT_DATA` if there is no such name; `UNSUPPORTED` for numbers that are no floats; `CORRUPTION`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_open(
    context: *const tp_context,
    model: tp_model,
    name: *const c_char,
    layer: *mut tp_layer,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("layer", layer)?;
        // SAFETY: the caller's promise.
        let name = unsafe { text("name", name)? };
        let model = context.models.get(model.id)?;
        let node = context.on_threads(|| model.source.weight(name))?;
        let id = context.layers.insert(&context.ids, Layer::new(node));
        // SAFETY: the caller's promise.
        unsafe { write("layer", layer, tp_layer { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes a layer, whose handle becomes zero. Products that are being computed with it end as they would have.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_close(
    context: *const tp_context,
    layer: *mut tp_layer,
    error: *mut tp_error,
) -> tp_status {
    // SAFETY: the caller's promise; a handle is its number.
    unsafe { call(context, error, |context| close(&context.layers, "layer", layer.cast())) }
}

/// Says what a layer is; counts its parts, so keep the answer.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_describe(
    context: *const tp_context,
    layer: tp_layer,
    info: *mut tp_layer_info,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("info", info)?;
        let found = context.layers.get(layer.id)?.with(|node| {
            let storage = Storage::of(node)?;
            let [rows, cols] = node.shape();
            Ok(tp_layer_info {
                rows,
                cols,
                bytes: storage.bytes(),
                bits_per_weight: storage.bits_per_weight([rows, cols]),
                fused: i32::from(node.multiply() == Multiply::Fused),
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { write("info", info, found) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Copies the kind of a layer, the wire id of the root of its tree (as `dense.v1`), into a text buffer.
///
/// Errors: `BUFFER_TOO_SMALL`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_kind(
    context: *const tp_context,
    layer: tp_layer,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let text = |context: &tp_context| {
        let tree = context.layers.get(layer.id)?.with(|node| Ok(node.describe()))?;
        Ok(tree["node"].as_str().unwrap_or_default().to_owned())
    };
    // SAFETY: the caller's promise.
    unsafe { copy_text(context, error, buffer, capacity, length, text) }
}

/// Copies the tree of a layer as JSON into a text buffer: kinds, parameters and children, as docs/format.md states them.
///
/// Errors: `BUFFER_TOO_SMALL`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_tree(
    context: *const tp_context,
    layer: tp_layer,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let text = |context: &tp_context| {
        let layer = context.layers.get(layer.id)?;
        layer.with(|node| Ok(node.describe().to_string()))
    };
    // SAFETY: the caller's promise.
    unsafe { copy_text(context, error, buffer, capacity, length, text) }
}

/// Copies why `tp_compress` did less than asked, as where a recipe looks at inputs and there were none, into a text
/// buffer; empty if it did not, and for layers that were not made by it.
///
/// Errors: `BUFFER_TOO_SMALL`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_note(
    context: *const tp_context,
    layer: tp_layer,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let text = |context: &tp_context| {
        let layer = context.layers.get(layer.id)?;
        Ok(layer.note.clone().unwrap_or_default())
    };
    // SAFETY: the caller's promise.
    unsafe { copy_text(context, error, buffer, capacity, length, text) }
}

/// Copies what a recipe of `tp_compress` (`feature_mimicking`, say) adds to the layer's bias into `out` `[rows]`; zeros
/// if that is nothing, and for layers that were not made by it. It is not among the bytes of the layer: keep it with the
/// biases of the model.
///
/// Errors: `WRONG_LENGTH`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_bias(
    context: *const tp_context,
    layer: tp_layer,
    out: *mut f32,
    out_length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let layer = context.layers.get(layer.id)?;
        let rows = layer.with(|node| Ok(node.shape()[0]))?;
        expect_length("out", out_length, &[rows])?;
        // SAFETY: the caller's promise.
        let out = unsafe { slice_mut::<f32>("out", out, out_length)? };
        match &layer.bias {
            Some(bias) => out.copy_from_slice(bias),
            None => out.fill(0.0),
        }
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Decodes `rows` rows from `first_row` on into `out` `[rows, cols]`, on this thread. Any partition of the rows gives
/// the same bits.
///
/// Errors: `INVALID_ARGUMENT` for rows that the layer does not have; `WRONG_LENGTH`; `CORRUPTION`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_decode(
    context: *const tp_context,
    layer: tp_layer,
    first_row: usize,
    rows: usize,
    out: *mut f32,
    out_length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        context.layers.get(layer.id)?.with(|node| {
            let [all, cols] = node.shape();
            let range = check_rows(first_row, rows, all)?;
            expect_length("out", out_length, &[rows, cols])?;
            // SAFETY: the caller's promise.
            let out = unsafe { slice_mut("out", out, out_length)? };
            let out = ArrayViewMut2::from_shape((rows, cols), out).expect("its length was seen");
            Ok(node.decode_rows(range, out, Accum::Replace, &mut Scratch::default())?)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Lays a layer out as it multiplies fastest on this machine, under the same handle; it decodes to the same numbers and
/// writes the same bytes. Products that are being computed are waited for, and those that come wait.
///
/// Errors: `CORRUPTION`; the layer answers `CLOSED` then.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_prepack(
    context: *const tp_context,
    layer: tp_layer,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let layer = context.layers.get(layer.id)?;
        layer.change(|node| context.on_threads(|| node.prepack()))
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}
