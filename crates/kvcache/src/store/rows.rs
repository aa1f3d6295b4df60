//! Keys or values of one head, in some form.

use std::fmt::Debug;
use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{Error, PartKind, PartSink, Result, ndarray};

/// Keys or values of one head, `[tokens, dim]`, in the order they came.
pub trait Rows: Debug + Send + Sync {
    /// Rows held.
    fn len(&self) -> usize;

    /// No row is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels.
    fn dim(&self) -> usize;

    /// Takes rows, which were checked before: this cannot fail.
    fn push(&mut self, rows: ArrayView2<'_, f32>);

    /// The shortest length but 0 to which these rows can go back.
    fn earliest(&self) -> usize {
        0
    }

    /// Goes back to a length that is 0 or at least [`Rows::earliest`].
    fn truncate(&mut self, len: usize);

    /// Forgets all rows but these, which ascend.
    fn retain(&mut self, keep: &[usize]);

    /// Values of some rows.
    fn decode(&self, tokens: Range<usize>, out: ArrayViewMut2<'_, f32>);

    /// `out[i][t] = queries[i] . row t` for t in `tokens`; other entries of `out` (`queries` x `len`, row-major) are
    /// left with anything.
    fn dots(&self, queries: ArrayView2<'_, f32>, tokens: Range<usize>, out: &mut [f32]);

    /// `out[i] += sum over t in tokens of weights[i][t] * row t`, `weights` as in [`Rows::dots`].
    fn mix(&self, weights: &[f32], tokens: Range<usize>, out: ArrayViewMut2<'_, f32>);

    /// Rows of its own with the same contents; what is full may be shared until one side changes it.
    fn fork(&self) -> Box<dyn Rows>;

    /// Those that share pages with other layers.
    #[doc(hidden)]
    fn joined(&mut self) -> Option<&mut super::joint::Joined> {
        None
    }

    /// Arrays as they go into a file.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;

    /// Bytes of the parts.
    fn bytes(&self) -> u64;

    /// What a reader must know to read the parts.
    fn describe(&self) -> Json;
}

/// Hands over little-endian bytes as a part.
///
/// # Errors
/// Those of the sink.
pub fn bytes_part(
    sink: &mut dyn PartSink,
    prefix: &str,
    name: &str,
    kind: PartKind,
    bytes: &[u8],
) -> Result<()> {
    sink.part(tensorpress_tensor::Part {
        name: format!("{prefix}.{name}"),
        kind,
        dtype: tensorpress_tensor::DType::U8,
        shape: vec![bytes.len()],
        bytes: bytes.into(),
    })
}

/// Bytes of a part that must have this length.
///
/// # Errors
/// `Corruption` for another length, those of the source.
pub fn read_bytes(
    source: &dyn PartSource,
    prefix: &str,
    name: &str,
    len: usize,
) -> Result<tensorpress_tensor::Bytes> {
    let name = format!("{prefix}.{name}");
    let part = source.part(&name)?;
    let bytes = part.bytes().clone();
    if bytes.len() != len {
        let found = bytes.len();
        return Err(Error::corruption(format!("{found} bytes, {len} expected")).in_tensor(name));
    }
    Ok(bytes)
}

/// A count in a description.
///
/// # Errors
/// `Corruption` for what is no count.
pub fn count(json: &Json, key: &str) -> Result<usize> {
    // 2^40 keeps every product of two counts and an element size within u64; machines of 32 bits take less.
    let count = json[key].as_u64().filter(|n| *n < 1 << 40);
    count.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        Error::corruption(format!("KV cache description: `{key}` = {}: no count", json[key]))
    })
}

/// The product of sizes that a file declares.
///
/// # Errors
/// `Corruption` where it overflows.
pub fn product(sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |a, b| a.checked_mul(*b))
        .ok_or_else(|| Error::corruption("KV cache description: sizes overflow"))
}
