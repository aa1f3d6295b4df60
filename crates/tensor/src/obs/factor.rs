use ndarray::{Array2, ArrayView2, s};

use crate::error::{Error, Result};
use crate::linalg::{self, Par};
use crate::method::Group;
use crate::usable::Usable;

/// What a damping is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Damping {
    /// Of each entry of the diagonal (and 1e-4 of the median): a channel far above the others does not drown them.
    #[default]
    Each,
    /// Of the diagonal's mean.
    Mean,
}

/// A symmetric matrix A as U D Uᵀ, U unit upper triangular: what errors of columns cost once those before made good for
/// theirs.
///
/// ```
/// use tensorpress_tensor::{linalg::Par, ndarray::array, obs::{Damping, Factor}};
///
/// let a = array![[2.0, 1.0], [1.0, 4.0]];
/// let factor = Factor::of("matrix", a.view(), 1.0, 0.0, Damping::Mean, Par::Seq)?;
/// assert_eq!(factor.unit, array![[1.0, 0.25], [0.0, 1.0]]);
/// assert!((factor.pivots[0] - 1.75).abs() < 1e-12);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Factor {
    /// U.
    pub unit: Array2<f32>,
    /// D, positive.
    pub pivots: Vec<f64>,
    /// The diagonal of A, damped.
    pub diagonal: Vec<f64>,
    /// News about the damping.
    pub note: Option<String>,
}

/// Part of the median that is added to every diagonal entry: for those that are 0.
const FLOOR: f64 = 1e-4;

/// Factors tried with ten times the damping each.
const TRIES: u32 = 12;

impl Factor {
    /// The factor of what is known of a group's inputs, a token; where that cannot be used, the factor of I and the reason.
    ///
    /// # Errors
    /// Those of the statistics that are not numerical.
    pub fn of_inputs(
        group: &mut Group<'_>,
        damp: f32,
        damping: Damping,
    ) -> Result<(Self, Option<String>)> {
        let cols = group.channels()?;
        let factor = Usable::of(Self::of_gram(group, cols, damp, damping))?;
        Ok(factor.or_else(|_| Self::identity(cols)))
    }

    fn of_gram(group: &mut Group<'_>, cols: usize, damp: f32, damping: Damping) -> Result<Self> {
        if let Usable::No(reason) = group.calibration.seen() {
            return Err(Error::numerical(reason));
        }
        let gram = group.calibration.take_gram()?;
        if gram.dim() != (cols, cols) {
            return Err(Error::shape(format!("Gram matrix {:?} for {cols} inputs", gram.dim())));
        }
        let scale = 1.0 / group.calibration.tokens() as f64;
        Self::of("Gram matrix", gram.view(), scale, f64::from(damp), damping, group.par)
    }

    /// The factor of I, of this size.
    #[must_use]
    pub fn identity(n: usize) -> Self {
        Self { unit: Array2::eye(n), pivots: vec![1.0; n], diagonal: vec![1.0; n], note: None }
    }

    /// The factor of `scale` A, damped. The damping grows until there is one.
    ///
    /// # Errors
    /// `Numerical` if A is not finite, has no positive diagonal entry, or no damping helps.
    pub fn of(
        what: &str,
        a: ArrayView2<'_, f32>,
        scale: f64,
        damp: f64,
        damping: Damping,
        par: Par,
    ) -> Result<Self> {
        let n = a.nrows();
        if a.iter().any(|v| !v.is_finite()) {
            return Err(Error::numerical(format!("its {what} is not finite")));
        }
        let diagonal: Vec<f64> = a.diag().iter().map(|v| f64::from(v.max(0.0)) * scale).collect();
        let mut sorted = diagonal.clone();
        sorted.sort_by(f64::total_cmp);
        let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return Err(Error::numerical(format!("its {what} is 0")));
        }
        let median = sorted[(n - 1) / 2];
        let floor = FLOOR * if median > 0.0 { median } else { mean };
        let mut damp = damp;
        for retries in 0..TRIES {
            let damped = |i: usize| match damping {
                Damping::Each => diagonal[i] * (1.0 + damp) + floor,
                Damping::Mean => diagonal[i] + damp * mean,
            };
            // Backwards, so that the lower factor is the upper one.
            let reversed = Array2::from_shape_fn((n, n), |(i, j)| {
                let (i, j) = (n - 1 - i, n - 1 - j);
                if i == j { damped(i) } else { f64::from(a[[i, j]]) * scale }
            });
            if let Ok(lower) = linalg::cholesky(reversed, par) {
                let root = |j: usize| lower[[n - 1 - j, n - 1 - j]];
                let roots: Vec<f64> = (0..n).map(root).collect();
                let unit = Array2::from_shape_fn((n, n), |(i, j)| match i <= j {
                    true => (lower[[n - 1 - i, n - 1 - j]] / roots[j]) as f32,
                    false => 0.0,
                });
                if unit.iter().all(|v| v.is_finite()) {
                    let note = (retries > 0).then(|| {
                        format!("damping raised {retries} times, to {damp}, to factor the {what}")
                    });
                    let pivots = roots.iter().map(|r| r * r).collect();
                    return Ok(Self { unit, pivots, diagonal: (0..n).map(damped).collect(), note });
                }
            }
            damp = 10.0 * damp.max(1e-7);
        }
        Err(Error::numerical(format!("its {what} has no factor")))
    }

    /// What a block of columns takes over from the errors of those before it, `[from, to - from]`, where columns of a block
    /// feed each other nothing: the part of U above the block's triangle, times that triangle's inverse.
    ///
    /// # Panics
    /// If the block does not lie in the matrix.
    #[must_use]
    pub fn block(&self, from: usize, to: usize) -> Array2<f32> {
        let unit = &self.unit;
        let mut block = unit.slice(s![..from, from..to]).mapv(f64::from);
        // X u = b, column by column.
        for j in 1..to - from {
            for k in 0..j {
                let u = f64::from(unit[[from + k, from + j]]);
                if u != 0.0 {
                    let (before, mut here) = block.multi_slice_mut((s![.., k], s![.., j]));
                    here.scaled_add(-u, &before);
                }
            }
        }
        block.mapv(|v| v as f32)
    }
}
