use ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;

/// Mutual information of rows of x `[samples, p]` and y `[samples, q]` by distances to the `k` nearest neighbours, in nats
/// (Kraskov, Stögbauer, Grassberger, *Estimating Mutual Information*, 2004, eq. 8): psi(k) + psi(n) - mean(psi(n_x + 1) +
/// psi(n_y + 1)), n_x and n_y the samples strictly nearer in x, and in y, than the k-th neighbour in both (largest
/// difference of a channel). It may come out below 0. n² distances; for few channels. Samples that repeat make it too large:
/// shake them.
///
/// # Errors
/// `ShapeMismatch` unless there are as many samples; `InvalidArgument` unless 1 <= k < samples; `Numerical` for values that are
/// not finite.
pub fn ksg(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, k: usize) -> Result<f64> {
    let n = x.nrows();
    if n != y.nrows() {
        return Err(Error::shape(format!("{n} samples beside {}", y.nrows())));
    }
    if k == 0 || k >= n {
        return Err(Error::invalid(format!("k = {k} neighbours of {n} samples")));
    }
    check_finite(x)?;
    check_finite(y)?;
    let apart = |a: ArrayView2<'_, f32>, i: usize, j: usize| {
        let pairs = a.row(i).into_iter().zip(a.row(j)).map(|(a, b)| (a - b).abs());
        pairs.fold(0.0, f32::max)
    };
    let mut sum = 0.0;
    for i in 0..n {
        let others = (0..n).filter(|j| *j != i);
        let pairs: Vec<(f32, f32)> = others.map(|j| (apart(x, i, j), apart(y, i, j))).collect();
        let mut both: Vec<f32> = pairs.iter().map(|(dx, dy)| dx.max(*dy)).collect();
        let (_, reach, _) = both.select_nth_unstable_by(k - 1, f32::total_cmp);
        let nearer =
            |of: fn(&(f32, f32)) -> f32| 1 + pairs.iter().filter(|pair| of(pair) < *reach).count();
        sum += psi(nearer(|pair| pair.0)) + psi(nearer(|pair| pair.1));
    }
    Ok(psi(k) + psi(n) - sum / n as f64)
}

/// The digamma function of a whole number above 0: Σ 1/i below it less Euler's constant; for large ones by its series.
fn psi(n: usize) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    if n < 64 {
        return (1..n).map(|i| 1.0 / i as f64).sum::<f64>() - EULER;
    }
    let x = n as f64;
    x.ln() - 0.5 / x - 1.0 / (12.0 * x * x) + 1.0 / (120.0 * x.powi(4))
}
