use tensorpress_tensor::node::KnownLevels;
use tensorpress_tensor::{DType, Error, Result};

use super::mean::mean;
use super::nearest::Nearest;

/// Blocks of statistics that are codes themselves.
const NESTED_BLOCK: usize = 256;

/// A flattened tensor as codes of a table of levels, in blocks that are scaled by their largest magnitude.
#[derive(Debug, Clone, PartialEq)]
pub struct Blockwise {
    /// The value of each code, over the largest magnitude.
    pub levels: Vec<f32>,
    /// A code for each element.
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Statistics,
    /// Elements of a block, 1 and more.
    pub block: usize,
}

/// Largest magnitudes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Statistics {
    /// As they are.
    Plain(Vec<f32>),
    /// As codes.
    Nested {
        /// What they are, less the offset.
        codes: Box<Blockwise>,
        /// What is added to each.
        offset: f32,
    },
}

impl Statistics {
    /// How many there are.
    fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Nested { codes, .. } => codes.codes.len(),
        }
    }

    /// Each of them.
    ///
    /// # Errors
    /// Those of [`Blockwise::decode`].
    pub fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Plain(values) => Ok(values.clone()),
            Self::Nested { codes, offset } => {
                Ok(codes.decode(DType::F32)?.into_iter().map(|value| value + offset).collect())
            }
        }
    }
}

impl Blockwise {
    /// Codes of the nearest levels, in blocks of `block` elements (officially 64 to 4096, powers of two); `nested`:
    /// with largest magnitudes that are codes in turn. They are bit for bit those of the official code for the CPU.
    ///
    /// # Errors
    /// `InvalidArgument` for blocks of 0; `Numerical`, with the place of the first, for NaN and infinity.
    pub fn encode(table: KnownLevels, values: &[f32], block: usize, nested: bool) -> Result<Self> {
        if block == 0 {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::new(
                tensorpress_tensor::ErrorKind::Numerical,
                format!("{} at element {at}", values[at]),
            ));
        }
        let nearest = Nearest::new(table);
        let mut codes = Vec::with_capacity(values.len());
        let mut absmax = Vec::with_capacity(values.len().div_ceil(block));
        for block in values.chunks(block) {
            let most = block.iter().fold(0f32, |most, value| most.max(value.abs()));
            let scaled = |value: &f32| if most > 0.0 { value / most } else { 0.0 };
            codes.extend(block.iter().map(|value| nearest.code(scaled(value))));
            absmax.push(most);
        }
        let absmax = if nested {
            let offset = mean(&absmax);
            let rest: Vec<f32> = absmax.iter().map(|value| value - offset).collect();
            let codes = Self::encode(KnownLevels::Dynamic8, &rest, NESTED_BLOCK, false)?;
            Statistics::Nested { codes: Box::new(codes), offset }
        } else {
            Statistics::Plain(absmax)
        };
        Ok(Self { levels: table.levels().to_vec(), codes, absmax, block })
    }

    /// Each element: `level * absmax` in f32, rounded once to `dtype`. (The second zero of FP4 is plus zero, as its
    /// table has it; of the official code some paths give minus zero.)
    ///
    /// # Errors
    /// `InvalidArgument` for blocks of 0 and codes that have no level; `ShapeMismatch` if there is not one largest
    /// magnitude for each block.
    pub fn decode(&self, dtype: DType) -> Result<Vec<f32>> {
        self.check()?;
        let absmax = self.absmax.values()?;
        let blocks = self.codes.chunks(self.block).zip(absmax);
        let decoded = blocks.flat_map(|(codes, absmax)| {
            codes.iter().map(move |code| dtype.round(self.levels[usize::from(*code)] * absmax))
        });
        Ok(decoded.collect())
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.block == 0 {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        let (blocks, found) = (self.codes.len().div_ceil(self.block), self.absmax.len());
        if blocks != found {
            let what = format!("{found} largest magnitudes of {blocks} blocks");
            return Err(Error::shape(what).in_tensor("absmax"));
        }
        let levels = self.levels.len();
        match self.codes.iter().position(|code| usize::from(*code) >= levels) {
            None => Ok(()),
            Some(at) => {
                let what = format!("code {} at element {at}, of {levels} levels", self.codes[at]);
                Err(Error::invalid(what).in_tensor("weight"))
            }
        }
    }
}
