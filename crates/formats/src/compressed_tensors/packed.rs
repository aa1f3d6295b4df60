use tensorpress_tensor::ndarray::Axis;
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result};

use super::integers::Integers;
use super::scales::{Granularity, Scales};
use super::words::{Packing, pack_part, unpack_part};
use crate::parts::{Stored, expect, shape, store_words};

/// `pack-quantized`: a layer of integers of 1 to 8 bits as stored.
#[derive(Debug, Clone)]
pub struct PackQuantized {
    /// Codes along the inputs, i32 `[N, words]`: see [`unpack_words`](super::unpack_words).
    pub weight_packed: RawTensor,
    /// Scales, a float: `[N, G]` or `[1]`.
    pub weight_scale: RawTensor,
    /// N and K, i64 `[2]`.
    pub weight_shape: RawTensor,
    /// Zero points of asymmetric schemes, i32 `[words, G]`: codes down the outputs.
    pub weight_zero_point: Option<RawTensor>,
    /// Group of each input, i32 `[K]`, where groups are no runs.
    pub weight_g_idx: Option<RawTensor>,
}

impl PackQuantized {
    /// Reads `<layer>.weight_packed` and the others.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing that must be there; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            weight_packed: stored.part("weight_packed")?,
            weight_scale: stored.part("weight_scale")?,
            weight_shape: stored.part("weight_shape")?,
            weight_zero_point: stored.optional("weight_zero_point")?,
            weight_g_idx: stored.optional("weight_g_idx")?,
        })
    }

    /// Integers, zero points and scales.
    ///
    /// # Errors
    /// `InvalidArgument` for other widths; `ShapeMismatch`, `Unsupported` (an element type) and `Corruption` (a group
    /// that is not there, a negative length) name the part.
    pub fn unpack(&self, bits: u8, packing: Packing) -> Result<Integers> {
        let dims = read_shape(&self.weight_shape, "weight_shape", &[2])?;
        let (packed, name) = (&self.weight_packed, "weight_packed");
        let values = unpack_part(packed, name, bits, packing, Axis(1), dims)?;
        let scales = Scales::read(&self.weight_scale, None, self.weight_g_idx.as_ref(), dims)?;
        let zeros = match &self.weight_zero_point {
            None => None,
            Some(part) => {
                let dims = scales.values.dim().into();
                let name = "weight_zero_point";
                Some(unpack_part(part, name, bits, packing, Axis(0), dims)?)
            }
        };
        Ok(Integers { values, zeros, scales })
    }

    /// The layer as stored, bit for bit as the package packs it.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part, for integers that do not have so few bits, and for scales in tiles;
    /// `ShapeMismatch` if parts do not belong together.
    pub fn pack(integers: &Integers, bits: u8, packing: Packing) -> Result<Self> {
        let dims = integers.check()?;
        let pack = |values, name, axis| pack_part(values, name, bits, packing, axis);
        let weight_g_idx = match &integers.scales.granularity {
            Granularity::Indexed(index) => Some(store_words(index, vec![index.len()])?),
            Granularity::Block(_) => {
                return Err(Error::invalid("scales in tiles").in_tensor("weight_scale"));
            }
            _ => None,
        };
        let zeros = integers.zeros.as_ref();
        let zeros = zeros.map(|zeros| pack(zeros.view(), "weight_zero_point", Axis(0)));
        Ok(Self {
            weight_packed: pack(integers.values.view(), "weight_packed", Axis(1))?,
            weight_scale: integers.scales.store()?,
            weight_shape: store_shape(dims, vec![2])?,
            weight_zero_point: zeros.transpose()?,
            weight_g_idx,
        })
    }
}

/// Two lengths, stored in this shape.
pub(crate) fn read_shape(part: &RawTensor, name: &str, stored_as: &[usize]) -> Result<[usize; 2]> {
    if stored_as.len() == 1 {
        expect(name, shape(part, name, &[DType::I64])?, [2])?;
    } else {
        expect(name, shape(part, name, &[DType::I64])?, [2, 1])?;
    }
    let mut dims = [0; 2];
    for (dim, bytes) in dims.iter_mut().zip(part.bytes().as_chunks::<8>().0) {
        let length = i64::from_le_bytes(*bytes);
        *dim = usize::try_from(length)
            .map_err(|_| Error::corruption(format!("a length of {length}")).in_tensor(name))?;
    }
    Ok(dims)
}

/// Two lengths as stored.
pub(super) fn store_shape(dims: [usize; 2], stored_as: Vec<usize>) -> Result<RawTensor> {
    let bytes: Vec<u8> = dims.iter().flat_map(|dim| (*dim as i64).to_le_bytes()).collect();
    RawTensor::new(DType::I64, stored_as, bytes.into())
}
