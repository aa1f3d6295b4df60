//! What a head holds after slots were merged.

use ndarray::Array2;
use tensorpress_tensor::{Error, Result, ndarray};

use super::KvShape;

/// Slots of one head that others were merged into.
///
/// A slot that stands for w tokens weighs in attention as w equal ones would: ln w is added to its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Slots that stay, ascending; each keeps its token's position.
    pub slots: Vec<usize>,
    /// Their keys `[slots, head_dim]`, as attention uses them.
    pub keys: Array2<f32>,
    /// Their values `[slots, value_dim]`.
    pub values: Array2<f32>,
    /// Tokens that each stands for, above 0.
    pub weights: Vec<f32>,
    /// Where each slot of before went, an index into `slots`; nowhere where it was dropped.
    pub into: Vec<Option<usize>>,
}

impl Merged {
    /// These slots as they are, and nothing of the others: what rules begin with.
    ///
    /// # Panics
    /// If a slot is not there.
    #[must_use]
    pub fn keep(
        slots: &[usize],
        keys: &Array2<f32>,
        values: &Array2<f32>,
        weights: &[f32],
    ) -> Self {
        let mut into = vec![None; weights.len()];
        slots.iter().enumerate().for_each(|(at, slot)| into[*slot] = Some(at));
        let axis = ndarray::Axis(0);
        Self {
            slots: slots.to_vec(),
            keys: keys.select(axis, slots),
            values: values.select(axis, slots),
            weights: slots.iter().map(|slot| weights[*slot]).collect(),
            into,
        }
    }

    /// Whether a head of this shape that holds `held` slots can become this; slots are checked by the store.
    pub(super) fn check(&self, shape: KvShape, held: usize) -> Result<()> {
        let n = self.slots.len();
        let (keys, values) = (self.keys.dim(), self.values.dim());
        if keys != (n, shape.head_dim) || values != (n, shape.value_dim) || self.weights.len() != n
        {
            let weights = self.weights.len();
            return Err(Error::shape(format!(
                "merged slots: {n} of them, keys {keys:?}, values {values:?}, {weights} weights"
            )));
        }
        if self.into.len() != held || self.into.iter().flatten().any(|at| *at >= n) {
            let into = self.into.len();
            return Err(Error::shape(format!("{into} slots go to {n} of them, {held} are held")));
        }
        match self.weights.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
            Some(w) => Err(Error::invalid(format!("weight of a merged slot = {w}: above 0"))),
            None => Ok(()),
        }
    }
}
