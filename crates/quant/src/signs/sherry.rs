use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Mask, Masked, Node};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::signs;
use crate::levels::check_float;
use crate::levels::scaled::{stored, type_for};
use crate::rounding::{Codes, Filler, Grouped, Rule};

/// Sherry (Huang et al., 2026): of every four consecutive inputs the weight of least magnitude becomes 0, the others their
/// signs under the scale of their group. 4 places for the zero and 2^3 signs are 32 states: 5 bits for 4 weights.
///
/// A node is signs under a mask of 3 of 4, which takes 2 of those bits; where 4 does not divide the inputs, the last ones of
/// a row all stay, and the mask takes a bit a weight. Refuses a mask of its own.
///
/// ```
/// use tensorpress_quant::Sherry;
/// use tensorpress_tensor::{Compress, ndarray::array, node::decode, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = array![[2.0, -1.0, 0.5, -3.0]];
/// let made = Sherry::default().compress(weight.view(), &Calibration::none(4))?;
/// assert_eq!(decode(&made.node)?, array![[2.0, -2.0, 0.0, -2.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sherry {
    /// Consecutive inputs of a row that share a scale, a multiple of 4; 0 stands for whole rows. Default 128.
    pub group: usize,
    /// Stored type of scales; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

/// Weights of a block, of which one is 0.
const BLOCK: usize = 4;

impl Default for Sherry {
    fn default() -> Self {
        Self { group: 128, scale: DType::F16, codes: Codes::default() }
    }
}

impl Sherry {
    /// Scales for groups of `group` inputs (0: whole rows).
    #[must_use]
    pub fn new(group: usize) -> Self {
        Self { group, ..Self::default() }
    }

    /// Sets the stored type of scales.
    #[must_use]
    pub fn with_scale(mut self, scale: DType) -> Self {
        self.scale = scale;
        self
    }

    /// Sets how weights get their codes.
    #[must_use]
    pub fn with_codes(mut self, codes: Codes) -> Self {
        self.codes = codes;
        self
    }

    fn check_group(&self) -> Result<()> {
        match self.group % BLOCK {
            0 => Ok(()),
            _ => Err(Error::invalid(format!("group = {}: allowed are multiples of 4", self.group))),
        }
    }

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<Masked> {
        if target.mask.is_some() {
            return Err(Error::unsupported("blocks of a matrix of which only a support is kept"));
        }
        // Whole rows that are no whole blocks are one group all the same, and cut nowhere.
        let dtype = type_for(target, self.scale);
        let scales = Grouped::new(target.weight.dim().into(), self.group, 0.0);
        let mut rule = Ternary { scales, dtype };
        let filled = filler.fill(target, &mut rule)?;
        let mask = Mask::from_bools(filled.mapv(|code| code != DROPPED).view());
        let plus = filled.mapv(|code| u8::from(code == PLUS));
        let node = signs(&plus, rule.scales.size(), &rule.scales.by_rows(), dtype)?;
        Masked::new(mask, node.boxed())
    }
}

/// Codes of a sweep.
const MINUS: u8 = 0;
const PLUS: u8 = 1;
const DROPPED: u8 = 2;

struct Ternary {
    scales: Grouped<f32>,
    dtype: DType,
}

/// The place of the first of the least magnitudes of a whole block.
fn least(block: &[f32]) -> Option<usize> {
    let order = |a: &usize, b: &usize| block[*a].abs().total_cmp(&block[*b].abs());
    if block.len() == BLOCK { (0..BLOCK).min_by(order) } else { None }
}

impl Rule for Ternary {
    fn width(&self) -> usize {
        BLOCK
    }

    fn group(&self) -> usize {
        self.scales.size().next_multiple_of(BLOCK)
    }

    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()> {
        let dtype = self.dtype;
        self.scales.fit(weight, columns, (costs, None), par, |w, costs| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for (w, costs) in w.chunks(BLOCK).zip(costs.chunks(BLOCK)) {
                let least = least(w);
                for i in (0..w.len()).filter(|i| Some(*i) != least) {
                    sum += f64::from(costs[i]) * f64::from(w[i].abs());
                    weights += f64::from(costs[i]);
                }
            }
            stored(dtype, if weights > 0.0 { (sum / weights) as f32 } else { 0.0 })
        });
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        let scale = *self.scales.of(row, column);
        let least = least(w);
        for (i, w) in w.iter().enumerate() {
            (codes[i], values[i]) = match *w {
                _ if Some(i) == least => (DROPPED, 0.0),
                w if w < 0.0 => (MINUS, -scale),
                _ => (PLUS, scale),
            };
        }
    }
}

impl Knobs for Sherry {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "consecutive inputs that share a scale, a multiple of 4; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")?;
        self.codes.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        self.check_group()
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "sherry",
        "keeps the signs of three weights of four, the least is 0: 5 bits for 4 weights",
        Sherry::default,
    )
}

impl Method for Sherry {
    fn id(&self) -> &'static str {
        "sherry"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl Compress for Sherry {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        self.check_group()?;
        check_float("scale", self.scale)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
