//! A matrix cut in two: the leading singular directions, in double precision.

use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::{self, Par, RandomizedSvd};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};

/// What all decompositions of a fit have in common.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Of random directions.
    pub seed: u64,
    /// Of the products; the bytes do not depend on it.
    pub par: Par,
}

/// A ~ P R, P with orthonormal columns and R = Pᵀ A.
#[derive(Debug, Clone)]
pub(super) struct Split {
    /// P `[m, rank]`.
    pub left: Array2<f64>,
    /// R `[rank, n]`: row k is as long as the k-th singular value.
    pub right: Array2<f64>,
}

/// From here on a randomised decomposition is worth its error, where the rank is at most an eighth of the smaller side.
const LARGE: usize = 512;

impl Split {
    /// The leading `rank` directions, or as many as there are.
    ///
    /// # Errors
    /// `Numerical` if an entry is not finite, or without convergence.
    pub fn of(a: ArrayView2<'_, f64>, rank: usize, effort: Effort) -> Result<Self> {
        let least = a.nrows().min(a.ncols());
        let left = if least >= LARGE && rank <= least / 8 {
            let how = RandomizedSvd::rank(rank)
                .with_power_iterations(4)
                .with_oversample((rank / 8).max(10))
                .with_seed(effort.seed);
            linalg::svd_randomized(a, how, effort.par)?.u
        } else {
            linalg::svd_truncated(a, rank)?.u
        };
        let mut right = Array2::zeros((left.ncols(), a.ncols()));
        linalg::matmul_tn(left.view(), a, right.view_mut(), false, effort.par);
        Ok(Self { left, right })
    }

    /// The same product, column k of P and row k of R of one length: small types hold both, and quantise both best.
    pub fn balanced(mut self) -> Self {
        for (mut column, mut row) in self.left.columns_mut().into_iter().zip(self.right.rows_mut())
        {
            balance(column.iter_mut(), row.iter_mut());
        }
        self
    }
}

/// Scales two vectors against each other to one length; leaves them where one of them is 0.
pub(super) fn balance<'a>(
    a: impl ExactSizeIterator<Item = &'a mut f64>,
    b: impl ExactSizeIterator<Item = &'a mut f64>,
) {
    let [mut a, mut b]: [Vec<&mut f64>; 2] = [a.collect(), b.collect()];
    let length = |v: &[&mut f64]| v.iter().map(|v| **v * **v).sum::<f64>().sqrt();
    let ratio = (length(&b) / length(&a)).sqrt();
    if ratio.is_normal() {
        a.iter_mut().for_each(|v| **v *= ratio);
        b.iter_mut().for_each(|v| **v /= ratio);
    }
}

/// ‖A‖², entry by entry.
pub(super) fn energy<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum()
}

/// The squared singular values of A, falling.
pub(super) fn spectrum(a: ArrayView2<'_, f64>) -> Result<Vec<f64>> {
    Ok(linalg::svd(a)?.s.iter().map(|s| s * s).collect())
}

/// `[i₁ j₁, i₂ j₂, ...]` of a matrix whose rows are numbered by legs (i₁, i₂, ...) and columns by (j₁, j₂, ...): one line an
/// index of the first legs. Van Loan and Pitsianis' rearrangement, for any number of legs.
pub(super) fn unfolded(weight: ArrayView2<'_, f64>, legs: &[[usize; 2]]) -> Array2<f64> {
    let sides = [0, 1].map(|side| legs.iter().map(move |leg| leg[side]));
    let shape: Vec<usize> = sides.into_iter().flatten().collect();
    let weight = weight.as_standard_layout();
    let tensor = weight.into_shape_with_order(shape).expect("legs of this matrix");
    let order: Vec<usize> = (0..legs.len()).flat_map(|k| [k, legs.len() + k]).collect();
    let turned = tensor.permuted_axes(order);
    let lines = legs.first().map_or(1, |[i, j]| i * j);
    let rest = turned.len() / lines.max(1);
    let values = turned.as_standard_layout().into_owned().into_raw_vec_and_offset().0;
    Array2::from_shape_vec((lines, rest), values).expect("as many values")
}

/// The least number of leading squares that keeps this fraction of all, at least 1.
pub(super) fn least_keeping(squares: &[f64], fraction: f64) -> usize {
    let goal = fraction * squares.iter().sum::<f64>();
    let mut sum = 0.0;
    let short = squares.iter().take_while(|square| {
        let still = sum < goal;
        sum += *square;
        still
    });
    short.count().max(1).min(squares.len().max(1))
}
