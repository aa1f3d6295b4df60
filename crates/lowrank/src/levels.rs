use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Node, Result, Storage, node::decode};

use crate::metric::Root;

/// One way to factor a matrix, with what it takes and what it loses: a row of what an allocation over all matrices chooses
/// from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Level<C> {
    /// The rank, or whatever else was chosen.
    pub choice: C,
    /// Bytes of all parts.
    pub bytes: u64,
    /// The squared error by the metric, ‖(W - Ŵ) S‖²: errors of several matrices add up. Methods with another error say
    /// so.
    pub error: f64,
}

impl<C> Level<C> {
    /// A level of this size and error.
    #[must_use]
    pub fn new(choice: C, bytes: u64, error: f64) -> Self {
        Self { choice, bytes, error }
    }

    /// What a node takes and loses.
    pub(crate) fn of(
        choice: C,
        node: &dyn Node,
        weight: &Array2<f32>,
        root: &Root,
        par: Par,
    ) -> Result<Self> {
        let lost = root.apply((weight - &decode(node)?).view(), par)?;
        Ok(Self::new(choice, Storage::of(node)?.bytes(), energy(lost.iter())))
    }
}

/// Σ v², in f64.
pub(crate) fn energy<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|v| f64::from(*v) * f64::from(*v)).sum()
}
