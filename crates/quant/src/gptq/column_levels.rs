use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Mask, Scale, Side, Transformed};
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes, Prepared};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Result, Target,
    Usable, kernels,
};

use crate::GroupedAffine;

/// GPTQ with a number of levels for each column, as an allocation of bits gives them (BAQ: Zhang et al., *BAQ: Efficient Bit
/// Allocation Quantization for Large Language Models*, 2025); log2 of it need not be whole, and a column of one level is 0.
///
/// The levels of a column lie evenly over the range of each row with zero: steps are (max - min) / (levels - 1), and 0 is a
/// level. Codes are kept from 0 in 8 bits, a scale a row and one a column, and are to be entropy-coded: columns of fewer
/// levels then take fewer bits.
///
/// Never fails on its statistics: where they cannot be used each weight goes to the nearest level, and results say so.
///
/// ```
/// use tensorpress_quant::ColumnLevels;
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, node::decode, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 3), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 3), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = ColumnLevels::new([1, 6, 12]).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert!(decode(&made.node)?.column(0).iter().all(|w| *w == 0.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ColumnLevels {
    /// Levels of each column, 1 to 128.
    pub levels: Arc<[u32]>,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
    /// Columns between two updates of the rest of the matrix. Default 128.
    pub block: usize,
}

impl ColumnLevels {
    /// The most levels of a column: codes lie up to 127 on either side of 0.
    pub const MOST: u32 = 128;

    /// So many levels for each column.
    #[must_use]
    pub fn new(levels: impl Into<Arc<[u32]>>) -> Self {
        Self { levels: levels.into(), damp: 0.01, block: 128 }
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets the columns between two updates of the rest.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    fn check(&self, cols: usize) -> Result<()> {
        if self.levels.len() != cols {
            let message = format!("levels of {} columns for {cols}", self.levels.len());
            return Err(Error::shape(message));
        }
        let allowed = 1..=Self::MOST;
        if let Some(levels) = self.levels.iter().find(|levels| !allowed.contains(levels)) {
            return Err(Error::invalid(format!("{levels} levels: allowed are 1 to 128")));
        }
        if !(self.damp.is_finite() && self.damp >= 0.0) {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        Ok(())
    }

    fn quantize(&self, target: &Target<'_>, prepared: &Prepared, par: Par) -> Result<Transformed> {
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let mut ranges = vec![(0.0, 1.0); rows.next_multiple_of(LANES)];
        for (row, range) in weight.rows().into_iter().zip(&mut ranges) {
            let (low, high) = kernels::minmax(row.as_slice().expect("standard layout"));
            let (low, high) = (low.min(0.0), high.max(0.0));
            let width = (high - low).clamp(f32::MIN_POSITIVE, f32::MAX);
            *range = (low, width);
        }
        let steps: Vec<f32> =
            self.levels.iter().map(|levels| levels.max(&2) - 1).map(|n| n as f32).collect();
        let mut weight = weight.into_owned();
        prepared.dead.iter().for_each(|dead| weight.column_mut(*dead).fill(0.0));
        let mut rule =
            Rule { ranges, levels: &self.levels, steps: &steps, mask: target.mask, rows };
        let swept = prepared.sweep(target, weight, self.block, &mut rule, par)?;
        let widths = rule.ranges[..rows].iter().map(|(_, width)| *width).collect();
        let codes = swept.codes.as_slice().expect("standard layout");
        let shape = [rows, cols];
        let node =
            GroupedAffine::from_codes(shape, 8, cols.max(1), codes, widths, DType::F32, &[FROM])?;
        let columns = Arc::new(Scale::new(steps.iter().map(|n| 1.0 / n).collect(), DType::F32)?);
        Transformed::new(Side::In, columns, Box::new(node))
    }
}

/// The stored code of 0.
const FROM: u8 = 128;

struct Rule<'a> {
    /// Lower end and width of each row's range, padded to whole tiles.
    ranges: Vec<(f32, f32)>,
    levels: &'a [u32],
    /// Steps of each column's range.
    steps: &'a [f32],
    mask: Option<&'a Mask>,
    rows: usize,
}

impl ColumnRule for Rule<'_> {
    type Tile = ();

    fn begin_block(
        &mut self,
        _: ArrayView2<'_, f32>,
        _: Range<usize>,
        _: &[f32],
        _: Par,
    ) -> Result<()> {
        Ok(())
    }

    fn decide(
        &self,
        (): &mut (),
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        let (levels, steps) = (self.levels[column], self.steps[column]);
        for lane in 0..LANES {
            let (low, width) = self.ranges[row + lane];
            let kept = row + lane < self.rows
                && self.mask.is_none_or(|mask| mask.keeps(row + lane, column));
            let code = match levels > 1 && kept {
                true => {
                    let step = width / steps;
                    let zero = (-low / step).round_ties_even();
                    (ahead[0][lane] / step).round_ties_even().clamp(-zero, steps - zero)
                }
                false => 0.0,
            };
            decision.code[lane] = (code + f32::from(FROM)) as u8;
            // As the node decodes it.
            decision.value[lane] = width * code * (1.0 / steps);
        }
    }
}

impl Method for ColumnLevels {
    fn id(&self) -> &'static str {
        "column_levels"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }
}

impl Compress for ColumnLevels {
    type Node = Transformed;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<Transformed>> {
        let cols = group.channels()?;
        self.check(cols)?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let prepared = match Prepared::new(&mut group, f64::from(self.damp), false)? {
            Usable::Yes(prepared) => prepared,
            Usable::No(reason) => {
                Prepared::identity(cols, format!("{reason}: rounded to nearest instead"))
            }
        };
        let layers = group.targets.iter().map(|target| {
            let node = self.quantize(target, &prepared, group.par).in_tensor(target.name)?;
            Ok(Compressed::new(node).with_fallback(prepared.note.clone()))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
