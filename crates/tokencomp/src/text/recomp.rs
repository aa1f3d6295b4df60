//! Labels for a ranking of sentences: Xu, Shi, Choi, *RECOMP: Improving Retrieval-Augmented LMs with Compression and
//! Selective Augmentation*, 2024, section 3.1.

use tensorpress_tensor::{Error, Result};

use super::TokenLogProbs;

/// What one question teaches an encoder of sentences: the sentence that helps a language model most to the answer, and
/// those that help it less.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Contrast {
    /// ln p(answer | sentence, question), of each sentence: sums over the answer's tokens.
    pub scores: Vec<f64>,
    /// The sentence of the highest score.
    pub positive: usize,
    /// Sentences whose score lies by more than the margin below it, the nearest first: those that are hard to tell apart.
    pub negatives: Vec<usize>,
}

/// Scores each sentence by the log-likelihood of the answer behind sentence and question, and contrasts the best one with at
/// most `most` of those that lie by more than `margin` below it (the paper: the 5 that are nearest). A run of the model a
/// sentence.
///
/// # Errors
/// `InvalidArgument` without sentences or for a margin that is negative or not finite; `Numerical` for a score that is not
/// finite; those of the model.
pub fn contrast(
    model: &dyn TokenLogProbs,
    (question, answer): (&str, &str),
    sentences: &[&str],
    (margin, most): (f64, usize),
) -> Result<Contrast> {
    if sentences.is_empty() {
        return Err(Error::invalid("0 sentences to contrast; at least 1 is needed"));
    }
    if !(margin.is_finite() && margin >= 0.0) {
        return Err(Error::invalid(format!(
            "margin = {margin}; allowed are finite numbers from 0"
        )));
    }
    let score = |sentence: &&str| {
        let tokens = model.log_probs(&format!("{sentence}\n{question}\n"), answer)?;
        let score: f64 = tokens.iter().map(|(_, p)| f64::from(*p)).sum();
        match score.is_finite() {
            true => Ok(score),
            false => {
                Err(Error::numerical(format!("ln p({answer:?}) behind {sentence:?} is {score}")))
            }
        }
    };
    let scores = sentences.iter().map(score).collect::<Result<Vec<f64>>>()?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let positive = order[0];
    let lower = |at: &usize| scores[*at] + margin < scores[positive];
    let negatives = order.into_iter().filter(lower).take(most).collect();
    Ok(Contrast { scores, positive, negatives })
}
