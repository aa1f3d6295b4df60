//! Pages of keys and values between tiers of memory: bytes of declared size.

use std::ffi::c_void;

use press::kvcache::page::{PageCodec, PageConfig, PageRows, PageRowsMut};

use crate::context::{call, close, tp_context};
use crate::memory::{apart, place, slice, slice_mut, span, value, write};
use crate::multiply::tp_scratch;
use crate::numbers::{Float, tp_type};
use crate::status::{Failure, Outcome, guard, tp_error, tp_status};

/// An open codec of pages; 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_page_codec {
    /// The number of the handle.
    pub id: u64,
}

/// What a page holds and how. Begin with `tp_page_defaults`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tp_page_config {
    /// Tokens of a full page, 1 to 65535.
    pub tokens: usize,
    /// Heads of keys and values, 1 to 65535.
    pub kv_heads: usize,
    /// Channels of a key, 1 to 65535.
    pub head_dim: usize,
    /// Channels of a value, 0 to 65535: 0 where one array is all there is, as with latents.
    pub value_dim: usize,
    /// Channels of a head that share a scale, 1 to 65535; the last group of a head has what is left.
    pub group: usize,
    /// Bits of a code of the keys, 2 to 8.
    pub key_bits: u32,
    /// Bits of a code of the values, 2 to 8.
    pub value_bits: u32,
    /// Not 0: grids around zero, a scale alone, no minimum.
    pub symmetric: i32,
    /// The `tp_type` of scales and minima: F32, F16 or BF16.
    pub scales: i32,
    /// Not 0: rotate keys and values before they are rounded, and back when they are decoded.
    pub rotate: i32,
    /// What draws the signs of the rotation.
    pub seed: u64,
}

#[derive(Debug)]
pub(crate) struct Codec(PageCodec);

impl tp_page_config {
    fn read(&self) -> Outcome<PageConfig> {
        let config = PageConfig::new(self.tokens, self.kv_heads, self.head_dim)
            .with_value_dim(self.value_dim)
            .with_bits(self.key_bits, self.value_bits)
            .with_group(self.group)
            .with_symmetric(self.symmetric != 0)
            .with_scales(Float::from_number(self.scales)?.dtype())
            .with_rotate(self.rotate != 0)
            .with_seed(self.seed);
        Ok(config)
    }
}

/// Fills in a configuration: 16 tokens of 8 heads of 128 channels, 4 bits, groups of 64 with an f16 scale and minimum,
/// rotated by seed 0.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_page_defaults(
    config: *mut tp_page_config,
    error: *mut tp_error,
) -> tp_status {
    let d = PageConfig::default();
    let defaults = tp_page_config {
        tokens: d.tokens,
        kv_heads: d.kv_heads,
        head_dim: d.head_dim,
        value_dim: d.value_dim,
        group: d.group,
        key_bits: d.key_bits,
        value_bits: d.value_bits,
        symmetric: i32::from(d.symmetric),
        scales: tp_type::F16 as i32,
        rotate: i32::from(d.rotate),
        seed: d.seed,
    };
    // SAFETY: the caller's promise.
    unsafe { guard(error, || write("config", config, defaults)) }
}

/// Makes a codec, and says how many bytes each of its pages takes. Many threads may use one at a time.
///
/// Errors: `INVALID_ARGUMENT` for a number outside of what its field allows.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_page_open(
    context: *const tp_context,
    config: *const tp_page_config,
    codec: *mut tp_page_codec,
    page_bytes: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("codec", codec)?;
        place("page_bytes", page_bytes)?;
        // SAFETY: the caller's promise.
        let config = unsafe { value("config", config)? };
        let made = PageCodec::new(config.read()?)?;
        let bytes = made.page_bytes();
        let id = context.codecs.insert(&context.ids, Codec(made));
        // SAFETY: the caller's promise.
        unsafe {
            write("codec", codec, tp_page_codec { id })?;
            write("page_bytes", page_bytes, bytes)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Closes a codec, whose handle becomes zero.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_page_close(
    context: *const tp_context,
    codec: *mut tp_page_codec,
    error: *mut tp_error,
) -> tp_status {
    // SAFETY: the caller's promise; a handle is its number.
    unsafe { call(context, error, |context| close(&context.codecs, "codec", codec.cast())) }
}

/// How an engine lays out the numbers of keys, or of values.
#[derive(Clone, Copy)]
struct Layout {
    kind: Float,
    shape: [usize; 3],
    /// Of tokens and heads, in numbers; none where there are no gaps.
    strides: Option<[usize; 2]>,
}

impl Layout {
    /// Of keys and of values.
    fn both(
        codec: &PageCodec,
        dtype: i32,
        tokens: usize,
        [token, head]: [usize; 2],
    ) -> Outcome<[Self; 2]> {
        let (kind, config) = (Float::from_number(dtype)?, codec.config());
        let strides = match (token, head) {
            (0, 0) => None,
            (0, _) | (_, 0) => {
                let message = format!("token_stride = {token}, head_stride = {head}: both or none");
                return Err(Failure::new(tp_status::InvalidArgument, message));
            }
            strides => Some(strides.into()),
        };
        let of = |dim| Self { kind, shape: [tokens, config.kv_heads, dim], strides };
        Ok([of(config.head_dim), of(config.value_dim)])
    }

    /// Bytes of so many numbers.
    fn bytes(self, numbers: usize) -> usize {
        numbers.saturating_mul(self.kind.dtype().size())
    }

    fn rows(self, bytes: &[u8]) -> Outcome<PageRows<'_>> {
        let (dtype, shape) = (self.kind.dtype(), self.shape);
        Ok(match self.strides {
            None => PageRows::bytes(dtype, bytes, shape)?,
            Some(strides) => PageRows::strided_bytes(dtype, bytes, shape, strides)?,
        })
    }

    fn rows_mut(self, bytes: &mut [u8]) -> Outcome<PageRowsMut<'_>> {
        let (dtype, shape) = (self.kind.dtype(), self.shape);
        Ok(match self.strides {
            None => PageRowsMut::bytes(dtype, bytes, shape)?,
            Some(strides) => PageRowsMut::strided_bytes(dtype, bytes, shape, strides)?,
        })
    }
}

/// Writes keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of `dtype` F32, F16 or BF16 into
/// a page: as many tokens as a page holds, or fewer. They lie without gaps if both strides are 0; else so many numbers
/// lie between the beginnings of two tokens, and of two heads (heads before tokens: `token_stride` = head_dim,
/// `head_stride` = tokens x head_dim). Lengths are in numbers, alignment does not matter. The same numbers give the same
/// page on every machine.
///
/// Errors: `SHAPE_MISMATCH` for lengths that are not those of the shape, too many tokens, or another length of the page;
/// `NUMERICAL` for NaN, infinity, and what is too large; `UNSUPPORTED` for another type; `OVERLAP`; `BUSY`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_page_encode(
    context: *const tp_context,
    codec: tp_page_codec,
    scratch: tp_scratch,
    dtype: i32,
    keys: *const c_void,
    keys_length: usize,
    values: *const c_void,
    values_length: usize,
    tokens: usize,
    token_stride: usize,
    head_stride: usize,
    page: *mut u8,
    page_length: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let workspace = context.scratches.get(scratch.id)?;
        let codec = context.codecs.get(codec.id)?;
        let strides = [token_stride, head_stride];
        let [of_keys, of_values] = Layout::both(&codec.0, dtype, tokens, strides)?;
        let (keys, values) = (keys.cast::<u8>(), values.cast::<u8>());
        let lengths = [of_keys.bytes(keys_length), of_values.bytes(values_length)];
        let inputs = [span("keys", keys, lengths[0])?, span("values", values, lengths[1])?];
        apart(&inputs, &[span("page", page, page_length)?])?;
        // SAFETY: the caller's promise; the page does not overlap the others.
        let (keys, values, page) = unsafe {
            (
                slice("keys", keys, lengths[0])?,
                slice("values", values, lengths[1])?,
                slice_mut("page", page, page_length)?,
            )
        };
        let (keys, values) = (of_keys.rows(keys)?, of_values.rows(values)?);
        let mut room = workspace.lock()?;
        Ok(codec.0.encode(keys, values, page, &mut room.pages)?)
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Reads a page into the first tokens of keys and values, with room for `tokens` laid out as `tp_page_encode` says, and
/// writes how many it holds; what lies between rows, and other tokens, are left as they are. The type may be another than
/// what was encoded; f16 takes what is beyond it as its largest number.
///
/// Errors: `INSUFFICIENT_DATA` for a page that is cut, `CORRUPTION` for one that is damaged, `VERSION`,
/// `INVALID_ARGUMENT` for one of another configuration; `SHAPE_MISMATCH`; `UNSUPPORTED`; `OVERLAP`, of keys and values
/// as well; `BUSY`. Nothing is written then (unless the checksum fits numbers that no encoder writes).
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_page_decode(
    context: *const tp_context,
    codec: tp_page_codec,
    scratch: tp_scratch,
    page: *const u8,
    page_length: usize,
    dtype: i32,
    keys: *mut c_void,
    keys_length: usize,
    values: *mut c_void,
    values_length: usize,
    tokens: usize,
    token_stride: usize,
    head_stride: usize,
    held: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("held", held)?;
        let workspace = context.scratches.get(scratch.id)?;
        let codec = context.codecs.get(codec.id)?;
        let strides = [token_stride, head_stride];
        let [of_keys, of_values] = Layout::both(&codec.0, dtype, tokens, strides)?;
        let (keys, values) = (keys.cast::<u8>(), values.cast::<u8>());
        let lengths = [of_keys.bytes(keys_length), of_values.bytes(values_length)];
        let outputs = [span("keys", keys, lengths[0])?, span("values", values, lengths[1])?];
        apart(&[span("page", page, page_length)?], &outputs)?;
        // SAFETY: the caller's promise; none of the three overlaps another.
        let (page, keys, values) = unsafe {
            (
                slice("page", page, page_length)?,
                slice_mut("keys", keys, lengths[0])?,
                slice_mut("values", values, lengths[1])?,
            )
        };
        let (keys, values) = (of_keys.rows_mut(keys)?, of_values.rows_mut(values)?);
        let mut room = workspace.lock()?;
        let found = codec.0.decode(page, keys, values, &mut room.pages)?;
        // SAFETY: the caller's promise.
        unsafe { write("held", held, found) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}
