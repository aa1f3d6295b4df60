//! Prompts made shorter, within a budget of tokens that is never exceeded.
//!
//! A compressor is a tokenizer that counts ([`TokenCount`]) x what ranks sentences ([`Relevance`]) x what scores words
//! ([`WordScore`], from a language model's log-probabilities or a classifier). [`Squeeze`] puts them together: sentences
//! first, then words. Words are never cut, code fences and forced tokens stay. [`LlmLingua2`] keeps a share of the tokens
//! instead, by a classifier ([`KeepProbability`]).
//!
//! ```
//! use tensorpress_tokencomp::text::{Bm25, Squeeze, TokenCount};
//!
//! /// A tokenizer whose tokens are words.
//! #[derive(Debug)]
//! struct Words;
//! impl TokenCount for Words {
//!     fn count(&self, text: &str) -> tensorpress_tensor::Result<usize> {
//!         Ok(text.split_whitespace().count())
//!     }
//! }
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! let text = "The mill stands by the river. Its wheel was cast in Lyon. The miller keeps bees.";
//! let bm25 = Bm25::new();
//! let squeeze = Squeeze::new(&Words).with_relevance(&bm25);
//! let short = squeeze.squeeze(text, Some("Where was the wheel cast?"), 6)?;
//! assert_eq!(short.text, "Its wheel was cast in Lyon.");
//! assert_eq!(short.tokens, 6);
//! # Ok(())
//! # }
//! ```

mod answer;
mod code;
mod english;
mod exit;
mod fit;
mod lingua2;
mod marks;
mod recipe;
mod recomp;
mod relevance;
mod retrieval;
mod segments;
mod split;
mod squeeze;
mod surprise;
mod table;
mod trimr;

use std::fmt::Debug;
use std::ops::Range;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::Row;

pub use answer::AnswerWords;
pub use code::{CodeChunk, LongCodeZip, code_chunks};
#[cfg(feature = "code")]
pub use code::{CodeLanguage, syntax_chunks};
pub use exit::{Asked, Exit, Usefulness};
pub use lingua2::{
    Annotation, Annotator, Classified, ClassifiedWord, KeepProbability, Labelling, LlmLingua2,
    WordProbability, trustworthy,
};
pub use recipe::PromptRecipe;
pub use recomp::{Contrast, contrast};
pub use relevance::{Bm25, Fused, QuestionLikelihood};
pub use retrieval::{
    Asking, Attends, Attention, Head, Known, QuestionAttention, Retrieval, retrieval_heads,
};
pub use segments::{SegmentCache, SegmentCompressor, SegmentUse};
pub use squeeze::{Squeeze, Squeezed};
pub use surprise::Surprise;
pub use trimr::{TrimR, Verdict, Verifier, Watched};

use crate::stage::TokenPart;

/// The stages of this module.
pub(crate) fn stages() -> Vec<Row<TokenPart>> {
    let [likelihood, similarity, bm25] = relevance::stages();
    let (exit, attention) = (exit::stage(), retrieval::stage());
    let ranks = [likelihood, similarity, bm25, exit, attention];
    let mut rows = vec![lingua2::stage()];
    rows.extend(ranks);
    rows.extend([surprise::stage(), answer::stage(), recipe::stage()]);
    rows
}

/// A tokenizer, as far as budgets care.
pub trait TokenCount: Debug {
    /// Tokens of a text, special tokens not counted.
    ///
    /// # Errors
    /// Whatever the tokenizer cannot do.
    fn count(&self, text: &str) -> Result<usize>;
}

/// A piece of a text, in bytes, and a value of it.
pub type Piece = (Range<usize>, f32);

/// Any causal language model.
pub trait TokenLogProbs: Debug {
    /// For every token of `text`: its bytes in `text`, and the natural logarithm of its probability after `context` and
    /// the tokens before it. A model with a short memory forgets the beginning of `context`.
    ///
    /// # Errors
    /// Whatever the model cannot do.
    fn log_probs(&self, context: &str, text: &str) -> Result<Vec<Piece>>;
}

/// Says how much a reader would miss each word of a text.
pub trait WordScore: Debug {
    /// A score a word, given as bytes in `text`; more is more worth keeping.
    ///
    /// # Errors
    /// Whatever the scorer cannot do.
    fn score(&self, text: &str, words: &[Range<usize>]) -> Result<Vec<f32>>;

    /// The same in the light of a question, where there is one; by default that changes nothing.
    ///
    /// # Errors
    /// Whatever the scorer cannot do.
    fn score_asked(
        &self,
        question: Option<&str>,
        text: &str,
        words: &[Range<usize>],
    ) -> Result<Vec<f32>> {
        let _ = question;
        self.score(text, words)
    }
}

/// Says how much each passage has to do with a question.
pub trait Relevance: Debug {
    /// A score a passage; more is more to the point.
    ///
    /// # Errors
    /// Whatever the scorer cannot do.
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>>;
}

/// Mean value, a word, of the pieces that touch it; `absent` for words that none touches. Pieces and words in order.
pub(crate) fn word_means(pieces: &[Piece], words: &[Range<usize>], absent: f32) -> Vec<f32> {
    let mut from = 0;
    let mean = |word: &Range<usize>| {
        while pieces.get(from).is_some_and(|(at, _)| at.end <= word.start) {
            from += 1;
        }
        let touching = pieces[from..].iter().take_while(|(at, _)| at.start < word.end);
        let (mut sum, mut count) = (0.0, 0u32);
        touching.filter(|(at, _)| at.end > word.start).for_each(|(_, value)| {
            sum += f64::from(*value);
            count += 1;
        });
        if count == 0 { absent } else { (sum / f64::from(count)) as f32 }
    };
    words.iter().map(mean).collect()
}
