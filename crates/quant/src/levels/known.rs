use tensorpress_tensor::node::{KnownLevels, LevelTable};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Result};

use super::Blockwise;
use crate::rounding::Codes;

/// A method of a known table of levels, [`Blockwise`] under a name of its own.
macro_rules! known_table {
    ($(#[$doc:meta])* $name:ident, $id:literal, $block:literal, $double_quant:literal, $about:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[non_exhaustive]
        pub struct $name {
            /// Consecutive weights of the flattened matrix that share a scale, 1 and more.
            #[doc = concat!("Default ", $block, ".")]
            pub block: usize,
            /// Whether scales are quantised in turn: 8-bit codes in blocks of 256, about their mean.
            #[doc = concat!("Default ", $double_quant, ".")]
            pub double_quant: bool,
            /// Whether scales are those of least squared error, in place of the largest magnitude; by feedback they are.
            /// Default false.
            pub search: bool,
            /// How weights get their codes. Default nearest.
            pub codes: Codes,
        }

        impl Default for $name {
            fn default() -> Self {
                let (block, double_quant) = ($block, $double_quant);
                Self { block, double_quant, search: false, codes: Codes::default() }
            }
        }

        impl $name {
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
                Blockwise { levels: KnownLevels::$name, block, double_quant, search, codes }
            }

            pub(super) fn stage() -> Row<WeightPart> {
                Row::method($id, $about, Self::default)
            }
        }

        impl Knobs for $name {
            fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
                let mut all = self.blockwise();
                all.knobs(keys)?;
                let Blockwise { block, double_quant, search, codes, .. } = all;
                *self = Self { block, double_quant, search, codes };
                Ok(())
            }
        }

        impl Method for $name {
            fn id(&self) -> &'static str {
                $id
            }

            fn needs(&self) -> Needs {
                self.codes.needs()
            }
        }

        impl Compress for $name {
            type Node = LevelTable;

            fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
                self.blockwise().compress_group(group)
            }
        }
    };
}

known_table!(
    /// 4-bit NormalFloat (QLoRA; Dettmers et al., 2023): levels at the quantiles of a normal distribution, scaled by the
    /// largest magnitude of each block. Needs no calibration.
    Nf4, "nf4", 64, true,
    "rounds to the 16 quantiles of a normal distribution; needs no calibration"
);

known_table!(
    /// 4-bit floats (bitsandbytes): sign, two bits of exponent and one of mantissa, scaled by the largest magnitude of each
    /// block. Needs no calibration.
    Fp4, "fp4", 64, true,
    "rounds to 4-bit floats; needs no calibration"
);

known_table!(
    /// 8-bit dynamic floats (Dettmers et al., 2022): each level has about as many exact digits as its size allows, scaled by
    /// the largest magnitude of each block. Needs no calibration.
    Dynamic8, "dynamic8", 256, false,
    "rounds to 256 dynamic floats; needs no calibration"
);
