//! Which units go: a knapsack.

use tensorpress_allocate::{Choice, Exact, Solver, Table, Unit};
use tensorpress_tensor::{Error, Result};

/// Which units stay when at least this share of all weights goes at the least sum of losses: the 0-1 knapsack of
/// LAPTOP-Diff (Zhang, Li, Chen, Xie, Lu: "LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing Diffusion
/// Models", 2024), whose losses are nearly additive. Exact, and no unit goes that does not have to.
///
/// A unit without a finite loss goes only where the others do not suffice.
///
/// ```
/// use tensorpress_prune::depth::least_loss;
///
/// // The middle one loses least, but is not half of all; the first is.
/// assert_eq!(least_loss(&[50, 20, 30], &[3.0, 1.0, 2.5], 0.5)?, [false, true, true]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `ShapeMismatch` unless there is a loss for each unit; `InvalidArgument` for a share that is not from 0 to 1, for weights
/// of more than 2⁵³, and for a loss below 0; `Numerical` for one that is NaN.
pub fn least_loss(weights: &[u64], losses: &[f64], share: f64) -> Result<Vec<bool>> {
    if weights.len() != losses.len() {
        let message = format!("{} losses of {} units", losses.len(), weights.len());
        return Err(Error::shape(message));
    }
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::invalid(format!("share = {share}: allowed are 0 to 1")));
    }
    if let Some((unit, loss)) = losses.iter().enumerate().find(|(_, l)| l.is_nan() || **l < 0.0) {
        let message = format!("the loss of unit {unit} is {loss}: allowed are 0 and more");
        return Err(if loss.is_nan() {
            Error::numerical(message)
        } else {
            Error::invalid(message)
        });
    }
    // Relative ones cannot overflow, and what is beyond all others together is still finite.
    let most = losses.iter().copied().filter(|l| l.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let all = losses.len() as f64 + 1.0;
    // Above 0, so that nothing goes for nothing.
    let relative = |loss: f64| if loss.is_finite() { (loss / most).max(1e-12 / all) } else { all };
    let unit = |(at, (weight, loss)): (usize, (&u64, &f64))| {
        let choices = [Choice::new(*weight, 0.0), Choice::new(0, relative(*loss))];
        Unit::new(format!("unit {at}"), choices)
    };
    let units = weights.iter().zip(losses).enumerate().map(unit).collect::<Vec<_>>();
    let table = Table::new(units)?;
    let total: u64 = weights.iter().sum();
    let found = Exact::new().solve(&table, total - least(total, share))?;
    Ok(found.choices.iter().map(|choice| *choice == 0).collect())
}

/// The weights that a share of all comes to, rounded up but for rounding errors.
pub(super) fn least(total: u64, share: f64) -> u64 {
    let exact = total as f64 * share;
    ((exact * (1.0 - 1e-12)).ceil() as u64).min(total)
}
