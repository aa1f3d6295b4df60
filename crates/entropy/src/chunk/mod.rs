//! A chunk: up to [`CHUNK_BYTES`] of one tensor, coded on its own by whatever makes it smallest.
//!
//! A stored chunk begins with the id of its scheme; chunks do not know their own length, which the container keeps
//! and checks. Decoding the same bytes gives the same values on every machine, whatever coded them.

use tensorpress_tensor::{Error, Result};

use crate::value::ValueType;

/// Bytes of a chunk before coding; only a tensor's last chunk is shorter.
pub const CHUNK_BYTES: usize = 1 << 20;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Effort {
    /// Static tables per block: decodes at a good part of the speed of copying.
    #[default]
    Fast,
    /// Adaptive models in context as well: smaller, but slow both ways.
    Best,
}

const RAW: u8 = 0;

/// Codes `data`, which need not be a whole number of values. With `base` (as long as `data`), what is coded is the
/// difference from it. Equal inputs give equal bytes.
///
/// # Panics
/// If `base` has another length, or `data` is longer than [`CHUNK_BYTES`].
#[must_use]
pub fn encode(_values: ValueType, data: &[u8], base: Option<&[u8]>, _effort: Effort) -> Vec<u8> {
    assert!(data.len() <= CHUNK_BYTES, "chunk of {} bytes", data.len());
    assert!(base.is_none_or(|b| b.len() == data.len()), "base of another length");
    let mut stored = Vec::with_capacity(1 + data.len());
    stored.push(RAW);
    stored.extend_from_slice(data);
    stored
}

/// Decodes a chunk into `out`, whose length the container knows.
///
/// # Errors
/// `Corruption` or `InsufficientData` if the bytes contradict themselves or that length, `Version` for a scheme
/// that this version does not know. Whatever the bytes, memory stays within a few times `out` plus 16 MiB.
///
/// # Panics
/// If `base` has another length than `out`.
pub fn decode(
    _values: ValueType,
    stored: &[u8],
    base: Option<&[u8]>,
    out: &mut [u8],
) -> Result<()> {
    assert!(base.is_none_or(|b| b.len() == out.len()), "base of another length");
    match stored.split_first() {
        Some((&RAW, body)) if body.len() == out.len() => {
            out.copy_from_slice(body);
            Ok(())
        }
        Some((&RAW, body)) => {
            Err(Error::corruption(format!("{} bytes stored, {} expected", body.len(), out.len())))
        }
        Some((scheme, _)) => Err(Error::version(format!("unknown chunk scheme {scheme}"))),
        None => Err(Error::insufficient("empty chunk")),
    }
}
