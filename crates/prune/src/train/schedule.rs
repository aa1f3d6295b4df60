use tensorpress_tensor::{Error, Result};

/// How a [`Schedule`] goes from its first value to its last.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Curve {
    /// last + (first - last) (1 - p)^power of the progress p: 1 is linear, 3 is the cubic of gradual pruning, fast
    /// where there is much to prune and slow at the end.
    Power(f64),
    /// last + (first - last) e^(-rate p): what is left at the end, e^-rate, is dropped there.
    Exponential(f64),
}

/// A number that goes from one value to another over training steps.
///
/// Before `begin` it is `first`, from `begin + steps` on `last`, between them it changes every `every` steps.
///
/// ```
/// use tensorpress_prune::train::Schedule;
///
/// // Gradual pruning from 0 to 90%, from step 100 on, 10 times, every 50 steps.
/// let sparsity = Schedule::cubic(0.0, 0.9).with_begin(100).with_steps(500).with_every(50);
/// assert_eq!((sparsity.at(0), sparsity.at(600)), (0.0, 0.9));
/// assert!((sparsity.at(350) - 0.9 * (1.0 - 0.125)).abs() < 1e-12);
/// assert!(sparsity.changes(150) && !sparsity.changes(151));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Schedule {
    /// The value at first.
    pub first: f64,
    /// The value at last.
    pub last: f64,
    /// The first step that may change it. Default 0.
    pub begin: u64,
    /// Steps it takes. Default 1000.
    pub steps: u64,
    /// Steps between changes. Default 1.
    pub every: u64,
    /// How it goes.
    pub curve: Curve,
}

impl Default for Schedule {
    /// From 1 to 0, linear, in 1000 steps.
    fn default() -> Self {
        Self::linear(1.0, 0.0)
    }
}

impl Schedule {
    /// Along this curve, in 1000 steps.
    pub fn new(first: f64, last: f64, curve: Curve) -> Self {
        Self { first, last, begin: 0, steps: 1000, every: 1, curve }
    }

    /// In equal steps.
    pub fn linear(first: f64, last: f64) -> Self {
        Self::new(first, last, Curve::Power(1.0))
    }

    /// The sparsity of gradual pruning (Zhu & Gupta, "To prune, or not to prune", 2017, eq. 1): s_f + (s_i - s_f) (1 -
    /// (t - t_0) / (n Δt))³, with t_0 = `begin`, n Δt = `steps`, Δt = `every`.
    pub fn cubic(first: f64, last: f64) -> Self {
        Self::new(first, last, Curve::Power(3.0))
    }

    /// By equal factors of what is left.
    pub fn exponential(first: f64, last: f64, rate: f64) -> Self {
        Self::new(first, last, Curve::Exponential(rate))
    }

    /// Sets the first step.
    pub fn with_begin(mut self, begin: u64) -> Self {
        self.begin = begin;
        self
    }

    /// Sets how many steps it takes.
    pub fn with_steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    /// Sets how many steps lie between changes.
    pub fn with_every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("first", self.first), ("last", self.last)] {
            if !value.is_finite() {
                return Err(Error::invalid(format!(
                    "{name} = {value}: allowed are finite numbers"
                )));
            }
        }
        if self.every == 0 {
            return Err(Error::invalid("every = 0: allowed are 1 and more"));
        }
        let (name, number) = match self.curve {
            Curve::Power(power) => ("power", power),
            Curve::Exponential(rate) => ("rate", rate),
        };
        match number.is_finite() && number > 0.0 {
            true => Ok(()),
            false => Err(Error::invalid(format!("{name} = {number}: allowed are numbers above 0"))),
        }
    }

    /// The value at this step.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let since = step.saturating_sub(self.begin);
        if since >= self.steps {
            return if step < self.begin { self.first } else { self.last };
        }
        let progress = (since - since % self.every.max(1)) as f64 / self.steps as f64;
        let left = match self.curve {
            Curve::Power(power) => (1.0 - progress).powf(power),
            Curve::Exponential(rate) => (-rate * progress).exp(),
        };
        self.last + (self.first - self.last) * left
    }

    /// The value may be another one at this step than at the step before.
    #[must_use]
    pub fn changes(&self, step: u64) -> bool {
        let Some(since) = step.checked_sub(self.begin) else { return false };
        since == self.steps || since < self.steps && since.is_multiple_of(self.every.max(1))
    }
}
