//! Prompt compressors from a line of text: `likelihood | bm25(weight=0.5) | surprise`.

use std::fmt;
use std::str::FromStr;

use tensorpress_tensor::stage::{Chain, Keys, Knobs, Row, Stages};
use tensorpress_tensor::{Error, Result};

use super::{Fused, Relevance, Squeeze, Squeezed, TokenCount, WordScore};
use crate::stage::{PromptModels, TokenPart, TokenRole, stages};

/// A parsed line: what ranks sentences, what scores words, and how both are chosen from.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRecipe(Chain<TokenPart>);

impl PromptRecipe {
    /// Reads a line of these stages.
    ///
    /// # Errors
    /// `InvalidArgument`, naming stage, key, value and what is allowed.
    pub fn parse_with(text: &str, stages: &Stages<TokenPart>) -> Result<Self> {
        let chain = Chain::parse(text, stages)?;
        if let Some(stage) = chain.find(TokenRole::Reduce) {
            let name = stage.name();
            let names = stages.names_of(&[
                TokenRole::Rate,
                TokenRole::Rank,
                TokenRole::Words,
                TokenRole::Choose,
            ]);
            let message = format!("`{name}` works on states, not on texts: allowed are {names}");
            return Err(Error::invalid(message));
        }
        chain.stages().iter().try_for_each(|stage| stage.build().map(drop))?;
        Ok(Self(chain))
    }

    /// Makes `text` fit `budget` tokens by [`Squeeze`], with what these models say. Words that contain a forced text stay.
    /// Where the recipe has a rate ([`super::LlmLingua2`]), the text is shortened to that first; a budget of [`usize::MAX`]
    /// leaves it at that.
    ///
    /// # Errors
    /// `Unsupported` for a model that is missing; those of [`Squeeze::squeeze`], [`Squeeze::with_forced`] and
    /// [`super::LlmLingua2::compress`].
    pub fn squeeze(
        &self,
        (counter, models): (&dyn TokenCount, &PromptModels<'_>),
        forced: &[&str],
        (text, question): (&str, Option<&str>),
        budget: usize,
    ) -> Result<Squeezed> {
        let mut opinions: Vec<(Box<dyn Relevance + '_>, f32)> = Vec::new();
        let mut words: Option<Box<dyn WordScore + '_>> = None;
        let (mut choose, mut rate) = (None, None);
        for stage in self.0.stages() {
            match stage.build()? {
                TokenPart::Rank(make, weight) => opinions.push((make(models)?, weight)),
                TokenPart::Words(make) => words = Some(make(models)?),
                TokenPart::Choose(choice) => choose = Some(choice),
                TokenPart::Rate(make) => rate = Some(make(counter, models, forced)?),
                TokenPart::Reduce(_) => {}
            }
        }
        let mut fused = Fused::new();
        for (opinion, weight) in &opinions {
            fused = fused.with(&**opinion, *weight);
        }
        let mut squeeze = Squeeze::new(counter).with_forced(forced)?;
        match &opinions[..] {
            [] => {}
            // As it is, for a threshold to mean something.
            [(opinion, weight)] if *weight > 0.0 => squeeze = squeeze.with_relevance(&**opinion),
            _ => squeeze = squeeze.with_relevance(&fused),
        }
        if let Some(words) = &words {
            squeeze = squeeze.with_words(&**words);
        }
        if let Some(choose) = choose {
            squeeze = choose(squeeze)?;
        }
        match rate {
            None => squeeze.squeeze(text, question, budget),
            Some(rate) => {
                let Squeezed { text, tokens_before, .. } = rate.compress(text)?;
                let short = squeeze.squeeze(&text, question, budget)?;
                Ok(Squeezed { tokens_before, ..short })
            }
        }
    }
}

/// A line of this crate's stages.
impl FromStr for PromptRecipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse_with(text, &stages())
    }
}

/// Only the keys that were given; can be read again.
impl fmt::Display for PromptRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How sentences and words are chosen.
#[derive(Debug, Clone, Copy)]
struct Choice {
    whole: Option<f64>,
    coarse: f64,
    core: Option<f64>,
    threshold: Option<f64>,
}

impl Default for Choice {
    fn default() -> Self {
        Self { whole: None, coarse: Squeeze::COARSE, core: None, threshold: None }
    }
}

impl Knobs for Choice {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "share of the budget for sentences that stay whole; else all with a question or without a score of \
                     words, nothing otherwise";
        keys.optional_float("whole", &mut self.whole, 0.0..=1.0, about)?;
        let about = "sentences of so many budgets take part in the choice of words";
        keys.float("coarse", &mut self.coarse, 1.0..=1e6, about)?;
        let about = "keeps of each sentence the neighbouring words with this share of its scores";
        keys.optional_float("core", &mut self.core, 0.01..=1.0, about)?;
        let about = "leaves out sentences of less relevance, whatever the budget; that of one ranking as it is, of several \
                     their sum";
        keys.optional_float("threshold", &mut self.threshold, -1e6..=1e6, about)
    }
}

pub(super) fn stage() -> Row<TokenPart> {
    let about = "chooses whole sentences, then words of the next ones, until the budget is met";
    Row::new("fill", TokenRole::Choose, about, Choice::default, |choice: Choice, _| {
        Ok(TokenPart::Choose(Box::new(move |squeeze| {
            let mut squeeze = squeeze.with_coarse(choice.coarse)?;
            if let Some(share) = choice.whole {
                squeeze = squeeze.with_whole(share)?;
            }
            if let Some(share) = choice.core {
                squeeze = squeeze.with_core(share)?;
            }
            match choice.threshold {
                Some(threshold) => squeeze.with_threshold(threshold as f32),
                None => Ok(squeeze),
            }
        })))
    })
}

/// A score whose opinion has a weight.
#[derive(Debug, Clone)]
pub(super) struct Weighted<T> {
    pub(super) score: T,
    pub(super) weight: f32,
}

impl<T: Knobs> Knobs for Weighted<T> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("weight", &mut self.weight, 0.0..=1e6, "of this opinion among others")?;
        self.score.knobs(keys)
    }
}

/// The stage of something that ranks sentences.
pub(super) fn ranking<T: Knobs + Clone + Send + Sync + 'static>(
    name: &'static str,
    about: &'static str,
    default: fn() -> T,
    make: for<'m> fn(&T, &PromptModels<'m>) -> Result<Box<dyn Relevance + 'm>>,
) -> Row<TokenPart> {
    let default = move || Weighted { score: default(), weight: 1.0 };
    let build = move |Weighted { score, weight }: Weighted<T>, _| {
        Ok(TokenPart::Rank(Box::new(move |models| make(&score, models)), weight))
    };
    Row::new(name, TokenRole::Rank, about, default, build)
}
