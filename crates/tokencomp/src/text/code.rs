//! Source code within a budget: Shi et al., *LongCodeZip: Compress Long Context for Code Language Models*, 2025.

mod chunk;
mod knapsack;
#[cfg(feature = "code")]
mod syntax;

use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::{Squeezed, TokenCount, TokenLogProbs};

use chunk::lines;
pub use chunk::{CodeChunk, code_chunks};
#[cfg(feature = "code")]
pub use syntax::{CodeLanguage, syntax_chunks};

/// Functions first, by how much each tells about the question; then blocks of the functions that stay.
///
/// - The result's tokens, counted on its own text, never exceed the budget.
/// - A function stays with its signature, or goes with it; lines are not cut.
/// - What is left out is marked by one line a gap.
/// - A text that fits is returned as it is.
///
/// Functions are told by brackets and indentation ([`code_chunks`]); with the feature `code` by syntax (`syntax_chunks`), in
/// the language that is said or, where none is, that in which the text has no error, if there is one.
#[derive(Debug, Clone)]
pub struct LongCodeZip<'a> {
    model: &'a dyn TokenLogProbs,
    counter: &'a dyn TokenCount,
    fine: f64,
    spread: f64,
    spike: f64,
    marker: String,
    #[cfg(feature = "code")]
    language: Option<CodeLanguage>,
}

/// A function that stays, as blocks of lines.
struct Kept {
    chunk: usize,
    /// From 0, the least of those that stay, to 1.
    score: f64,
    blocks: Vec<Range<usize>>,
    /// What each block tells about the question, above 0.
    values: Vec<f64>,
}

impl<'a> LongCodeZip<'a> {
    /// Functions of twice the budget go on to the choice of blocks, ratios differ by up to a half, a spike is a line one
    /// deviation above its function's mean, and `...` stands for what was left out.
    #[must_use]
    pub fn new(model: &'a dyn TokenLogProbs, counter: &'a dyn TokenCount) -> Self {
        let marker = "...".to_owned();
        Self {
            model,
            counter,
            fine: 0.5,
            spread: 0.5,
            spike: 1.0,
            marker,
            #[cfg(feature = "code")]
            language: None,
        }
    }

    /// Share of the functions' tokens that the choice of blocks leaves, 0 (excluded) to 1: so much more of functions is let in.
    ///
    /// # Errors
    /// `InvalidArgument` for another share.
    pub fn with_fine(mut self, share: f64) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(format!("fine = {share}; allowed are 0 to 1, 0 excluded")));
        }
        self.fine = share;
        Ok(self)
    }

    /// How far a function's share of its lines may differ from the mean by its score, 0 to 1.
    ///
    /// # Errors
    /// `InvalidArgument` for another number.
    pub fn with_spread(mut self, spread: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&spread) {
            return Err(Error::invalid(format!("spread = {spread}; allowed are 0 to 1")));
        }
        self.spread = spread;
        Ok(self)
    }

    /// A block begins at a line whose perplexity lies so many deviations above the mean of its function's lines.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that is negative or not finite.
    pub fn with_spike(mut self, deviations: f64) -> Result<Self> {
        if !(deviations.is_finite() && deviations >= 0.0) {
            let message = format!("spike = {deviations}; allowed are finite numbers from 0");
            return Err(Error::invalid(message));
        }
        self.spike = deviations;
        Ok(self)
    }

    /// What stands for lines that were left out, on a line of its own, indented as they were.
    #[must_use]
    pub fn with_marker(mut self, marker: &str) -> Self {
        marker.clone_into(&mut self.marker);
        self
    }

    /// Says in which language texts are; else it is guessed.
    #[cfg(feature = "code")]
    #[must_use]
    pub fn with_language(mut self, language: CodeLanguage) -> Self {
        self.language = Some(language);
        self
    }

    /// The functions of a text.
    fn chunks(&self, text: &str) -> Vec<CodeChunk> {
        #[cfg(feature = "code")]
        if let Some(language) = self.language.or_else(|| CodeLanguage::guess(text)) {
            return syntax_chunks(text, language);
        }
        code_chunks(text)
    }

    /// How much each text tells about a question: ppl(question) - ppl(question | text), the paper's approximated mutual
    /// information.
    ///
    /// # Errors
    /// `Numerical` for a perplexity that is not finite; those of the model.
    pub fn scores(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        let alone = self.perplexity("", question)?;
        texts
            .iter()
            .map(|text| Ok(alone - self.perplexity(&format!("{text}\n"), question)?))
            .collect()
    }

    /// Makes `text` fit `budget` tokens.
    ///
    /// # Errors
    /// `InvalidArgument` for a budget of 0; those of [`LongCodeZip::scores`] and of the tokenizer.
    pub fn compress(&self, text: &str, question: &str, budget: usize) -> Result<Squeezed> {
        if budget == 0 {
            return Err(Error::invalid("budget = 0 tokens; at least 1 is needed"));
        }
        let tokens_before = self.counter.count(text)?;
        if tokens_before <= budget {
            return Ok(Squeezed { text: text.to_owned(), tokens: tokens_before, tokens_before });
        }
        let chunks = self.chunks(text);
        let lines: Vec<Range<usize>> = lines(text);
        let texts: Vec<&str> = chunks.iter().map(|c| c.text(text, &lines)).collect();
        let scores = self.scores(question, &texts)?;
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let weights =
            texts.iter().map(|t| self.counter.count(t)).collect::<Result<Vec<usize>>>()?;
        let (mut let_in, room) = (Vec::new(), budget as f64 / self.fine);
        let mut taken = 0.0;
        for chunk in order {
            if taken + weights[chunk] as f64 <= room || let_in.is_empty() {
                taken += weights[chunk] as f64;
                let_in.push(chunk);
            }
        }
        let kept = self.blocks(&chunks, &let_in, &scores, (text, &lines), question)?;
        self.fit((text, &lines), &chunks, kept, (budget, tokens_before))
    }

    /// The functions that were let in, cut into blocks, the best first.
    fn blocks(
        &self,
        chunks: &[CodeChunk],
        let_in: &[usize],
        scores: &[f64],
        (text, lines): (&str, &[Range<usize>]),
        question: &str,
    ) -> Result<Vec<Kept>> {
        let (best, least) = (scores[let_in[0]], scores[let_in[let_in.len() - 1]]);
        let one = |chunk: &usize| {
            let score = if best > least { (scores[*chunk] - least) / (best - least) } else { 1.0 };
            let body =
                chunks[*chunk].lines.start + chunks[*chunk].signature..chunks[*chunk].lines.end;
            let surprise = self.surprise(text, &lines[body.clone()])?;
            let blocks = spikes(&surprise, body.start, self.spike);
            let texts: Vec<&str> = blocks
                .iter()
                .map(|block| &text[lines[block.start].start..lines[block.end - 1].end])
                .collect();
            let told = self.scores(question, &texts)?;
            let low = told.iter().copied().fold(f64::INFINITY, f64::min);
            // The least telling block is worth a little too, where there is room.
            let most = told.iter().copied().fold(low, f64::max);
            let values = told.iter().map(|t| t - low + 0.01 * (most - low).max(1.0)).collect();
            Ok(Kept { chunk: *chunk, score, blocks, values })
        };
        let_in.iter().map(one).collect()
    }

    /// Perplexity of each line after those before it.
    fn surprise(&self, text: &str, lines: &[Range<usize>]) -> Result<Vec<f64>> {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
            return Ok(Vec::new());
        };
        let pieces = self.model.log_probs("", &text[first.start..last.end])?;
        let of = |line: &Range<usize>| {
            let inside =
                |at: &Range<usize>| (line.start..line.end).contains(&(first.start + at.start));
            let found: Vec<f64> =
                pieces.iter().filter(|(at, _)| inside(at)).map(|(_, p)| f64::from(*p)).collect();
            if found.is_empty() {
                1.0
            } else {
                (-found.iter().sum::<f64>() / found.len() as f64).exp()
            }
        };
        Ok(lines.iter().map(of).collect())
    }

    /// Chooses blocks by a knapsack a function, with a share of the budget by its score; then, as long as all of it is too
    /// much, without the function that scores least.
    fn fit(
        &self,
        (text, lines): (&str, &[Range<usize>]),
        chunks: &[CodeChunk],
        mut kept: Vec<Kept>,
        (budget, tokens_before): (usize, usize),
    ) -> Result<Squeezed> {
        // Signatures of functions that tell little are not to crowd out what they stand for.
        let mut signatures = Vec::with_capacity(kept.len());
        for one in &kept {
            let chunk = &chunks[one.chunk];
            let end = lines[chunk.lines.start + chunk.signature - 1].end;
            let tokens = self.counter.count(&text[lines[chunk.lines.start].start..end])?;
            signatures.push(signatures.last().unwrap_or(&0) + tokens);
        }
        let room = signatures.iter().take_while(|tokens| 2 * **tokens <= budget).count();
        kept.truncate(room.max(1));
        while !kept.is_empty() {
            let mut room = budget;
            // Markers take room that is known only when all is chosen.
            for _ in 0..8 {
                let shown = self.choose((text, lines), chunks, &kept, room)?;
                let short = self.render(text, lines, &shown);
                let tokens = self.counter.count(&short)?;
                if tokens <= budget {
                    return Ok(Squeezed { text: short, tokens, tokens_before });
                }
                room = room.saturating_sub(tokens - budget);
            }
            kept.pop();
        }
        Ok(Squeezed { text: String::new(), tokens: 0, tokens_before })
    }

    /// Which lines are shown.
    fn choose(
        &self,
        (text, lines): (&str, &[Range<usize>]),
        chunks: &[CodeChunk],
        kept: &[Kept],
        room: usize,
    ) -> Result<Vec<bool>> {
        let mut shown = vec![false; lines.len()];
        let count = |range: &Range<usize>| match range.is_empty() {
            true => Ok(0),
            false => self.counter.count(&text[lines[range.start].start..lines[range.end - 1].end]),
        };
        let mut forced = 0;
        let mut weights = Vec::with_capacity(kept.len());
        for one in kept {
            let chunk = &chunks[one.chunk];
            let signature = chunk.lines.start..chunk.lines.start + chunk.signature;
            forced += count(&signature)?;
            shown[signature].fill(true);
            weights.push(one.blocks.iter().map(count).collect::<Result<Vec<usize>>>()?);
        }
        // R_i = R (1 + spread (2 score - 1)), brought to the budget.
        let totals: Vec<f64> = weights.iter().map(|w| w.iter().sum::<usize>() as f64).collect();
        let lean = |one: &Kept| 1.0 + self.spread * (2.0 * one.score - 1.0);
        let asked: f64 = kept.iter().zip(&totals).map(|(one, total)| lean(one) * total).sum();
        let base = room.saturating_sub(forced) as f64 / asked.max(1e-9);
        let mut left = 0.0;
        for ((one, weights), total) in kept.iter().zip(&weights).zip(&totals) {
            // What a function does not use is the next one's.
            let share = base * lean(one) * total + left;
            let chosen = knapsack::best(weights, &one.values, share.max(0.0) as usize);
            left = share - chosen.iter().map(|block| weights[*block] as f64).sum::<f64>();
            for block in chosen {
                shown[one.blocks[block].clone()].fill(true);
            }
        }
        Ok(shown)
    }

    /// The lines that are shown, and a marker for each gap, indented as the first line of it.
    fn render(&self, text: &str, lines: &[Range<usize>], shown: &[bool]) -> String {
        let mut out = String::new();
        let mut gap = false;
        for (line, shown) in lines.iter().zip(shown) {
            let line = &text[line.clone()];
            if *shown {
                out += line;
            } else if !gap {
                out += &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
                out += &self.marker;
                out.push('\n');
            }
            gap = !shown;
        }
        out
    }

    /// Perplexity of a text after another.
    fn perplexity(&self, context: &str, text: &str) -> Result<f64> {
        let tokens = self.model.log_probs(context, text)?;
        let mean =
            tokens.iter().map(|(_, p)| f64::from(*p)).sum::<f64>() / tokens.len().max(1) as f64;
        let perplexity = (-mean).exp();
        match perplexity.is_finite() {
            true => Ok(perplexity),
            false => Err(Error::numerical(format!("the perplexity of {text:?} is {perplexity}"))),
        }
    }
}

/// Blocks of lines: each begins at a line whose perplexity is above that of both neighbours, and so many deviations above the
/// mean of all.
fn spikes(perplexity: &[f64], first: usize, deviations: f64) -> Vec<Range<usize>> {
    let n = perplexity.len();
    let mean = perplexity.iter().sum::<f64>() / n.max(1) as f64;
    let variance = perplexity.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / n.max(1) as f64;
    let high = mean + deviations * variance.sqrt();
    let spike = |at: &usize| {
        let here = perplexity[*at];
        here > high && here > perplexity[at - 1] && perplexity.get(at + 1).is_none_or(|p| here > *p)
    };
    let starts: Vec<usize> = [0].into_iter().chain((1..n).filter(spike)).collect();
    let ends = starts.iter().skip(1).copied().chain([n]);
    let blocks = starts.iter().zip(ends).map(|(from, to)| first + from..first + to);
    blocks.filter(|block| !block.is_empty()).collect()
}
