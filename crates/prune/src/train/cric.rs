use tensorpress_tensor::{Error, Result};

use super::Groups;
use super::groups::{check_scores, least};

/// Corrective redundant identification (HESSO's CRIC: Chen et al., 2024): finds the groups that can go, by letting them
/// go on trial.
///
/// Scores at a point say little of the way to 0. So in cycles of T steps the groups under suspicion (at first the K
/// least salient) shrink to 0 as in [`super::Forgetting`], and all groups are scored at every step. At the end of a
/// cycle the variables are as they were before it; what was among the K least salient on the way and never suspected
/// before is suspected in the next. When nothing new turns up, the K groups with the least mean scores are redundant,
/// that of a group that was suspected being the mean over its way to 0: one that turned out indispensable there is not
/// among them.
///
/// ```
/// use tensorpress_prune::train::{Cric, Groups};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let groups = Groups::even(3, 1)?;
/// let mut x = [0.1f32, 0.5, 2.0];
/// let mut cric = Cric::new(1).with_steps(4);
/// while !cric.is_done() {
///     // The trainer's step goes here. The first group cannot be done without: the loss says so near 0.
///     let scores = [0.1 + 10.0 * f64::from(0.1 - x[0]), f64::from(x[1]), f64::from(x[2])];
///     cric.step(&mut x, &scores, &groups)?;
/// }
/// assert_eq!(cric.redundant(), [1]);
/// assert_eq!(x, [0.1, 0.5, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Cric {
    /// K, groups to find.
    pub number: usize,
    /// T, of each cycle. Default 100.
    pub steps: usize,
    /// Cycles at most. Default 10.
    pub cycles: usize,
    /// New suspects that are few enough to end. Default 0.
    pub tolerance: usize,
    suspects: Vec<usize>,
    suspected: Vec<bool>,
    next: Vec<bool>,
    before: Vec<f32>,
    /// Scores of all steps, and of those on the way to 0.
    sums: Vec<f64>,
    on_the_way: Vec<f64>,
    done: usize,
    redundant: Option<Vec<usize>>,
}

impl Cric {
    /// Finds so many groups.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self {
            number,
            steps: 100,
            cycles: 10,
            tolerance: 0,
            suspects: Vec::new(),
            suspected: Vec::new(),
            next: Vec::new(),
            before: Vec::new(),
            sums: Vec::new(),
            on_the_way: Vec::new(),
            done: 0,
            redundant: None,
        }
    }

    /// Sets the steps of a cycle, before the first step.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the most cycles.
    #[must_use]
    pub fn with_cycles(mut self, cycles: usize) -> Self {
        self.cycles = cycles;
        self
    }

    /// Sets how many new suspects are few enough.
    #[must_use]
    pub fn with_tolerance(mut self, tolerance: usize) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Takes the scores after the trainer's step, and shrinks the suspects. Nothing happens once it is done.
    ///
    /// # Errors
    /// `InvalidArgument` for 0 steps or cycles, and for more groups than there are; `ShapeMismatch`; `Numerical`.
    pub fn step(&mut self, x: &mut [f32], scores: &[f64], groups: &Groups) -> Result<()> {
        if self.steps == 0 || self.cycles == 0 {
            let (steps, cycles) = (self.steps, self.cycles);
            return Err(Error::invalid(format!(
                "steps = {steps}, cycles = {cycles}: allowed are 1 and more"
            )));
        }
        if self.number > groups.len() {
            let (number, all) = (self.number, groups.len());
            return Err(Error::invalid(format!("{number} groups to find: allowed are 0 to {all}")));
        }
        groups.check("values", x)?;
        check_scores(scores, groups)?;
        if self.is_done() {
            return Ok(());
        }
        if self.done > 0 && (self.sums.len(), self.before.len()) != (groups.len(), x.len()) {
            let (before, now) = (self.sums.len(), groups.len());
            return Err(Error::shape(format!("{now} groups after a step with {before} others")));
        }
        let least_now = least(scores, self.number, |_| true);
        if self.done == 0 {
            self.suspects.clone_from(&least_now);
            self.suspected = vec![false; groups.len()];
            self.sums = vec![0.0; groups.len()];
            self.on_the_way = vec![0.0; groups.len()];
        }
        let t = self.done % self.steps;
        if t == 0 {
            self.before = x.to_vec();
            self.next = vec![false; groups.len()];
            self.suspects.iter().for_each(|group| self.suspected[*group] = true);
        }
        self.sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        least_now.iter().for_each(|group| self.next[*group] |= !self.suspected[*group]);
        self.suspects.iter().for_each(|group| self.on_the_way[*group] += scores[*group]);
        let left = (self.steps - t - 1) as f64 / (self.steps - t) as f64;
        self.suspects.iter().for_each(|group| groups.scale(x, *group, left));
        self.done += 1;
        if t + 1 == self.steps {
            x.copy_from_slice(&self.before);
            self.suspects = (0..groups.len()).filter(|group| self.next[*group]).collect();
            let stable = self.suspects.len() <= self.tolerance;
            if stable || self.done / self.steps >= self.cycles {
                self.redundant = Some(least(&self.means(), self.number, |_| true));
            }
        }
        Ok(())
    }

    fn means(&self) -> Vec<f64> {
        let mean = |group: usize| match self.suspected[group] {
            true => self.on_the_way[group] / self.steps as f64,
            false => self.sums[group] / self.done as f64,
        };
        (0..self.sums.len()).map(mean).collect()
    }

    /// The groups are found.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.redundant.is_some()
    }

    /// The redundant groups, ascending; none before it is done.
    #[must_use]
    pub fn redundant(&self) -> &[usize] {
        self.redundant.as_deref().unwrap_or_default()
    }
}
