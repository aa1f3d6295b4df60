//! What owns everything: open handles, and the threads that work for them.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::kv::Kv;
use crate::layer::Layer;
use crate::memory::{copy_out, place, value, write};
use crate::model::Model;
use crate::multiply::Workspace;
use crate::page::Codec;
use crate::status::{Failure, Outcome, guard, tp_error, tp_status};
use crate::table::{Ids, Table};

/// Owns handles and threads. All of tensorpress's state is in contexts: two of them know nothing of each other.
pub struct tp_context {
    pub(crate) ids: Ids,
    pub(crate) models: Table<Model>,
    pub(crate) layers: Table<Layer>,
    pub(crate) scratches: Table<Workspace>,
    pub(crate) caches: Table<Kv>,
    pub(crate) codecs: Table<Codec>,
    threads: Threads,
}

/// Contexts are used by any number of threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<tp_context>();
};

/// A pool, and its threads to wait for.
struct Threads {
    pool: Option<ThreadPool>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(threads: usize) -> Outcome<Self> {
        let running = Mutex::new(Vec::new());
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(|thread| {
                let builder = std::thread::Builder::new().name("tensorpress".into());
                let handle = builder.spawn(|| thread.run())?;
                running.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
                Ok(())
            })
            .build();
        let running = running.into_inner().unwrap_or_else(PoisonError::into_inner);
        let started = |pool| Self { pool: Some(pool), running };
        pool.map(started).map_err(|e| {
            Failure::new(tp_status::Io, format!("{threads} threads cannot be started: {e}"))
        })
    }
}

impl Drop for Threads {
    /// No thread of ours runs when a context is gone, so that the library may be unloaded.
    fn drop(&mut self) {
        drop(self.pool.take());
        for thread in self.running.drain(..) {
            // A thread that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

impl tp_context {
    /// Runs `work` on the context's threads: what it does side by side is shared among them. Locks are taken before, by
    /// the caller's thread: a thread of the context that waits for one could be the one that its holder waits for.
    pub(crate) fn on_threads<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// Checks the context, runs `work` with it, and writes how it ended.
///
/// # Safety
/// `context` must be null or made by `tp_context_new` and not freed; `error` as [`guard`] wants it.
pub(crate) unsafe fn call(
    context: *const tp_context,
    error: *mut tp_error,
    work: impl FnOnce(&tp_context) -> Outcome,
) -> tp_status {
    // SAFETY: `error` is what `guard` wants, by the caller's promise; and a context is only ever written to when it is
    // freed, which the caller does not do meanwhile.
    unsafe {
        guard(error, || {
            place("context", context)?;
            work(&*context)
        })
    }
}

/// Copies a text into a buffer, as [`copy_out`] does.
///
/// # Safety
/// As [`call`] and [`copy_out`] want it.
pub(crate) unsafe fn copy_text(
    context: *const tp_context,
    error: *mut tp_error,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    text: impl FnOnce(&tp_context) -> Outcome<String>,
) -> tp_status {
    let work = |context: &tp_context| {
        place("length", length)?;
        let text = text(context)?;
        // SAFETY: the caller's promise.
        unsafe { copy_out(text.as_bytes(), true, buffer.cast(), capacity, length) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes the handle whose number is behind `id`, which becomes zero.
///
/// # Safety
/// `id` must be null or point to a handle's number that nothing else uses meanwhile.
pub(crate) unsafe fn close<T>(table: &Table<T>, name: &str, id: *mut u64) -> Outcome {
    // SAFETY: the caller's promise.
    let number = unsafe { value(name, id)? };
    let removed = table.remove(number);
    // SAFETY: the caller's promise.
    unsafe { write(name, id, 0)? };
    removed
}

/// Makes a context with so many threads; 0 means as many as the machine has. Work is shared among them only where a
/// function says so; they sleep otherwise.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_context_new(
    threads: usize,
    context: *mut *mut tp_context,
    error: *mut tp_error,
) -> tp_status {
    let work = || {
        place("context", context)?;
        if threads > TP_MOST_THREADS {
            let message = format!("threads = {threads}: allowed are 0 to {TP_MOST_THREADS}");
            return Err(Failure::new(tp_status::InvalidArgument, message));
        }
        let made = Box::new(tp_context {
            ids: Ids::new(),
            models: Table::new("model"),
            layers: Table::new("layer"),
            scratches: Table::new("scratch"),
            caches: Table::new("cache"),
            codecs: Table::new("page codec"),
            threads: Threads::start(threads)?,
        });
        // SAFETY: the caller's promise; `tp_context_free` takes it back.
        unsafe { write("context", context, Box::into_raw(made)) }
    };
    // SAFETY: the caller's promise.
    unsafe { guard(error, work) }
}

/// The most threads that a context or a scratch may have.
pub const TP_MOST_THREADS: usize = 1024;

/// Closes everything that is open in a context, ends its threads and frees it; the caller's pointer becomes null. No other
/// call with this context may be running, and none may come later through a copy of the pointer: that, alone, cannot be
/// checked.
///
/// # Safety
/// Pointers as the introduction says; what `context` points to must be null or a context that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_context_free(
    context: *mut *mut tp_context,
    error: *mut tp_error,
) -> tp_status {
    let work = || {
        // SAFETY: the caller's promise.
        let made = unsafe { value("context", context.cast_const())? };
        place("*context", made.cast_const())?;
        // SAFETY: the caller's promise.
        unsafe { write("context", context, std::ptr::null_mut())? };
        // SAFETY: it comes from `tp_context_new`, and nobody uses it, by the caller's promise.
        drop(unsafe { Box::from_raw(made) });
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guard(error, work) }
}
