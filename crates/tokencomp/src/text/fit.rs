//! As much of a text as fits, by few counts of all of it.

use tensorpress_tensor::Result;

use super::split::Document;
use super::{Squeezed, TokenCount};

/// What is kept so far; every state that is accepted was counted on its own text.
pub(super) struct Fit<'a> {
    pub(super) counter: &'a dyn TokenCount,
    pub(super) document: &'a Document<'a>,
    pub(super) budget: usize,
    /// Tokens of the whole document.
    pub(super) tokens_before: usize,
    pub(super) kept: Vec<bool>,
}

impl Fit<'_> {
    /// The text of what is kept, and its tokens: those of the text itself, for joined parts may have more or fewer.
    pub(super) fn count(&self) -> Result<Squeezed> {
        let text = self.document.render(&self.kept);
        let tokens = self.counter.count(&text)?;
        Ok(Squeezed { text, tokens, tokens_before: self.tokens_before })
    }

    /// Adds as many blocks as fit, from the first on, then those of the next that still do. `forced` is what is kept
    /// already, and fits.
    pub(super) fn fill(&mut self, blocks: &[Vec<usize>], forced: Squeezed) -> Result<Squeezed> {
        let (count, best) = self.longest(blocks, forced)?;
        self.keep(&blocks[..count]);
        self.top_up(blocks.get(count + 1..).unwrap_or_default(), best)
    }

    fn keep(&mut self, blocks: &[Vec<usize>]) {
        blocks.iter().flatten().for_each(|unit| self.kept[*unit] = true);
    }

    /// What [`Self::count`] would say with these blocks.
    fn count_with(&mut self, blocks: &[Vec<usize>]) -> Result<Squeezed> {
        let before = self.kept.clone();
        self.keep(blocks);
        let counted = self.count();
        self.kept = before;
        counted
    }

    /// How many blocks from the first on fit, and their text.
    ///
    /// Tokens grow about as bytes do, so that the next number to try is where a line meets the budget; every third is
    /// the middle of what is left, so that no text needs many.
    fn longest(&mut self, blocks: &[Vec<usize>], forced: Squeezed) -> Result<(usize, Squeezed)> {
        let mut sizes = vec![0.0];
        for block in blocks {
            let bytes = block.iter().map(|unit| self.document.units[*unit].bytes.len() + 1);
            sizes.push(sizes[sizes.len() - 1] + bytes.sum::<usize>() as f64);
        }
        let mut rate = self.tokens_before as f64 / self.document.text.len().max(1) as f64;
        // `low` blocks fit, `high` do not.
        let (mut low, mut high, mut best) = (0, blocks.len() + 1, forced);
        let mut above = None;
        for step in 1.. {
            if high - low <= 1 {
                break;
            }
            let goal = sizes[low] + (self.budget - best.tokens) as f64 / rate.max(1e-6);
            let guess = sizes.partition_point(|size| *size <= goal).saturating_sub(1);
            let middle = match step % 3 {
                0 => low + (high - low) / 2,
                _ => guess.clamp(low + 1, high - 1),
            };
            let tried = self.count_with(&blocks[..middle])?;
            if tried.tokens <= self.budget {
                (low, best) = (middle, tried);
            } else {
                (high, above) = (middle, Some(tried.tokens));
            }
            rate = match above {
                Some(above) => (above - best.tokens) as f64 / (sizes[high] - sizes[low]),
                None if low > 0 => best.tokens as f64 / sizes[low],
                None => rate,
            };
        }
        Ok((low, best))
    }

    /// Adds those of the next blocks that seem to fit what is left, as far as they do.
    fn top_up(&mut self, blocks: &[Vec<usize>], mut best: Squeezed) -> Result<Squeezed> {
        /// Blocks that are looked at.
        const TRIES: usize = 32;
        /// What a block stands behind, for many tokenizers begin a text in another way.
        const BEFORE: &str = "a";
        let mut room = self.budget - best.tokens;
        let mut picked: Vec<Vec<usize>> = Vec::new();
        let before = self.counter.count(BEFORE)?;
        for block in blocks.iter().take(TRIES) {
            let (Some(first), Some(last)) = (block.first(), block.last()) else { continue };
            let text = format!("{BEFORE} {}", self.document.sentence(&(*first..*last + 1)));
            let tokens = self.counter.count(&text)?.saturating_sub(before).max(1);
            if tokens <= room {
                room -= tokens;
                picked.push(block.clone());
            }
        }
        let (mut low, mut high) = (0, picked.len() + 1);
        let mut middle = picked.len();
        while high - low > 1 {
            let tried = self.count_with(&picked[..middle])?;
            if tried.tokens <= self.budget {
                (low, best) = (middle, tried);
            } else {
                high = middle;
            }
            middle = low + (high - low) / 2;
        }
        Ok(best)
    }
}
