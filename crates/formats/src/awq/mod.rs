//! The tensors of AWQ checkpoints (AutoAWQ, llm-awq), of 4 bits, in their three layouts.
//!
//! A layer of K inputs and N outputs, in groups of g inputs; a weight is `scale * (code - zero)`:
//! - [`Layout::Gemm`], the common one: `qweight`, i32 `[K, N / 8]`; word c of a row holds outputs 8 c + 0, 2, 4, 6, 1,
//!   3, 5, 7, the least significant nibble first. `qzeros`, i32 `[K / g, N / 8]`, in the same order; `scales`, f16
//!   `[K / g, N]`.
//! - [`Layout::Gemv`]: `qweight`, i32 `[N, K / 8]`, nibbles in order; `qzeros`, i32 `[N, Z]`, in order; `scales`, f16
//!   `[N, 8 Z]`. Z is how many words K / g zero points take, rounded up to a multiple of 1 (g from 128 on), 2 (64) or 4
//!   (32); what is left over is zero.
//! - [`Layout::GemvFast`]: `qweight`, i16 `[N / 4, K]`: see [`Layout::GemvFast`] for the order; `qzeros`, f16
//!   `[8 Z, N]`, is what is added to `scale * code`; `scales`, f16 `[8 Z, N]`.
//!
//! (Source: `awq/modules/linear` of AutoAWQ 0.2.9, `awq/quantize/qmodule.py` of llm-awq.)

mod node;
pub(crate) mod order;
mod pack;

use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result, Tensor};

use crate::parts::{FLOATS, Fields, Stored, expect, float_matrix, group_length, shape, words};
pub use node::{OffsetFormat, OffsetGrids};
use order::{GEMM, fast_place, padded_groups};

/// How codes lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// `gemm`: along the outputs, interleaved.
    Gemm,
    /// `gemv`: along the inputs, in order.
    Gemv,
    /// `gemv_fast`: tiles of 4 outputs and 64 inputs, one output after another, four codes to a word of 16 bits. Within
    /// 32 inputs code `8 a + j` belongs to input `8 (i / 2) + 2 a + i % 2`, where `i` is the `j`-th of 0, 2, 4, 6, 1,
    /// 3, 5, 7.
    GemvFast,
}

/// The tensors of a layer as stored.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Codes.
    pub qweight: RawTensor,
    /// Zero points; with [`Layout::GemvFast`] what they come to, as floats.
    pub qzeros: RawTensor,
    /// Scales.
    pub scales: RawTensor,
}

/// Where zero lies on the grid of each group.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Zeros {
    /// Codes of zero, `[N, G]`.
    Codes(Array2<u8>),
    /// What is added to `scale * code`, `[N, G]`: the code of zero, times the scale, negated and rounded.
    Offsets(Array2<f32>),
}

/// What a layer holds, in the order of a weight `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpacked {
    /// Codes, `[N, K]`.
    pub codes: Array2<u8>,
    /// Scales, `[N, G]`; groups are runs of K / G inputs.
    pub scales: Array2<f32>,
    /// What scales are stored as.
    pub dtype: DType,
    /// Zero points.
    pub zeros: Zeros,
}

impl Layer {
    /// Reads `<layer>.qweight`, `.qzeros` and `.scales`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            qweight: stored.part("qweight")?,
            qzeros: stored.part("qzeros")?,
            scales: stored.part("scales")?,
        })
    }

    /// Codes, zero points and scales, each by its own. Only the padded layouts need to be told how long `group`s are;
    /// it is checked for the other one.
    ///
    /// # Errors
    /// `InvalidArgument` for groups that a layout does not have; `ShapeMismatch` and `Unsupported` (an element type)
    /// name the part.
    pub fn unpack(&self, layout: Layout, group: usize) -> Result<Unpacked> {
        match layout {
            Layout::Gemm => self.unpack_gemm(group),
            Layout::Gemv => self.unpack_gemv(group),
            Layout::GemvFast => self.unpack_fast(group),
        }
    }

    fn unpack_gemm(&self, group: usize) -> Result<Unpacked> {
        let nibbles = Fields::dense(4);
        let [inputs, width] = shape(&self.qweight, "qweight", &[DType::I32])?;
        let outputs = eight_times(width, "qweight")?;
        let found = shape::<2>(&self.scales, "scales", &FLOATS)?;
        let groups = found[0];
        expect("scales", found, [groups, outputs])?;
        if group_length("scales", inputs, groups)? != group {
            let what = format!("{groups} groups of {inputs} inputs, where groups have {group}");
            return Err(Error::shape(what).in_tensor("scales"));
        }
        expect("qzeros", shape(&self.qzeros, "qzeros", &[DType::I32])?, [groups, width])?;
        let transposed = |stored: &[u32], rows: usize| {
            Array2::from_shape_fn((outputs, rows), |(n, row)| {
                nibbles.get(GEMM[n % 8], |_| stored[row * width + n / 8])
            })
        };
        Ok(Unpacked {
            codes: transposed(&words(&self.qweight), inputs),
            zeros: Zeros::Codes(transposed(&words(&self.qzeros), groups)),
            scales: float_matrix(&self.scales, "scales")?.reversed_axes(),
            dtype: self.scales.dtype(),
        })
    }

    fn unpack_gemv(&self, group: usize) -> Result<Unpacked> {
        let nibbles = Fields::dense(4);
        let [outputs, width] = shape(&self.qweight, "qweight", &[DType::I32])?;
        let inputs = eight_times(width, "qweight")?;
        let (groups, padded) = padded_groups(inputs, group)?;
        expect("scales", shape(&self.scales, "scales", &FLOATS)?, [outputs, padded])?;
        expect("qzeros", shape(&self.qzeros, "qzeros", &[DType::I32])?, [outputs, padded / 8])?;
        let codes = |stored: &[u32], width: usize, cols: usize| {
            Array2::from_shape_fn((outputs, cols), |(n, col)| {
                nibbles.get(col, |word| stored[n * width + word])
            })
        };
        Ok(Unpacked {
            codes: codes(&words(&self.qweight), width, inputs),
            zeros: Zeros::Codes(codes(&words(&self.qzeros), padded / 8, groups)),
            scales: float_matrix(&self.scales, "scales")?.slice(s![.., ..groups]).to_owned(),
            dtype: self.scales.dtype(),
        })
    }

    fn unpack_fast(&self, group: usize) -> Result<Unpacked> {
        let [quarter, inputs] = shape(&self.qweight, "qweight", &[DType::I16])?;
        let Some(outputs) = quarter.checked_mul(4).filter(|_| inputs.is_multiple_of(64)) else {
            let what = format!("shape [{quarter}, {inputs}] is not in tiles of 64 inputs");
            return Err(Error::shape(what).in_tensor("qweight"));
        };
        let (groups, padded) = padded_groups(inputs, group)?;
        expect("scales", shape(&self.scales, "scales", &FLOATS)?, [padded, outputs])?;
        expect("qzeros", shape(&self.qzeros, "qzeros", &FLOATS)?, [padded, outputs])?;
        let stored = self.qweight.bytes();
        let codes = Array2::from_shape_fn((outputs, inputs), |(n, k)| {
            let (word, nibble) = fast_place(inputs, n, k);
            (stored[2 * word + nibble / 2] >> (4 * (nibble % 2))) & 15
        });
        let floats = |part: &RawTensor, name: &str| {
            let all = float_matrix(part, name)?;
            Ok(all.slice(s![..groups, ..]).t().as_standard_layout().into_owned())
        };
        Ok(Unpacked {
            codes,
            zeros: Zeros::Offsets(floats(&self.qzeros, "qzeros")?),
            scales: floats(&self.scales, "scales")?,
            dtype: self.scales.dtype(),
        })
    }
}

fn eight_times(width: usize, name: &str) -> Result<usize> {
    let overflow = || Error::shape(format!("{width} words overflow")).in_tensor(name);
    width.checked_mul(8).ok_or_else(overflow)
}

impl Unpacked {
    /// Outputs, inputs, groups, and inputs of a group.
    fn check(&self) -> Result<[usize; 4]> {
        let (outputs, inputs) = self.codes.dim();
        let groups = self.scales.ncols();
        expect("scales", [self.scales.nrows(), groups], [outputs, groups])?;
        let (rows, cols) = match &self.zeros {
            Zeros::Codes(zeros) => zeros.dim(),
            Zeros::Offsets(offsets) => offsets.dim(),
        };
        expect("qzeros", [rows, cols], [outputs, groups])?;
        Ok([outputs, inputs, groups, group_length("scales", inputs, groups)?])
    }

    /// The weight `[N, K]`: `scale * (code - zero)` in f32, which is exact for scales of 16 bits, then rounded once to
    /// `dtype`; with offsets `scale * code + offset`, rounded to f32 and to `dtype`. The official code computes in the
    /// type of the scales.
    ///
    /// # Errors
    /// `ShapeMismatch`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        let [.., group] = self.check()?;
        Ok(Array2::from_shape_fn(self.codes.dim(), |(n, k)| {
            let (code, at) = (self.codes[[n, k]], [n, k / group]);
            let scale = self.scales[at];
            dtype.round(match &self.zeros {
                Zeros::Codes(zeros) => scale * (i32::from(code) - i32::from(zeros[at])) as f32,
                Zeros::Offsets(offsets) => scale * f32::from(code) + offsets[at],
            })
        }))
    }
}
