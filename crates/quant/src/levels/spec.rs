use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{
    Blocks, Child, Dense, LevelFormat, LevelTable, Mask, Node, PackedPlane, Tables,
};
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{Context, DType, Error, Result, Target, kernels};

use super::optimal_levels;

/// Tables of levels that are fitted to the weights, without scales: how many levels, and which rows share a table.
///
/// ```
/// use tensorpress_quant::LevelSpec;
/// use tensorpress_tensor::{Target, linalg::Par, ndarray::array, node::decode};
///
/// let weight = array![[1.0, 1.5, -8.0, 1.5], [0.25, 0.25, 0.5, 0.25]];
/// let table = LevelSpec::new(2).fit(&Target::new("w", weight.view()), None, Par::Seq)?;
/// assert_eq!(decode(&table)?, weight);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LevelSpec {
    /// Bits of a code, 1 to 8: there are 2^bits levels. Default 4.
    pub bits: u8,
    /// Consecutive rows that share a table; 0 stands for all. Default 1.
    pub rows: usize,
    /// Stored type of levels; f32 in its place where it cannot hold them well. Default f16.
    pub table: DType,
}

impl Default for LevelSpec {
    fn default() -> Self {
        Self { bits: 4, rows: 1, table: DType::F16 }
    }
}

impl Knobs for LevelSpec {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=8, "bits of a code")?;
        let about = "consecutive outputs that share a table of levels; 0: all";
        keys.int("rows", &mut self.rows, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("table", &mut self.table, &types, "stored type of levels")
    }
}

impl LevelSpec {
    /// A table of 2^bits levels for each row.
    #[must_use]
    pub fn new(bits: u8) -> Self {
        Self { bits, ..Self::default() }
    }

    /// Sets how many rows share a table; 0 stands for all.
    #[must_use]
    pub fn with_rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// Sets the stored type of levels.
    #[must_use]
    pub fn with_table(mut self, table: DType) -> Self {
        self.table = table;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(&self) -> Result<()> {
        if !(1..=8).contains(&self.bits) {
            return Err(Error::invalid(format!("bits = {}: allowed are 1 to 8", self.bits)));
        }
        if !self.table.is_float() {
            let message = format!("table = {:?}: allowed are f16, bf16 and f32", self.table);
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    /// The best tables for the weights of a matrix that may be kept, each of which counts by its entry of `importance`
    /// `[out, in]` ([`optimal_levels`]); every weight then becomes the nearest level as it is stored, the lower of two.
    ///
    /// # Errors
    /// `Numerical` for weights that are not finite and importance that is not, or negative, `InvalidArgument`,
    /// `ShapeMismatch`; all name the tensor.
    pub fn fit(
        &self,
        target: &Target<'_>,
        importance: Option<ArrayView2<'_, f32>>,
        par: Par,
    ) -> Result<LevelTable> {
        if let Some(importance) = importance {
            check_importance(importance, target).in_tensor(target.name)?;
        }
        self.fit_weighted(target, importance, par, |values, importance, count| {
            optimal_levels(values, importance, count).expect("all was checked")
        })
    }

    /// Tables of the levels, ascending, that `solve` finds for the weights of a band that may be kept and their number.
    pub(super) fn fit_by(
        &self,
        target: &Target<'_>,
        par: Par,
        solve: impl Fn(&[f32], Option<&[f32]>, usize) -> Vec<f32> + Sync,
    ) -> Result<LevelTable> {
        self.fit_weighted(target, None, par, solve)
    }

    fn fit_weighted(
        &self,
        target: &Target<'_>,
        importance: Option<ArrayView2<'_, f32>>,
        par: Par,
        solve: impl Fn(&[f32], Option<&[f32]>, usize) -> Vec<f32> + Sync,
    ) -> Result<LevelTable> {
        self.check()?;
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let weight = weight.as_slice().expect("standard layout");
        let dtype = wide_enough(self.table, kernels::abs_max(weight));
        let each = if self.rows == 0 { rows.max(1) } else { self.rows.min(rows.max(1)) };
        let count = 1usize << self.bits;
        let mut tables = vec![0f32; rows.div_ceil(each) * count];
        let mut codes = vec![0u8; rows * cols];
        let fit = |(at, (table, codes)): (usize, (&mut [f32], &mut [u8]))| {
            let first = at * each;
            let band = first..rows.min(first + each);
            let values = &weight[band.start * cols..band.end * cols];
            let kept = Kept { mask: target.mask, importance, first, cols };
            let levels = kept.levels(values, band.len(), |v, i| solve(v, i, count));
            table.iter_mut().zip(levels).for_each(|(to, level)| *to = dtype.round(level));
            round(values, table, codes);
        };
        if rows * cols > 0 {
            let tables = tables.chunks_mut(count).zip(codes.chunks_mut(each * cols));
            par.for_each(tables.enumerate(), fit);
        }
        let shared = if each >= rows { Tables::One } else { Tables::Rows(each) };
        let format = LevelFormat::new(count, Blocks::Rows(cols.max(1)))?;
        let format = format.with_tables(shared)?.without_scales();
        // A matrix without rows has a table all the same, if it is the one of all.
        let needed = shared.count(rows, rows);
        tables.resize(needed * count, 0.0);
        let tables = Array2::from_shape_vec((needed, count), tables);
        let levels = Dense::from_f32(tables.expect("sized").view(), dtype)?;
        let codes = PackedPlane::pack(&codes, rows, cols, self.bits)?;
        let levels = vec![Child::Node(levels.boxed())];
        LevelTable::new(format, [rows, cols], Box::new(codes), levels).in_tensor(target.name)
    }
}

fn check_importance(importance: ArrayView2<'_, f32>, target: &Target<'_>) -> Result<()> {
    let (got, wanted) = (importance.dim(), target.weight.dim());
    if got != wanted {
        return Err(Error::shape(format!("importance {got:?} of a matrix {wanted:?}")));
    }
    let bad = |v: &f32| !v.is_finite() || *v < 0.0;
    match importance.indexed_iter().find(|(_, v)| bad(v)) {
        None => Ok(()),
        Some(((r, c), v)) => Err(Error::numerical(format!("importance [{r}, {c}] is {v}"))),
    }
}

/// What is fitted of a band of rows.
struct Kept<'m, 'i> {
    mask: Option<&'m Mask>,
    importance: Option<ArrayView2<'i, f32>>,
    first: usize,
    cols: usize,
}

impl Kept<'_, '_> {
    fn levels(
        &self,
        values: &[f32],
        rows: usize,
        solve: impl Fn(&[f32], Option<&[f32]>) -> Vec<f32>,
    ) -> Vec<f32> {
        let band = self.first..self.first + rows;
        let importance = self.importance.as_ref();
        let mut importance: Option<Vec<f32>> =
            importance.map(|all| all.slice(s![band, ..]).iter().copied().collect());
        let Some(mask) = self.mask else {
            return solve(values, importance.as_deref());
        };
        let keeps = |i: &usize| mask.keeps(self.first + i / self.cols, i % self.cols);
        let kept: Vec<usize> = (0..values.len()).filter(keeps).collect();
        let values: Vec<f32> = kept.iter().map(|i| values[*i]).collect();
        if let Some(importance) = &mut importance {
            *importance = kept.iter().map(|i| importance[*i]).collect();
        }
        solve(&values, importance.as_deref())
    }
}

/// The nearest of ascending levels for each value, the lower of two.
fn round(values: &[f32], levels: &[f32], codes: &mut [u8]) {
    let middle = |two: &[f32]| (f64::from(two[0]) + f64::from(two[1])) / 2.0;
    let middles: Vec<f64> = levels.windows(2).map(middle).collect();
    for (value, code) in values.iter().zip(codes) {
        *code = middles.partition_point(|middle| *middle < f64::from(*value)) as u8;
    }
}

/// The type, or f32 where numbers up to `abs_max` are out of its range or lose digits in it.
pub(crate) fn wide_enough(dtype: DType, abs_max: f32) -> DType {
    let fits = match dtype {
        DType::F16 => abs_max == 0.0 || (6.2e-5..=65504.0).contains(&abs_max),
        DType::BF16 => dtype.round(abs_max).is_finite(),
        _ => true,
    };
    if fits { dtype } else { DType::F32 }
}
