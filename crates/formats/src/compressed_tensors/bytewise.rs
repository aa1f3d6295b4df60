use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result, Tensor};

use super::integers::Integers;
use super::scales::Scales;
use crate::float::Small;
use crate::parts::{Stored, shape, typed};

/// `int-quantized`: a layer of integers, a byte each, as stored.
#[derive(Debug, Clone)]
pub struct IntQuantized {
    /// Integers, i8 `[N, K]`.
    pub weight: RawTensor,
    /// Scales, a float: `[1]`, `[N, G]`.
    pub weight_scale: RawTensor,
    /// Zero points of asymmetric schemes, i8 in the shape of the scales.
    pub weight_zero_point: Option<RawTensor>,
}

/// `float-quantized`: a layer of floats of 8 bits as stored.
#[derive(Debug, Clone)]
pub struct FloatQuantized {
    /// Codes of [`Small::E4m3Fn`], `[N, K]`.
    pub weight: RawTensor,
    /// Scales, a float: `[1]`, `[N, G]`, or of tiles `[ceil(N / rows), ceil(K / cols)]`.
    pub weight_scale: RawTensor,
}

/// Codes of small floats with scales: what `float-quantized` holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Floats {
    /// Codes of [`Small::E4m3Fn`], `[N, K]`.
    pub codes: Array2<u8>,
    /// Scales.
    pub scales: Scales,
}

/// Bytes as a matrix.
pub(super) fn byte_matrix(part: &RawTensor, name: &str) -> Result<Array2<u8>> {
    let [rows, cols] = shape(part, name, &[DType::U8])?;
    Ok(Array2::from_shape_vec((rows, cols), part.bytes().to_vec()).expect("a byte each"))
}

/// A matrix of bytes as stored.
pub(super) fn store_bytes(bytes: &Array2<u8>) -> Result<RawTensor> {
    let shape = bytes.shape().to_vec();
    RawTensor::new(DType::U8, shape, bytes.iter().copied().collect::<Vec<_>>().into())
}

fn store_ints(values: impl Iterator<Item = i8>, shape: Vec<usize>) -> Result<RawTensor> {
    RawTensor::new(DType::I8, shape, values.map(|v| v as u8).collect::<Vec<_>>().into())
}

impl IntQuantized {
    /// Reads `<layer>.weight`, `.weight_scale` and, if it is there, `.weight_zero_point`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing that must be there; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            weight: stored.part("weight")?,
            weight_scale: stored.part("weight_scale")?,
            weight_zero_point: stored.optional("weight_zero_point")?,
        })
    }

    /// Integers, zero points and scales; `block`: outputs and inputs of a tile that shares a scale.
    ///
    /// # Errors
    /// `InvalidArgument` for empty tiles; `ShapeMismatch` and `Unsupported` (an element type) name the part.
    pub fn unpack(&self, block: Option<[usize; 2]>) -> Result<Integers> {
        let dims = shape(&self.weight, "weight", &[DType::I8])?;
        let scales = Scales::read(&self.weight_scale, block, None, dims)?;
        let ints = |part: &RawTensor, (rows, cols): (usize, usize)| {
            let values = part.bytes().iter().map(|byte| *byte as i8).collect();
            Array2::from_shape_vec((rows, cols), values).expect("a byte each")
        };
        let zeros = match &self.weight_zero_point {
            None => None,
            Some(part) => {
                typed(part, "weight_zero_point", &[DType::I8])?;
                let (found, wanted) = (part.shape(), self.weight_scale.shape());
                if found != wanted {
                    let what = format!("shape {found:?}, where {wanted:?} belongs");
                    return Err(Error::shape(what).in_tensor("weight_zero_point"));
                }
                Some(ints(part, scales.values.dim()))
            }
        };
        Ok(Integers { values: ints(&self.weight, dims.into()), zeros, scales })
    }

    /// The layer as stored.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument`, naming the part, if parts do not belong together.
    pub fn pack(integers: &Integers) -> Result<Self> {
        let dims = integers.check()?;
        let weight_scale = integers.scales.store()?;
        let zeros = integers.zeros.as_ref();
        let zeros =
            zeros.map(|zeros| store_ints(zeros.iter().copied(), weight_scale.shape().to_vec()));
        Ok(Self {
            weight: store_ints(integers.values.iter().copied(), dims.to_vec())?,
            weight_zero_point: zeros.transpose()?,
            weight_scale,
        })
    }
}

impl FloatQuantized {
    /// Reads `<layer>.weight` and `.weight_scale`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self { weight: stored.part("weight")?, weight_scale: stored.part("weight_scale")? })
    }

    /// Codes and scales; `block`: outputs and inputs of a tile that shares a scale.
    ///
    /// # Errors
    /// `InvalidArgument` for empty tiles; `ShapeMismatch` and `Unsupported` (an element type) name the part.
    pub fn unpack(&self, block: Option<[usize; 2]>) -> Result<Floats> {
        let codes = byte_matrix(&self.weight, "weight")?;
        let scales = Scales::read(&self.weight_scale, block, None, codes.dim().into())?;
        Ok(Floats { codes, scales })
    }

    /// The layer as stored.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument`, naming the part, if parts do not belong together.
    pub fn pack(floats: &Floats) -> Result<Self> {
        floats.scales.check(floats.codes.dim().into())?;
        Ok(Self { weight: store_bytes(&floats.codes)?, weight_scale: floats.scales.store()? })
    }
}

impl Floats {
    /// The weight `[N, K]`: `scale * code` in f32, which is exact for scales of 16 bits, then rounded once to `dtype`:
    /// that of the scales gives what the official package gives.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        let (rows, cols) = self.codes.dim();
        self.scales.check([rows, cols])?;
        let place = self.scales.place(cols);
        Ok(Array2::from_shape_fn((rows, cols), |(row, col)| {
            let value = Small::E4m3Fn.decode(self.codes[[row, col]]);
            dtype.round(self.scales.values[place(row, col)] * value)
        }))
    }
}
