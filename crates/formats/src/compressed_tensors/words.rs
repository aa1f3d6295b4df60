use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::{DType, Error, RawTensor, Result};

use crate::parts::{Fields, expect, shape, store_words, words};

/// How codes that do not divide 32 bits lie in words. Widths of 1, 2, 4 and 8 bits are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Packing {
    /// A dense stream of bits, where codes lie across the edges of words: version 0.20 of the package.
    Dense,
    /// As many to a word as fit whole, the top bits left zero: version 0.11 and before. Checkpoints do not say which it
    /// is, and short rows may take as many words either way.
    WordAligned,
}

impl Packing {
    pub(super) fn fields(self, bits: u8) -> Result<Fields> {
        if !(1..=8).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 8")));
        }
        Ok(match self {
            Self::Dense => Fields::dense(bits),
            Self::WordAligned => Fields::aligned(bits),
        })
    }

    /// Shape of the words for integers of this shape.
    fn packed_shape(self, bits: u8, [rows, cols]: [usize; 2], axis: Axis) -> Result<[usize; 2]> {
        let fields = self.fields(bits)?;
        let shape = match axis {
            Axis(0) => fields.words(rows).map(|rows| [rows, cols]),
            Axis(1) => fields.words(cols).map(|cols| [rows, cols]),
            Axis(other) => return Err(Error::invalid(format!("axis = {other}: allowed are 0, 1"))),
        };
        shape.ok_or_else(|| Error::shape(format!("shape [{rows}, {cols}] overflows")))
    }
}

/// Signed integers of `bits` bits (1 to 8) out of words: code less 2^(bits - 1), the codes along `axis`, the least
/// significant bits first.
///
/// # Errors
/// `InvalidArgument` for other widths and axes; `Unsupported` unless words are i32, `ShapeMismatch` unless they are
/// those of this `shape`.
pub fn unpack_words(
    packed: &RawTensor,
    bits: u8,
    packing: Packing,
    axis: Axis,
    dims: [usize; 2],
) -> Result<Array2<i8>> {
    unpack_part(packed, "packed", bits, packing, axis, dims)
}

pub(super) fn unpack_part(
    packed: &RawTensor,
    name: &str,
    bits: u8,
    packing: Packing,
    axis: Axis,
    dims: [usize; 2],
) -> Result<Array2<i8>> {
    let fields = packing.fields(bits)?;
    let wanted = packing.packed_shape(bits, dims, axis).map_err(|e| e.in_tensor(name))?;
    let [_, width] = shape(packed, name, &[DType::I32])?;
    expect(name, shape(packed, name, &[DType::I32])?, wanted)?;
    let stored = words(packed);
    let half = 1u8 << (bits - 1);
    Ok(Array2::from_shape_fn(dims, |(row, col)| {
        let code = match axis {
            Axis(0) => fields.get(row, |word| stored[word * width + col]),
            _ => fields.get(col, |word| stored[row * width + word]),
        };
        code.wrapping_sub(half) as i8
    }))
}

/// The words of [`unpack_words`]; bits that no code takes are zero.
///
/// # Errors
/// `InvalidArgument` for other widths and axes, and for integers that do not have so few bits.
pub fn pack_words(
    values: ArrayView2<'_, i8>,
    bits: u8,
    packing: Packing,
    axis: Axis,
) -> Result<RawTensor> {
    pack_part(values, "packed", bits, packing, axis)
}

pub(super) fn pack_part(
    values: ArrayView2<'_, i8>,
    name: &str,
    bits: u8,
    packing: Packing,
    axis: Axis,
) -> Result<RawTensor> {
    let fields = packing.fields(bits)?;
    let (rows, cols) = values.dim();
    let [height, width] = packing.packed_shape(bits, [rows, cols], axis)?;
    let half = 1i16 << (bits - 1);
    let mut words = vec![0; height * width];
    for ((row, col), value) in values.indexed_iter() {
        if !(-half..half).contains(&i16::from(*value)) {
            let what = format!("{value} at [{row}, {col}] does not have {bits} bits");
            return Err(Error::invalid(what).in_tensor(name));
        }
        let code = (i16::from(*value) + half) as u8;
        match axis {
            Axis(0) => fields.put(row, code, |word, bits| words[word * width + col] |= bits),
            _ => fields.put(col, code, |word, bits| words[row * width + word] |= bits),
        }
    }
    store_words(&words, vec![height, width])
}
