//! What callers point to, checked as far as a pointer can be, then seen as Rust sees it.

use std::ffi::{CStr, c_char};

use crate::status::{Failure, Outcome, tp_status};

/// What C may hand over as it lies: every bit pattern is a value, and there is no padding to read.
pub(crate) trait Plain: Copy {}

macro_rules! plain {
    ($($kind:ty),*) => { $(impl Plain for $kind {})* };
}
plain!(u8, u16, u32, u64, usize, f32, f64);

/// How many bytes `length` values take, and that a pointer to them may be used.
fn check<T>(name: &str, pointer: *const T, length: usize) -> Outcome<usize> {
    let bytes = length.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    let Some(bytes) = bytes else {
        let message = format!("`{name}`: {length} values are more than can be addressed");
        return Err(Failure::new(tp_status::WrongLength, message));
    };
    if length > 0 && pointer.is_null() {
        return Err(Failure::null(name));
    }
    if !pointer.is_aligned() {
        let align = align_of::<T>();
        let message = format!("`{name}` is not aligned to {align} bytes");
        return Err(Failure::new(tp_status::Misaligned, message));
    }
    if (pointer as usize).checked_add(bytes).is_none() {
        let message = format!("`{name}`: {length} values end behind the last address");
        return Err(Failure::new(tp_status::WrongLength, message));
    }
    Ok(bytes)
}

/// `length` values to read; none may lie at null.
///
/// # Safety
/// If `length` is not 0, so many values must lie there, and nothing may write to them while the slice is used.
pub(crate) unsafe fn slice<'a, T: Plain>(
    name: &str,
    pointer: *const T,
    length: usize,
) -> Outcome<&'a [T]> {
    check(name, pointer, length)?;
    if length == 0 {
        return Ok(&[]);
    }
    // SAFETY: the pointer is neither null nor misaligned, the length fits, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// `length` values to write; none may lie at null.
///
/// # Safety
/// If `length` is not 0, so many values must lie there, and nothing else may use them while the slice is used:
/// see [`apart`] for what the same call got.
pub(crate) unsafe fn slice_mut<'a, T: Plain>(
    name: &str,
    pointer: *mut T,
    length: usize,
) -> Outcome<&'a mut [T]> {
    check(name, pointer.cast_const(), length)?;
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice`.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
}

/// A value to read.
///
/// # Safety
/// If it is not null, a value must lie there.
pub(crate) unsafe fn value<T: Copy>(name: &str, pointer: *const T) -> Outcome<T> {
    place(name, pointer)?;
    // SAFETY: it is neither null nor misaligned, and the caller vouches for the rest.
    Ok(unsafe { pointer.read() })
}

/// Writes a value.
///
/// # Safety
/// If it is not null, it must point to memory for a value that nothing else uses meanwhile.
pub(crate) unsafe fn write<T: Copy>(name: &str, pointer: *mut T, value: T) -> Outcome {
    place(name, pointer)?;
    // SAFETY: it is neither null nor misaligned, and the caller vouches for the rest.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Fails where [`value`] and [`write`] would: before work is done whose result could not be handed over.
pub(crate) fn place<T>(name: &str, pointer: *const T) -> Outcome {
    check(name, pointer, 1).map(drop)
}

/// A text that ends with a zero.
///
/// # Safety
/// If it is not null, it must point to bytes that end with a zero, which nothing changes while the text is used.
pub(crate) unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Outcome<&'a str> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: it is not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|e| Failure::new(tp_status::BadUtf8, format!("`{name}`: {e}")))
}

/// Copies `bytes` into a buffer and writes how many there are. A buffer without room for them, and for a zero behind
/// them if it shall hold a `text`, is left as it is: an error, unless it is null and was only to be asked for.
///
/// # Safety
/// `buffer` must be null or point to `capacity` bytes, `length` be null or point to a `size_t`; nothing else may use
/// them meanwhile.
pub(crate) unsafe fn copy_out(
    bytes: &[u8],
    is_text: bool,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { write("length", length, bytes.len())? };
    if buffer.is_null() && capacity == 0 {
        return Ok(());
    }
    let needed = bytes.len() + usize::from(is_text);
    // SAFETY: the caller's promise.
    let buffer = unsafe { slice_mut("buffer", buffer, capacity)? };
    if capacity < needed {
        let message = format!("a buffer of {capacity} bytes for {needed}");
        return Err(Failure::new(tp_status::BufferTooSmall, message));
    }
    buffer[..bytes.len()].copy_from_slice(bytes);
    if is_text {
        buffer[bytes.len()] = 0;
    }
    Ok(())
}

/// Where something lies: its name, address and bytes.
pub(crate) type Span<'a> = (&'a str, usize, usize);

/// The bytes of an array for [`apart`].
pub(crate) fn span<T>(name: &str, pointer: *const T, length: usize) -> Outcome<Span<'_>> {
    Ok((name, pointer as usize, check(name, pointer, length)?))
}

/// No output may overlap an input or another output: Rust's slices must not.
pub(crate) fn apart(inputs: &[Span<'_>], outputs: &[Span<'_>]) -> Outcome {
    for (i, (name, start, bytes)) in outputs.iter().enumerate() {
        for (other, from, count) in inputs.iter().chain(&outputs[..i]) {
            if *bytes > 0 && *count > 0 && start < &(from + count) && from < &(start + bytes) {
                let message = format!("`{name}` overlaps `{other}`");
                return Err(Failure::new(tp_status::Overlap, message));
            }
        }
    }
    Ok(())
}

/// Fails unless an array is as long as its shape.
pub(crate) fn expect_length(name: &str, length: usize, shape: &[usize]) -> Outcome {
    let numbers = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
    if numbers == Some(length) {
        return Ok(());
    }
    Err(Failure::new(tp_status::WrongLength, format!("`{name}`: {length} numbers for {shape:?}")))
}
