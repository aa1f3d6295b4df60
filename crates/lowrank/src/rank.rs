use tensorpress_tensor::stage::{Keys, Knobs, Value};
use tensorpress_tensor::{Error, Result};

/// How the rank of a matrix is chosen.
///
/// ```
/// use tensorpress_lowrank::Rank;
///
/// assert!(Rank::Ratio(0.3).check().is_ok());
/// assert!(Rank::Number(0).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rank {
    /// This many, or as many as the matrix has rows or columns.
    Number(usize),
    /// This fraction of the parameters goes: out * in * (1 - ratio) / (out + in), rounded down, at least 1.
    Ratio(f64),
    /// The least rank that keeps this fraction of ‖W S‖², the energy of the outputs. Needs all singular values.
    Energy(f64),
}

/// A fifth of the parameters goes.
impl Default for Rank {
    fn default() -> Self {
        Self::Ratio(0.2)
    }
}

/// A ratio, unless a number or an energy is said in its place.
impl Knobs for Rank {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let (mut ratio, mut rank, mut energy) = match *self {
            Self::Ratio(ratio) => (ratio, 0, 0.0),
            Self::Number(rank) => (0.0, rank, 0.0),
            Self::Energy(energy) => (0.0, 0, energy),
        };
        let says = |key| match keys.peek(key) {
            Some(Value::Int(value)) => *value > 0,
            Some(Value::Float(value)) => *value > 0.0,
            _ => false,
        };
        if says("rank") || says("energy") {
            (ratio, rank, energy) = (0.0, 0, 0.0);
        }
        let about = "fraction of the parameters that goes";
        keys.float("ratio", &mut ratio, 0.0..=0.999, about)?;
        let about = "inner size, in the place of a ratio; 0: by ratio";
        keys.int("rank", &mut rank, 0..=1 << 20, about)?;
        let about = "fraction of the squared singular values that stays, in the place of a ratio; 0: by ratio";
        keys.float("energy", &mut energy, 0.0..=1.0, about)?;
        *self = match (rank, energy > 0.0, ratio > 0.0) {
            (0, false, _) => Self::Ratio(ratio),
            (0, true, false) => Self::Energy(energy),
            (rank, false, false) => Self::Number(rank),
            _ => {
                return Err(Error::invalid(format!(
                    "rank = {rank}, energy = {energy} and ratio = {ratio}: allowed is one of them"
                )));
            }
        };
        Ok(())
    }
}

impl Rank {
    /// Checks the parameter.
    ///
    /// # Errors
    /// `InvalidArgument`, naming what is allowed.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Number(0) => Err(Error::invalid("rank = 0: allowed are 1 and more")),
            Self::Ratio(ratio) if !(0.0..1.0).contains(&ratio) => {
                Err(Error::invalid(format!("ratio = {ratio}: allowed are 0 and more, below 1")))
            }
            Self::Energy(energy) if !(energy > 0.0 && energy <= 1.0) => {
                Err(Error::invalid(format!("energy = {energy}: allowed are above 0, to 1")))
            }
            _ => Ok(()),
        }
    }

    /// The rank for a matrix of this shape, where it does not depend on singular values.
    pub(crate) fn of_shape(self, [out, inp]: [usize; 2]) -> Option<usize> {
        let full = out.min(inp);
        match self {
            Self::Number(rank) => Some(rank.min(full)),
            Self::Ratio(ratio) => {
                let parameters = out as f64 * inp as f64 * (1.0 - ratio);
                // Not below a whole number by an error of rounding.
                let rank = (parameters / (out + inp).max(1) as f64 + 1e-9) as usize;
                Some(rank.max(1).min(full))
            }
            Self::Energy(_) => None,
        }
    }

    /// The rank for these singular values, falling.
    pub(crate) fn of_spectrum(self, shape: [usize; 2], values: &[f32]) -> usize {
        let Self::Energy(fraction) = self else {
            return self.of_shape(shape).unwrap_or(values.len());
        };
        let square = |v: &f32| f64::from(*v) * f64::from(*v);
        let goal = fraction * values.iter().map(square).sum::<f64>();
        let mut sum = 0.0;
        let short = values.iter().take_while(|v| {
            let still = sum < goal;
            sum += square(v);
            still
        });
        short.count().max(1).min(values.len())
    }
}
