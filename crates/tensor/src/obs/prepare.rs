use ndarray::{Array2, Axis};

use super::{ColumnRule, LANES, RowFactor, Swept};
use crate::error::{Error, Result};
use crate::linalg::{self, Par};
use crate::method::{Group, Target};
use crate::stats::Calibration;
use crate::usable::Usable;

/// The inverse factor of a Gram matrix, as a sweep takes it: what all matrices with one input share.
#[derive(Debug)]
pub struct Prepared {
    /// U with H⁻¹ = UᵀU, columns in the order of decision.
    pub factor: Array2<f32>,
    /// Stored column of each decided column, where the order is not that of storing.
    pub order: Option<Vec<usize>>,
    /// Decided columns whose input was always 0; their weights must be 0 before the sweep.
    pub dead: Vec<usize>,
    /// News about the statistics, for `fallback`.
    pub note: Option<String>,
    /// All but the Gram matrix.
    rest: Calibration,
}

impl Prepared {
    /// Takes the group's Gram matrix, orders it by falling input energy if asked, damps it (a fraction of the mean
    /// diagonal, raised until the matrix can be factored) and factors it in its own memory. Not usable if there is
    /// nothing to calibrate on: the method falls back, and says so.
    ///
    /// # Errors
    /// `MissingCalibration` if no Gram matrix was collected, `ShapeMismatch`, `InvalidArgument` for the damping.
    pub fn new(group: &mut Group<'_>, damp: f64, act_order: bool) -> Result<Usable<Self>> {
        Usable::of(Self::made(group, Damping::OfMean(damp), act_order))
    }

    /// As [`Prepared::new`] in the order of storing, but damps each entry of the diagonal in proportion to itself, so that
    /// a few inputs of great energy do not drown the others; 1e-4 of the median keeps faint ones positive.
    ///
    /// # Errors
    /// As there.
    pub fn in_proportion(group: &mut Group<'_>, damp: f64) -> Result<Usable<Self>> {
        Usable::of(Self::made(group, Damping::OfEach(damp), false))
    }

    /// The factor of I, of this size, and why there is no other: nothing is spread among columns, nor among rows.
    #[must_use]
    pub fn identity(cols: usize, note: String) -> Self {
        let rest = Calibration::none(cols);
        Self { factor: Array2::eye(cols), order: None, dead: Vec::new(), note: Some(note), rest }
    }

    /// Sweeps a target's `weight` as it is to begin, columns in the order of decision ([`sweep`](super::sweep)), with
    /// feedback among rows where the target asks for it.
    ///
    /// # Errors
    /// Those of the sweep, and of what a caller supplies.
    pub fn sweep<R: ColumnRule>(
        &self,
        target: &Target<'_>,
        weight: Array2<f32>,
        block: usize,
        rule: &mut R,
        par: Par,
    ) -> Result<Swept> {
        let outputs = RowFactor::of(target, &self.rest, LANES, par)?;
        super::sweep(weight, self.factor.view(), outputs.as_ref(), block, rule, par)
    }

    /// All that makes it unusable is a numerical error.
    fn made(group: &mut Group<'_>, damping: Damping, act_order: bool) -> Result<Self> {
        let (mut gram, mut dead) = gram_of(group)?;
        let cols = gram.nrows();
        let order = act_order.then(|| {
            let mut order: Vec<usize> = (0..cols).collect();
            order.sort_by(|a, b| gram[[*b, *b]].total_cmp(&gram[[*a, *a]]));
            order
        });
        if let Some(order) = &order {
            gram = gram.select(Axis(0), order).select(Axis(1), order);
            dead = (0..cols).filter(|j| dead.contains(&order[*j])).collect();
        }
        let of_mean = match damping {
            Damping::OfMean(damp) => damp,
            Damping::OfEach(damp) => {
                damp_each(&mut gram, damp)?;
                0.0
            }
        };
        let damped = linalg::damped_inverse_factor(gram, of_mean, group.par)?;
        let note = raised(&damped);
        Ok(Self { factor: damped.factor, order, dead, note, rest: group.calibration.clone() })
    }
}

/// The group's Gram matrix, with a 1 on the diagonal for each column whose input was always 0, and those columns.
pub(super) fn gram_of(group: &mut Group<'_>) -> Result<(Array2<f32>, Vec<usize>)> {
    if let Usable::No(reason) = group.calibration.seen() {
        return Err(Error::numerical(reason));
    }
    let mut gram = group.calibration.take_gram()?;
    let cols = group.channels()?;
    if gram.dim() != (cols, cols) {
        return Err(Error::shape(format!("Gram matrix {:?} for {cols} inputs", gram.dim())));
    }
    if gram.iter().any(|v| !v.is_finite()) {
        return Err(Error::numerical("its Gram matrix is not finite"));
    }
    let dead: Vec<usize> = (0..cols).filter(|j| gram[[*j, *j]] <= 0.0).collect();
    if dead.len() == cols {
        return Err(Error::numerical("all its inputs were zero"));
    }
    for &j in &dead {
        gram.row_mut(j).fill(0.0);
        gram.column_mut(j).fill(0.0);
        gram[[j, j]] = 1.0;
    }
    Ok((gram, dead))
}

/// What is to be said about damping that was raised.
pub(super) fn raised<T: linalg::Real>(damped: &linalg::DampedFactor<T>) -> Option<String> {
    (damped.retries > 0).then(|| {
        let (damp, retries) = (damped.damp, damped.retries);
        format!("damping raised {retries} times, to {damp}, to factor the Gram matrix")
    })
}

/// What is added to the diagonal: a fraction of its mean, or of each entry.
#[derive(Debug, Clone, Copy)]
enum Damping {
    OfMean(f64),
    OfEach(f64),
}

fn damp_each(gram: &mut Array2<f32>, damp: f64) -> Result<()> {
    if !(damp.is_finite() && damp >= 0.0) {
        return Err(Error::invalid(format!("damp = {damp}: must be finite and at least 0")));
    }
    let mut sorted = gram.diag().to_vec();
    let middle = sorted.len() / 2;
    let median = f64::from(*sorted.select_nth_unstable_by(middle, f32::total_cmp).1);
    for entry in gram.diag_mut() {
        let damped = f64::from(*entry) * (1.0 + damp) + LEAST * median;
        *entry = (damped as f32).min(f32::MAX);
    }
    Ok(())
}

/// What faint inputs are damped by at least, of the median.
const LEAST: f64 = 1e-4;
