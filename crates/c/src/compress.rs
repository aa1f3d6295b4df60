//! New layers: made of a matrix by a recipe, or read from bytes.

use std::ffi::{c_char, c_void};

use press::tensor::RawTensor;
use press::tensor::linalg::Par;
use press::tensor::ndarray::{Array2, ArrayView2};
use press::tensor::node::{Dense, from_bytes, to_bytes};
use press::tensor::stats::Calibration;

use crate::context::{call, tp_context};
use crate::layer::{Layer, tp_layer};
use crate::memory::{copy_out, expect_length, place, slice, text, write};
use crate::numbers::{Float, Floats};
use crate::status::{Failure, Outcome, tp_error, tp_status};

/// X `[samples, cols]` as statistics, or none.
fn calibration(samples: &[f32], cols: usize) -> Outcome<Calibration> {
    if samples.is_empty() {
        return Ok(Calibration::none(cols));
    }
    if cols == 0 || !samples.len().is_multiple_of(cols) {
        let message = format!("`samples`: {} numbers for rows of {cols}", samples.len());
        return Err(Failure::new(tp_status::WrongLength, message));
    }
    let shape = (samples.len() / cols, cols);
    let samples = Array2::from_shape_vec(shape, samples.to_vec()).expect("its length was seen");
    Ok(Calibration::from_samples(samples, Par::Rayon))
}

/// Compresses a matrix W `[rows, cols]` of `dtype` F32, F16 or BF16 by a recipe, as "rtn(bits=4, group=64)" or
/// "awq | gptq(bits=3)" (docs/recipes.md), and opens the result. Recipes that look at inputs learn from `samples`, any
/// number of rows of `cols` numbers, which may be null with length 0: some then do less than asked, and `tp_layer_note`
/// says so, others are an error. Add `tp_layer_bias` to the layer's bias. Works on the threads of the context.
///
/// Errors: `INVALID_ARGUMENT` and `UNSUPPORTED` for what is no recipe for one matrix; `MISSING_CALIBRATION`; `NUMERICAL` for
/// weights that are not finite; `WRONG_LENGTH`; `BAD_UTF8`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_compress(
    context: *const tp_context,
    recipe: *const c_char,
    dtype: i32,
    weight: *const c_void,
    weight_length: usize,
    rows: usize,
    cols: usize,
    samples: *const f32,
    samples_length: usize,
    layer: *mut tp_layer,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("layer", layer)?;
        // SAFETY: the caller's promise.
        let recipe = unsafe { text("recipe", recipe)? };
        let kind = Float::from_number(dtype)?;
        let weight = Floats { name: "weight", kind, pointer: weight, length: weight_length };
        expect_length("weight", weight_length, &[rows, cols])?;
        let mut room = Vec::new();
        // SAFETY: the caller's promise.
        let (weight, samples) =
            unsafe { (weight.read(&mut room)?, slice("samples", samples, samples_length)?) };
        let weight = ArrayView2::from_shape((rows, cols), weight).expect("its length was seen");
        let made = context.on_threads(|| -> Outcome<_> {
            let calibration = calibration(samples, cols)?;
            Ok(match kind {
                Float::F32 => press::compress(&weight, recipe, &calibration)?,
                // What is kept as it is, is kept in the type of the matrix.
                _ => {
                    let weight = RawTensor::from_f32(weight.into_dyn(), kind.dtype())?;
                    press::compress(&weight, recipe, &calibration)?
                }
            })
        })?;
        let id = context.layers.insert(&context.ids, Layer::from(made));
        // SAFETY: the caller's promise.
        unsafe { write("layer", layer, tp_layer { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Opens a matrix W `[rows, cols]` of `dtype` F32, F16 or BF16 as it is, copied: what is not worth compressing is
/// multiplied by in the same way.
///
/// Errors: `WRONG_LENGTH`; `UNSUPPORTED` for another type.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_dense(
    context: *const tp_context,
    dtype: i32,
    weight: *const c_void,
    weight_length: usize,
    rows: usize,
    cols: usize,
    layer: *mut tp_layer,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("layer", layer)?;
        let kind = Float::from_number(dtype)?;
        let weight = Floats { name: "weight", kind, pointer: weight, length: weight_length };
        expect_length("weight", weight_length, &[rows, cols])?;
        let mut room = Vec::new();
        // SAFETY: the caller's promise.
        let weight = unsafe { weight.read(&mut room)? };
        let weight = ArrayView2::from_shape((rows, cols), weight).expect("its length was seen");
        let node = Box::new(Dense::from_f32(weight, kind.dtype())?);
        let id = context.layers.insert(&context.ids, Layer::new(node));
        // SAFETY: the caller's promise.
        unsafe { write("layer", layer, tp_layer { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Writes a layer into a buffer: a safetensors file of one weight, with a checksum (docs/format.md). Asking for the
/// length alone takes as long as writing.
///
/// Errors: `BUFFER_TOO_SMALL`; `CORRUPTION`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_to_bytes(
    context: *const tp_context,
    layer: tp_layer,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("length", length)?;
        let layer = context.layers.get(layer.id)?;
        let bytes = layer.with(|node| Ok(context.on_threads(|| to_bytes(node))?))?;
        // SAFETY: the caller's promise.
        unsafe { copy_out(&bytes, false, buffer, capacity, length) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Opens the layer that `tp_layer_to_bytes` wrote; the bytes are copied.
///
/// Errors: `CORRUPTION` or `INSUFFICIENT_DATA` for every changed, missing or added byte; `VERSION`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_from_bytes(
    context: *const tp_context,
    bytes: *const u8,
    bytes_length: usize,
    layer: *mut tp_layer,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("layer", layer)?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { slice("bytes", bytes, bytes_length)? };
        let node = context.on_threads(|| from_bytes(bytes, &press::registry()))?;
        let id = context.layers.insert(&context.ids, Layer::new(node));
        // SAFETY: the caller's promise.
        unsafe { write("layer", layer, tp_layer { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}
