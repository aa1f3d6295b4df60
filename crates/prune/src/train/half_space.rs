use tensorpress_tensor::{Error, Result};

use super::Groups;
use super::groups::least;

/// The steps of OTOv2 (Chen et al., "OTOv2: Automatic, Generic, User-Friendly", 2023, DHSPG): groups that are redundant
/// are led to 0 by a penalty on their norms and set to 0 once a step leaves their half-space; all others take plain
/// steps.
///
/// For a redundant group x with gradient g: trial = x - rate (g + λ x / ‖x‖), and 0 if ⟨trial, x⟩ < ε ‖x‖². λ is chosen
/// in the dual so that the step descends on the loss and on ‖x‖: between -⟨g, x⟩ / ‖x‖ and ‖g‖² ‖x‖ / -⟨g, x⟩. Where
/// `penalty` lies between them, λ is that; else it is their geometric mean, ‖g‖. A group at 0 stays there. A group that
/// the loss pulls straight away from 0 has no such direction and comes to rest before: [`super::Forgetting`] does not
/// ask.
///
/// ```
/// use tensorpress_prune::train::{Groups, HalfSpace};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let groups = Groups::even(4, 2)?;
/// let mut x = [0.01f32, 0.0, 1.0, 1.0];
/// let zeroed = HalfSpace::default().step(&mut x, &[0.0, 0.0, 1.0, 1.0], 0.1, &groups, &[0])?;
/// assert_eq!((zeroed, x), (1, [0.0, 0.0, 0.9, 0.9]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct HalfSpace {
    /// λ where it leads both ways down. Default 1.
    pub penalty: f64,
    /// ε, 0 to below 1: the larger, the sooner a group is 0. Default 0.
    pub epsilon: f64,
}

impl Default for HalfSpace {
    fn default() -> Self {
        Self { penalty: 1.0, epsilon: 0.0 }
    }
}

impl HalfSpace {
    /// Sets λ.
    #[must_use]
    pub fn with_penalty(mut self, penalty: f64) -> Self {
        self.penalty = penalty;
        self
    }

    /// Sets ε.
    #[must_use]
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    fn check(&self) -> Result<()> {
        if !(self.penalty.is_finite() && self.penalty >= 0.0) {
            let message = format!("penalty = {}: allowed are 0 and more", self.penalty);
            return Err(Error::invalid(message));
        }
        if !(0.0..1.0).contains(&self.epsilon) {
            let message = format!("epsilon = {}: allowed are 0 to below 1", self.epsilon);
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    /// λ of a group; at 0, where no direction is its own, `penalty`.
    #[must_use]
    pub fn penalty_of(&self, x: &[f32], gradient: &[f32], groups: &Groups, group: usize) -> f64 {
        let norm = groups.norm(x, group);
        let towards = if norm > 0.0 { groups.dot(gradient, x, group) / norm } else { 0.0 };
        let steep = groups.norm(gradient, group);
        // With the gradient away from 0 any penalty descends on both.
        let within = -towards < self.penalty && -towards * self.penalty < steep * steep;
        if towards >= 0.0 || within { self.penalty } else { steep }
    }

    /// One step of all variables by the gradient of the loss, of size `rate`. Returns how many groups it set to 0.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters, a rate that is not above 0, and groups that do not exist; `ShapeMismatch`;
    /// `Numerical`. Nothing is changed then.
    pub fn step(
        &self,
        x: &mut [f32],
        gradient: &[f32],
        rate: f64,
        groups: &Groups,
        redundant: &[usize],
    ) -> Result<usize> {
        self.check()?;
        groups.check("values", x)?;
        groups.check("gradients", gradient)?;
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Error::invalid(format!("rate = {rate}: allowed are numbers above 0")));
        }
        if let Some(group) = redundant.iter().find(|g| **g >= groups.len()) {
            return Err(Error::invalid(format!("group {group} of {}", groups.len())));
        }
        let before = x.to_vec();
        for (x, g) in x.iter_mut().zip(gradient) {
            *x = (f64::from(*x) - rate * f64::from(*g)) as f32;
        }
        let mut zeroed = 0;
        for &group in redundant {
            let norm = groups.norm(&before, group);
            if norm == 0.0 {
                groups.scale(x, group, 0.0);
                continue;
            }
            let pull = rate * self.penalty_of(&before, gradient, groups, group) / norm;
            for &i in groups.members(group) {
                x[i] = (f64::from(x[i]) - pull * f64::from(before[i])) as f32;
            }
            zeroed += usize::from(self.project(x, &before, groups, group));
        }
        Ok(zeroed)
    }

    /// The half-space projection alone: sets a group of `trial` to 0 if ⟨trial, x⟩ < ε ‖x‖², x as it was before the
    /// step, and says whether.
    pub fn project(&self, trial: &mut [f32], x: &[f32], groups: &Groups, group: usize) -> bool {
        let leaves = groups.dot(trial, x, group) < self.epsilon * groups.dot(x, x, group);
        if leaves {
            groups.scale(trial, group, 0.0);
        }
        leaves
    }
}

/// The redundant groups: the `number` least salient ones.
///
/// # Errors
/// `ShapeMismatch`; `Numerical` for a score that is not finite.
pub fn redundant(scores: &[f64], number: usize, groups: &Groups) -> Result<Vec<usize>> {
    super::groups::check_scores(scores, groups)?;
    Ok(least(scores, number, |_| true))
}
