use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

use super::product::{ProductCodes, ProductQuantizer};

/// JPQ (Zhan et al., 2021): the centroids of a product quantiser are trained to rank, while the codes stay as they are.
///
/// In each round every query is searched with the centroids as they are; the best that is not relevant to it are its
/// negatives ("end-to-end" ones), and centroids take a step down the mean of `ln(1 + exp((s- - s+) / temperature))` over all
/// pairs of a relevant vector and a negative.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Jpq {
    /// Steps. Default 50.
    pub rounds: usize,
    /// Negatives a query. Default 20.
    pub negatives: usize,
    /// Length of a step, in units of the gradient. Default 1.
    pub rate: f32,
    /// What differences of scores are divided by. Default 0.05, for vectors of length 1.
    pub temperature: f32,
}

/// Vectors that are relevant to a query, by their numbers.
pub type Relevant = Vec<usize>;

impl Default for Jpq {
    fn default() -> Self {
        Self { rounds: 50, negatives: 20, rate: 1.0, temperature: 0.05 }
    }
}

impl Jpq {
    /// Sets the steps and their length.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize, rate: f32) -> Self {
        (self.rounds, self.rate) = (rounds, rate);
        self
    }

    /// Sets the negatives of a query.
    #[must_use]
    pub fn with_negatives(mut self, negatives: usize) -> Self {
        self.negatives = negatives;
        self
    }

    /// Sets what differences of scores are divided by.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// The loss of the queries `[queries, size]`, and its gradient by the centroids.
    ///
    /// # Errors
    /// Those of [`ProductQuantizer::search`]; `ShapeMismatch` unless there is one list of relevant vectors a query;
    /// `InvalidArgument` for vectors that are not there, and parameters out of their range.
    pub fn loss(
        &self,
        quantizer: &ProductQuantizer,
        codes: &ProductCodes,
        queries: ArrayView2<'_, f32>,
        relevant: &[Relevant],
    ) -> Result<(f64, Array2<f32>)> {
        self.check(codes, queries, relevant)?;
        let mut gradient = Array2::<f32>::zeros(quantizer.centroids().dim());
        let (mut loss, mut pairs) = (0f64, 0usize);
        for (query, relevant) in queries.rows().into_iter().zip(relevant) {
            let scores = quantizer.scan(quantizer.table(query)?.view(), codes)?;
            let wrong = super::top(&scores, self.negatives + relevant.len());
            let wrong: Vec<usize> = wrong
                .into_iter()
                .map(|(i, _)| i)
                .filter(|i| !relevant.contains(i))
                .take(self.negatives)
                .collect();
            let mut weights = Vec::new();
            for right in relevant {
                let mut pull = 0f64;
                for wrong in &wrong {
                    let by =
                        f64::from(scores[*wrong] - scores[*right]) / f64::from(self.temperature);
                    loss += by.max(0.0) + (-by.abs()).exp().ln_1p();
                    let slope = 1.0 / (1.0 + (-by).exp()) / f64::from(self.temperature);
                    weights.push((*wrong, slope as f32));
                    pull += slope;
                }
                weights.push((*right, -pull as f32));
            }
            pairs += relevant.len() * wrong.len();
            gradient += &quantizer.score_gradients(query, codes, &weights)?.centroids;
        }
        let pairs = pairs.max(1) as f64;
        gradient.mapv_inplace(|g| g / pairs as f32);
        Ok((loss / pairs, gradient))
    }

    fn check(
        &self,
        codes: &ProductCodes,
        queries: ArrayView2<'_, f32>,
        relevant: &[Relevant],
    ) -> Result<()> {
        if relevant.len() != queries.nrows() {
            let message = format!(
                "{} lists of relevant vectors for {} queries",
                relevant.len(),
                queries.nrows()
            );
            return Err(Error::shape(message));
        }
        if let Some(i) = relevant.iter().flatten().find(|i| **i >= codes.len()) {
            return Err(Error::invalid(format!("relevant vector {i} of {}", codes.len())));
        }
        if self.negatives == 0 {
            return Err(Error::invalid("negatives = 0: allowed are 1 and more"));
        }
        for (name, value) in [("rate", self.rate), ("temperature", self.temperature)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::invalid(format!(
                    "{name} = {value}: allowed are positive numbers"
                )));
            }
        }
        Ok(())
    }

    /// Trains the centroids; returns the loss before every step.
    ///
    /// # Errors
    /// As [`Jpq::loss`].
    pub fn train(
        &self,
        quantizer: &mut ProductQuantizer,
        codes: &ProductCodes,
        queries: ArrayView2<'_, f32>,
        relevant: &[Relevant],
    ) -> Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let (loss, gradient) = self.loss(quantizer, codes, queries, relevant)?;
            losses.push(loss);
            quantizer.step(-self.rate, gradient.view());
        }
        Ok(losses)
    }
}
