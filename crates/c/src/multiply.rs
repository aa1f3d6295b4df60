//! Products Y = X Wᵀ, straight over what is stored.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, TryLockError};

use press::tensor::linalg::Par;
use press::tensor::ndarray::{ArrayView2, ArrayViewMut2};
use press::tensor::node::{Accum, Input, Scratch};

use crate::context::{TP_MOST_THREADS, call, close, tp_context};
use crate::layer::{check_rows, tp_layer};
use crate::memory::{apart, expect_length, place, slice_mut, span, write};
use crate::numbers::{Float, Floats};
use crate::status::{Failure, Outcome, tp_error, tp_status};

/// An open scratch; 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_scratch {
    /// The number of the handle.
    pub id: u64,
}

/// Memory that calls leave for the next ones.
#[derive(Debug)]
pub(crate) struct Workspace(Mutex<Room>);

#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(crate) scratch: Scratch,
    /// Inputs as f32.
    pub(crate) inputs: [Vec<f32>; 2],
    pub(crate) pages: press::kvcache::page::PageScratch,
}

impl Workspace {
    pub(crate) fn lock(&self) -> Outcome<MutexGuard<'_, Room>> {
        lock(&self.0, "scratch")
    }
}

/// What one call at a time may have.
pub(crate) fn lock<'a, T>(mutex: &'a Mutex<T>, kind: &str) -> Outcome<MutexGuard<'a, T>> {
    mutex.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => {
            Failure::new(tp_status::Busy, format!("another call works with this {kind}"))
        }
        TryLockError::Poisoned(_) => {
            Failure::new(tp_status::Panic, format!("a call with this {kind} met a fault before"))
        }
    })
}

impl tp_context {
    /// Runs `work` with the threads that a scratch may use: on the calling thread where that is one.
    pub(crate) fn with_par<R: Send>(&self, par: Par, work: impl FnOnce() -> R + Send) -> R {
        if par == Par::Seq { work() } else { self.on_threads(work) }
    }
}

/// Makes a scratch: memory for products and attention, kept for the next ones, and how many threads they may use. 1
/// means the calling thread alone, 0 all threads of the context, and more at most so many of them. Whatever thread it is
/// that calls may use a scratch, one at a time (`BUSY` else): give each of your own threads one.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_scratch_open(
    context: *const tp_context,
    threads: usize,
    scratch: *mut tp_scratch,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("scratch", scratch)?;
        let par = match threads {
            0 => Par::Rayon,
            1 => Par::Seq,
            _ if threads > TP_MOST_THREADS => {
                let message = format!("threads = {threads}: allowed are 0 to {TP_MOST_THREADS}");
                return Err(Failure::new(tp_status::InvalidArgument, message));
            }
            _ => Par::Threads(threads),
        };
        let room = Room { scratch: Scratch::new(par), ..Room::default() };
        let id = context.scratches.insert(&context.ids, Workspace(Mutex::new(room)));
        // SAFETY: the caller's promise.
        unsafe { write("scratch", scratch, tp_scratch { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes a scratch, whose handle becomes zero, and gives its memory back.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_scratch_close(
    context: *const tp_context,
    scratch: *mut tp_scratch,
    error: *mut tp_error,
) -> tp_status {
    // SAFETY: the caller's promise; a handle is its number.
    unsafe { call(context, error, |context| close(&context.scratches, "scratch", scratch.cast())) }
}

/// `Y = X W[rows]ᵀ`: inputs `x` `[tokens, cols]` of `dtype` F32, F16 or BF16 by `rows` rows of the layer from `first_row`
/// on, into `y` `[tokens, rows]`. Many threads may multiply by one layer at a time, each with a scratch and rows of its
/// own; the layer is not decoded as a whole, and how many threads there are changes no result.
///
/// Errors: `INVALID_ARGUMENT` for rows that the layer does not have; `WRONG_LENGTH` of `x` or `y`, in numbers; `OVERLAP`
/// of the two; `UNSUPPORTED` for another type; `CORRUPTION`; `BUSY`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_layer_multiply(
    context: *const tp_context,
    layer: tp_layer,
    scratch: tp_scratch,
    first_row: usize,
    rows: usize,
    dtype: i32,
    x: *const c_void,
    x_length: usize,
    tokens: usize,
    y: *mut f32,
    y_length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let workspace = context.scratches.get(scratch.id)?;
        let layer = context.layers.get(layer.id)?;
        layer.with(|node| {
            let [all, cols] = node.shape();
            let range = check_rows(first_row, rows, all)?;
            let x = Floats {
                name: "x",
                kind: Float::from_number(dtype)?,
                pointer: x,
                length: x_length,
            };
            expect_length("x", x_length, &[tokens, cols])?;
            expect_length("y", y_length, &[tokens, rows])?;
            apart(&[x.span()?], &[span("y", y, y_length)?])?;
            let mut room = workspace.lock()?;
            let Room { scratch, inputs: [inputs, _], .. } = &mut *room;
            // SAFETY: the caller's promise; the two do not overlap.
            let (x, y) = unsafe { (x.read(inputs)?, slice_mut("y", y, y_length)?) };
            if y.is_empty() {
                return Ok(());
            }
            let x = ArrayView2::from_shape((tokens, cols), x).expect("its length was seen");
            let y = ArrayViewMut2::from_shape((tokens, rows), y).expect("its length was seen");
            context.with_par(scratch.par(), || {
                Input::with(x, scratch, |x, scratch| {
                    node.matmul_rows(range, x, y, Accum::Replace, scratch)
                })
            })?;
            Ok(())
        })
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{guard, tp_error};

    #[test]
    fn one_call_at_a_time_and_none_after_a_fault() {
        let mutex = Mutex::new(7);
        let none = std::ptr::null_mut::<tp_error>();
        // SAFETY: null is allowed.
        let status = |work: &mut dyn FnMut() -> Outcome| unsafe { guard(none, work) };
        let held = mutex.lock().unwrap();
        assert_eq!(status(&mut || lock(&mutex, "scratch").map(drop)), tp_status::Busy);
        drop(held);
        assert_eq!(status(&mut || lock(&mutex, "scratch").map(drop)), tp_status::Ok);
        let fault = status(&mut || {
            let _held = lock(&mutex, "scratch")?;
            panic!("in the middle of it")
        });
        assert_eq!(fault, tp_status::Panic);
        assert_eq!(status(&mut || lock(&mutex, "scratch").map(drop)), tp_status::Panic);
    }
}
