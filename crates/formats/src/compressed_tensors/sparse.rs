use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result, Tensor};

use super::packed::{read_shape, store_shape};
use crate::parts::{Stored, expect, shape};

/// `sparse-bitmask`: a matrix of any type without its zeros, as stored.
#[derive(Debug, Clone)]
pub struct SparseBitmask {
    /// Rows and columns, i64 `[2]`.
    pub shape: RawTensor,
    /// What is not zero, row by row, `[count]`.
    pub compressed: RawTensor,
    /// A bit for each element, the first the least significant, each row filled up to bytes:
    /// `[rows, ceil(columns / 8)]`.
    pub bitmask: RawTensor,
    /// Where each row begins in `compressed`, i64 `[rows]`.
    pub row_offsets: RawTensor,
}

/// `sparse-24-bitmask`: a matrix of any type of which each four in a row keep two, as stored.
#[derive(Debug, Clone)]
pub struct Sparse24Bitmask {
    /// Rows and columns, i64 `[2, 1]`.
    pub shape: RawTensor,
    /// What is kept, `[rows, columns / 2]`.
    pub compressed: RawTensor,
    /// As that of [`SparseBitmask`].
    pub bitmask: RawTensor,
}

/// Bits of a mask, by rows, of elements that are told apart.
struct Mask<'a> {
    bytes: &'a [u8],
    cols: usize,
}

impl<'a> Mask<'a> {
    fn read(part: &'a RawTensor, [rows, cols]: [usize; 2]) -> Result<Self> {
        let width = cols.div_ceil(8);
        expect("bitmask", shape(part, "bitmask", &[DType::U8])?, [rows, width])?;
        let bytes = &part.bytes()[..];
        if cols % 8 != 0 {
            let beyond = |row: &[u8]| row.last().is_some_and(|last| last >> (cols % 8) != 0);
            if let Some(row) = bytes.chunks(width).position(beyond) {
                let what = format!("row {row} has bits behind its {cols} columns");
                return Err(Error::corruption(what).in_tensor("bitmask"));
            }
        }
        Ok(Self { bytes, cols })
    }

    fn row(&self, row: usize) -> &'a [u8] {
        let width = self.cols.div_ceil(8);
        &self.bytes[row * width..(row + 1) * width]
    }

    fn has(&self, row: usize, col: usize) -> bool {
        self.row(row)[col / 8] >> (col % 8) & 1 == 1
    }

    fn count(&self, row: usize) -> usize {
        self.row(row).iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// Puts elements where bits are.
fn scatter(mask: &Mask<'_>, kept: &RawTensor, [rows, cols]: [usize; 2]) -> Result<RawTensor> {
    let size = kept.dtype().size();
    let overflow = || Error::shape(format!("shape [{rows}, {cols}] overflows")).in_tensor("shape");
    let length = rows.checked_mul(cols).and_then(|n| n.checked_mul(size)).ok_or_else(overflow)?;
    let mut dense = vec![0; length];
    let mut kept_bytes = kept.bytes().chunks(size);
    for row in 0..rows {
        for col in (0..cols).filter(|col| mask.has(row, *col)) {
            let at = (row * cols + col) * size;
            let element = kept_bytes.next().expect("counted before");
            dense[at..at + size].copy_from_slice(element);
        }
    }
    RawTensor::new(kept.dtype(), vec![rows, cols], dense.into())
}

/// The bytes of a matrix, and which elements are not zero; minus zero is zero, as in the official package.
fn nonzeros(dense: &RawTensor) -> Result<([usize; 2], impl Fn(usize) -> bool)> {
    let [rows, cols] = shape(dense, "dense", &DType::ALL)?;
    let size = dense.dtype().size();
    let sign = if dense.dtype().is_float() { 0x7f } else { 0xff };
    let nonzero = move |index: usize| {
        let (low, high) = dense.bytes()[index * size..(index + 1) * size].split_at(size - 1);
        high[0] & sign != 0 || low.iter().any(|byte| *byte != 0)
    };
    Ok(([rows, cols], nonzero))
}

/// Elements and mask of those that are kept.
fn gather(dense: &RawTensor, [rows, cols]: [usize; 2], kept: &[bool]) -> [Vec<u8>; 2] {
    let size = dense.dtype().size();
    let width = cols.div_ceil(8);
    let (mut bytes, mut mask) = (Vec::new(), vec![0; rows * width]);
    for index in (0..kept.len()).filter(|index| kept[*index]) {
        bytes.extend_from_slice(&dense.bytes()[index * size..(index + 1) * size]);
        let (row, col) = (index / cols, index % cols);
        mask[row * width + col / 8] |= 1 << (col % 8);
    }
    [bytes, mask]
}

impl SparseBitmask {
    /// Reads `<tensor>.shape`, `.compressed`, `.bitmask` and `.row_offsets`; the tensor is called `<layer>.weight`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, tensor: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer: tensor };
        Ok(Self {
            shape: stored.part("shape")?,
            compressed: stored.part("compressed")?,
            bitmask: stored.part("bitmask")?,
            row_offsets: stored.part("row_offsets")?,
        })
    }

    /// The matrix, in the type of what is kept.
    ///
    /// # Errors
    /// `ShapeMismatch`, `Unsupported` (an element type) and `Corruption` (bits that contradict the other parts) name
    /// the part.
    pub fn unpack(&self) -> Result<RawTensor> {
        let dims = read_shape(&self.shape, "shape", &[2])?;
        let mask = Mask::read(&self.bitmask, dims)?;
        let [count] = shape(&self.compressed, "compressed", &DType::ALL)?;
        let offsets = shape(&self.row_offsets, "row_offsets", &[DType::I64])?;
        expect("row_offsets", offsets, [dims[0]])?;
        let mut at = 0usize;
        for (row, stored) in self.row_offsets.bytes().as_chunks().0.iter().enumerate() {
            let stored = i64::from_le_bytes(*stored);
            if usize::try_from(stored) != Ok(at) {
                let what = format!("row {row} begins at {stored}, but {at} bits are before it");
                return Err(Error::corruption(what).in_tensor("row_offsets"));
            }
            at += mask.count(row);
        }
        expect("compressed", [count], [at])?;
        scatter(&mask, &self.compressed, dims)
    }

    /// A matrix without its zeros; minus zero is one.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there are two axes.
    pub fn pack(dense: &RawTensor) -> Result<Self> {
        let (dims, nonzero) = nonzeros(dense)?;
        let [rows, cols] = dims;
        let kept: Vec<bool> = (0..rows * cols).map(nonzero).collect();
        let [bytes, mask] = gather(dense, dims, &kept);
        let mut at = 0i64;
        let mut offsets = Vec::with_capacity(8 * rows);
        for row in 0..rows {
            offsets.extend(at.to_le_bytes());
            at += kept[row * cols..(row + 1) * cols].iter().filter(|kept| **kept).count() as i64;
        }
        Ok(Self {
            shape: store_shape(dims, vec![2])?,
            compressed: RawTensor::new(dense.dtype(), vec![at as usize], bytes.into())?,
            bitmask: RawTensor::new(DType::U8, vec![rows, cols.div_ceil(8)], mask.into())?,
            row_offsets: RawTensor::new(DType::I64, vec![rows], offsets.into())?,
        })
    }
}

impl Sparse24Bitmask {
    /// Reads `<layer>.shape`, `.compressed` and `.bitmask`; here the names do not say `weight`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            shape: stored.part("shape")?,
            compressed: stored.part("compressed")?,
            bitmask: stored.part("bitmask")?,
        })
    }

    /// The matrix, in the type of what is kept.
    ///
    /// # Errors
    /// `ShapeMismatch`, `Unsupported` (an element type) and `Corruption` (a row that does not keep half) name the part.
    pub fn unpack(&self) -> Result<RawTensor> {
        let dims = read_shape(&self.shape, "shape", &[2, 1])?;
        let [rows, cols] = dims;
        let mask = Mask::read(&self.bitmask, dims)?;
        let found = shape(&self.compressed, "compressed", &DType::ALL)?;
        expect("compressed", found, [rows, cols / 2])?;
        if let Some(row) = (0..rows).find(|row| mask.count(*row) != cols / 2) {
            let what = format!("row {row} keeps {} of {cols}, not half", mask.count(row));
            return Err(Error::corruption(what).in_tensor("bitmask"));
        }
        scatter(&mask, &self.compressed, dims)
    }

    /// A matrix of which each four in a row have at most two that are not zero. Where they have fewer, the first zeros
    /// are kept beside them.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there are two axes and rows of whole fours; `InvalidArgument` for fours that have more.
    pub fn pack(dense: &RawTensor) -> Result<Self> {
        let (dims, nonzero) = nonzeros(dense)?;
        let [rows, cols] = dims;
        if !cols.is_multiple_of(4) {
            return Err(Error::shape(format!("rows of {cols} are not in fours")));
        }
        let mut kept: Vec<bool> = (0..rows * cols).map(nonzero).collect();
        for (number, four) in kept.chunks_mut(4).enumerate() {
            let mut count = four.iter().filter(|kept| **kept).count();
            if count > 2 {
                let (row, col) = (4 * number / cols, 4 * number % cols);
                let what = format!("{count} of the four at [{row}, {col}] are not zero");
                return Err(Error::invalid(what));
            }
            for zero in four.iter_mut().filter(|kept| !**kept) {
                if count < 2 {
                    (*zero, count) = (true, count + 1);
                }
            }
        }
        let [bytes, mask] = gather(dense, dims, &kept);
        Ok(Self {
            shape: store_shape(dims, vec![2, 1])?,
            compressed: RawTensor::new(dense.dtype(), vec![rows, cols / 2], bytes.into())?,
            bitmask: RawTensor::new(DType::U8, vec![rows, cols.div_ceil(8)], mask.into())?,
        })
    }
}
