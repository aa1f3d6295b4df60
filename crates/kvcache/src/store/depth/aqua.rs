//! Predictors of a layer's keys and values from those of the layer before, and codes of what they miss.

use std::sync::OnceLock;

use crate::factor::{self, Triangle};
use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::cluster::optimal_levels;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Result, ndarray};

use crate::page::Rotation;
use crate::store::kvquant::nearest;
use crate::store::normal;

/// W `[inputs, outputs]` that minimises ||X W - Y||² + ridge x mean diagonal x ||W||²; zeros where there is no such thing.
pub(super) fn ridge(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, ridge: f64) -> Array2<f32> {
    let solve = || -> Result<Array2<f64>> {
        let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
        let mut moments = x.t().dot(&x);
        let mean = moments.diag().sum() / moments.nrows().max(1) as f64;
        moments.diag_mut().mapv_inplace(|v| v + ridge * mean);
        let lower = factor::cholesky(moments, Par::Seq)?;
        let mut w = x.t().dot(&y);
        factor::solve_triangular(lower.view(), Triangle::Lower, w.view_mut(), Par::Seq)?;
        factor::solve_triangular(lower.t(), Triangle::Upper, w.view_mut(), Par::Seq)?;
        Ok(w)
    };
    let half = |v: f64| tensorpress_tensor::DType::F16.round(v as f32).clamp(-65504.0, 65504.0);
    solve().map_or_else(|_| Array2::zeros((x.ncols(), y.ncols())), |w| w.mapv(half))
}

/// The levels of 1 to 8 bits that a normal number loses least by: the k-means of 4096 of its quantiles.
pub(super) fn normal_grid(bits: u32) -> &'static [f32] {
    static GRIDS: [OnceLock<Vec<f32>>; 9] = [const { OnceLock::new() }; 9];
    GRIDS[bits as usize].get_or_init(|| {
        optimal_levels(&normal::sample(4096), None, 1 << bits).expect("finite numbers")
    })
}

/// Rows behind signs and a Hadamard matrix, divided by their root mean square (in f16), as codes of the nearest levels: needs no
/// data (HIGGS, Malinovskii et al., 2024).
pub(super) struct Blind<'a> {
    pub(super) levels: &'a [f32],
    pub(super) rotation: &'a Rotation,
}

impl Blind<'_> {
    /// The codes of a row, its scale, and what these give in the row's place.
    pub(super) fn pack(&self, row: &mut [f32]) -> (Vec<u8>, f32) {
        self.rotation.apply(row);
        let squares: f32 = row.iter().map(|x| x * x).sum();
        let scale = tensorpress_tensor::DType::F16.round((squares / row.len() as f32).sqrt());
        let scale = scale.min(65504.0);
        let unit = |x: f32| if scale > 0.0 { x / scale } else { 0.0 };
        let codes: Vec<u8> = row.iter().map(|x| nearest(self.levels, unit(*x))).collect();
        self.unpack(&codes, scale, row);
        (codes, scale)
    }

    pub(super) fn unpack(&self, codes: &[u8], scale: f32, row: &mut [f32]) {
        let values = codes.iter().map(|code| scale * self.levels[usize::from(*code)]);
        row.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        self.rotation.invert(row);
    }
}

/// The heads that a predictor is for, as one matrix `[tokens, heads x channels]`: one head, or all.
pub(super) fn block(x: &Array3<f32>, heads: std::ops::Range<usize>) -> Array2<f32> {
    let views: Vec<ArrayView2<'_, f32>> = heads.map(|h| x.index_axis(Axis(1), h)).collect();
    concatenate(Axis(1), &views).expect("heads of one shape")
}

/// Puts a matrix of some heads back.
pub(super) fn unblock(
    from: ArrayView2<'_, f32>,
    heads: std::ops::Range<usize>,
    to: &mut Array3<f32>,
) {
    let dim = to.dim().2;
    for (i, h) in heads.enumerate() {
        to.index_axis_mut(Axis(1), h).assign(&from.slice(s![.., i * dim..(i + 1) * dim]));
    }
}

/// `[keys, values]` side by side.
pub(super) fn beside(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
    concatenate(Axis(1), &[a, b]).expect("as many tokens")
}
