use tensorpress_tensor::{Error, Result};

/// What a compressed context says about a text, in nats a token: the mean loss of a language model on the text without the
/// context less that with it, from the log-probability of each token. Below 0 where it misleads.
///
/// # Errors
/// `ShapeMismatch` unless there are as many of both; `InvalidArgument` without any; `Numerical` for one that is not finite.
pub fn language(with: &[f64], without: &[f64]) -> Result<f64> {
    if with.len() != without.len() {
        let (with, without) = (with.len(), without.len());
        return Err(Error::shape(format!("{with} log-probabilities beside {without}")));
    }
    if with.is_empty() {
        return Err(Error::invalid("no log-probabilities"));
    }
    let gains = with.iter().zip(without).map(|(with, without)| with - without);
    let mean = gains.sum::<f64>() / with.len() as f64;
    if mean.is_finite() {
        return Ok(mean);
    }
    Err(Error::numerical(format!("log-probabilities that gain {mean}")))
}
