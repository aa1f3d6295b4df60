use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, LevelFormat, LevelTable, Node, PackedPlane, Tables,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, Context, DType, Error, Group, Method, Result, Target, kernels,
};

use super::spec::wide_enough;
use crate::GroupedAffine;

/// BitMoD (Chen et al., 2025): small floats whose second zero is another number, the best of four for each group, under
/// scales of 8 bits. Needs no calibration.
///
/// ```
/// use tensorpress_quant::BitMod;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = BitMod::new(3, 32).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitMod {
    /// Bits of a code, 3 or 4. Default 4.
    pub bits: u8,
    /// Consecutive inputs of a row that share a scale and a number in place of the second zero; 0 stands for whole rows.
    /// Default 128.
    pub group: usize,
}

impl Default for BitMod {
    fn default() -> Self {
        Self { bits: 4, group: 128 }
    }
}

/// Floats of 3 and 4 bits over 8 (sign; 2 bits of exponent; at 4 bits one of mantissa), as positive numbers and the special
/// ones that take the place of the second zero: one within their range, which adds resolution, one past it.
const FLOATS: [(&[f32], [f32; 2]); 2] = [
    (&[0.125, 0.25, 0.5], [0.375, 0.75]),
    (&[0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75], [0.625, 1.0]),
];

/// Tables to choose from: each special number with either sign.
const TABLES: usize = 4;

/// The largest code of a scale.
const SCALES: f32 = 255.0;

impl BitMod {
    /// `bits` bits in groups of `group` inputs (0: whole rows).
    #[must_use]
    pub fn new(bits: u8, group: usize) -> Self {
        Self { bits, group }
    }

    fn check(&self) -> Result<()> {
        match self.bits {
            3 | 4 => Ok(()),
            bits => Err(Error::invalid(format!("bits = {bits}: allowed are 3 and 4"))),
        }
    }

    /// The tables, each ascending.
    fn tables(&self) -> [Vec<f32>; TABLES] {
        let (floats, [within, past]) = FLOATS[usize::from(self.bits == 4)];
        [within, -within, past, -past].map(|special| {
            let signed = floats.iter().flat_map(|level| [*level, -level]);
            let mut levels: Vec<f32> = signed.chain([0.0, special]).collect();
            levels.sort_by(f32::total_cmp);
            levels
        })
    }

    /// Rounds one matrix.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument` for bits other than 3 and 4.
    pub fn round(&self, target: &Target<'_>, par: Par) -> Result<LevelTable> {
        self.check()?;
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let weight = weight.as_slice().expect("standard layout");
        let size = if self.group == 0 { cols.max(1) } else { self.group.min(cols.max(1)) };
        let groups = cols.div_ceil(size);
        let tables = self.tables().map(Table::new);
        let unit = wide_enough(DType::F16, kernels::abs_max(weight) / SCALES);
        let mut codes = vec![0u8; rows * cols];
        let mut chosen = vec![0u8; rows * groups];
        let mut scales = vec![0u8; rows * groups];
        let mut units = vec![0f32; rows];
        let row = |((((w, codes), chosen), scales), row_unit): Borrowed<'_>| {
            let best: Vec<(usize, f32)> = w.chunks(size).map(|w| best(&tables, w)).collect();
            let most = best.iter().fold(0f32, |most, best| most.max(best.1));
            // Not 0, whatever the type: then the largest scale has a code.
            let least = if unit == DType::F16 { unit.round(6e-8) } else { f32::MIN_POSITIVE };
            *row_unit = if most > 0.0 { unit.round(most / SCALES).max(least) } else { least };
            let pieces = w.chunks(size).zip(codes.chunks_mut(size)).zip(best);
            for ((i, scale), ((w, codes), (table, exact))) in
                scales.iter_mut().enumerate().zip(pieces)
            {
                chosen[i] = table as u8;
                let code = (exact / *row_unit).round_ties_even();
                *scale = if exact > 0.0 { code.clamp(1.0, SCALES) as u8 } else { 0 };
                let stored = f32::from(*scale) * *row_unit;
                for (w, code) in w.iter().zip(codes) {
                    *code = tables[table].code(*w, stored);
                }
            }
        };
        if rows * cols > 0 {
            let weights = weight.chunks(cols).zip(codes.chunks_mut(cols));
            let beside = weights.zip(chosen.chunks_mut(groups)).zip(scales.chunks_mut(groups));
            par.for_each(beside.zip(units.iter_mut()), row);
        }
        units.truncate(rows * groups.min(1));
        let scales = GroupedAffine::from_codes(
            [rows, groups],
            8,
            groups.max(1),
            &scales,
            units,
            unit,
            &[0u8],
        )?;
        let format = LevelFormat::new(1 << self.bits, Blocks::Rows(size))?;
        let format = format.with_tables(Tables::Chosen(TABLES))?;
        let levels = tables.iter().flat_map(|table| &table.levels).copied().collect();
        let levels = Array2::from_shape_vec((TABLES, 1 << self.bits), levels).expect("tables");
        let levels = Dense::from_f32(levels.view(), DType::F16)?;
        let chosen = PackedPlane::pack(&chosen, rows, groups, 2)?;
        let codes = PackedPlane::pack(&codes, rows, cols, self.bits)?;
        let beside = vec![
            Child::Node(levels.boxed()),
            Child::Node(scales.boxed()),
            Child::Plane(Box::new(chosen)),
        ];
        LevelTable::new(format, [rows, cols], Box::new(codes), beside).in_tensor(target.name)
    }
}

/// A row: weights, codes, tables and scales of its groups, and the unit of its scales.
type Borrowed<'a> = ((((&'a [f32], &'a mut [u8]), &'a mut [u8]), &'a mut [u8]), &'a mut f32);

/// Ascending levels, and how a weight finds the nearest.
struct Table {
    levels: Vec<f32>,
    middles: Vec<f32>,
    most: f32,
}

impl Table {
    fn new(levels: Vec<f32>) -> Self {
        let middles = levels.windows(2).map(|two| (two[0] + two[1]) * 0.5).collect();
        let most = kernels::abs_max(&levels);
        Self { levels, middles, most }
    }

    /// The nearest level, the lower of two.
    fn code(&self, w: f32, scale: f32) -> u8 {
        let value = if scale > 0.0 { w / scale } else { 0.0 };
        self.middles.partition_point(|middle| *middle < value) as u8
    }

    fn error(&self, group: &[f32], scale: f32) -> f64 {
        let one = |w: &f32| {
            let level = self.levels[usize::from(self.code(*w, scale))];
            f64::from(w - level * scale).powi(2)
        };
        group.iter().map(one).sum()
    }
}

/// The table that loses least of a group, the first of equals, and its scale.
fn best(tables: &[Table; TABLES], group: &[f32]) -> (usize, f32) {
    let largest = kernels::abs_max(group);
    let mut best = (f64::INFINITY, 0, 0.0);
    for (i, table) in tables.iter().enumerate() {
        // The largest weight is a level, in f32's range.
        let scale = (largest / table.most).min(f32::MAX);
        let error = table.error(group, scale);
        if error < best.0 {
            best = (error, i, scale);
        }
    }
    (best.1, best.2)
}

impl Knobs for BitMod {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.one_of("bits", &mut self.bits, &[3, 4], "bits of a code")?;
        let about = "consecutive inputs that share a scale and a table; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "bitmod",
        "rounds to small floats with a number of each group's own; needs no calibration",
        BitMod::default,
    )
}

impl Method for BitMod {
    fn id(&self) -> &'static str {
        "bitmod"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for BitMod {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        group.each(|t| self.round(t, group.par))
    }
}
