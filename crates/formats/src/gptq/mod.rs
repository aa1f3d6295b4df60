//! The tensors of GPTQ checkpoints (auto-gptq, GPTQModel), of 2, 3, 4 and 8 bits.
//!
//! A layer of K inputs and N outputs, with G groups of inputs:
//! - `qweight`, i32 `[K bits / 32, N]`: down each column the codes of an output, a dense stream of bits with the least
//!   significant first (3 bits: 32 codes in 3 words);
//! - `qzeros`, i32 `[G, N bits / 32]`: along each row the zero points of a group, the same stream; less one in
//!   [`Version::V1`];
//! - `scales`, `[G, N]`, f16 or another float;
//! - `g_idx`, i32 `[K]`: the group of each input; where absent, groups are runs of inputs.
//!
//! A weight is `scale * (code - zero)`. (Source: `qlinear_cuda_old.py` of auto-gptq 0.7, `BaseQuantLinear` of GPTQModel
//! 7.)

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result, Tensor};

use crate::parts::{
    FLOATS, Fields, Stored, check_codes, expect, float_matrix, group_index, group_length, runs,
    shape, store_floats, store_words, words,
};

/// What stored zero points mean: `checkpoint_format` of a model's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Version {
    /// `gptq`, or nothing said: zero points are stored less one, 1 to 2^bits.
    V1,
    /// As [`Version::V1`], in the reading of the first CUDA kernels: the greatest stored one wraps to 0, so that zero
    /// points are 0 to 2^bits - 1. (The official packer spills 0 into the fields beside it; here it does not.)
    V1Wrapped,
    /// `gptq_v2`: zero points are stored as they are, 0 to 2^bits - 1.
    V2,
}

/// What is not said by the tensors of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Format {
    /// Bits of a code: 2, 3, 4 or 8.
    pub bits: u8,
    /// What stored zero points mean.
    pub version: Version,
    /// Inputs of a group, where there is no `g_idx`; none: as many as make the groups equally long.
    pub group: Option<usize>,
}

impl Format {
    /// A format with equally long groups where there is no `g_idx`.
    #[must_use]
    pub fn new(bits: u8, version: Version) -> Self {
        Self { bits, version, group: None }
    }

    /// Sets how long groups are where there is no `g_idx`.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = Some(group);
        self
    }

    fn check(self) -> Result<()> {
        if !matches!(self.bits, 2 | 3 | 4 | 8) {
            return Err(Error::invalid(format!("bits = {}: allowed are 2, 3, 4, 8", self.bits)));
        }
        if self.group == Some(0) {
            return Err(Error::invalid("group = 0: allowed are 1 and more"));
        }
        Ok(())
    }

    /// What is added to stored zero points, and the greatest they can be after it.
    fn zeros(self) -> (u16, u16) {
        let codes = 1 << self.bits;
        match self.version {
            Version::V1 => (1, codes),
            Version::V1Wrapped => (1, codes - 1),
            Version::V2 => (0, codes - 1),
        }
    }
}

/// The tensors of a layer as stored.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Codes, i32 `[K bits / 32, N]`.
    pub qweight: RawTensor,
    /// Zero points, i32 `[G, N bits / 32]`.
    pub qzeros: RawTensor,
    /// Scales, `[G, N]`.
    pub scales: RawTensor,
    /// Group of each input, i32 `[K]`.
    pub g_idx: Option<RawTensor>,
}

impl Layer {
    /// Reads `<layer>.qweight`, `.qzeros`, `.scales` and, if it is there, `.g_idx`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            qweight: stored.part("qweight")?,
            qzeros: stored.part("qzeros")?,
            scales: stored.part("scales")?,
            g_idx: stored.optional("g_idx")?,
        })
    }

    /// Codes, zero points, scales and groups, each by its own.
    ///
    /// # Errors
    /// `InvalidArgument` for formats that do not exist; `ShapeMismatch`, `Unsupported` (an element type) and
    /// `Corruption` (a group that is not there) name the part.
    pub fn unpack(&self, format: Format) -> Result<Unpacked> {
        format.check()?;
        let fields = Fields::dense(format.bits);
        let bits = usize::from(format.bits);
        let [rows, outputs] = shape(&self.qweight, "qweight", &[DType::I32])?;
        let found = shape::<2>(&self.scales, "scales", &FLOATS)?;
        let groups = found[0];
        expect("scales", found, [groups, outputs])?;
        let inputs = rows.checked_mul(32).filter(|all| all % bits == 0).map(|all| all / bits);
        let Some(inputs) = inputs else {
            let what = format!("{rows} rows of words do not hold whole codes of {bits} bits");
            return Err(Error::shape(what).in_tensor("qweight"));
        };
        let width = outputs.checked_mul(bits).filter(|all| all % 32 == 0).map(|all| all / 32);
        let Some(width) = width else {
            let what = format!("zero points of {outputs} outputs do not fill whole words");
            return Err(Error::shape(what).in_tensor("qzeros"));
        };
        expect("qzeros", shape(&self.qzeros, "qzeros", &[DType::I32])?, [groups, width])?;
        let group_of = match (&self.g_idx, format.group) {
            (Some(index), _) => group_index(index, "g_idx", inputs, groups)?,
            (None, Some(group)) if inputs.div_ceil(group) == groups => runs(inputs, group),
            (None, Some(group)) => {
                let what = format!("{groups} groups, but {inputs} inputs in groups of {group}");
                return Err(Error::shape(what).in_tensor("scales"));
            }
            (None, None) => runs(inputs, group_length("scales", inputs, groups)?),
        };
        let stored = words(&self.qweight);
        let codes = Array2::from_shape_fn((outputs, inputs), |(n, k)| {
            fields.get(k, |word| stored[word * outputs + n])
        });
        let stored = words(&self.qzeros);
        let (add, most) = format.zeros();
        let zeros = Array2::from_shape_fn((outputs, groups), |(n, group)| {
            let zero = u16::from(fields.get(n, |word| stored[group * width + word])) + add;
            if zero > most { 0 } else { zero }
        });
        let scales = float_matrix(&self.scales, "scales")?.reversed_axes();
        let dtype = self.scales.dtype();
        Ok(Unpacked { codes, zeros, scales, dtype, group_of })
    }
}

/// What a layer holds, in the order of a weight `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpacked {
    /// Codes, `[N, K]`.
    pub codes: Array2<u8>,
    /// Zero points, `[N, G]`.
    pub zeros: Array2<u16>,
    /// Scales, `[N, G]`.
    pub scales: Array2<f32>,
    /// What scales are stored as.
    pub dtype: DType,
    /// The group of each input, K of them.
    pub group_of: Vec<u32>,
}

impl Unpacked {
    fn check(&self) -> Result<[usize; 3]> {
        let (outputs, inputs) = self.codes.dim();
        let groups = self.scales.ncols();
        expect("scales", [self.scales.nrows(), groups], [outputs, groups])?;
        let (rows, cols) = self.zeros.dim();
        expect("qzeros", [rows, cols], [outputs, groups])?;
        expect("g_idx", [self.group_of.len()], [inputs])?;
        match self.group_of.iter().find(|group| **group as usize >= groups) {
            None => Ok([outputs, inputs, groups]),
            Some(group) => {
                let what = format!("group {group}, of {groups} groups");
                Err(Error::invalid(what).in_tensor("g_idx"))
            }
        }
    }

    /// The weight `[N, K]`: `scale * (code - zero)` in f32, which is exact for scales of 16 bits, then rounded once to
    /// `dtype`. The official code computes in the type of the scales.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        self.check()?;
        Ok(Array2::from_shape_fn(self.codes.dim(), |(n, k)| {
            let at = [n, self.group_of[k] as usize];
            let steps = i32::from(self.codes[[n, k]]) - i32::from(self.zeros[at]);
            dtype.round(self.scales[at] * steps as f32)
        }))
    }

    /// The tensors of the layer as stored, bit for bit those of the official packer; `g_idx` is always there.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part, for codes and zero points out of range (which the official packer spills
    /// into their neighbours); `ShapeMismatch` if parts do not belong together, or outputs or inputs do not fill whole
    /// words.
    pub fn pack(&self, format: Format) -> Result<Layer> {
        format.check()?;
        let [outputs, inputs, groups] = self.check()?;
        let fields = Fields::dense(format.bits);
        let whole = |part: &str, count: usize| match count.checked_mul(format.bits.into()) {
            Some(bits) if bits % 32 == 0 => Ok(bits / 32),
            _ => {
                let what = format!("{count} codes of {} bits do not fill whole words", format.bits);
                Err(Error::shape(what).in_tensor(part))
            }
        };
        let (rows, width) = (whole("qweight", inputs)?, whole("qzeros", outputs)?);
        check_codes("qweight", &self.codes, format.bits)?;
        let mut qweight = vec![0; rows * outputs];
        for ((n, k), code) in self.codes.indexed_iter() {
            fields.put(k, *code, |word, bits| qweight[word * outputs + n] |= bits);
        }
        let (add, most) = format.zeros();
        let least = if format.version == Version::V1 { 1 } else { 0 };
        let mut qzeros = vec![0; groups * width];
        for ((n, group), zero) in self.zeros.indexed_iter() {
            if !(least..=most).contains(zero) {
                let what =
                    format!("zero point {zero} at [{n}, {group}]: allowed are {least} to {most}");
                return Err(Error::invalid(what).in_tensor("qzeros"));
            }
            let stored = zero.wrapping_sub(add) as u8;
            fields.put(n, stored, |word, bits| qzeros[group * width + word] |= bits);
        }
        Ok(Layer {
            qweight: store_words(&qweight, vec![rows, outputs])?,
            qzeros: store_words(&qzeros, vec![groups, width])?,
            scales: store_floats(&self.scales.t().to_owned(), self.dtype)?,
            g_idx: Some(store_words(&self.group_of, vec![inputs])?),
        })
    }
}
