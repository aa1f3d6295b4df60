use tensorpress_tensor::{Error, Result};

use super::Groups;

/// WGSEF (Refael, Arbel, Huleihel, "Learning k-Level Structured Sparse Neural Networks Using Group Envelope
/// Regularization", 2022, arXiv 2212.12921): the weighted group sparse envelope, the largest convex function below
/// ½ Σ_j d_j ‖x_j‖² where at most k groups x_j are not 0, and infinite elsewhere.
///
/// It is E(x) = min ½ Σ_j d_j ‖x_j‖² / u_j over 0 <= u_j <= 1, Σ u_j <= k. Proximal gradient steps with it lead to k
/// groups.
///
/// ```
/// use tensorpress_prune::train::{Envelope, Groups};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let groups = Groups::even(4, 2)?;
/// let envelope = Envelope::new(1);
/// // One group: half the square of its norm. Two: more, half the square of the sum of their norms.
/// assert_eq!(envelope.value(&[3.0, 4.0, 0.0, 0.0], &groups)?, 12.5);
/// assert_eq!(envelope.value(&[3.0, 4.0, 0.0, 1.0], &groups)?, 18.0);
/// let mut x = [3.0, 4.0, 0.0, 0.5];
/// envelope.prox(&mut x, &groups, 1.0)?;
/// assert_eq!(x, [1.5, 2.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Envelope {
    /// Groups that are to stay.
    pub k: usize,
    /// d, one a group; empty: all 1.
    pub weights: Vec<f64>,
}

/// One group.
impl Default for Envelope {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Envelope {
    /// To k groups.
    #[must_use]
    pub fn new(k: usize) -> Self {
        Self { k, weights: Vec::new() }
    }

    /// Sets what each group weighs.
    #[must_use]
    pub fn with_weights(mut self, weights: Vec<f64>) -> Self {
        self.weights = weights;
        self
    }

    /// E(x).
    ///
    /// # Errors
    /// `InvalidArgument` for k = 0 and weights that are not above 0; `ShapeMismatch`; `Numerical` for values that are
    /// not finite.
    pub fn value(&self, x: &[f32], groups: &Groups) -> Result<f64> {
        self.check(x, groups)?;
        let ramps: Vec<Ramp> = (0..groups.len())
            .map(|g| Ramp { slope: self.weight(g).sqrt() * groups.norm(x, g), offset: 0.0 })
            .filter(|ramp| ramp.slope > 0.0)
            .collect();
        let level = level(&ramps, self.k);
        let part = |ramp: &Ramp| ramp.slope * ramp.slope / ramp.at(level);
        Ok(0.5 * ramps.iter().map(part).sum::<f64>())
    }

    /// Puts argmin_z ½ ‖z - x‖² + step E(z) in the place of x; variables in no group stay.
    ///
    /// Exact: z_j = x_j u_j / (u_j + step d_j), where u_j = c √d_j ‖x_j‖ - step d_j, held to 0 and 1, and c is the root
    /// of Σ u_j = k, found in a time linear in the number of groups.
    ///
    /// # Errors
    /// As [`Envelope::value`]; `InvalidArgument` for a step that is not above 0.
    pub fn prox(&self, x: &mut [f32], groups: &Groups, step: f64) -> Result<()> {
        self.check(x, groups)?;
        if !(step.is_finite() && step > 0.0) {
            return Err(Error::invalid(format!("step = {step}: allowed are numbers above 0")));
        }
        let ramp = |g: usize| {
            let weight = self.weight(g);
            Ramp { slope: weight.sqrt() * groups.norm(x, g), offset: step * weight }
        };
        let ramps: Vec<(usize, Ramp)> =
            (0..groups.len()).map(|g| (g, ramp(g))).filter(|(_, r)| r.slope > 0.0).collect();
        let all: Vec<Ramp> = ramps.iter().map(|(_, ramp)| *ramp).collect();
        let level = level(&all, self.k);
        for (group, ramp) in ramps {
            let share = ramp.at(level);
            groups.scale(x, group, share / (share + ramp.offset));
        }
        Ok(())
    }

    fn weight(&self, group: usize) -> f64 {
        self.weights.get(group).copied().unwrap_or(1.0)
    }

    fn check(&self, x: &[f32], groups: &Groups) -> Result<()> {
        if self.k == 0 {
            return Err(Error::invalid("k = 0: allowed are 1 and more"));
        }
        if !self.weights.is_empty() && self.weights.len() != groups.len() {
            let (weights, groups) = (self.weights.len(), groups.len());
            return Err(Error::shape(format!("{weights} weights of {groups} groups")));
        }
        if let Some(at) = self.weights.iter().position(|w| !(w.is_finite() && *w > 0.0)) {
            let weight = self.weights[at];
            return Err(Error::invalid(format!(
                "weights[{at}] = {weight}: allowed are those above 0"
            )));
        }
        groups.check("values", x)
    }
}

/// slope c - offset, held to 0 and 1.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    /// Above 0.
    slope: f64,
    offset: f64,
}

impl Ramp {
    fn at(&self, level: f64) -> f64 {
        if level >= self.ends()[1] {
            1.0
        } else {
            (self.slope * level - self.offset).clamp(0.0, 1.0)
        }
    }

    /// Where it leaves 0 and where it reaches 1.
    fn ends(&self) -> [f64; 2] {
        [self.offset / self.slope, (1.0 + self.offset) / self.slope]
    }
}

/// The c at which the ramps add up to k; infinite if even all of them are no more than that.
///
/// Halves the breakpoints between which c lies; a ramp that has none there is a constant or a line, so that each round
/// looks at half as many.
fn level(ramps: &[Ramp], k: usize) -> f64 {
    if ramps.len() <= k {
        return f64::INFINITY;
    }
    let k = k as f64;
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut open = ramps.to_vec();
    // Of the ramps that are settled between low and high: how many are 1, and the sum of those that rise.
    let (mut full, mut slope, mut offset) = (0.0, 0.0, 0.0);
    loop {
        let inside = |end: &f64| *end > low && *end < high;
        let mut ends: Vec<f64> = open.iter().flat_map(Ramp::ends).filter(inside).collect();
        if ends.is_empty() {
            break;
        }
        let middle = ends.len() / 2;
        let pivot = *ends.select_nth_unstable_by(middle, f64::total_cmp).1;
        let sum: f64 = open.iter().map(|ramp| ramp.at(pivot)).sum();
        if full + slope * pivot - offset + sum >= k {
            high = pivot;
        } else {
            low = pivot;
        }
        open.retain(|ramp| {
            let [start, end] = ramp.ends();
            let (gone, done) = (start >= high, end <= low);
            let rises = !gone && !done && start <= low && end >= high;
            if done {
                full += 1.0;
            } else if rises {
                slope += ramp.slope;
                offset += ramp.offset;
            }
            !(gone || done || rises)
        });
    }
    // What never had an end inside.
    for ramp in &open {
        let [start, end] = ramp.ends();
        if end <= low {
            full += 1.0;
        } else if start <= low {
            slope += ramp.slope;
            offset += ramp.offset;
        }
    }
    if slope > 0.0 { ((k - full + offset) / slope).clamp(low, high) } else { high }
}
