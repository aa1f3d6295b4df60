use tensorpress_tensor::{Error, Result};

/// Variables that go together, as places in one flat vector of all variables; no variable is in two groups, some may be
/// in none.
///
/// ```
/// use tensorpress_prune::train::Groups;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// // The rows of a 2 x 3 matrix, each with its bias behind the matrix.
/// let groups = Groups::new(8, [vec![0, 1, 2, 6], vec![3, 4, 5, 7]])?;
/// let x = [3.0f32, 0.0, 0.0, 1.0, 1.0, 1.0, 4.0, 1.0];
/// assert_eq!((groups.norm(&x, 0), groups.norm(&x, 1)), (5.0, 2.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    variables: usize,
    members: Vec<Vec<usize>>,
}

impl Groups {
    /// Groups of `variables` variables.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty group, a place beyond the variables, or one in two groups.
    pub fn new(variables: usize, groups: impl IntoIterator<Item = Vec<usize>>) -> Result<Self> {
        let members: Vec<Vec<usize>> = groups.into_iter().collect();
        let mut taken = vec![false; variables];
        for (group, places) in members.iter().enumerate() {
            if places.is_empty() {
                return Err(Error::invalid(format!("group {group} is empty")));
            }
            for &place in places {
                match taken.get_mut(place) {
                    Some(taken) if !*taken => *taken = true,
                    Some(_) => {
                        let message = format!("group {group}: variable {place} is in two groups");
                        return Err(Error::invalid(message));
                    }
                    None => {
                        return Err(Error::invalid(format!(
                            "group {group}: variable {place} of {variables}"
                        )));
                    }
                }
            }
        }
        Ok(Self { variables, members })
    }

    /// Each `size` neighbours a group, the last may be smaller: the rows of a matrix of so many columns.
    ///
    /// # Errors
    /// `InvalidArgument` for a size of 0.
    pub fn even(variables: usize, size: usize) -> Result<Self> {
        if size == 0 {
            return Err(Error::invalid("size = 0: allowed are 1 and more"));
        }
        let starts = (0..variables).step_by(size);
        Self::new(variables, starts.map(|at| (at..variables.min(at + size)).collect()))
    }

    /// Number of groups.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Length of the vector of all variables.
    #[must_use]
    pub fn variables(&self) -> usize {
        self.variables
    }

    /// The places of a group.
    ///
    /// # Panics
    /// If there is no such group; so do all methods that take one, and those that take values, if there are fewer than
    /// variables.
    #[must_use]
    pub fn members(&self, group: usize) -> &[usize] {
        &self.members[group]
    }

    /// aᵀ b of a group, in f64.
    #[must_use]
    pub fn dot(&self, a: &[f32], b: &[f32], group: usize) -> f64 {
        self.members[group].iter().map(|i| f64::from(a[*i]) * f64::from(b[*i])).sum()
    }

    /// ‖x‖ of a group.
    #[must_use]
    pub fn norm(&self, x: &[f32], group: usize) -> f64 {
        self.dot(x, x, group).sqrt()
    }

    /// Multiplies a group; by 0 it is 0, whatever it was.
    pub fn scale(&self, x: &mut [f32], group: usize, by: f64) {
        for &i in &self.members[group] {
            x[i] = if by == 0.0 { 0.0 } else { (f64::from(x[i]) * by) as f32 };
        }
    }

    /// Checks that these are values of the variables.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for one that is not finite.
    pub fn check(&self, what: &str, values: &[f32]) -> Result<()> {
        if values.len() != self.variables {
            let (length, variables) = (values.len(), self.variables);
            return Err(Error::shape(format!("{length} {what} of {variables} variables")));
        }
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(at) => Err(Error::numerical(format!("{what}: {} at variable {at}", values[at]))),
        }
    }
}

/// The places of the `number` least scores among those that may go, ascending; of equal scores those that come first.
pub(super) fn least(scores: &[f64], number: usize, may_go: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|g| may_go(*g)).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order.truncate(number);
    order.sort_unstable();
    order
}

/// Checks that these are scores of the groups.
pub(super) fn check_scores(scores: &[f64], groups: &Groups) -> Result<()> {
    if scores.len() != groups.len() {
        return Err(Error::shape(format!("{} scores of {} groups", scores.len(), groups.len())));
    }
    match scores.iter().position(|s| !s.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::numerical(format!("the score of group {at} is {}", scores[at]))),
    }
}
