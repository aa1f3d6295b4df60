//! A text in, a shorter text out.

use std::ops::Range;

use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::{ClassifiedWord, KeepProbability, Labelling, WordProbability, first_chunk};
use crate::stage::{TokenPart, TokenRole};
use crate::text::split::{Document, Unit};
use crate::text::{Piece, Squeezed, TokenCount};

/// LLMLingua-2 (Pan et al., 2024) from text to text: a classifier says of every piece whether it should be kept, and a
/// share of the tokens stays.
///
/// - Words stay or go, not pieces: what lies between spaces and punctuation marks, each of which is a word of its own.
/// - The text is read in chunks of at most so many pieces of the classifier's, each labelled by itself
///   ([`Labelling::label_chunks`]); a chunk ends after its last full stop or forced line break.
/// - Forced texts, and words that contain one, stay; all but the first of forced words with nothing kept between them go
///   where [`Labelling::drop_consecutive`] says so.
/// - Code fences stay, and are not read.
/// - What is kept is kept as it was written, in its order; neighbours keep the space between them (the official code
///   joins by its tokenizer instead).
/// - At a rate of 1 the text is returned as it is.
///
/// A rate is no budget: [`crate::text::Squeeze`] meets one. Time is linear in the text, as far as it is so for tokenizer
/// and classifier.
///
/// ```
/// use tensorpress_tokencomp::text::{KeepProbability, Labelling, LlmLingua2, Piece, TokenCount};
/// # use tensorpress_tensor::Result;
///
/// /// Finds long words worth keeping; its pieces are words.
/// #[derive(Debug)]
/// struct Long;
/// impl KeepProbability for Long {
///     fn keep_probabilities(&self, text: &str) -> Result<Vec<Piece>> {
///         let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
///         let piece = |word: &str| (at(word)..at(word) + word.len(), word.len() as f32 / 20.0);
///         Ok(text.split_whitespace().map(piece).collect())
///     }
/// }
/// # #[derive(Debug)]
/// # struct Words;
/// # impl TokenCount for Words {
/// #     fn count(&self, text: &str) -> Result<usize> {
/// #         Ok(text.split_whitespace().count())
/// #     }
/// # }
///
/// # fn main() -> Result<()> {
/// let short = LlmLingua2::new(&Long, &Words, Labelling::new(0.5)?).compress("the miller of Lyon is keeping bees")?;
/// assert_eq!(short.text, "miller keeping");
/// assert_eq!((short.tokens, short.tokens_before), (2, 7));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LlmLingua2<'a> {
    classifier: &'a dyn KeepProbability,
    counter: &'a dyn TokenCount,
    labelling: Labelling,
    chunk: usize,
}

/// Pieces that classifiers of 512 tokens can read, two of them special.
const CHUNK: usize = 510;

impl<'a> LlmLingua2<'a> {
    /// Labels by what this classifier says, in chunks of 510 pieces; the rate is about the tokens of `counter`.
    #[must_use]
    pub fn new(
        classifier: &'a dyn KeepProbability,
        counter: &'a dyn TokenCount,
        labelling: Labelling,
    ) -> Self {
        Self { classifier, counter, labelling, chunk: CHUNK }
    }

    /// Sets the pieces that the classifier is given at once.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    pub fn with_chunk(mut self, pieces: usize) -> Result<Self> {
        super::check_chunk(pieces)?;
        self.chunk = pieces;
        Ok(self)
    }

    /// The text without the words that go.
    ///
    /// # Errors
    /// `Numerical` for a probability that is not finite; those of tokenizer and classifier.
    pub fn compress(&self, text: &str) -> Result<Squeezed> {
        let tokens_before = self.counter.count(text)?;
        if self.labelling.rate >= 1.0 {
            return Ok(Squeezed { text: text.to_owned(), tokens: tokens_before, tokens_before });
        }
        let breaks = self.labelling.forced.iter().any(|forced| forced == "\n");
        let document = Document::of_marks(text, breaks);
        let mut kept = Vec::with_capacity(document.units.len());
        for run in document.units.chunk_by(|a, b| !a.fence && !b.fence) {
            match run[0].fence {
                true => kept.push(true),
                false => kept.extend(self.label(text, run)?),
            }
        }
        self.keep_forced(&document, &mut kept);
        let text = document.render(&kept);
        let tokens = self.counter.count(&text)?;
        Ok(Squeezed { text, tokens, tokens_before })
    }

    /// Which words of a run without fences stay. Words without pieces are none to the classifier: they go, unless forced.
    fn label(&self, text: &str, units: &[Unit]) -> Result<Vec<bool>> {
        let pieces = self.classifier.pieces(&text[span(units)])?;
        let pieces = pieces.into_iter().map(|at| (at, 0.0)).collect();
        let (mut seen, mut words) = (Vec::new(), Vec::new());
        for (at, pieces) in pieces_of(text, units, pieces).into_iter().enumerate() {
            let word = text[units[at].bytes.clone()].to_owned();
            if !pieces.is_empty() || self.labelling.forced.contains(&word) {
                seen.push(at);
                let tokens = self.counter.count(&word)?;
                words.push(ClassifiedWord { text: word, pieces, tokens });
            }
        }
        let mut labels = vec![false; units.len()];
        let mut done = 0;
        while done < words.len() {
            let chunk = done..done + first_chunk(&words[done..], self.chunk);
            let last = seen[chunk.end - 1];
            let of_chunk = &units[seen[done]..=last];
            let found = self.classifier.keep_probabilities(&text[span(of_chunk)])?;
            let mut found = pieces_of(text, of_chunk, found);
            let (words, seen) = (&mut words[chunk.clone()], &seen[chunk.clone()]);
            for (word, at) in words.iter_mut().zip(seen) {
                word.pieces = std::mem::take(&mut found[at - seen[0]]);
                if word.pieces.is_empty() {
                    word.pieces.push((word.text.clone(), 0.0));
                }
            }
            let found = self.labelling.label(words)?;
            seen.iter().zip(found).for_each(|(at, stays)| labels[*at] = stays);
            done = chunk.end;
        }
        Ok(labels)
    }

    /// Keeps the words that a forced text is, is a part of, or has parts of; those that it is only where none is to be
    /// dropped.
    fn keep_forced(&self, document: &Document<'_>, kept: &mut [bool]) {
        let drops = self.labelling.drop_consecutive;
        for forced in self.labelling.forced.iter().filter(|forced| !forced.is_empty()) {
            let mut from = 0;
            for (at, _) in document.text.match_indices(forced.as_str()) {
                let end = at + forced.len();
                from += document.units[from..].partition_point(|unit| unit.bytes.end <= at);
                let touched = document.units[from..].iter().take_while(|u| u.bytes.start < end);
                let touched = from..from + touched.count();
                let decided = |unit: usize| drops && document.units[unit].bytes == (at..end);
                touched.filter(|unit| !decided(*unit)).for_each(|unit| kept[unit] = true);
            }
        }
    }
}

/// From the first unit to the last.
fn span(units: &[Unit]) -> Range<usize> {
    match (units.first(), units.last()) {
        (Some(first), Some(last)) => first.bytes.start..last.bytes.end,
        _ => 0..0,
    }
}

/// Each word's pieces: of the pieces of the text from the first word to the last, in order, those that touch no word
/// before it.
fn pieces_of(text: &str, units: &[Unit], pieces: Vec<Piece>) -> Vec<Vec<(String, f32)>> {
    let start = span(units).start;
    let mut words = vec![Vec::new(); units.len()];
    let mut word = 0;
    for (at, probability) in pieces {
        let at = start + at.start..start + at.end;
        while units.get(word).is_some_and(|unit| unit.bytes.end <= at.start) {
            word += 1;
        }
        if units.get(word).is_some_and(|unit| unit.bytes.start < at.end) {
            let piece = text.get(at).unwrap_or_default().to_owned();
            words[word].push((piece, probability));
        }
    }
    words
}

/// What a recipe says of it.
#[derive(Debug, Clone)]
struct Rate {
    labelling: Labelling,
    chunk: usize,
}

impl Default for Rate {
    fn default() -> Self {
        Self { labelling: Labelling::default(), chunk: CHUNK }
    }
}

impl Knobs for Rate {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let Labelling { rate, probability, digits, drop_consecutive, .. } = &mut self.labelling;
        keys.float("rate", rate, 0.0..=1.0, "share of the tokens that stays")?;
        let kinds = [("mean", WordProbability::Mean), ("first", WordProbability::First)];
        keys.choice("probability", probability, &kinds, "of a word's pieces")?;
        keys.flag("digits", digits, "words with a digit in them stay")?;
        let about = "of forced words with nothing kept between them, only the first stays";
        keys.flag("drop_consecutive", drop_consecutive, about)?;
        keys.int("chunk", &mut self.chunk, 1..=1 << 20, "pieces that the classifier reads at once")
    }
}

pub(in crate::text) fn stage() -> Row<TokenPart> {
    let about = "drops words at a rate, by what a classifier says of them, before anything else";
    Row::new("llmlingua2", TokenRole::Rate, about, Rate::default, |Rate { labelling, chunk }, _| {
        Ok(TokenPart::Rate(Box::new(move |counter, models, forced| {
            let missing = || Error::unsupported("`llmlingua2` asks a classifier of tokens");
            let classifier = models.classifier.ok_or_else(missing)?;
            let mut labelling = labelling.clone();
            labelling.forced.extend(forced.iter().map(|text| (*text).to_owned()));
            LlmLingua2::new(classifier, counter, labelling).with_chunk(chunk)
        })))
    })
}
