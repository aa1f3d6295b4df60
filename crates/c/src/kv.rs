//! Caches of keys and values, compressed, attended to where they lie.

use std::ffi::{c_char, c_void};
use std::sync::Mutex;

use press::kvcache::{Cache, KvRecipe, KvShape};
use press::tensor::ndarray::{ArrayView3, ArrayViewMut3};

use crate::context::{call, close, tp_context};
use crate::memory::{apart, expect_length, place, slice_mut, span, text, value, write};
use crate::multiply::{Room, lock, tp_scratch};
use crate::numbers::{Float, Floats};
use crate::status::{Failure, Outcome, tp_error, tp_status};

/// An open cache, of one attention layer of one sequence; 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_kv {
    /// The number of the handle.
    pub id: u64,
}

/// The heads of an attention layer; each number is `TP_MOST_HEADS` at most.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_kv_shape {
    /// Heads of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head of queries and keys.
    pub head_dim: usize,
    /// Channels of a head of values and of what attention gives; 0: as many as of keys.
    pub value_dim: usize,
}

/// The most heads, and channels of a head: what a cache holds of each is made at once.
pub const TP_MOST_HEADS: usize = 0xffff;

impl tp_kv_shape {
    fn read(self) -> Outcome<KvShape> {
        let Self { heads, kv_heads, head_dim, value_dim } = self;
        if let Some(most) = [heads, kv_heads, head_dim, value_dim].into_iter().max()
            && most > TP_MOST_HEADS
        {
            let message = format!("{self:?}: allowed are at most {TP_MOST_HEADS} each");
            return Err(Failure::new(tp_status::InvalidArgument, message));
        }
        let shape = KvShape::new(heads, kv_heads, head_dim)?;
        Ok(if value_dim == 0 { shape } else { shape.with_value_dim(value_dim)? })
    }
}

/// What a cache holds.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_kv_info {
    /// Tokens appended, those included that are not held any more: the position of the next.
    pub length: usize,
    /// The length at which the cache was settled last; `length` where nothing is put off.
    pub settled: usize,
    /// The shortest length, but 0, to which the cache can be cut.
    pub earliest: usize,
    /// Bytes of keys and values as they are held.
    pub bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Kv(Mutex<Cache>);

impl Kv {
    /// Calls `work` with the cache, which belongs to one call at a time.
    fn with<R>(&self, work: impl FnOnce(&mut Cache) -> Outcome<R>) -> Outcome<R> {
        work(&mut *lock(&self.0, "cache")?)
    }
}

/// Makes the caches of `layers` attention layers of a model, into as many handles. The recipe says how tokens are held
/// and which go, as "kivi(bits=4)" or "kivi(bits=4) | h2o(keep=0.5)" (docs/recipes.md); empty, all are held as f32. If
/// `deferred` is not 0, nothing goes before `tp_kv_settle`, and whatever comes before that can be taken back exactly:
/// for speculative decoding.
///
/// Errors: `INVALID_ARGUMENT` and `UNSUPPORTED` for what is no recipe, and for heads that do not go with it; `BAD_UTF8`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_open(
    context: *const tp_context,
    recipe: *const c_char,
    shape: *const tp_kv_shape,
    deferred: i32,
    caches: *mut tp_kv,
    layers: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        // SAFETY: the caller's promise; a handle is its number.
        let (recipe, shape, handles) = unsafe {
            let handles = slice_mut::<u64>("caches", caches.cast(), layers)?;
            (text("recipe", recipe)?, value("shape", shape)?, handles)
        };
        let shape = shape.read()?;
        let recipe: KvRecipe = if recipe.trim().is_empty() { "f32" } else { recipe }.parse()?;
        let made = recipe.caches_of(layers, shape)?;
        for (handle, cache) in handles.iter_mut().zip(made) {
            let cache = if deferred != 0 { cache.with_deferred() } else { cache };
            *handle = context.caches.insert(&context.ids, Kv(Mutex::new(cache)));
        }
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes a cache, whose handle becomes zero.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_close(
    context: *const tp_context,
    cache: *mut tp_kv,
    error: *mut tp_error,
) -> tp_status {
    // SAFETY: the caller's promise; a handle is its number.
    unsafe { call(context, error, |context| close(&context.caches, "cache", cache.cast())) }
}

/// Makes a cache of its own with the same contents, as for a prompt that several answers share: full pages of floats are
/// shared until one side changes them.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_fork(
    context: *const tp_context,
    cache: tp_kv,
    fork: *mut tp_kv,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("fork", fork)?;
        let made = context.caches.get(cache.id)?.with(|cache| Ok(cache.fork()))?;
        let id = context.caches.insert(&context.ids, Kv(Mutex::new(made)));
        // SAFETY: the caller's promise.
        unsafe { write("fork", fork, tp_kv { id }) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Appends keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of the next tokens, of `dtype`
/// F32, F16 or BF16 (the scratch holds them as f32).
///
/// Errors: `WRONG_LENGTH`; `NUMERICAL` for what is not finite or too large for the form; `UNSUPPORTED` for another type;
/// `BUSY`. The cache is then as it was.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_append(
    context: *const tp_context,
    cache: tp_kv,
    scratch: tp_scratch,
    dtype: i32,
    keys: *const c_void,
    keys_length: usize,
    values: *const c_void,
    values_length: usize,
    tokens: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let workspace = context.scratches.get(scratch.id)?;
        context.caches.get(cache.id)?.with(|cache| {
            let KvShape { kv_heads, head_dim, value_dim, .. } = cache.shape();
            let kind = Float::from_number(dtype)?;
            let keys = Floats { name: "keys", kind, pointer: keys, length: keys_length };
            let values = Floats { name: "values", kind, pointer: values, length: values_length };
            expect_length("keys", keys_length, &[tokens, kv_heads, head_dim])?;
            expect_length("values", values_length, &[tokens, kv_heads, value_dim])?;
            let mut room = workspace.lock()?;
            let Room { inputs: [first, second], .. } = &mut *room;
            // SAFETY: the caller's promise.
            let (keys, values) = unsafe { (keys.read(first)?, values.read(second)?) };
            let view = |numbers, dim| {
                ArrayView3::from_shape((tokens, kv_heads, dim), numbers)
                    .expect("its length was seen")
            };
            Ok(cache.append(view(keys, head_dim), view(values, value_dim))?)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Attention of the queries `[tokens, heads, head_dim]` of the tokens that were appended last, of `dtype` F32, F16 or
/// BF16, into `out` `[tokens, heads, value_dim]`: softmax(q kᵀ / sqrt(head_dim)) v over what each may see, the last
/// `window` tokens, itself included, or all if that is 0. Afterwards go the tokens that the recipe lets go, unless that
/// is put off. One cache takes one call at a time; those of several layers or sequences work side by side, each with a
/// scratch.
///
/// Errors: `INVALID_ARGUMENT` for more queries than tokens; `WRONG_LENGTH`; `OVERLAP`; `UNSUPPORTED` for another type;
/// `BUSY`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_attend(
    context: *const tp_context,
    cache: tp_kv,
    scratch: tp_scratch,
    dtype: i32,
    queries: *const c_void,
    queries_length: usize,
    tokens: usize,
    window: usize,
    out: *mut f32,
    out_length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let workspace = context.scratches.get(scratch.id)?;
        context.caches.get(cache.id)?.with(|cache| {
            let KvShape { heads, head_dim, value_dim, .. } = cache.shape();
            let queries = Floats {
                name: "queries",
                kind: Float::from_number(dtype)?,
                pointer: queries,
                length: queries_length,
            };
            expect_length("queries", queries_length, &[tokens, heads, head_dim])?;
            expect_length("out", out_length, &[tokens, heads, value_dim])?;
            apart(&[queries.span()?], &[span("out", out, out_length)?])?;
            let mut room = workspace.lock()?;
            let Room { scratch, inputs: [inputs, _], .. } = &mut *room;
            // SAFETY: the caller's promise; the two do not overlap.
            let (queries, out) =
                unsafe { (queries.read(inputs)?, slice_mut("out", out, out_length)?) };
            let queries = ArrayView3::from_shape((tokens, heads, head_dim), queries);
            let queries = queries.expect("its length was seen");
            let out = ArrayViewMut3::from_shape((tokens, heads, value_dim), out);
            let out = out.expect("its length was seen");
            let window = (window != 0).then_some(window);
            context.with_par(scratch.par(), || cache.attend(queries, window, out, scratch))?;
            Ok(())
        })
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Says what a cache holds.
///
/// Errors: `BUSY`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_describe(
    context: *const tp_context,
    cache: tp_kv,
    info: *mut tp_kv_info,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("info", info)?;
        let found = context.caches.get(cache.id)?.with(|cache| {
            Ok(tp_kv_info {
                length: cache.len(),
                settled: cache.settled(),
                earliest: cache.earliest(),
                bytes: cache.bytes(),
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { write("info", info, found) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Goes back to the first `length` tokens, as if the others had never been.
///
/// Errors: `UNSUPPORTED` where tokens were let go, packed or counted since (`tp_kv_info.earliest`); `INVALID_ARGUMENT`
/// for more tokens than there are; `BUSY`. The cache is then as it was.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_truncate(
    context: *const tp_context,
    cache: tp_kv,
    length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        context.caches.get(cache.id)?.with(|cache| Ok(cache.truncate(length)?))
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Accepts what was appended to a deferred cache, and lets go what the recipe lets go; of another, nothing happens.
///
/// Errors: those of the recipe's score, and then nothing is settled; `BUSY`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_kv_settle(
    context: *const tp_context,
    cache: tp_kv,
    error: *mut tp_error,
) -> tp_status {
    let work =
        |context: &tp_context| context.caches.get(cache.id)?.with(|cache| Ok(cache.settle()?));
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}
