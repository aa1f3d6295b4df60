//! The order in which units go, and what each costs.

use tensorpress_tensor::{Error, Result};

/// In which order the units of a module go, and what is lost with each: what every score comes down to, and all that
/// allocations know.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Track {
    /// All units, those that go first in front.
    pub order: Vec<usize>,
    /// What is lost when each goes, after those before it: 0 and more.
    pub steps: Vec<f64>,
}

impl Track {
    /// A track.
    ///
    /// # Errors
    /// `ShapeMismatch` unless `order` has each of its numbers once and there is a step for each; `Numerical` for a step that
    /// is negative or not finite.
    pub fn new(order: Vec<usize>, steps: Vec<f64>) -> Result<Self> {
        let mut seen = vec![false; order.len()];
        let fresh =
            |unit: &usize| seen.get_mut(*unit).is_some_and(|seen| !std::mem::replace(seen, true));
        if order.len() != steps.len() || !order.iter().all(fresh) {
            let message = format!("an order of {} units with {} steps", order.len(), steps.len());
            return Err(Error::shape(message));
        }
        match steps.iter().find(|step| !(step.is_finite() && **step >= 0.0)) {
            None => Ok(Self { order, steps }),
            Some(step) => Err(Error::numerical(format!("a score is {step}"))),
        }
    }

    /// Units with scores of their own: the least goes first, of equal ones the first.
    ///
    /// # Errors
    /// `Numerical` for a score that is negative or not finite.
    pub fn by_scores(scores: &[f64]) -> Result<Self> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let steps = order.iter().map(|unit| scores[*unit]).collect();
        Self::new(order, steps)
    }

    /// The units that stay when so many go, ascending.
    #[must_use]
    pub fn kept(&self, gone: usize) -> Vec<usize> {
        let mut kept = self.order[gone.min(self.order.len())..].to_vec();
        kept.sort_unstable();
        kept
    }

    /// What is lost when 0, 1, 2 ... units have gone: one more than there are units.
    #[must_use]
    pub fn lost(&self) -> Vec<f64> {
        let mut sum = 0.0;
        let rest = self.steps.iter().map(|step| {
            sum += step;
            sum
        });
        std::iter::once(0.0).chain(rest).collect()
    }

    /// The step of each unit, by its number.
    #[must_use]
    pub fn by_unit(&self) -> Vec<f64> {
        let mut scores = vec![0.0; self.order.len()];
        self.order.iter().zip(&self.steps).for_each(|(unit, step)| scores[*unit] = *step);
        scores
    }
}
