//! What the stages of a recipe for tokens build, and where they stand.

use std::fmt::{self, Debug};

use tensorpress_tensor::stage::{Chain, Knobs, Part, Role, Row, Stages};
use tensorpress_tensor::{Error, Result};

use crate::reduce::TokenReduce;
use crate::text::{
    Attends, KeepProbability, LlmLingua2, Relevance, Squeeze, TokenCount, TokenLogProbs, WordScore,
};
use crate::{baseline, divprune, merge, select, text, tome};

/// Models that scores of sentences and words may ask, as far as there are any.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct PromptModels<'m> {
    /// A causal language model.
    pub language: Option<&'m dyn TokenLogProbs>,
    /// A model that compares passages with a question.
    pub similarity: Option<&'m dyn Relevance>,
    /// A classifier of tokens into kept and dropped.
    pub classifier: Option<&'m dyn KeepProbability>,
    /// A language model whose attention can be seen.
    pub attends: Option<&'m dyn Attends>,
}

impl<'m> PromptModels<'m> {
    /// Sets the language model.
    #[must_use]
    pub fn with_language(mut self, model: &'m dyn TokenLogProbs) -> Self {
        self.language = Some(model);
        self
    }

    /// Sets the model that compares passages with a question.
    #[must_use]
    pub fn with_similarity(mut self, model: &'m dyn Relevance) -> Self {
        self.similarity = Some(model);
        self
    }

    /// Sets the classifier of tokens.
    #[must_use]
    pub fn with_classifier(mut self, model: &'m dyn KeepProbability) -> Self {
        self.classifier = Some(model);
        self
    }

    /// Sets the language model whose attention can be seen.
    #[must_use]
    pub fn with_attends(mut self, model: &'m dyn Attends) -> Self {
        self.attends = Some(model);
        self
    }

    /// The language model.
    ///
    /// # Errors
    /// `Unsupported` where there is none, saying what asks.
    pub fn language_for(&self, stage: &str) -> Result<&'m dyn TokenLogProbs> {
        let missing = || Error::unsupported(format!("`{stage}` asks a language model: a decoder"));
        self.language.ok_or_else(missing)
    }
}

impl<'m> PromptModels<'m> {
    /// The language model whose attention can be seen.
    ///
    /// # Errors
    /// `Unsupported` where there is none, saying what asks.
    pub fn attends_for(&self, stage: &str) -> Result<&'m dyn Attends> {
        let message = format!("`{stage}` asks a language model whose attention can be seen");
        self.attends.ok_or_else(|| Error::unsupported(message))
    }
}

/// Makes what ranks sentences.
pub type MakeRelevance =
    Box<dyn for<'m> Fn(&PromptModels<'m>) -> Result<Box<dyn Relevance + 'm>> + Send + Sync>;

/// Makes what scores words.
pub type MakeWords =
    Box<dyn for<'m> Fn(&PromptModels<'m>) -> Result<Box<dyn WordScore + 'm>> + Send + Sync>;

/// Sets what a choice of sentences and words depends on.
pub type Choose = Box<dyn for<'a> Fn(Squeeze<'a>) -> Result<Squeeze<'a>> + Send + Sync>;

/// Makes what shortens a prompt to a rate, which these texts are kept in.
pub type MakeRate = Box<
    dyn for<'m> Fn(&'m dyn TokenCount, &PromptModels<'m>, &[&str]) -> Result<LlmLingua2<'m>>
        + Send
        + Sync,
>;

/// What a stage of a recipe for tokens builds.
#[non_exhaustive]
pub enum TokenPart {
    /// Makes the states of a sequence fewer.
    Reduce(Box<dyn TokenReduce>),
    /// Shortens a prompt to a rate.
    Rate(MakeRate),
    /// Ranks the sentences of a prompt, with a weight.
    Rank(MakeRelevance, f32),
    /// Scores the words of a prompt.
    Words(MakeWords),
    /// Chooses among them.
    Choose(Choose),
}

impl fmt::Debug for TokenPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reduce(reduce) => f.debug_tuple("Reduce").field(reduce).finish(),
            Self::Rate(_) => f.write_str("Rate(..)"),
            Self::Rank(..) => f.write_str("Rank(..)"),
            Self::Words(_) => f.write_str("Words(..)"),
            Self::Choose(_) => f.write_str("Choose(..)"),
        }
    }
}

impl Part for TokenPart {
    type Role = TokenRole;
}

/// Where a stage may stand in a recipe for tokens; the order is that of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TokenRole {
    /// Makes the states of a sequence fewer; stands by itself.
    Reduce,
    /// Shortens a prompt to a rate, before the other stages look at it.
    Rate,
    /// Ranks the sentences of a prompt; opinions are weighted and summed.
    Rank,
    /// Scores the words of a prompt.
    Words,
    /// Chooses among them.
    Choose,
}

impl Role for TokenRole {
    const ORDER: &'static str = "either a reduction of states, or at most one rate, what ranks sentences, at most one score of words, at most one choice";

    fn is_single(self) -> bool {
        self != Self::Rank
    }

    fn is_inner(self) -> bool {
        false
    }
}

impl fmt::Display for TokenRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reduce => "reduction of states",
            Self::Rate => "rate",
            Self::Rank => "ranking of sentences",
            Self::Words => "score of words",
            Self::Choose => "choice",
        })
    }
}

/// All stages of this crate.
#[must_use]
pub fn stages() -> Stages<TokenPart> {
    let mut rows: Vec<Row<TokenPart>> = vec![tome::stage(), divprune::stage()];
    rows.extend(baseline::stages());
    rows.extend(select::stages());
    rows.extend(merge::stages());
    rows.extend(text::stages());
    let mut stages = Stages::default();
    stages.extend(rows).expect("the names differ");
    stages
}

/// The reduction of states that a line stands for, such as `tome`.
///
/// # Errors
/// `InvalidArgument` for anything but one such stage.
pub fn reducer(line: &str, stages: &Stages<TokenPart>) -> Result<Box<dyn TokenReduce>> {
    let chain = Chain::parse(line, stages)?;
    match (chain.stages(), chain.stages()[0].build()?) {
        ([_], TokenPart::Reduce(reduce)) => Ok(reduce),
        _ => {
            let names = stages.names_of(&[TokenRole::Reduce]);
            Err(Error::invalid(format!("`{line}`: allowed is one of {names}")))
        }
    }
}

/// A stage that makes states fewer and has no knobs.
pub(crate) fn reduction<T: TokenReduce + 'static>(
    name: &'static str,
    about: &'static str,
    new: fn() -> T,
) -> Row<TokenPart> {
    let build = move |(), _| Ok(TokenPart::Reduce(Box::new(new())));
    Row::new(name, TokenRole::Reduce, about, || (), build)
}

/// A stage that makes states fewer and whose knobs are its own.
pub(crate) fn reduction_of<T: Knobs + TokenReduce + Default + 'static>(
    name: &'static str,
    about: &'static str,
) -> Row<TokenPart> {
    let build = |method: T, _| Ok(TokenPart::Reduce(Box::new(method)));
    Row::new(name, TokenRole::Reduce, about, T::default, build)
}
