//! Numbers and files made smaller without losing a bit.

use std::ffi::{c_char, c_void};
use std::path::Path;

use press::entropy::chunk::Effort;
use press::entropy::frame::{Frame, Number, compress_with};
use press::entropy::{PackedFile, Packer, ValueType};

use crate::context::{call, tp_context};
use crate::memory::{apart, copy_out, place, slice, slice_mut, span, text, write};
use crate::numbers::tp_type;
use crate::status::{Failure, Outcome, guard, tp_error, tp_status};

/// How hard to try. Both are exact.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tp_effort {
    /// Decodes at a good part of the speed of copying.
    Fast = 0,
    /// Smaller; slow to encode, a quarter of the speed to decode.
    Best = 1,
}

fn effort(number: i32) -> Outcome<Effort> {
    match number {
        0 => Ok(Effort::Fast),
        1 => Ok(Effort::Best),
        _ => {
            let message = format!("effort = {number}: allowed are 0 and 1");
            Err(Failure::new(tp_status::InvalidArgument, message))
        }
    }
}

/// Bytes that `tp_pack` needs at most for numbers of so many bytes.
#[unsafe(no_mangle)]
pub extern "C" fn tp_pack_bound(bytes: usize) -> usize {
    const PIECE: usize = 1 << 20;
    bytes.saturating_add(30).saturating_add(bytes.div_ceil(PIECE).saturating_mul(17))
}

/// A caller's numbers, whose bits alone matter.
enum Numbers<'a> {
    Bytes(&'a [u8]),
    Twos(&'a [u16]),
    Fours(&'a [u32]),
    Eights(&'a [u64]),
}

impl Numbers<'_> {
    fn pack(&self, layout: ValueType, effort: Effort) -> Vec<u8> {
        match self {
            Self::Bytes(numbers) => compress_with(numbers, layout, effort),
            Self::Twos(numbers) => compress_with(numbers, layout, effort),
            Self::Fours(numbers) => compress_with(numbers, layout, effort),
            Self::Eights(numbers) => compress_with(numbers, layout, effort),
        }
    }
}

/// Decodes into a caller's numbers, which are as many.
fn unpack<T: Number>(frame: &Frame<'_>, numbers: &mut [T]) -> Outcome {
    numbers.copy_from_slice(&frame.decode()?);
    Ok(())
}

/// Type and number of the numbers in a frame.
fn contents(frame: &Frame<'_>) -> Outcome<(tp_type, usize)> {
    let dtype = tp_type::of_layout(frame.values())?;
    let (bytes, width) = (frame.byte_len(), frame.values().width() as u64);
    let count = usize::try_from(bytes / width).ok().filter(|_| bytes.is_multiple_of(width));
    let count = count.ok_or_else(|| {
        let message = format!("{bytes} bytes are no numbers of {width} bytes each");
        Failure::new(tp_status::InvalidArgument, message)
    })?;
    Ok((dtype, count))
}

/// Packs `count` numbers of a `tp_type`, with a `tp_effort`, into `buffer`: type, length and checksums are inside. A
/// capacity of `tp_pack_bound` is always enough. The same numbers give the same bytes, for any number of threads; works
/// on the threads of the context.
///
/// Errors: `BUFFER_TOO_SMALL`; `INVALID_ARGUMENT` for no type or effort; `OVERLAP`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_pack(
    context: *const tp_context,
    dtype: i32,
    effort: i32,
    numbers: *const c_void,
    count: usize,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        place("length", length)?;
        let dtype = tp_type::from_number(dtype)?;
        let effort = self::effort(effort)?;
        let width = dtype.layout().width();
        // So many that their bytes cannot be counted are refused as too many bytes.
        let input = span("numbers", numbers.cast::<u8>(), count.saturating_mul(width))?;
        apart(&[input], &[span("buffer", buffer, capacity)?])?;
        // SAFETY: the caller's promise.
        let numbers = unsafe {
            match width {
                1 => Numbers::Bytes(slice("numbers", numbers.cast(), count)?),
                2 => Numbers::Twos(slice("numbers", numbers.cast(), count)?),
                4 => Numbers::Fours(slice("numbers", numbers.cast(), count)?),
                _ => Numbers::Eights(slice("numbers", numbers.cast(), count)?),
            }
        };
        let packed = context.on_threads(|| numbers.pack(dtype.layout(), effort));
        // SAFETY: the caller's promise; the two do not overlap.
        unsafe { copy_out(&packed, false, buffer, capacity, length) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Says what `tp_pack` packed: the `tp_type`, and how many numbers. Every checksum is compared, nothing is decoded: 18
/// bytes may stand for 1 MiB, so that bytes of strangers are best looked at before room is made.
///
/// Errors: `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_packed_contents(
    packed: *const u8,
    packed_length: usize,
    dtype: *mut i32,
    count: *mut usize,
    error: *mut tp_error,
) -> tp_status {
    let work = || {
        place("dtype", dtype)?;
        // SAFETY: the caller's promise.
        let packed = unsafe { slice("packed", packed, packed_length)? };
        let (found, numbers) = contents(&Frame::open(packed)?)?;
        // SAFETY: the caller's promise.
        unsafe {
            write("count", count, numbers)?;
            write("dtype", dtype, found as i32)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guard(error, work) }
}

/// Unpacks what `tp_pack` packed into `count` numbers of the same type (`tp_packed_contents`), bit for bit. Works on the
/// threads of the context.
///
/// Errors: `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`; `WRONG_LENGTH` for another number of numbers; `MISALIGNED` if
/// they do not lie where such numbers may; `OVERLAP`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_unpack(
    context: *const tp_context,
    packed: *const u8,
    packed_length: usize,
    numbers: *mut c_void,
    count: usize,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        // SAFETY: the caller's promise.
        let packed_bytes = unsafe { slice("packed", packed, packed_length)? };
        let frame = Frame::open(packed_bytes)?;
        let (dtype, held) = contents(&frame)?;
        if held != count {
            let message = format!("`numbers`: room for {count} of {held} numbers");
            return Err(Failure::new(tp_status::WrongLength, message));
        }
        let width = dtype.layout().width();
        let input = span("packed", packed, packed_length)?;
        apart(&[input], &[span("numbers", numbers.cast::<u8>(), count.saturating_mul(width))?])?;
        // SAFETY: the caller's promise; the two do not overlap.
        unsafe {
            match width {
                1 => {
                    let numbers = slice_mut::<u8>("numbers", numbers.cast(), count)?;
                    context.on_threads(|| unpack(&frame, numbers))
                }
                2 => {
                    let numbers = slice_mut::<u16>("numbers", numbers.cast(), count)?;
                    context.on_threads(|| unpack(&frame, numbers))
                }
                4 => {
                    let numbers = slice_mut::<u32>("numbers", numbers.cast(), count)?;
                    context.on_threads(|| unpack(&frame, numbers))
                }
                _ => {
                    let numbers = slice_mut::<u64>("numbers", numbers.cast(), count)?;
                    context.on_threads(|| unpack(&frame, numbers))
                }
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Packs a file or a folder `from` into the file `to` (`.tpk`), with a `tp_effort`. `to` appears when it is whole; it is
/// replaced only if `force` is not 0. Works on the threads of the context.
///
/// Errors: `IO`; `EXISTS`; `CORRUPTION`, as for weight files that are damaged; `BAD_UTF8`.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_pack_path(
    context: *const tp_context,
    effort: i32,
    from: *const c_char,
    to: *const c_char,
    force: i32,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        let effort = self::effort(effort)?;
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (text("from", from)?, text("to", to)?) };
        context.on_threads(|| {
            let packer = Packer::new().with_effort(effort).with_force(force != 0);
            let _report = packer.pack(Path::new(from), Path::new(to))?;
            Ok(())
        })
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}

/// Restores what `tp_pack_path` packed, byte for byte, as the file or folder `to`, which appears when it is whole; it is
/// replaced only if `force` is not 0. Works on the threads of the context.
///
/// Errors: `IO`; `EXISTS`; `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`; `MISSING_BASE` for a file that is the difference
/// from another; `BAD_UTF8`. Nothing is left behind.
///
/// # Safety
/// Pointers as the introduction says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tp_unpack_path(
    context: *const tp_context,
    from: *const c_char,
    to: *const c_char,
    force: i32,
    error: *mut tp_error,
) -> tp_status {
    let work = |context: &tp_context| {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (text("from", from)?, text("to", to)?) };
        context
            .on_threads(|| Ok(PackedFile::open(from)?.unpack(Path::new(to), force != 0, None)?))
    };
    // SAFETY: the caller's promise.
    unsafe { call(context, error, work) }
}
