//! What the stored tensors of all formats have in common: element types and shapes that must be as a format wants them,
//! and codes of a few bits in words.

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Checkpoint, Context, DType, Error, RawTensor, Result, Tensor};

/// That a part has one of these element types.
pub(crate) fn typed(part: &RawTensor, name: &str, dtypes: &[DType]) -> Result<()> {
    if dtypes.contains(&part.dtype()) {
        return Ok(());
    }
    let names: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
    let what = format!("{} elements, where {} belong", part.dtype().name(), names.join(" or "));
    Err(Error::unsupported(what).in_tensor(name))
}

/// The shape of a part, which must have one of these element types and so many axes, and be no empty matrix: lengths of
/// one of those are backed by nothing.
///
/// # Errors
/// `Unsupported` for another element type, `ShapeMismatch` for another number of axes; both name the part.
pub(crate) fn shape<const N: usize>(
    part: &RawTensor,
    name: &str,
    dtypes: &[DType],
) -> Result<[usize; N]> {
    typed(part, name, dtypes)?;
    if N > 1 && part.bytes().is_empty() {
        return Err(Error::shape(format!("shape {:?} is empty", part.shape())).in_tensor(name));
    }
    part.shape().try_into().map_err(|_| {
        let axes = if N == 1 { "1 axis belongs".into() } else { format!("{N} axes belong") };
        let what = format!("shape {:?}, where {axes}", part.shape());
        Error::shape(what).in_tensor(name)
    })
}

/// That a part has a shape that follows from others.
pub(crate) fn expect<const N: usize>(
    name: &str,
    found: [usize; N],
    wanted: [usize; N],
) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::shape(format!("shape {found:?}, where {wanted:?} belongs")).in_tensor(name))
}

/// Float types of scales.
pub(crate) const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// A matrix of floats.
pub(crate) fn float_matrix(part: &RawTensor, name: &str) -> Result<Array2<f32>> {
    shape::<2>(part, name, &FLOATS)?;
    part.to_matrix()
}

/// Floats as a part of this type.
pub(crate) fn store_floats(values: &Array2<f32>, dtype: DType) -> Result<RawTensor> {
    RawTensor::from_f32(values.view().into_dyn(), dtype)
}

/// Elements of 32 bits.
pub(crate) fn words(part: &RawTensor) -> Vec<u32> {
    part.bytes().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Words as a part.
pub(crate) fn store_words(words: &[u32], shape: Vec<usize>) -> Result<RawTensor> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    RawTensor::new(DType::I32, shape, bytes.into())
}

/// Parts of a layer in a checkpoint.
pub(crate) struct Stored<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// Name of the layer.
    pub(crate) layer: &'a str,
}

impl Stored<'_> {
    /// A part; none if it is not there.
    pub(crate) fn optional(&self, part: &str) -> Result<Option<RawTensor>> {
        let name = format!("{}.{part}", self.layer);
        if !self.checkpoint.contains(&name) {
            return Ok(None);
        }
        self.tensor(&name).map(Some)
    }

    /// A part that must be there.
    pub(crate) fn part(&self, part: &str) -> Result<RawTensor> {
        self.tensor(&format!("{}.{part}", self.layer))
    }

    /// Floats of 8 bits are bytes.
    fn tensor(&self, name: &str) -> Result<RawTensor> {
        let small = self.checkpoint.dtype_name(name).is_some_and(|dtype| dtype.starts_with("F8_"));
        if !small {
            return self.checkpoint.tensor(name);
        }
        let shape = self.checkpoint.shape(name).unwrap_or_default().to_vec();
        RawTensor::new(DType::U8, shape, self.checkpoint.bytes(name)?).in_tensor(name)
    }
}

/// Which group each input belongs to, where groups are runs of so many.
pub(crate) fn runs(cols: usize, group: usize) -> Vec<u32> {
    (0..cols).map(|col| (col / group.max(1)) as u32).collect()
}

/// Inputs that share a scale, where all groups are equally long: `name` has `groups` of them.
pub(crate) fn group_length(name: &str, cols: usize, groups: usize) -> Result<usize> {
    if groups > 0 && cols > 0 && cols.is_multiple_of(groups) {
        return Ok(cols / groups);
    }
    let what = format!("{groups} groups of {cols} inputs, which do not divide evenly");
    Err(Error::shape(what).in_tensor(name))
}

/// Codes of `bits` bits (1 to 8) in words of 32, the least significant bit first: a dense stream, or as many to a word
/// as fit whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fields {
    bits: usize,
    dense: bool,
}

impl Fields {
    pub(crate) fn dense(bits: u8) -> Self {
        Self { bits: bits.into(), dense: true }
    }

    pub(crate) fn aligned(bits: u8) -> Self {
        Self { bits: bits.into(), dense: false }
    }

    /// Words that so many codes take; none if the number overflows.
    pub(crate) fn words(self, codes: usize) -> Option<usize> {
        match self.dense {
            true => Some(codes.checked_mul(self.bits)?.div_ceil(32)),
            false => Some(codes.div_ceil(32 / self.bits)),
        }
    }

    /// Word and bit where a code begins.
    fn place(self, code: usize) -> (usize, usize) {
        if self.dense {
            (code * self.bits / 32, code * self.bits % 32)
        } else {
            let fit = 32 / self.bits;
            (code / fit, code % fit * self.bits)
        }
    }

    /// The code at an index, out of words that `word` gives.
    pub(crate) fn get(self, index: usize, word: impl Fn(usize) -> u32) -> u8 {
        let (at, bit) = self.place(index);
        let mut value = word(at) >> bit;
        if bit + self.bits > 32 {
            value |= word(at + 1) << (32 - bit);
        }
        (value & (0xff >> (8 - self.bits))) as u8
    }

    /// Puts a code into words that are zero there; `or` adds bits to a word.
    pub(crate) fn put(self, index: usize, code: u8, mut or: impl FnMut(usize, u32)) {
        let (at, bit) = self.place(index);
        let value = u32::from(code) & (0xff >> (8 - self.bits));
        or(at, value << bit);
        if bit + self.bits > 32 {
            or(at + 1, value >> (32 - bit));
        }
    }
}

/// That all codes have at most so many bits, or an error that names the first that has more.
pub(crate) fn check_codes(name: &str, codes: &Array2<u8>, bits: u8) -> Result<()> {
    let most = 0xff >> (8 - bits);
    match codes.indexed_iter().find(|(_, code)| **code > most) {
        None => Ok(()),
        Some((at, code)) => {
            let what = format!("code {code} at {at:?}, where {bits} bits hold up to {most}");
            Err(Error::invalid(what).in_tensor(name))
        }
    }
}

/// Groups of inputs by their numbers, each of which must be one of `groups`.
pub(crate) fn group_index(
    part: &RawTensor,
    name: &str,
    cols: usize,
    groups: usize,
) -> Result<Vec<u32>> {
    let found = shape::<1>(part, name, &[DType::I32])?;
    expect(name, found, [cols])?;
    let index = words(part);
    match index.iter().position(|group| *group as usize >= groups) {
        None => Ok(index),
        Some(at) => {
            let what = format!("group {} at {at}, of {groups} groups", index[at] as i32);
            Err(Error::corruption(what).in_tensor(name))
        }
    }
}
