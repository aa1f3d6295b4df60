use serde::{Deserialize, Serialize};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Result};

use super::{Norm, Separable};
use crate::stage::KvPart;
use crate::store::Axis;
use crate::store::int::Role;
use crate::store::own::{
    CodedForm, Place, check_bits, check_count, check_dim, exact_tail, half_of, row,
};

/// ZipCache's integers (He et al., 2024): chunks of tokens with a grid for each channel of the keys, and for each token of the
/// values once every channel is divided by a norm of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ZipCache {
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Tokens that are packed together, and until then exact.
    pub chunk: usize,
    /// Newest tokens that are exact besides.
    pub window: usize,
    /// What has a grid, of keys.
    pub keys: Axis,
    /// What has a grid, of values.
    pub values: Axis,
    /// What divides the vectors that cross those of the keys' grids.
    pub key_norm: Norm,
    /// What divides the vectors that cross those of the values' grids.
    pub value_norm: Norm,
    /// Type of scales, minima and norms.
    pub scales: DType,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Default for ZipCache {
    /// 4 bits, chunks of 64 tokens, the paper's grids and norms, f16 scales.
    fn default() -> Self {
        Self {
            bits: 4,
            chunk: 64,
            window: 0,
            keys: Axis::Channel,
            values: Axis::Token,
            key_norm: Norm::One,
            value_norm: Norm::SqrtMax,
            scales: DType::F16,
            margin: 32,
        }
    }
}

impl ZipCache {
    /// Sets the bits of a code.
    #[must_use]
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Sets how many tokens are packed together.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens;
        self
    }

    /// Sets what has a grid and what divides the rest, for values: by channel with [`Norm::Mean`] of tokens is the released
    /// code's way.
    #[must_use]
    pub fn with_values(mut self, axis: Axis, norm: Norm) -> Self {
        (self.values, self.value_norm) = (axis, norm);
        self
    }

    /// Sets the same for keys.
    #[must_use]
    pub fn with_keys(mut self, axis: Axis, norm: Norm) -> Self {
        (self.keys, self.key_norm) = (axis, norm);
        self
    }
}

exact_tail!(ZipCache);

impl CodedForm for ZipCache {
    const ID: &'static str = "zipcache";
    type Code = Separable;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        check_bits("bits", self.bits, 1..=8)?;
        check_count("chunk", self.chunk, 1..=4096)?;
        super::super::form::check_dtype("scales", self.scales)?;
        check_dim(role, dim)
    }

    fn limit(&self) -> f32 {
        half_of(self.scales)
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    fn code(&self, (role, _, dim): Place) -> Separable {
        let (axis, norm) = match role {
            Role::Keys => (self.keys, self.key_norm),
            Role::Values => (self.values, self.value_norm),
        };
        Separable { dim, chunk: self.chunk, bits: self.bits, axis, norm, dtype: self.scales }
    }
}

impl Knobs for ZipCache {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let norms = [
            ("none", Norm::One),
            ("sqrt_max", Norm::SqrtMax),
            ("sqrt_mean", Norm::SqrtMean),
            ("mean", Norm::Mean),
        ];
        let axes = [("channel", Axis::Channel), ("token", Axis::Token)];
        keys.int("bits", &mut self.bits, 1..=8, "bits of a code")?;
        keys.int("chunk", &mut self.chunk, 1..=4096, "tokens that are packed together")?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact besides")?;
        keys.choice("keys", &mut self.keys, &axes, "what has a grid, of keys")?;
        keys.choice("values", &mut self.values, &axes, "what has a grid, of values")?;
        let about = "what divides the vectors across those of the grids, of keys";
        keys.choice("key_norm", &mut self.key_norm, &norms, about)?;
        let about = "the same of values; `mean` with values=channel is the released code's";
        keys.choice("value_norm", &mut self.value_norm, &norms, about)?;
        let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
        keys.choice("scales", &mut self.scales, &types, "type of scales, minima and norms")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<ZipCache>("holds integers in chunks, values by token once their channels are made alike")
}
