use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{DType, Error, Result};

use crate::factors::{check_float, float_knob};

/// How many atoms a dictionary has, how many of them a code uses, and how both are stored.
///
/// ```
/// use tensorpress_lowrank::Atoms;
///
/// let atoms = Atoms::default().with_ratio(0.5).with_spread(2.0);
/// assert!(atoms.check().is_ok() && atoms.with_ratio(1.0).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Atoms {
    /// Fraction of the bytes that goes. Default 0.2.
    pub ratio: f64,
    /// Atoms for each number of a code: how sparse codes are. Default 2.
    pub spread: f64,
    /// Atoms, in the place of a ratio; 0: by ratio, which is the default.
    pub number: usize,
    /// Stored type of both factors; none, the default: that of the weights.
    pub dtype: Option<DType>,
}

impl Default for Atoms {
    fn default() -> Self {
        Self { ratio: 0.2, spread: 2.0, number: 0, dtype: None }
    }
}

impl Atoms {
    /// Sets the fraction of the bytes that goes.
    #[must_use]
    pub fn with_ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio;
        self
    }

    /// Sets the atoms for each number of a code.
    #[must_use]
    pub fn with_spread(mut self, spread: f64) -> Self {
        self.spread = spread;
        self
    }

    /// Sets the number of atoms.
    #[must_use]
    pub fn with_number(mut self, number: usize) -> Self {
        self.number = number;
        self
    }

    /// Sets the stored type.
    #[must_use]
    pub fn with_dtype(mut self, dtype: Option<DType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming what is allowed.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.ratio) {
            let message = format!("ratio = {}: allowed are 0 and more, below 1", self.ratio);
            return Err(Error::invalid(message));
        }
        if !(1.0..=1e6).contains(&self.spread) {
            return Err(Error::invalid(format!("spread = {}: allowed are 1 to 1e6", self.spread)));
        }
        check_float(self.dtype)
    }

    /// Atoms and numbers of a code, for codes of `codes` vectors of `length`, at most min of both: as many atoms as fit
    /// beside codes that are so sparse, and what is left of the bytes for the codes.
    pub(super) fn sizes(&self, length: usize, codes: usize, source: DType) -> [usize; 2] {
        let full = length.min(codes);
        if self.number > 0 {
            let number = self.number.min(full);
            let nonzeros = (number as f64 / self.spread + 1e-9) as usize;
            return [number, nonzeros.clamp(1, number.max(1))];
        }
        let value = self.dtype.unwrap_or(source).size() as f64;
        let (length, codes) = (length as f64, codes as f64);
        let budget = (1.0 - self.ratio) * length * codes * source.size() as f64;
        // An atom, and a bit in each code's mask.
        let atom = length * value + codes / 8.0;
        let number = budget / (atom + codes * value / self.spread) + 1e-9;
        let number = (number as usize).clamp(1, full.max(1));
        let nonzeros = (budget - number as f64 * atom) / (codes * value) + 1e-9;
        [number, (nonzeros.max(0.0) as usize).clamp(1, number)]
    }
}

impl Knobs for Atoms {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("ratio", &mut self.ratio, 0.0..=0.999, "fraction of the bytes that goes")?;
        let about = "atoms for each number of a code: how sparse codes are";
        keys.float("spread", &mut self.spread, 1.0..=1e6, about)?;
        let about = "atoms of the dictionary, in the place of a ratio; 0: by ratio";
        keys.int("atoms", &mut self.number, 0..=1 << 20, about)?;
        float_knob(keys, &mut self.dtype)
    }
}
