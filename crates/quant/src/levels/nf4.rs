use tensorpress_tensor::node::{KnownLevels, LevelTable};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Result};

use super::Blockwise;
use crate::rounding::Codes;

/// 4-bit NormalFloat (QLoRA; Dettmers et al., 2023): levels at the quantiles of a normal distribution, scaled by the
/// largest magnitude of each block. Needs no calibration.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Nf4 {
    /// Consecutive weights of the flattened matrix that share a scale, 1 and more. Default 64.
    pub block: usize,
    /// Whether scales are quantised in turn: 8-bit codes in blocks of 256, about their mean. Default true.
    pub double_quant: bool,
    /// Whether scales are those of least squared error, in place of the largest magnitude; by feedback they are. Default
    /// false.
    pub search: bool,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

impl Default for Nf4 {
    fn default() -> Self {
        let codes = Codes::default();
        Self { block: 64, double_quant: true, search: false, codes }
    }
}

impl Nf4 {
    /// Sets how many weights share a scale.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// Sets whether scales are quantised in turn.
    #[must_use]
    pub fn with_double_quant(mut self, double_quant: bool) -> Self {
        self.double_quant = double_quant;
        self
    }

    /// Sets whether scales are those of least squared error.
    #[must_use]
    pub fn with_search(mut self, search: bool) -> Self {
        self.search = search;
        self
    }

    /// Sets how weights get their codes.
    #[must_use]
    pub fn with_codes(mut self, codes: Codes) -> Self {
        self.codes = codes;
        self
    }

    fn blockwise(self) -> Blockwise {
        let Self { block, double_quant, search, codes } = self;
        Blockwise { levels: KnownLevels::Nf4, block, double_quant, search, codes }
    }
}

impl Knobs for Nf4 {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let mut all = self.blockwise();
        all.knobs(keys)?;
        let Blockwise { block, double_quant, search, codes, .. } = all;
        *self = Self { block, double_quant, search, codes };
        Ok(())
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "nf4",
        "rounds to the 16 quantiles of a normal distribution; needs no calibration",
        Nf4::default,
    )
}

impl Method for Nf4 {
    fn id(&self) -> &'static str {
        "nf4"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Nf4 {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        self.blockwise().compress_group(group)
    }
}
