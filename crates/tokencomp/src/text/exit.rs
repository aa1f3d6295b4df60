//! Whether a sentence helps, said in the light of its whole document: Hwang, Cho, Jeong, Song, Han, Park, *EXIT:
//! Context-Aware Extractive Compression for Enhancing Retrieval-Augmented Generation*, 2024.

use std::fmt::Debug;

use tensorpress_tensor::{Error, Result};

use super::recipe::ranking;
use super::{Relevance, TokenLogProbs};
use crate::stage::TokenPart;
use tensorpress_tensor::stage::Row;

/// Any classifier of sentences into useful and not, that reads the document around them.
pub trait Usefulness: Debug {
    /// The probability, 0 to 1, that `sentence` of `document` helps to answer `question`.
    ///
    /// # Errors
    /// Whatever the classifier cannot do.
    fn yes(&self, question: &str, document: &str, sentence: &str) -> Result<f32>;
}

/// A language model that is asked: p(yes) / (p(yes) + p(no)) of the next token behind the question, the document and the
/// sentence (equation 2 of the paper, whose model was tuned to say so).
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    model: &'a dyn TokenLogProbs,
}

impl<'a> Asked<'a> {
    /// Asks this model.
    #[must_use]
    pub fn new(model: &'a dyn TokenLogProbs) -> Self {
        Self { model }
    }
}

impl Usefulness for Asked<'_> {
    fn yes(&self, question: &str, document: &str, sentence: &str) -> Result<f32> {
        let prompt = format!(
            "Query:\n{question}\nFull context:\n{document}\nSentence:\n{sentence}\nIs this sentence useful in answering \
             the query? Answer only \"Yes\" or \"No\".\nAnswer:"
        );
        let of = |word: &str| {
            let tokens = self.model.log_probs(&prompt, word)?;
            Ok(tokens.iter().map(|(_, p)| f64::from(*p)).sum::<f64>())
        };
        let (yes, no): (f64, f64) = (of(" Yes")?, of(" No")?);
        Ok((1.0 / (1.0 + (no - yes).exp())) as f32)
    }
}

/// Ranks the sentences of a document by how useful each is, read with all of the document. [`super::Squeeze::with_threshold`]
/// then leaves out what is not: EXIT's 0.5.
#[derive(Debug, Clone, Copy)]
pub struct Exit<T> {
    classifier: T,
}

impl<T: Usefulness> Exit<T> {
    /// Asks this classifier.
    #[must_use]
    pub fn new(classifier: T) -> Self {
        Self { classifier }
    }
}

impl<T: Usefulness> Relevance for Exit<T> {
    /// The document is all passages in their order.
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let document = passages.join(" ");
        let one = |sentence: &&str| {
            let yes = self.classifier.yes(question, &document, sentence)?;
            match (0.0..=1.0).contains(&yes) {
                true => Ok(yes),
                false => Err(Error::numerical(format!("p(yes) of {sentence:?} is {yes}"))),
            }
        };
        passages.iter().map(one).collect()
    }
}

pub(super) fn stage() -> Row<TokenPart> {
    ranking(
        "exit",
        "ranks sentences by whether a language model, which reads the document too, says that they help",
        || (),
        |(), models| Ok(Box::new(Exit::new(Asked::new(models.language_for("exit")?)))),
    )
}
