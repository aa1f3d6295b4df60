use tensorpress_tensor::kernels::{pack_bits, packed_len, unpack_bits};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result};

use super::bytewise::{byte_matrix, store_bytes};
use crate::float::Small;
use crate::parts::{Stored, expect, shape};

/// Elements of the formats of Microscaling (OCP, 2023) in blocks of 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MxFormat {
    /// `mxfp4-pack-quantized`: [`Small::E2m1Fn`], two to a byte, the first in its low half.
    Fp4,
    /// `mxfp6-pack-quantized`: [`Small::E2m3Fn`], four in three bytes, the least significant bits first.
    Fp6,
    /// `mxfp8-quantized`: [`Small::E4m3Fn`].
    Fp8,
}

impl MxFormat {
    /// What elements are.
    #[must_use]
    pub fn element(self) -> Small {
        match self {
            Self::Fp4 => Small::E2m1Fn,
            Self::Fp6 => Small::E2m3Fn,
            Self::Fp8 => Small::E4m3Fn,
        }
    }

    /// Name of the part that holds elements.
    fn part(self) -> &'static str {
        if self == Self::Fp8 { "weight" } else { "weight_packed" }
    }
}

/// A layer in a format of Microscaling as stored.
#[derive(Debug, Clone)]
pub struct Mx {
    /// Elements (`weight_packed`; `weight` with [`MxFormat::Fp8`]): bytes, `[N, K bits / 8]`.
    pub weight: RawTensor,
    /// Scales, bytes that are [`Small::E8m0FnU`], `[N, K / 32]`.
    pub weight_scale: RawTensor,
}

/// Codes and scales of a format of Microscaling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackedMx {
    /// What elements are.
    pub format: MxFormat,
    /// Codes of elements, `[N, K]`.
    pub codes: Array2<u8>,
    /// Codes of scales, `[N, K / 32]`.
    pub scales: Array2<u8>,
}

/// `nvfp4-pack-quantized`: a layer as stored.
#[derive(Debug, Clone)]
pub struct Nvfp4 {
    /// Elements that are [`Small::E2m1Fn`], two to a byte, the first in its low half: `[N, K / 2]`.
    pub weight_packed: RawTensor,
    /// Scales that are [`Small::E4m3Fn`], `[N, K / 16]`.
    pub weight_scale: RawTensor,
    /// What scales are divided by, f32 `[1]`.
    pub weight_global_scale: RawTensor,
}

/// Codes and scales of `nvfp4-pack-quantized`.
#[derive(Debug, Clone, PartialEq)]
pub struct UnpackedNvfp4 {
    /// Codes of elements, `[N, K]`.
    pub codes: Array2<u8>,
    /// Codes of scales, `[N, K / 16]`.
    pub scales: Array2<u8>,
    /// What scales are divided by.
    pub global: f32,
}

/// Codes of so many bits, a dense stream in each row, of rows that are whole blocks.
fn unpack_rows(part: &RawTensor, name: &str, bits: u32, block: usize) -> Result<Array2<u8>> {
    let [rows, width] = shape(part, name, &[DType::U8])?;
    let cols = width.checked_mul(8).map(|all| all / bits as usize);
    let cols = cols.filter(|cols| cols % block == 0 && packed_len(*cols, bits) == width);
    let Some(cols) = cols else {
        let what =
            format!("rows of {width} bytes are not in blocks of {block} codes of {bits} bits");
        return Err(Error::shape(what).in_tensor(name));
    };
    let mut codes = Array2::zeros((rows, cols));
    if width > 0 {
        for (row, mut codes) in part.bytes().chunks(width).zip(codes.rows_mut()) {
            unpack_bits(row, bits, 0, codes.as_slice_mut().expect("standard layout"));
        }
    }
    Ok(codes)
}

/// The stream of each row.
fn pack_rows(codes: &Array2<u8>, name: &str, bits: u32) -> Result<RawTensor> {
    crate::parts::check_codes(name, codes, bits as u8)?;
    let (rows, cols) = codes.dim();
    let width = packed_len(cols, bits);
    let mut packed = vec![0; rows * width];
    if width > 0 {
        for (row, packed) in codes.rows().into_iter().zip(packed.chunks_mut(width)) {
            pack_bits(&row.to_vec(), bits, packed);
        }
    }
    RawTensor::new(DType::U8, vec![rows, width], packed.into())
}

/// That there is a scale for each block.
fn check_scales(codes: &Array2<u8>, scales: &Array2<u8>, block: usize) -> Result<()> {
    let (rows, cols) = codes.dim();
    if cols % block != 0 {
        let what = format!("{cols} inputs are not in blocks of {block}");
        return Err(Error::shape(what).in_tensor("weight_packed"));
    }
    expect("weight_scale", scales.dim().into(), [rows, cols / block])
}

impl Mx {
    /// Reads the elements and `<layer>.weight_scale`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str, format: MxFormat) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        let weight = stored.part(format.part())?;
        Ok(Self { weight, weight_scale: stored.part("weight_scale")? })
    }

    /// Codes of elements and scales.
    ///
    /// # Errors
    /// `ShapeMismatch` and `Unsupported` (an element type) name the part.
    pub fn unpack(&self, format: MxFormat) -> Result<UnpackedMx> {
        let codes = unpack_rows(&self.weight, format.part(), format.element().bits(), 32)?;
        let scales = byte_matrix(&self.weight_scale, "weight_scale")?;
        check_scales(&codes, &scales, 32)?;
        Ok(UnpackedMx { format, codes, scales })
    }
}

impl UnpackedMx {
    /// The weight `[N, K]`: `2^(scale - 127) * element` in f32, then rounded once to `dtype`; bf16 gives what the
    /// official package gives of a model in bf16. A scale of 255 makes its block NaN.
    ///
    /// # Errors
    /// `ShapeMismatch`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        check_scales(&self.codes, &self.scales, 32)?;
        let element = self.format.element();
        Ok(Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let scale = Small::E8m0FnU.decode(self.scales[[row, col / 32]]);
            dtype.round(element.decode(self.codes[[row, col]]) * scale)
        }))
    }

    /// The layer as stored.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part, for codes that do not have so few bits; `ShapeMismatch` if parts do not
    /// belong together.
    pub fn pack(&self) -> Result<Mx> {
        check_scales(&self.codes, &self.scales, 32)?;
        let weight = pack_rows(&self.codes, self.format.part(), self.format.element().bits())?;
        Ok(Mx { weight, weight_scale: store_bytes(&self.scales)? })
    }
}

impl Nvfp4 {
    /// Reads `<layer>.weight_packed`, `.weight_scale` and `.weight_global_scale`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            weight_packed: stored.part("weight_packed")?,
            weight_scale: stored.part("weight_scale")?,
            weight_global_scale: stored.part("weight_global_scale")?,
        })
    }

    /// Codes of elements and scales.
    ///
    /// # Errors
    /// `ShapeMismatch` and `Unsupported` (an element type) name the part.
    pub fn unpack(&self) -> Result<UnpackedNvfp4> {
        let codes = unpack_rows(&self.weight_packed, "weight_packed", 4, 16)?;
        let scales = byte_matrix(&self.weight_scale, "weight_scale")?;
        check_scales(&codes, &scales, 16)?;
        let name = "weight_global_scale";
        expect(name, shape(&self.weight_global_scale, name, &[DType::F32])?, [1])?;
        let mut global = [0.0];
        DType::F32.read_f32(self.weight_global_scale.bytes(), &mut global)?;
        Ok(UnpackedNvfp4 { codes, scales, global: global[0] })
    }
}

impl UnpackedNvfp4 {
    /// The weight `[N, K]`: `element * (scale / global)` in f32, then rounded once to `dtype`; bf16 gives what the
    /// official package gives of a model in bf16.
    ///
    /// # Errors
    /// `ShapeMismatch`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        check_scales(&self.codes, &self.scales, 16)?;
        Ok(Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let scale = Small::E4m3Fn.decode(self.scales[[row, col / 16]]) / self.global;
            dtype.round(Small::E2m1Fn.decode(self.codes[[row, col]]) * scale)
        }))
    }

    /// The layer as stored.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part, for codes above 15; `ShapeMismatch` if parts do not belong together.
    pub fn pack(&self) -> Result<Nvfp4> {
        check_scales(&self.codes, &self.scales, 16)?;
        let global = self.global.to_le_bytes().to_vec();
        Ok(Nvfp4 {
            weight_packed: pack_rows(&self.codes, "weight_packed", 4)?,
            weight_scale: store_bytes(&self.scales)?,
            weight_global_scale: RawTensor::new(DType::F32, vec![1], global.into())?,
        })
    }
}
