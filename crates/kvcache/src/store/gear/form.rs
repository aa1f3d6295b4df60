use serde::{Deserialize, Serialize};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, Result};

use super::GearCode;
use crate::stage::KvPart;
use crate::store::Axis;
use crate::store::int::Role;
use crate::store::own::{
    CodedForm, Place, check_bits, check_count, check_dim, exact_tail, half_of, row,
};

/// GEAR (Kang et al., 2024): X as Q + S + L, integers (keys by channel, values by token), the largest and smallest entries of
/// each vector, and factors of few directions for the rest of the error, in chunks of a buffer that is exact until it is full.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gear {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// The largest code is `bits² - 1`, as in the released code, and not `2^bits - 1`: the same for 2 and 4 bits; other bits
    /// take as much room as that code needs.
    pub released: bool,
    /// Tokens of the buffer, which are packed together.
    pub chunk: usize,
    /// Entries of a vector (tokens of keys, channels of values) that share a grid: all, where a vector has fewer.
    pub group: usize,
    /// Share of a vector's entries that is stored as it is, half of it the largest, half the smallest: rounded, at least one
    /// each, or none at 0.
    pub sparsity: f64,
    /// Entries at either end instead of that share.
    pub outliers: Option<usize>,
    /// Directions of the error's factors: without, and with no sparse entries, this is plain quantisation.
    pub rank: usize,
    /// Steps of power iteration.
    pub steps: usize,
    /// Where it starts.
    pub seed: u64,
    /// Newest tokens that are exact besides.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Default for Gear {
    /// 4 bits in groups of 64, buffers of 128 tokens, 2% of entries, rank 2 (the paper's for decoding).
    fn default() -> Self {
        Self {
            bits: 4,
            released: false,
            chunk: 128,
            group: 64,
            sparsity: 0.02,
            outliers: None,
            rank: 2,
            steps: 3,
            seed: 0,
            window: 0,
            margin: 32,
        }
    }
}

impl Gear {
    /// Sets the bits of a code.
    #[must_use]
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Sets the buffer's tokens and how many entries share a grid.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize, group: usize) -> Self {
        (self.chunk, self.group) = (tokens, group);
        self
    }

    /// Sets the share of sparse entries.
    #[must_use]
    pub fn with_sparsity(mut self, share: f64) -> Self {
        self.sparsity = share;
        self
    }

    /// Sets the number of directions.
    #[must_use]
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }
}

exact_tail!(Gear);

impl CodedForm for Gear {
    const ID: &'static str = "gear";
    type Code = GearCode;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        crate::factor::check("a residual's factors")?;
        check_bits("bits", self.bits, 2..=8)?;
        check_count("chunk", self.chunk, 1..=4096)?;
        check_dim(role, dim)?;
        check_count("steps", self.steps, 1..=64)?;
        check_count("rank", self.rank, 0..=self.chunk.min(dim))?;
        if !(0.0..=0.5).contains(&self.sparsity) {
            let share = self.sparsity;
            return Err(Error::invalid(format!("sparsity = {share}: allowed are 0 to 0.5")));
        }
        let len = if role == Role::Keys { self.chunk } else { dim };
        let group = self.group.min(len);
        if group == 0 || !len.is_multiple_of(group) {
            let what = if role == Role::Keys { "chunk" } else { role.width() };
            return Err(Error::invalid(format!("group = {group}: must divide {what} = {len}")));
        }
        let outliers = self.code((role, 0, dim)).outliers;
        check_count("outliers", outliers, 0..=len / 2)
    }

    /// Factors add up errors of a whole chunk.
    fn limit(&self) -> f32 {
        half_of(DType::F16) / 64.0
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    fn code(&self, (role, _, dim): Place) -> GearCode {
        let (axis, len) = match role {
            Role::Keys => (Axis::Channel, self.chunk),
            Role::Values => (Axis::Token, dim),
        };
        let most = if self.released { self.bits * self.bits - 1 } else { (1 << self.bits) - 1 };
        let share = ((len as f64 * self.sparsity / 2.0).round() as usize).max(1);
        let outliers = self.outliers.unwrap_or(if self.sparsity > 0.0 { share } else { 0 });
        let Self { chunk, rank, steps, seed, .. } = *self;
        let group = self.group.min(len);
        GearCode { dim, chunk, axis, group, most, outliers, rank, steps, seed, dtype: DType::F16 }
    }
}

impl Knobs for Gear {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=8, "bits of a code")?;
        keys.flag("released", &mut self.released, "the largest code is bits x bits - 1")?;
        keys.int("chunk", &mut self.chunk, 1..=4096, "tokens that are packed together")?;
        let about = "tokens of keys, channels of values that share a grid";
        keys.int("group", &mut self.group, 1..=4096, about)?;
        let about = "share of a vector's entries, at both ends, that stay as they are";
        keys.float("sparsity", &mut self.sparsity, 0.0..=0.5, about)?;
        let about = "so many at either end instead of a share";
        keys.optional("outliers", &mut self.outliers, 0..=2048, about)?;
        keys.int("rank", &mut self.rank, 0..=256, "directions of the error's factors")?;
        keys.int("steps", &mut self.steps, 1..=64, "steps of power iteration")?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "where it starts")?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact besides")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<Gear>(
        "holds integers, the ends of each vector, and few directions of what is still wrong",
    )
}
