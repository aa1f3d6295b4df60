use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Checkpoint, DType, Error, ErrorKind, RawTensor, Result};

use crate::parts::{Stored, expect, shape};

/// The greatest integer.
const MOST: f32 = 127.0;

/// LLM.int8 (Dettmers et al., 2022): each row of a matrix as integers, over its largest magnitude.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8 {
    /// Integers, -127 to 127, `[N, K]`.
    pub values: Array2<i8>,
    /// The largest magnitude of each row.
    pub absmax: Vec<f32>,
}

impl Int8 {
    /// Reads `<layer>.weight`, i8 `[N, K]`, and `<layer>.SCB`, f32 `[N]`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; `ShapeMismatch` and `Unsupported` (an element type) name the part; those
    /// of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Self::unpack(&stored.part("weight")?, &stored.part("SCB")?)
    }

    /// Integers and magnitudes out of `weight` and `SCB`.
    ///
    /// # Errors
    /// `ShapeMismatch` and `Unsupported` (an element type) name the part.
    pub fn unpack(weight: &RawTensor, scb: &RawTensor) -> Result<Self> {
        let [rows, cols] = shape(weight, "weight", &[DType::I8])?;
        expect("SCB", shape(scb, "SCB", &[DType::F32])?, [rows])?;
        let values = weight.bytes().iter().map(|byte| *byte as i8).collect();
        let values = Array2::from_shape_vec((rows, cols), values).expect("a byte each");
        let mut absmax = vec![0.0; rows];
        DType::F32.read_f32(scb.bytes(), &mut absmax)?;
        Ok(Self { values, absmax })
    }

    /// The nearest integers to `value * (127 / absmax)`, ties to even; what is given as f16 stays so in f32.
    ///
    /// # Errors
    /// `Numerical`, with the place of the first, for NaN and infinity.
    pub fn encode(values: ArrayView2<'_, f32>) -> Result<Self> {
        if let Some((at, value)) = values.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::new(ErrorKind::Numerical, format!("{value} at {at:?}")));
        }
        let most = |row: &[f32]| row.iter().fold(0f32, |most, value| most.max(value.abs()));
        let absmax: Vec<f32> = values.rows().into_iter().map(|row| most(&row.to_vec())).collect();
        let codes = Array2::from_shape_fn(values.dim(), |(row, col)| {
            let scale = if absmax[row] > 0.0 { MOST / absmax[row] } else { 0.0 };
            // Saturates.
            (values[[row, col]] * scale).round_ties_even() as i8
        });
        Ok(Self { values: codes, absmax })
    }

    /// The matrix: `integer * absmax / 127` in f32, the last as a product with the nearest f32 to 1 / 127, rounded once
    /// to `dtype`.
    ///
    /// # Errors
    /// `ShapeMismatch` if there is not one largest magnitude for each row.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        expect("SCB", [self.absmax.len()], [self.values.nrows()])?;
        Ok(Array2::from_shape_fn(self.values.dim(), |(row, col)| {
            let value = f32::from(self.values[[row, col]]) * self.absmax[row];
            dtype.round(value * (1.0 / MOST))
        }))
    }

    /// `weight` and `SCB` as stored.
    ///
    /// # Errors
    /// `ShapeMismatch` if there is not one largest magnitude for each row.
    pub fn pack(&self) -> Result<[RawTensor; 2]> {
        expect("SCB", [self.absmax.len()], [self.values.nrows()])?;
        let bytes: Vec<u8> = self.values.iter().map(|value| *value as u8).collect();
        let scb: Vec<u8> = self.absmax.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok([
            RawTensor::new(DType::I8, self.values.shape().to_vec(), bytes.into())?,
            RawTensor::new(DType::F32, vec![self.absmax.len()], scb.into())?,
        ])
    }
}
