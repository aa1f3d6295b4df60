use tensorpress_tensor::{Error, Result};

/// A support whose entries are there or not, and more likely so if their neighbour is: a stationary Markov chain of two
/// states with P(1) = density, P(1 | 1) = density + (1 - density) persistence, P(1 | 0) = density (1 - persistence).
///
/// ```
/// use tensorpress_prune::train::MarkovChain;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let chain = MarkovChain { density: 0.5, persistence: 0.8 };
/// // Its neighbours are there, nothing is known of itself.
/// let says = chain.extrinsic(&[5.0, 0.0, 5.0])?;
/// assert!(says[1] > 0.98);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MarkovChain {
    /// How many are there, 0 to 1 without its ends.
    pub density: f64,
    /// How much neighbours are alike: 0 (each by itself) to below 1 (all alike).
    pub persistence: f64,
}

impl MarkovChain {
    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        let Self { density, persistence } = *self;
        if !(density > 0.0 && density < 1.0) {
            return Err(Error::invalid(format!(
                "density = {density}: allowed are numbers between 0 and 1"
            )));
        }
        match (0.0..1.0).contains(&persistence) {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "persistence = {persistence}: allowed are 0 to below 1"
            ))),
        }
    }

    /// What all others say of each entry: the probability that it is there given the evidence of the others alone, ln
    /// p(data | 1) - ln p(data | 0) each. Sum and product forwards and backwards.
    ///
    /// # Errors
    /// `InvalidArgument` as [`MarkovChain::check`]; `Numerical` for evidence that is NaN.
    pub fn extrinsic(&self, evidence: &[f64]) -> Result<Vec<f64>> {
        self.check()?;
        if let Some(at) = evidence.iter().position(|e| e.is_nan()) {
            return Err(Error::numerical(format!("the evidence of entry {at} is NaN")));
        }
        let rest = 1.0 - self.density;
        let stay = self.density + rest * self.persistence;
        let rise = self.density * (1.0 - self.persistence);
        // Of the entry before, to this one.
        let mut forward = vec![self.density; evidence.len()];
        for i in 1..evidence.len() {
            let before = posterior(forward[i - 1], evidence[i - 1]);
            forward[i] = before * stay + (1.0 - before) * rise;
        }
        // Of the entries behind, as odds are: likelihoods of 1 and of 0 that add up to 1.
        let mut backward = vec![0.5; evidence.len()];
        for i in (1..evidence.len()).rev() {
            let behind = posterior(backward[i], evidence[i]);
            let one = stay * behind + (1.0 - stay) * (1.0 - behind);
            let none = rise * behind + (1.0 - rise) * (1.0 - behind);
            backward[i - 1] = one / (one + none);
        }
        let both = |(f, b): (&f64, &f64)| {
            let (one, none) = (f * b, (1.0 - f) * (1.0 - b));
            one / (one + none)
        };
        Ok(forward.iter().zip(&backward).map(both).collect())
    }
}

/// The probability after evidence, a logarithm of odds, has come to a prior.
pub(super) fn posterior(prior: f64, evidence: f64) -> f64 {
    let odds = prior.ln() - (-prior).ln_1p() + evidence;
    1.0 / (1.0 + (-odds).exp())
}
