use crate::factor;
use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::{Error, Result, ndarray};

/// The orthonormal basis `[channels, rank]` on which rows `[tokens, channels]` lose least: the leading eigenvectors of their
/// second moments, not centred. Bases are nested: the first columns are the best of fewer.
///
/// # Errors
/// `InvalidArgument` unless the rank is 1 to the channels; `Numerical` for what is not finite.
pub fn principal_basis(rows: ArrayView2<'_, f32>, rank: usize) -> Result<Array2<f32>> {
    let rows = rows.mapv(f64::from);
    leading(rows.t().dot(&rows).view(), rank)
}

/// CSKV's start: the basis `[out, rank]` of what a projection's weights `[out, in]` give, its inputs counting as `scales` say
/// (root mean squares of the channels, or a power of their mean magnitudes): the leading left singular vectors of W diag(s).
/// With U the basis, W x is held as UᵀW x, which weights of `rank` rows can give directly.
///
/// # Errors
/// `ShapeMismatch` for another number of scales, `InvalidArgument` unless the rank is 1 to `out`; `Numerical` for what is not
/// finite.
pub fn weighted_basis(
    weight: ArrayView2<'_, f32>,
    scales: &[f32],
    rank: usize,
) -> Result<Array2<f32>> {
    if scales.len() != weight.ncols() {
        let (found, expected) = (scales.len(), weight.ncols());
        return Err(Error::shape(format!("{found} scales of {expected} inputs")));
    }
    let mut scaled = weight.mapv(f64::from);
    for mut row in scaled.rows_mut() {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w *= f64::from(*s));
    }
    leading(scaled.dot(&scaled.t()).view(), rank)
}

/// Mean squares of rows along their principal directions, and these as columns; the largest first.
pub(crate) fn principal_order(rows: ArrayView2<'_, f32>) -> Result<(Vec<f64>, Array2<f64>)> {
    let rows = rows.mapv(f64::from);
    let eigen = factor::symmetric_eigen((rows.t().dot(&rows) / rows.nrows() as f64).view())?;
    let variances = eigen.values.iter().rev().map(|v| v.max(0.0)).collect();
    Ok((variances, eigen.vectors.slice(s![.., ..;-1]).to_owned()))
}

/// The leading eigenvectors of a symmetric matrix as columns, each with its largest entry positive.
fn leading(moments: ArrayView2<'_, f64>, rank: usize) -> Result<Array2<f32>> {
    let dim = moments.nrows();
    if rank == 0 || rank > dim {
        return Err(Error::invalid(format!("rank = {rank}: allowed are 1 to {dim}")));
    }
    let eigen = factor::symmetric_eigen(moments)?;
    let mut basis = eigen.vectors.slice(s![.., dim - rank..]).to_owned();
    basis.invert_axis(ndarray::Axis(1));
    for mut column in basis.columns_mut() {
        let most = column.iter().fold(0.0f64, |m, v| if v.abs() > m.abs() { *v } else { m });
        if most < 0.0 {
            column.mapv_inplace(|v| -v);
        }
    }
    Ok(basis.mapv(|v| v as f32).as_standard_layout().into_owned())
}
