//! Stories: reading, cleaning, tokenising and dealing out in batches.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::model::Batch;
use crate::rng::Rng;
use crate::sampler::{BOS, EOS};

/// What ends a story in the corpus files.
pub const END_OF_STORY: &str = "<|endoftext|>";
/// Bytes of running text in a window document.
const WINDOW_BYTES: usize = 2000;

/// Reads a file of stories.
pub fn read_stories(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the stories in {}", path.display()))?;
    // What follows the last mark is a story cut off, or nothing.
    let (text, _) = text.rsplit_once(END_OF_STORY).unwrap_or((&text, ""));
    Ok(text.split(END_OF_STORY).map(clean).filter(|story| story.len() > 100).collect())
}

/// One style for all sources: plain quotation marks and an empty line between paragraphs, as most
/// of TinyStories has them.
pub fn clean(story: &str) -> String {
    let plain = |c| match c {
        '“' | '”' => '"',
        '‘' | '’' => '\'',
        c => c,
    };
    let lines: Vec<&str> = story.trim().lines().filter(|line| !line.trim().is_empty()).collect();
    lines.join("\n\n").chars().map(plain).collect()
}

/// Texts of a JSON lines file.
pub fn read_jsonl(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the texts in {}", path.display()))?;
    let parse = |line: &str| -> Result<String> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        Ok(value["text"].as_str().context("a line without text")?.to_string())
    };
    text.lines().map(parse).collect()
}

/// Tokenised documents and the order in which they are dealt out.
#[derive(Debug)]
pub struct Documents {
    documents: Vec<Vec<u16>>,
    order: Vec<u32>,
    seed: u64,
    /// Full rounds dealt.
    pub epoch: u64,
    /// Documents dealt in this round.
    pub position: usize,
}

impl Documents {
    /// Tokenises stories; each group's stories come `weight` times a round. A share of the text
    /// comes a second time as windows that begin anywhere and run over the ends of stories, as
    /// calibration windows do.
    pub fn new(
        groups: &[(&[String], usize)],
        window_share: f32,
        tokenizer: &Tokenizer,
        max_tokens: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed, 1);
        let mut running = String::new();
        let mut documents = vec![];
        let mut order = vec![];
        for &(stories, weight) in groups {
            let tokens: Vec<_> =
                stories.par_iter().map(|s| tokenise(tokenizer, s, true, max_tokens)).collect();
            for (story, tokens) in stories.iter().zip(tokens) {
                order.extend(std::iter::repeat_n(documents.len() as u32, weight));
                documents.push(tokens?);
                if rng.uniform() < window_share {
                    running.push_str(story);
                    running.push_str("\n\n");
                }
            }
        }
        let windows: Vec<_> = windows(&running)
            .into_par_iter()
            .map(|text| tokenise(tokenizer, text, false, max_tokens))
            .collect();
        for window in windows {
            order.push(documents.len() as u32);
            documents.push(window?);
        }
        let mut all = Documents { documents, order, seed, epoch: 0, position: 0 };
        all.seek(0, 0);
        Ok(all)
    }

    /// Number of tokens in a round.
    pub fn tokens(&self) -> usize {
        self.order.iter().map(|&i| self.documents[i as usize].len()).sum()
    }

    /// Goes to a place in the sequence of rounds.
    pub fn seek(&mut self, epoch: u64, position: usize) {
        // Each round's order follows from the seed and its number alone.
        self.order.sort_unstable();
        Rng::new(self.seed, 2 + epoch).shuffle(&mut self.order);
        (self.epoch, self.position) = (epoch, position);
    }

    /// The next documents of together about `tokens` predictions, in batches of about
    /// `batch_tokens` each.
    pub fn deal(&mut self, tokens: usize, batch_tokens: usize) -> Vec<Batch> {
        let mut batches = vec![Batch::default()];
        let mut dealt = 0;
        while dealt < tokens {
            if self.position == self.order.len() {
                self.seek(self.epoch + 1, 0);
            }
            let document = &self.documents[self.order[self.position] as usize];
            self.position += 1;
            dealt += document.len() - 1;
            let full = batches.last().is_none_or(|b| b.inputs.len() >= batch_tokens);
            if full {
                batches.push(Batch::default());
            }
            let last = batches.len() - 1;
            batches[last].push(document.iter().map(|&t| t as u32));
        }
        batches
    }
}

/// Begin token, text and, where it fits, end token.
fn tokenise(tokenizer: &Tokenizer, text: &str, end: bool, max_tokens: usize) -> Result<Vec<u16>> {
    let encoded = tokenizer.encode_fast(text, false).map_err(|e| anyhow!(e))?;
    let mut ids = vec![BOS as u16];
    ids.extend(encoded.get_ids().iter().map(|&id| id as u16));
    if end {
        ids.push(EOS as u16);
    }
    ids.truncate(max_tokens + 1);
    Ok(ids)
}

/// Cuts running text at spaces into pieces of about `WINDOW_BYTES`.
fn windows(mut text: &str) -> Vec<&str> {
    let mut out = vec![];
    while text.len() > 2 * WINDOW_BYTES {
        let from = (WINDOW_BYTES..).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
        let cut = text[from..].find(' ').map_or(text.len(), |i| from + i);
        out.push(&text[..cut]);
        text = text[cut..].trim_start();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_separates_paragraphs() {
        assert_eq!(
            clean("\n“Hi,” said Tim. \nShe’s here.\n\n"),
            "\"Hi,\" said Tim. \n\nShe's here."
        );
    }

    #[test]
    fn windows_cover_the_text() {
        let text = "one two three ".repeat(1000);
        let found = windows(&text);
        assert!(found.len() > 4 && found.iter().all(|w| w.len() < WINDOW_BYTES + 10));
        assert!(text.starts_with(&found.join(" ")));
    }
}
