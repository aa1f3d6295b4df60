use tensorpress_tensor::{Error, Result};

use crate::{Choice, Table, Unit};

/// How much an expert's errors matter (MC-MoE: Huang et al., *Mixture Compressor for Mixture-of-Experts LLMs Gains More*,
/// 2024): φ^α w^β ε^γ, where φ is how often the router chooses it, w the mean weight that it is given, and ε what it loses
/// at a level.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Significance {
    frequency: f64,
    weight: f64,
    error: f64,
}

impl Default for Significance {
    fn default() -> Self {
        Self { frequency: 1.0, weight: 1.0, error: 1.0 }
    }
}

impl Significance {
    /// The product of all three.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets α, the exponent of the frequency. Default 1.
    #[must_use]
    pub fn with_frequency(mut self, exponent: f64) -> Self {
        self.frequency = exponent;
        self
    }

    /// Sets β, the exponent of the routing weight. Default 1.
    #[must_use]
    pub fn with_weight(mut self, exponent: f64) -> Self {
        self.weight = exponent;
        self
    }

    /// Sets γ, the exponent of the error. Default 1.
    #[must_use]
    pub fn with_error(mut self, exponent: f64) -> Self {
        self.error = exponent;
        self
    }

    /// The table of these experts, with their errors weighed.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is one frequency and one weight an expert; `Numerical`, naming the expert, where one of the
    /// three is below 0, or the product is no finite number; those of [`Table::new`].
    pub fn table(&self, experts: &[Unit], frequency: &[f64], weight: &[f64]) -> Result<Table> {
        if frequency.len() != experts.len() || weight.len() != experts.len() {
            let have = format!("{} frequencies and {} weights", frequency.len(), weight.len());
            return Err(Error::shape(format!("{have} for {} experts", experts.len())));
        }
        let weigh = |((expert, frequency), weight): ((&Unit, &f64), &f64)| {
            let matters = frequency.powf(self.frequency) * weight.powf(self.weight);
            let mut choices = Vec::with_capacity(expert.choices().len());
            for choice in expert.choices() {
                let error = matters * choice.error.powf(self.error);
                if *frequency < 0.0 || *weight < 0.0 || choice.error < 0.0 || !error.is_finite() {
                    let of = format!("{frequency}, {weight} and {}", choice.error);
                    let message = format!("its frequency, weight and error are {of}");
                    return Err(Error::numerical(message).in_tensor(expert.name()));
                }
                choices.push(Choice::new(choice.cost, error));
            }
            Ok(Unit::new(expert.name(), choices))
        };
        let units = experts.iter().zip(frequency).zip(weight).map(weigh);
        Table::new(units.collect::<Result<Vec<_>>>()?)
    }
}
