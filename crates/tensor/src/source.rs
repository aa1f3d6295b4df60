//! What a tensor is to the methods: a dtype, a shape, and rows that can be read as f32.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::{Array2, ArrayBase, Data, Dimension};

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A tensor whose rows can be read as f32, whatever it is stored as.
///
/// It is seen as a matrix: the first axis counts rows (output channels), all others together are columns;
/// a vector is one row, a scalar is 1 x 1.
pub trait Tensor: Send + Sync {
    /// Stored element type.
    fn dtype(&self) -> DType;
    /// Shape as stored.
    fn shape(&self) -> &[usize];
    /// Reads whole rows as f32, row-major.
    ///
    /// # Errors
    /// `Unsupported` if the elements are not floats.
    ///
    /// # Panics
    /// If `rows` is out of bounds or `out` is not `rows.len() * columns` long.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Rows and columns of the matrix view.
    fn matrix_shape(&self) -> [usize; 2] {
        matrix_shape(self.shape())
    }

    /// Reads everything as an f32 matrix.
    ///
    /// # Errors
    /// As [`Tensor::read_rows`].
    fn to_matrix(&self) -> Result<Array2<f32>> {
        let [rows, cols] = self.matrix_shape();
        let mut data = vec![0.0; rows * cols];
        self.read_rows(0..rows, &mut data)?;
        Ok(Array2::from_shape_vec((rows, cols), data).expect("length is rows x cols"))
    }
}

/// The matrix view of a shape: first axis by the product of the others.
#[must_use]
pub fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    match shape {
        [] => [1, 1],
        [n] => [1, *n],
        [rows, rest @ ..] => [*rows, rest.iter().product()],
    }
}

/// Float types of ndarray arrays that are tensors.
pub trait Element: Copy + Send + Sync + private::Sealed {
    /// The stored type.
    const DTYPE: DType;
    /// Value as f32 (f64 is rounded).
    fn to_f32(self) -> f32;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty, $d:ident, $x:ident => $e:expr;)*) => {$(
        impl private::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f32(self) -> f32 { let $x = self; $e }
        }
    )*};
}
elements! {
    f64, F64, x => x as f32;
    f32, F32, x => x;
    f16, F16, x => f16::to_f32(x);
    bf16, BF16, x => bf16::to_f32(x);
}

impl<S, D> Tensor for ArrayBase<S, D>
where
    S: Data + Send + Sync,
    S::Elem: Element,
    D: Dimension,
    Self: Send + Sync,
{
    fn dtype(&self) -> DType {
        S::Elem::DTYPE
    }

    fn shape(&self) -> &[usize] {
        ArrayBase::shape(self)
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [count, cols] = matrix_shape(ArrayBase::shape(self));
        assert!(rows.start <= rows.end && rows.end <= count, "rows out of bounds");
        assert_eq!(out.len(), rows.len() * cols, "output length");
        if let Some(all) = self.as_slice() {
            for (o, v) in out.iter_mut().zip(&all[rows.start * cols..rows.end * cols]) {
                *o = v.to_f32();
            }
        } else {
            for (o, v) in out.iter_mut().zip(self.iter().skip(rows.start * cols)) {
                *o = v.to_f32();
            }
        }
        Ok(())
    }
}

/// A tensor over raw little-endian bytes: a safetensors view, zero copy from a memory map.
#[derive(Debug, Clone)]
pub struct RawTensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl RawTensor {
    /// Wraps `bytes` as a tensor.
    ///
    /// # Errors
    /// `ShapeMismatch` if the length does not follow from dtype and shape.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Self> {
        let expected = shape
            .iter()
            .try_fold(dtype.size(), |n, d| n.checked_mul(*d))
            .ok_or_else(|| Error::shape(format!("shape {shape:?} overflows")))?;
        if bytes.len() != expected {
            return Err(Error::shape(format!(
                "{} bytes, but {dtype:?} {shape:?} takes {expected}",
                bytes.len()
            )));
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// Rounds an f32 matrix to `dtype` and owns the bytes.
    ///
    /// # Errors
    /// `Unsupported` if `dtype` is no float type.
    pub fn from_f32(values: ndarray::ArrayViewD<'_, f32>, dtype: DType) -> Result<Self> {
        let mut bytes = Vec::new();
        let owned = values.as_standard_layout();
        dtype.write_f32(owned.as_slice().expect("standard layout"), &mut bytes)?;
        Self::new(dtype, values.shape().to_vec(), bytes.into())
    }

    /// The bytes as stored.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Tensor for RawTensor {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_bytes = self.matrix_shape()[1] * self.dtype.size();
        self.dtype.read_f32(&self.bytes[rows.start * row_bytes..rows.end * row_bytes], out)
    }
}
