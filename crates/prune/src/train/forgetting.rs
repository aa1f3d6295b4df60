use tensorpress_tensor::{Error, Result};

use super::Groups;
use super::groups::{check_scores, least};

/// How much groups matter, of several criteria (HESSO: Chen et al., "HESSO: Towards Automatic Efficient and User
/// Friendly Any Neural Network Training and Pruning", 2024). Each is divided by its mean over the groups, so that its
/// weight says what it counts for:
/// - magnitude, ‖x‖ / √(variables of the group);
/// - Taylor, |⟨x, g⟩|: what the loss changes by if the group goes, to first order;
/// - cosine, 1 - cos(x, g): least where the step towards 0 is the step down.
///
/// ```
/// use tensorpress_prune::train::{Groups, Salience};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let groups = Groups::even(4, 2)?;
/// let scores = Salience::default().scores(&[1.0, 1.0, 0.1, 0.1], &[0.1, -0.1, 0.1, 0.1], &groups)?;
/// assert!(scores[0] > scores[1]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Salience {
    /// What the magnitude counts for. Default 1.
    pub magnitude: f64,
    /// What Taylor's term counts for. Default 1.
    pub taylor: f64,
    /// What the cosine counts for. Default 1.
    pub cosine: f64,
}

impl Default for Salience {
    fn default() -> Self {
        Self { magnitude: 1.0, taylor: 1.0, cosine: 1.0 }
    }
}

impl Salience {
    /// Sets what the magnitude counts for.
    #[must_use]
    pub fn with_magnitude(mut self, weight: f64) -> Self {
        self.magnitude = weight;
        self
    }

    /// Sets what Taylor's term counts for.
    #[must_use]
    pub fn with_taylor(mut self, weight: f64) -> Self {
        self.taylor = weight;
        self
    }

    /// Sets what the cosine counts for.
    #[must_use]
    pub fn with_cosine(mut self, weight: f64) -> Self {
        self.cosine = weight;
        self
    }

    /// The scores of the groups, 0 and more.
    ///
    /// # Errors
    /// `InvalidArgument` for weights that are negative or not finite; `ShapeMismatch`; `Numerical`.
    pub fn scores(&self, x: &[f32], gradient: &[f32], groups: &Groups) -> Result<Vec<f64>> {
        let weights =
            [("magnitude", self.magnitude), ("taylor", self.taylor), ("cosine", self.cosine)];
        if let Some((name, weight)) = weights.iter().find(|(_, w)| !(w.is_finite() && *w >= 0.0)) {
            return Err(Error::invalid(format!("{name} = {weight}: allowed are 0 and more")));
        }
        groups.check("values", x)?;
        groups.check("gradients", gradient)?;
        let mut scores = vec![0.0; groups.len()];
        for ((_, weight), criterion) in weights.iter().zip([magnitude, taylor, cosine]) {
            let each = (0..groups.len()).map(|g| criterion(x, gradient, groups, g));
            let each: Vec<f64> = each.collect();
            let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
            if mean > 0.0 {
                scores.iter_mut().zip(each).for_each(|(score, s)| *score += weight * s / mean);
            }
        }
        Ok(scores)
    }
}

fn magnitude(x: &[f32], _: &[f32], groups: &Groups, group: usize) -> f64 {
    groups.norm(x, group) / (groups.members(group).len() as f64).sqrt()
}

fn taylor(x: &[f32], gradient: &[f32], groups: &Groups, group: usize) -> f64 {
    groups.dot(x, gradient, group).abs()
}

fn cosine(x: &[f32], gradient: &[f32], groups: &Groups, group: usize) -> f64 {
    let norms = groups.norm(x, group) * groups.norm(gradient, group);
    if norms > 0.0 { (1.0 - groups.dot(x, gradient, group) / norms).max(0.0) } else { 1.0 }
}

/// Progressive forgetting (HESSO): in each of P periods of T steps the next K / P least salient groups are marked, and
/// shrink to 0 in T equal steps of what they were, on top of the trainer's own steps; all others train as ever.
///
/// ```
/// use tensorpress_prune::train::{Forgetting, Groups};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let groups = Groups::even(4, 1)?;
/// let mut x = [4.0f32, 1.0, 2.0, 3.0];
/// let mut forgetting = Forgetting::new(2).with_periods(2).with_steps(4);
/// while !forgetting.is_done() {
///     let scores = x.map(f64::from); // after the trainer's step
///     forgetting.step(&mut x, &scores, &groups)?;
/// }
/// assert_eq!(x, [4.0, 0.0, 0.0, 3.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Forgetting {
    /// K, groups to go.
    pub number: usize,
    /// P. Default 1.
    pub periods: usize,
    /// T, of each period. Default 100.
    pub steps: usize,
    marked: Vec<usize>,
    gone: Vec<usize>,
    done: usize,
}

impl Forgetting {
    /// Of so many groups.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self { number, periods: 1, steps: 100, marked: Vec::new(), gone: Vec::new(), done: 0 }
    }

    /// Of groups that are marked already, in one period: what [`super::Cric`] found.
    #[must_use]
    pub fn of(groups: Vec<usize>) -> Self {
        Self { marked: groups.clone(), ..Self::new(groups.len()) }
    }

    /// Sets the number of periods, before the first step.
    #[must_use]
    pub fn with_periods(mut self, periods: usize) -> Self {
        self.periods = periods;
        self
    }

    /// Sets the steps of a period, before the first step.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Shrinks what is marked, after the trainer's step. At the first step of a period it marks by these scores, which
    /// are not read otherwise; groups that went are held at 0.
    ///
    /// # Errors
    /// `InvalidArgument` for 0 periods or steps, and for more groups than there are; `ShapeMismatch`; `Numerical`.
    pub fn step(&mut self, x: &mut [f32], scores: &[f64], groups: &Groups) -> Result<()> {
        if self.periods == 0 || self.steps == 0 {
            let (periods, steps) = (self.periods, self.steps);
            return Err(Error::invalid(format!(
                "periods = {periods}, steps = {steps}: allowed are 1 and more"
            )));
        }
        if self.number > groups.len() {
            let (number, all) = (self.number, groups.len());
            return Err(Error::invalid(format!("{number} groups to go: allowed are 0 to {all}")));
        }
        groups.check("values", x)?;
        if let Some(group) = self.gone.iter().chain(&self.marked).find(|g| **g >= groups.len()) {
            return Err(Error::invalid(format!("group {group} to go of {}", groups.len())));
        }
        if !self.is_done() {
            let (period, t) = (self.done / self.steps, self.done % self.steps);
            if t == 0 && self.marked.is_empty() {
                check_scores(scores, groups)?;
                let by_now = self.number * (period + 1) / self.periods;
                let mut there = vec![true; groups.len()];
                self.gone.iter().for_each(|group| there[*group] = false);
                self.marked = least(scores, by_now.saturating_sub(self.gone.len()), |g| there[g]);
            }
            let left = (self.steps - t - 1) as f64 / (self.steps - t) as f64;
            self.marked.iter().for_each(|group| groups.scale(x, *group, left));
            self.done += 1;
            if t + 1 == self.steps {
                self.gone.append(&mut self.marked);
            }
        }
        self.gone.iter().for_each(|group| groups.scale(x, *group, 0.0));
        Ok(())
    }

    /// All groups that were to go are 0.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done >= self.periods * self.steps
    }

    /// The groups that went, in the order in which they went.
    #[must_use]
    pub fn gone(&self) -> &[usize] {
        &self.gone
    }
}
