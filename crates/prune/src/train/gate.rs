mod annealed;
mod bottleneck;
mod hard_concrete;
mod threshold;

use std::fmt::Debug;

use tensorpress_tensor::{Error, Result};

pub use annealed::{Annealed, Annealing};
pub use bottleneck::Bottleneck;
pub use hard_concrete::HardConcrete;
pub use threshold::{LearnedThreshold, Threshold};

/// A number and what it changes by with each of two parameters; 0 for one that there is not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sloped {
    /// The number.
    pub value: f64,
    /// Its derivatives.
    pub slope: [f64; 2],
}

/// A factor before a channel, a head or a layer, of one or two parameters that are trained.
///
/// The gradient of a loss by the parameters is that by the factor times its slope, and that of a penalty on the size
/// ([`super::Size`]) by the presence times the presence's.
pub trait Gate: Debug + Send + Sync {
    /// The factor in training: draw `at` of `seed`, if it is random.
    fn sample(&self, seed: u64, at: u64) -> Sloped;

    /// The factor after training, if it stays.
    fn value(&self) -> f64;

    /// How much of it is there, 0 to 1: the expected count where it is random.
    fn presence(&self) -> Sloped;

    /// It stays.
    fn keeps(&self) -> bool;
}

/// The gates that stay: as many as are expected to be there, those that are most present (as CoFi and Compresso make
/// the final mask). Of equal ones those that come first.
///
/// ```
/// use tensorpress_prune::train::{HardConcrete, export};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let gates = [-3.0, 3.0, 0.5, -5.0].map(|a| HardConcrete::new(a).expect("finite"));
/// assert_eq!(export(&gates), [false, true, true, false]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn export<G: Gate>(gates: &[G]) -> Vec<bool> {
    let presences: Vec<f64> = gates.iter().map(|gate| gate.presence().value).collect();
    let number = presences.iter().sum::<f64>().round() as usize;
    let mut order: Vec<usize> = (0..gates.len()).collect();
    order.sort_by(|a, b| presences[*b].total_cmp(&presences[*a]));
    let mut keep = vec![false; gates.len()];
    order.into_iter().take(number).for_each(|gate| keep[gate] = true);
    keep
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn finite(name: &str, value: f64) -> Result<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(Error::invalid(format!("{name} = {value}: allowed are finite numbers"))),
    }
}

fn positive(name: &str, value: f64) -> Result<f64> {
    match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err(Error::invalid(format!("{name} = {value}: allowed are numbers above 0"))),
    }
}
