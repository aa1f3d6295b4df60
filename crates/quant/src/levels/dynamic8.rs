use tensorpress_tensor::node::{KnownLevels, LevelTable};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Result};

use super::Blockwise;
use crate::rounding::Codes;

/// 8-bit dynamic floats (Dettmers et al., 2022): each level has about as many exact digits as its size allows, scaled by
/// the largest magnitude of each block. Needs no calibration.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Dynamic8 {
    /// Consecutive weights of the flattened matrix that share a scale, 1 and more. Default 256.
    pub block: usize,
    /// Whether scales are quantised in turn: 8-bit codes in blocks of 256, about their mean. Default false.
    pub double_quant: bool,
    /// Whether scales are those of least squared error, in place of the largest magnitude; by feedback they are. Default
    /// false.
    pub search: bool,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

impl Default for Dynamic8 {
    fn default() -> Self {
        let codes = Codes::default();
        Self { block: 256, double_quant: false, search: false, codes }
    }
}

impl Dynamic8 {
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
        Blockwise { levels: KnownLevels::Dynamic8, block, double_quant, search, codes }
    }
}

impl Knobs for Dynamic8 {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let mut all = self.blockwise();
        all.knobs(keys)?;
        let Blockwise { block, double_quant, search, codes, .. } = all;
        *self = Self { block, double_quant, search, codes };
        Ok(())
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method("dynamic8", "rounds to 256 dynamic floats; needs no calibration", Dynamic8::default)
}

impl Method for Dynamic8 {
    fn id(&self) -> &'static str {
        "dynamic8"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Dynamic8 {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        self.blockwise().compress_group(group)
    }
}
