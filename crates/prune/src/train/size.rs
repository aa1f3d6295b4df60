use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::Sloped;

/// What a model with gates takes (weights, operations, bytes), as the sum of products of how many there are of this and
/// of that: a matrix between gated inputs and gated outputs costs inputs x outputs.
///
/// ```
/// use tensorpress_prune::train::Size;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// // A matrix of 2 gated inputs and 3 gated outputs, and 10 weights a head for 2 heads.
/// let mut size = Size::new();
/// let (inputs, outputs, heads) = (size.gates(2), size.gates(3), size.gates(2));
/// size.add(1.0, [inputs, outputs])?;
/// size.add(10.0, [heads])?;
/// let share = size.share(&[1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.5])?;
/// assert!((share.value - (2.0 + 10.0) / (6.0 + 20.0)).abs() < 1e-12);
/// assert!((share.gradient[0] - 2.0 / 26.0).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Size {
    gates: usize,
    terms: Vec<(f64, Vec<GateSet>)>,
}

/// Gates that are neighbours, of a [`Size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSet {
    first: usize,
    end: usize,
}

impl GateSet {
    /// The places of their presences.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.first..self.end
    }
}

/// A share of the whole size, 0 to 1.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Its derivative by the presence of each gate.
    pub gradient: Vec<f64>,
}

impl Size {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds so many gates, behind those that are there.
    pub fn gates(&mut self, number: usize) -> GateSet {
        let first = self.gates;
        self.gates += number;
        GateSet { first, end: self.gates }
    }

    /// Adds what costs `cost` for each choice of a gate from each of these sets; without sets, always.
    ///
    /// # Errors
    /// `InvalidArgument` for a cost that is negative or not finite, and sets of another size.
    pub fn add(&mut self, cost: f64, sets: impl IntoIterator<Item = GateSet>) -> Result<()> {
        if !(cost.is_finite() && cost >= 0.0) {
            return Err(Error::invalid(format!("cost = {cost}: allowed are 0 and more")));
        }
        let sets: Vec<GateSet> = sets.into_iter().collect();
        if let Some(set) = sets.iter().find(|set| set.end > self.gates) {
            return Err(Error::invalid(format!("gates {:?} of {}", set.range(), self.gates)));
        }
        self.terms.push((cost, sets));
        Ok(())
    }

    /// The share that is left of the whole size, by the presences of the gates.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a presence outside 0 to 1; `InsufficientData` for a model without size.
    pub fn share(&self, presences: &[f64]) -> Result<Share> {
        if presences.len() != self.gates {
            let (length, gates) = (presences.len(), self.gates);
            return Err(Error::shape(format!("{length} presences of {gates} gates")));
        }
        if let Some(at) = presences.iter().position(|p| !(0.0..=1.0).contains(p)) {
            let message = format!("presence {} of gate {at}: allowed are 0 to 1", presences[at]);
            return Err(Error::invalid(message));
        }
        let (mut whole, mut value, mut gradient) = (0.0, 0.0, vec![0.0; self.gates]);
        for (cost, sets) in &self.terms {
            let counts: Vec<f64> =
                sets.iter().map(|set| presences[set.range()].iter().sum()).collect();
            value += cost * counts.iter().product::<f64>();
            whole += cost * sets.iter().map(|set| set.range().len() as f64).product::<f64>();
            for (at, set) in sets.iter().enumerate() {
                let others = counts.iter().enumerate().filter(|(other, _)| *other != at);
                let slope = cost * others.map(|(_, count)| count).product::<f64>();
                gradient[set.range()].iter_mut().for_each(|g| *g += slope);
            }
        }
        if !(whole > 0.0 && whole.is_finite()) {
            return Err(Error::insufficient(format!("a model of size {whole} has no shares")));
        }
        gradient.iter_mut().for_each(|g| *g /= whole);
        Ok(Share { value: value / whole, gradient })
    }
}

/// The constraint of a share to a target, as Compresso trains it (Guo et al., 2023, after Wang et al., 2020): the
/// penalty λ₁ (share - target) + λ₂ (share - target)², whose multipliers climb while the trainer descends.
///
/// ```
/// use tensorpress_prune::train::Lagrangian;
///
/// let mut constraint = Lagrangian::default();
/// for _ in 0..10 {
///     constraint.ascend(0.8, 0.5, 0.1);
/// }
/// assert!(constraint.penalty(0.8, 0.5).slope[0] > 0.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Lagrangian {
    /// λ₁.
    pub linear: f64,
    /// λ₂.
    pub square: f64,
}

impl Lagrangian {
    /// The penalty, and its derivative by the share.
    #[must_use]
    pub fn penalty(&self, share: f64, target: f64) -> Sloped {
        let off = share - target;
        let value = self.linear * off + self.square * off * off;
        Sloped { value, slope: [self.linear + 2.0 * self.square * off, 0.0] }
    }

    /// A step of gradient ascent of the multipliers.
    pub fn ascend(&mut self, share: f64, target: f64, rate: f64) {
        let off = share - target;
        self.linear += rate * off;
        self.square += rate * off * off;
    }
}

/// A budget as a fixed penalty on what is above it: weight x max(0, share - target)². Of operations, a form of LAPP's
/// constraint.
///
/// ```
/// use tensorpress_prune::train::Budget;
///
/// let budget = Budget::new(0.5, 8.0);
/// assert_eq!(budget.penalty(0.4).value, 0.0);
/// assert_eq!((budget.penalty(0.75).value, budget.penalty(0.75).slope[0]), (0.5, 4.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Budget {
    /// The share that is allowed.
    pub target: f64,
    /// What an excess counts for.
    pub weight: f64,
}

impl Budget {
    /// Of this share, and weight.
    #[must_use]
    pub fn new(target: f64, weight: f64) -> Self {
        Self { target, weight }
    }

    /// The penalty, and its derivative by the share.
    #[must_use]
    pub fn penalty(&self, share: f64) -> Sloped {
        let above = (share - self.target).max(0.0);
        let slope = [2.0 * self.weight * above, 0.0];
        Sloped { value: self.weight * above * above, slope }
    }
}
