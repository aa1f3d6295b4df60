use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, LevelFormat, LevelTable, Mask, Node, PackedPlane,
};
use tensorpress_tensor::{DType, Result, Target, kernels};

use super::spec::wide_enough;
use super::{Nearest, optimal_scale};
use crate::rounding::{Filler, Grouped, Rule};

/// One table of levels under a scale for each group of a row: the one that loses least, as its type stores it.
pub(crate) struct Scaled<'a, 'm> {
    /// Ascending.
    levels: &'a [f32],
    nearest: &'a Nearest,
    scales: Grouped<f32>,
    /// Their stored type; none if they stay as they are.
    dtype: Option<DType>,
    mask: Option<&'m Mask>,
}

impl<'a, 'm> Scaled<'a, 'm> {
    /// Scales in `dtype`, or in f32 where that cannot hold weights like those of the target.
    pub(crate) fn new(
        (levels, nearest): (&'a [f32], &'a Nearest),
        target: &Target<'m>,
        group: usize,
        dtype: DType,
    ) -> Self {
        let scales = Grouped::new(target.weight.dim().into(), group, 0.0);
        let dtype = Some(type_for(target, dtype));
        Self { levels, nearest, scales, dtype, mask: target.mask }
    }

    /// Of scales `[rows, groups]` that stay as they are.
    pub(crate) fn fixed(
        (levels, nearest): (&'a [f32], &'a Nearest),
        target: &Target<'m>,
        group: usize,
        scales: &[f32],
    ) -> Self {
        let scales = Grouped::from_rows(target.weight.dim().into(), group, scales);
        Self { levels, nearest, scales, dtype: None, mask: target.mask }
    }

    /// The scales, `[rows, groups]`.
    pub(crate) fn scales(&self) -> Vec<f32> {
        self.scales.by_rows()
    }

    /// Fills a matrix; the table is handed over as a node of 2^`bits` levels, which begin with those of the codes.
    pub(crate) fn node(
        mut self,
        target: &Target<'_>,
        filler: Filler<'_>,
        (table, bits): (Box<dyn Node>, u8),
    ) -> Result<LevelTable> {
        let shape @ [rows, cols] = target.weight.dim().into();
        let filled = filler.fill(target, &mut self)?;
        let codes = filled.as_slice().expect("standard layout");
        let codes = PackedPlane::pack(codes, rows, cols, bits)?;
        let size = self.scales.size();
        let scales = dense(&self.scales(), [rows, cols.div_ceil(size)], self.dtype)?;
        let format = LevelFormat::new(1 << bits, Blocks::Rows(size))?;
        let beside = vec![Child::Node(table), Child::Node(scales)];
        LevelTable::new(format, shape, Box::new(codes), beside)
    }
}

/// Values, row-major, as a node; in f32 unless a type is given.
pub(crate) fn dense(
    values: &[f32],
    [rows, cols]: [usize; 2],
    dtype: Option<DType>,
) -> Result<Box<dyn Node>> {
    let values = ArrayView2::from_shape((rows, cols), values).expect("a value each");
    Ok(Dense::from_f32(values, dtype.unwrap_or(DType::F32))?.boxed())
}

/// The type, or f32 where it cannot hold numbers like a target's weights well.
pub(crate) fn type_for(target: &Target<'_>, dtype: DType) -> DType {
    let weight = target.kept_weight();
    wide_enough(dtype, kernels::abs_max(weight.as_slice().expect("standard layout")))
}

/// Rounds to a type, never to infinity; 0 for what is no number.
pub(crate) fn stored(dtype: DType, value: f32) -> f32 {
    let rounded = dtype.round(value);
    match (rounded.is_finite(), value.is_finite()) {
        (true, _) => rounded,
        (false, true) => dtype.round(value * 0.995),
        (false, false) => 0.0,
    }
}

impl Rule for Scaled<'_, '_> {
    fn group(&self) -> usize {
        self.scales.size()
    }

    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()> {
        let Some(dtype) = self.dtype else { return Ok(()) };
        let levels = self.levels;
        self.scales.fit(weight, columns, (costs, self.mask), par, |w, costs| {
            stored(dtype, optimal_scale(levels, w, Some(costs)))
        });
        Ok(())
    }

    #[inline(always)]
    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        for (i, w) in w.iter().enumerate() {
            let scale = *self.scales.of(row, column + i);
            let (code, level) = self.nearest.level(if scale > 0.0 { w / scale } else { 0.0 });
            (codes[i], values[i]) = (code, level * scale);
        }
    }
}
