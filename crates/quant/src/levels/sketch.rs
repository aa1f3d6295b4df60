use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Blocks, Child, LevelFormat, LevelTable, Mask, PackedPlane, Tables};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::scaled::{dense, stored, type_for};
use super::{check_float, optimal_levels};
use crate::rounding::{Codes, Filler, Grouped, Rule};

/// Sketches of SketchTune (Zhang et al., 2025): a table of levels for each row, or each group of it, by k-means where a
/// weight counts by what its rounding costs; columns are rounded one after another, and errors spread over those to come.
///
/// ```
/// use tensorpress_quant::Sketch;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Sketch::new(3, 32).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sketch {
    /// Bits of a code, 1 to 8: there are 2^bits levels. Default 4.
    pub bits: u8,
    /// Consecutive inputs of a row that share a table; 0 stands for whole rows. Default 0.
    pub group: usize,
    /// Stored type of levels; f32 in its place where it cannot hold them well. Default f16.
    pub table: DType,
    /// How weights get their codes. Default by feedback.
    pub codes: Codes,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { bits: 4, group: 0, table: DType::F16, codes: Codes::feedback() }
    }
}

impl Sketch {
    /// Tables of 2^bits levels for groups of `group` inputs (0: whole rows).
    #[must_use]
    pub fn new(bits: u8, group: usize) -> Self {
        Self { bits, group, ..Self::default() }
    }

    /// Sets the stored type of levels.
    #[must_use]
    pub fn with_table(mut self, table: DType) -> Self {
        self.table = table;
        self
    }

    /// Sets how weights get their codes.
    #[must_use]
    pub fn with_codes(mut self, codes: Codes) -> Self {
        self.codes = codes;
        self
    }

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<LevelTable> {
        let shape @ [rows, cols] = target.weight.dim().into();
        let dtype = type_for(target, self.table);
        let tables = Grouped::new(shape, self.group, Vec::new());
        let mut rule = OwnTables { tables, count: 1 << self.bits, dtype, mask: target.mask };
        let filled = filler.fill(target, &mut rule)?;
        let levels: Vec<f32> = rule.tables.by_rows().into_iter().flatten().collect();
        let size = rule.tables.size();
        let format = LevelFormat::new(rule.count, Blocks::Rows(size))?;
        // A table a row is what older readers know too.
        let (shared, count) = match size >= cols && cols > 0 {
            true => (Tables::Rows(1), rows),
            false => (Tables::Blocks, rows * cols.div_ceil(size)),
        };
        let format = format.with_tables(shared)?.without_scales();
        let levels = dense(&levels, [count, rule.count], Some(dtype))?;
        let codes = filled.as_slice().expect("standard layout");
        let codes = PackedPlane::pack(codes, rows, cols, self.bits)?;
        LevelTable::new(format, shape, Box::new(codes), vec![Child::Node(levels)])
    }
}

struct OwnTables<'m> {
    /// Ascending.
    tables: Grouped<Vec<f32>>,
    count: usize,
    dtype: DType,
    mask: Option<&'m Mask>,
}

impl Rule for OwnTables<'_> {
    fn group(&self) -> usize {
        self.tables.size()
    }

    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()> {
        let (count, dtype) = (self.count, self.dtype);
        self.tables.fit(weight, columns, (costs, self.mask), par, |w, costs| {
            // Errors may have been spread beyond f32, of weights near its end.
            let levels = optimal_levels(w, Some(costs), count).unwrap_or_else(|_| vec![0.0; count]);
            levels.into_iter().map(|level| stored(dtype, level)).collect()
        });
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        for (i, w) in w.iter().enumerate() {
            let table = self.tables.of(row, column + i);
            let above = table.partition_point(|level| level < w).min(table.len() - 1);
            let below = above.saturating_sub(1);
            let far = |at: usize| (f64::from(table[at]) - f64::from(*w)).abs();
            let at = if far(below) <= far(above) { below } else { above };
            (codes[i], values[i]) = (at as u8, table[at]);
        }
    }
}

impl Knobs for Sketch {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=8, "bits of a code")?;
        let about = "consecutive inputs that share a table of levels; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("table", &mut self.table, &types, "stored type of levels")?;
        self.codes.knobs(keys)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "sketch",
        "rounds to the best levels of each row, column by column with errors spread over the rest",
        Sketch::default,
    )
}

impl Method for Sketch {
    fn id(&self) -> &'static str {
        "sketch"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Sketch {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        if !(1..=8).contains(&self.bits) {
            return Err(Error::invalid(format!("bits = {}: allowed are 1 to 8", self.bits)));
        }
        check_float("table", self.table)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
