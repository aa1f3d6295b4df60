//! Sentences first, then words, until the budget is met.

use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::fit::Fit;
use super::split::Document;
use super::{Relevance, TokenCount, WordScore};

/// A compressed prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Squeezed {
    /// What is left, in the order of the original.
    pub text: String,
    /// Its tokens: never more than the budget.
    pub tokens: usize,
    /// Tokens of the original.
    pub tokens_before: usize,
}

/// Makes a prompt fit a budget of tokens, as LLMLingua does: a coarse choice of sentences, then a fine one of words.
///
/// - The result's tokens, counted on its text by the given tokenizer, never exceed the budget.
/// - No word is cut: words lie between spaces (in Han and Kana, they are those of UAX #29).
/// - Code fences, and words that contain a forced text, stay.
/// - A row of a table (lines divided by bars, tabs, commas or aligned columns) stays or goes as one word does.
/// - A text that fits is returned as it is.
/// - Time is linear in the text, as far as it is so for tokenizer and scorers: the text as a whole is counted a few times.
///
/// Without a question, sentences are ranked by the mean of their words' scores; without a [`WordScore`] either, by their
/// relevance to the whole text; without a [`Relevance`] too, in order. Words are dropped only where there is a [`WordScore`].
#[derive(Debug, Clone)]
pub struct Squeeze<'a> {
    counter: &'a dyn TokenCount,
    words: Option<&'a dyn WordScore>,
    relevance: Option<&'a dyn Relevance>,
    forced: Vec<String>,
    whole: Option<f64>,
    coarse: f64,
    core: Option<f64>,
    threshold: Option<f32>,
}

impl<'a> Squeeze<'a> {
    /// Budgets whose sentences take part in the choice of words by default.
    pub(super) const COARSE: f64 = 2.0;

    /// Counts tokens by this tokenizer.
    #[must_use]
    pub fn new(counter: &'a dyn TokenCount) -> Self {
        Self {
            counter,
            words: None,
            relevance: None,
            forced: Vec::new(),
            whole: None,
            coarse: Self::COARSE,
            core: None,
            threshold: None,
        }
    }

    /// Ranks words by this.
    #[must_use]
    pub fn with_words(mut self, words: &'a dyn WordScore) -> Self {
        self.words = Some(words);
        self
    }

    /// Ranks sentences by this.
    #[must_use]
    pub fn with_relevance(mut self, relevance: &'a dyn Relevance) -> Self {
        self.relevance = Some(relevance);
        self
    }

    /// Keeps every word that contains one of these.
    ///
    /// # Errors
    /// `InvalidArgument` for a text that is empty or has a space in it: no word contains it.
    pub fn with_forced(mut self, forced: &[&str]) -> Result<Self> {
        if let Some(bad) = forced.iter().find(|f| f.is_empty() || f.contains(char::is_whitespace)) {
            return Err(Error::invalid(format!(
                "forced text {bad:?}; allowed are texts without spaces"
            )));
        }
        self.forced = forced.iter().map(|f| (*f).to_owned()).collect();
        Ok(self)
    }

    /// Share of the budget, 0 to 1, that goes to sentences that stay whole; the rest goes to words of the next ones. By
    /// default all with a question or without a [`WordScore`], nothing otherwise.
    ///
    /// # Errors
    /// `InvalidArgument` for another share.
    pub fn with_whole(mut self, share: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("whole = {share}; allowed are 0 to 1")));
        }
        self.whole = Some(share);
        Ok(self)
    }

    /// Sentences of so many budgets take part in the choice of words; 2 by default.
    ///
    /// # Errors
    /// `InvalidArgument` below 1.
    pub fn with_coarse(mut self, budgets: f64) -> Result<Self> {
        if !(budgets >= 1.0 && budgets.is_finite()) {
            return Err(Error::invalid(format!(
                "coarse = {budgets}; allowed are finite numbers from 1"
            )));
        }
        self.coarse = budgets;
        Ok(self)
    }

    /// Keeps of each sentence its core instead of all or single words: the neighbours of fewest tokens that have this share,
    /// above 0 to 1, of the sentence's word scores (those below 0 count 0). Asks for a [`WordScore`].
    ///
    /// # Errors
    /// `InvalidArgument` for another share.
    pub fn with_core(mut self, share: f64) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(format!("core = {share}; allowed are 0 to 1, 0 excluded")));
        }
        self.core = Some(share);
        Ok(self)
    }

    /// Leaves out sentences whose relevance is below this, whatever the budget (RECOMP, EXIT): all of them may go. A text
    /// that fits is cut too. Counts where there is a question and a [`Relevance`].
    ///
    /// # Errors
    /// `InvalidArgument` for NaN.
    pub fn with_threshold(mut self, relevance: f32) -> Result<Self> {
        if relevance.is_nan() {
            return Err(Error::invalid("threshold = NaN; allowed are numbers"));
        }
        self.threshold = Some(relevance);
        Ok(self)
    }

    /// Makes `text` fit `budget` tokens.
    ///
    /// # Errors
    /// `InvalidArgument` for a budget of 0 or below what must stay, saying how much that is; `Numerical` for a score that
    /// is NaN; `ShapeMismatch` for another number of scores than asked for; those of tokenizer and scorers.
    pub fn squeeze(&self, text: &str, question: Option<&str>, budget: usize) -> Result<Squeezed> {
        if budget == 0 {
            return Err(Error::invalid("budget = 0 tokens; at least 1 is needed"));
        }
        let tokens_before = self.counter.count(text)?;
        let asked = question.is_some_and(|q| !q.trim().is_empty()) && self.relevance.is_some();
        if tokens_before <= budget && !(asked && self.threshold.is_some()) {
            return Ok(Squeezed { text: text.to_owned(), tokens: tokens_before, tokens_before });
        }
        let document = Document::new(text);
        let stays = |text: &str| self.forced.iter().any(|f| text.contains(f.as_str()));
        let stays: Vec<bool> =
            document.units.iter().map(|u| u.fence || stays(&text[u.bytes.clone()])).collect();
        let (counter, kept) = (self.counter, stays);
        let mut fit = Fit { counter, document: &document, budget, tokens_before, kept };
        let forced = fit.count()?;
        if forced.tokens > budget {
            let tokens = forced.tokens;
            let message =
                format!("budget = {budget} tokens, but code fences and forced words take {tokens}");
            return Err(Error::invalid(message));
        }
        let blocks = self.blocks(
            &document,
            question.filter(|q| !q.trim().is_empty()),
            budget - forced.tokens,
        )?;
        fit.fill(&blocks, forced)
    }

    /// What may be added to what must stay, best first: whole sentences, then words of the next ones.
    fn blocks(
        &self,
        document: &Document<'_>,
        question: Option<&str>,
        budget: usize,
    ) -> Result<Vec<Vec<usize>>> {
        let prose: Vec<_> =
            document.sentences.iter().filter(|s| !document.units[s.start].fence).collect();
        let passages: Vec<&str> = prose.iter().map(|s| document.sentence(s)).collect();
        let mut scores = None;
        let ranks = match (self.relevance, question, self.words) {
            (Some(relevance), Some(question), _) => relevance.relevance(question, &passages)?,
            (_, _, Some(words)) => {
                let found =
                    self.word_scores((words, question), document, 0..document.units.len())?;
                let mean =
                    |s: &&Range<usize>| found[s.start..s.end].iter().sum::<f32>() / s.len() as f32;
                let ranks = prose.iter().map(mean).collect();
                scores = Some(found);
                ranks
            }
            (Some(relevance), None, None) => relevance.relevance(document.text, &passages)?,
            (None, ..) => (0..prose.len()).map(|i| -(i as f32)).collect(),
        };
        check_scores(&ranks, passages.len(), "sentences")?;
        let mut order: Vec<usize> = (0..prose.len()).collect();
        order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
        if let (Some(threshold), Some(_), Some(_)) = (self.threshold, question, self.relevance) {
            order.retain(|sentence| ranks[*sentence] >= threshold);
        }
        if let (Some(share), Some(scorer)) = (self.core, self.words) {
            let all = 0..document.units.len();
            let scores = match scores {
                Some(scores) => scores,
                None => self.word_scores((scorer, question), document, all)?,
            };
            let cores = order.iter().map(|s| self.core(document, prose[*s], &scores, share));
            return cores.collect();
        }

        let whole = match (self.whole, question, self.words) {
            (Some(share), ..) => share,
            (None, None, Some(_)) => 0.0,
            _ => 1.0,
        };
        let (mut tokens, mut blocks, mut words) = (0, Vec::new(), Vec::new());
        let mut partly = false;
        for sentence in order {
            if self.words.is_some() && tokens as f64 >= self.coarse * budget as f64 {
                break;
            }
            tokens += self.counter.count(passages[sentence])?;
            let units = prose[sentence].clone();
            // Once a sentence is left to the choice of words, so are all that rank below it.
            partly |= tokens as f64 > whole * budget as f64;
            match self.words {
                Some(_) if partly => words.extend(units),
                _ => blocks.push(units.collect()),
            }
        }
        if let Some(scorer) = self.words {
            words.sort_unstable();
            let scores = match scores {
                Some(scores) => words.iter().map(|w| scores[*w]).collect(),
                None => self.scores_of((scorer, question), document, &words)?,
            };
            let mut order: Vec<usize> = (0..words.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            blocks.extend(order.into_iter().map(|i| vec![words[i]]));
        }
        Ok(blocks)
    }

    /// The neighbouring units of a sentence that have a share of its scores in the fewest tokens; of equals those with more
    /// of the scores, then the first.
    fn core(
        &self,
        document: &Document<'_>,
        sentence: &Range<usize>,
        scores: &[f32],
        share: f64,
    ) -> Result<Vec<usize>> {
        let tokens = document.units[sentence.clone()]
            .iter()
            .map(|unit| self.counter.count(&document.text[unit.bytes.clone()]))
            .collect::<Result<Vec<usize>>>()?;
        let scores: Vec<f64> =
            scores[sentence.clone()].iter().map(|score| f64::from(score.max(0.0))).collect();
        let goal = share * scores.iter().sum::<f64>() - 1e-9;
        let mut best = (usize::MAX, 0.0, 0..scores.len());
        let (mut from, mut mass, mut size) = (0, 0.0, 0);
        for to in 0..scores.len() {
            mass += scores[to];
            size += tokens[to];
            while from < to && mass - scores[from] >= goal {
                mass -= scores[from];
                size -= tokens[from];
                from += 1;
            }
            if mass >= goal && (size < best.0 || (size == best.0 && mass > best.1)) {
                best = (size, mass, from..to + 1);
            }
        }
        Ok(best.2.map(|unit| sentence.start + unit).collect())
    }

    /// Scores of some units, read run by run, as far as they are neighbours.
    fn scores_of(
        &self,
        scorer: (&dyn WordScore, Option<&str>),
        document: &Document<'_>,
        units: &[usize],
    ) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(units.len());
        for run in units.chunk_by(|a, b| a + 1 == *b) {
            scores.extend(self.word_scores(scorer, document, run[0]..run[run.len() - 1] + 1)?);
        }
        Ok(scores)
    }

    fn word_scores(
        &self,
        (scorer, question): (&dyn WordScore, Option<&str>),
        document: &Document<'_>,
        units: Range<usize>,
    ) -> Result<Vec<f32>> {
        let words: Vec<_> = document.units[units].iter().map(|u| u.bytes.clone()).collect();
        let scores = scorer.score_asked(question, document.text, &words)?;
        check_scores(&scores, words.len(), "words")?;
        Ok(scores)
    }
}

fn check_scores(scores: &[f32], expected: usize, what: &str) -> Result<()> {
    if scores.len() != expected {
        return Err(Error::shape(format!("{} scores of {expected} {what}", scores.len())));
    }
    match scores.iter().position(|s| s.is_nan()) {
        Some(bad) => Err(Error::numerical(format!("score {bad} of {expected} {what} is NaN"))),
        None => Ok(()),
    }
}
