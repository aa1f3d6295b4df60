use tensorpress_tensor::linalg::{self, Par, RandomizedSvd, Real, Svd};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, CowArray, Ix2};
use tensorpress_tensor::{Error, Result, Usable};

use crate::aim::Ask;
use crate::metric::Root;
use crate::rank::Rank;

/// How singular vectors are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Solver {
    /// Randomised where the rank is at most an eighth of the smaller side of a matrix of at least 512, else exact.
    #[default]
    Auto,
    /// All of them, from a full decomposition.
    Exact,
    /// The leading ones, from random directions ([`linalg::svd_randomized`]); exact where the rank is chosen by energy.
    Randomized {
        /// Power iterations: more are closer to the optimum on spectra that fall slowly. 2 is usual.
        power_iterations: usize,
    },
}

/// From here on a randomised decomposition is worth its error.
const LARGE: usize = 512;

impl Solver {
    /// The leading left singular vectors, and why they are not found as asked, if they are not: in double precision
    /// then, from a full decomposition.
    pub(crate) fn directions(
        self,
        a: ArrayView2<'_, f32>,
        rank: Rank,
        seed: u64,
        par: Par,
    ) -> Result<(Array2<f32>, Option<String>)> {
        match Usable::of(self.solve(a, rank, seed, par).and_then(finite))? {
            Usable::Yes(svd) => Ok((svd.u, None)),
            Usable::No(reason) => {
                let a = a.mapv(f64::from);
                let svd = Self::Exact.solve(a.view(), rank, seed, par).and_then(finite)?;
                Ok((svd.u.mapv(|v| v as f32), Some(format!("{reason}: decomposed in f64 instead"))))
            }
        }
    }

    fn solve<T: Real>(
        self,
        a: ArrayView2<'_, T>,
        rank: Rank,
        seed: u64,
        par: Par,
    ) -> Result<Svd<T>> {
        let shape = [a.nrows(), a.ncols()];
        let least = shape[0].min(shape[1]);
        let iterations = match (self, rank.of_shape(shape)) {
            (Self::Auto, Some(rank)) if least >= LARGE && rank <= least / 8 => Some(4),
            (Self::Randomized { power_iterations }, Some(_)) => Some(power_iterations),
            _ => None,
        };
        match (iterations, rank.of_shape(shape)) {
            (Some(iterations), Some(rank)) => {
                let how = RandomizedSvd::rank(rank)
                    .with_power_iterations(iterations)
                    .with_oversample((rank / 8).max(10))
                    .with_seed(seed);
                linalg::svd_randomized(a, how, par)
            }
            _ => {
                let svd = linalg::svd(a)?;
                let values: Vec<f32> = svd.s.iter().map(|v| v.to_f64() as f32).collect();
                let rank = rank.of_spectrum(shape, &values);
                Ok(svd.truncate(rank))
            }
        }
    }
}

/// A decomposition without NaN or infinity.
fn finite<T: Real>(svd: Svd<T>) -> Result<Svd<T>> {
    match svd.u.iter().chain(&svd.s).all(|v| v.is_finite()) {
        true => Ok(svd),
        false => Err(Error::numerical("singular vectors are not finite")),
    }
}

/// W ~ U V.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Projection {
    /// U `[out, rank]`.
    pub left: Array2<f32>,
    /// V `[rank, in]`.
    pub right: Array2<f32>,
}

impl Projection {
    /// The same product, column k of U and row k of V being of one length.
    pub(crate) fn balanced(mut self) -> Self {
        let length = |lane: ArrayView1<'_, f32>| {
            lane.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
        };
        let lanes = self.left.columns_mut().into_iter().zip(self.right.rows_mut());
        for (mut column, mut row) in lanes {
            let share = (length(row.view()) / length(column.view())).sqrt();
            if share.is_finite() && share > 0.0 {
                column.mapv_inplace(|v| (f64::from(v) * share) as f32);
                row.mapv_inplace(|v| (f64::from(v) / share) as f32);
            }
        }
        self
    }

    /// All of the size of a direction can be in either factor.
    pub(crate) fn can_be_scaled(&self) -> bool {
        let most = |lane: ArrayView1<'_, f32>| {
            lane.iter().fold(0.0f64, |most, v| most.max(f64::from(*v).abs()))
        };
        let mut lanes = self.left.columns().into_iter().zip(self.right.rows());
        lanes.all(|(column, row)| most(column) * most(row) < f64::from(f32::MAX))
            && self.left.iter().chain(&self.right).all(|v| v.is_finite())
    }

    /// (W - U V) μ: what the factors lose of the mean output, if f32 can hold it.
    pub(crate) fn lost_mean(&self, weight: &Array2<f32>, mean: &[f32]) -> Usable<Vec<f32>> {
        let product = |m: &Array2<f32>, x: &[f64]| -> Vec<f64> {
            let dot =
                |row: ArrayView1<'_, f32>| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
            m.rows().into_iter().map(dot).collect()
        };
        let mean: Vec<f64> = mean.iter().map(|m| f64::from(*m)).collect();
        let exact = product(weight, &mean);
        let got = product(&self.left, &product(&self.right, &mean));
        let lost: Vec<f32> = exact.iter().zip(&got).map(|(e, g)| (e - g) as f32).collect();
        match lost.iter().all(|v| v.is_finite()) {
            true => Usable::Yes(lost),
            false => Usable::no("its mean output is beyond f32"),
        }
    }
}

/// The factors of this rank that lose least: U = P, V = Pᵀ W with P the leading left singular vectors of W S, scaled so
/// that column k of U and row k of V have the same length. Any finite W and S will do, however large or small.
///
/// # Errors
/// `Numerical` if an entry is not finite, or without convergence; `ShapeMismatch`.
pub fn project(
    weight: ArrayView2<'_, f32>,
    root: &Root,
    rank: Rank,
    solver: Solver,
    seed: u64,
    par: Par,
) -> Result<Projection> {
    project_noting(weight, root, None, Ask { rank, solver, seed, par })
        .map(|(projection, _)| projection)
}

/// [`project`] by the directions of `seen`, if it is there, in the place of those of W S; and what was done in the place
/// of what was asked, if something was.
pub(crate) fn project_noting(
    weight: ArrayView2<'_, f32>,
    root: &Root,
    seen: Option<&Array2<f32>>,
    Ask { rank, solver, seed, par }: Ask,
) -> Result<(Projection, Option<String>)> {
    // Powers of two turn no direction and round nothing, but keep sums of squares within f32.
    let own = exponent(weight.iter());
    let through_root = match seen {
        Some(_) => None,
        None => Some(root.apply(scaled(weight, -own - root.exponent()).view(), par)?),
    };
    let seen = seen.or(through_root.as_ref()).expect("one or the other");
    let (mut left, note) = solver.directions(seen.view(), rank, seed, par)?;
    let mut right = Array2::zeros((left.ncols(), weight.ncols()));
    linalg::matmul_tn(left.view(), scaled(weight, -own).view(), right.view_mut(), false, par);
    // Equal lengths keep both factors in the range of narrow types and quantise best.
    let back = power_of_two(own);
    for (mut column, mut row) in left.columns_mut().into_iter().zip(right.rows_mut()) {
        let length = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() * back;
        if length > 0.0 {
            let share = length.sqrt();
            column.mapv_inplace(|v| (f64::from(v) * share) as f32);
            row.mapv_inplace(|v| (f64::from(v) * back / share) as f32);
        }
    }
    Ok((Projection { left, right }, note))
}

/// The power of two nearest below the largest absolute value; 0 for values of a usual size, whose squares have room.
pub(crate) fn exponent<'a>(values: impl Iterator<Item = &'a f32>) -> i32 {
    const USUAL: i32 = 20;
    let most = values.fold(0.0f32, |most, v| most.max(v.abs()));
    let exponent = f64::from(most).log2().floor() as i32;
    if most == 0.0 || !most.is_finite() || exponent.abs() <= USUAL { 0 } else { exponent }
}

/// Times 2^exponent.
pub(crate) fn scaled(m: ArrayView2<'_, f32>, exponent: i32) -> CowArray<'_, f32, Ix2> {
    if exponent == 0 {
        return m.into();
    }
    let factor = power_of_two(exponent);
    m.mapv(|v| (f64::from(v) * factor) as f32).into()
}

/// 2^exponent.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}
