//! Reasoning that goes on after it has its answer: Lin, Fu, Chen, Chen, Xie, Wang, Cai, Zhang, Yuan, Guo, Wang, *TrimR:
//! Verifier-based Training-Free Thinking Compression for Efficient Test-Time Scaling*, 2025.

use std::fmt::Debug;

use tensorpress_tensor::{Error, Result};

/// Any judge of whether two neighbouring thoughts come to the same answer; a small model in the paper.
pub trait Verifier: Debug {
    /// Whether `thought` has the answer that `before` had already. A thought without an answer agrees with none.
    ///
    /// # Errors
    /// Whatever the judge cannot do.
    fn agree(&self, question: &str, before: &str, thought: &str) -> Result<bool>;
}

/// When a stream of thoughts ends.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrimR {
    /// A thought ends before a sentence that begins with one of these.
    pub reflections: Vec<String>,
    /// Shorter thoughts, in words, are put to the next one.
    pub shortest: usize,
    /// Agreements in a row that end the reasoning.
    pub agreements: usize,
    /// Words after which the reasoning is told to conclude, agreed or not.
    pub budget: usize,
    /// Said when thoughts agree.
    pub stop: String,
    /// Said when the budget is used up.
    pub conclude: String,
    /// So many equal runs of words in a row are a loop.
    pub repeats: usize,
    /// Words of the longest run that is looked for.
    pub period: usize,
}

impl Default for TrimR {
    /// The paper's reflection words; thoughts of at least 20 words, 2 agreements, 8000 words, loops of 4 runs of at most 64
    /// words.
    fn default() -> Self {
        let words = ["Wait", "But", "Alternatively", "However", "Hmm", "Let me", "Actually"];
        Self {
            reflections: words.map(str::to_owned).to_vec(),
            shortest: 20,
            agreements: 2,
            budget: 8000,
            stop: "\n\nI have verified the answer, so I stop thinking here.\n</think>\n\n"
                .to_owned(),
            conclude: "\n\nI am out of time, so I give the best answer that I have.\n</think>\n\n"
                .to_owned(),
            repeats: 4,
            period: 64,
        }
    }
}

/// What to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Let it go on.
    Continue,
    /// Thoughts agree: say [`TrimR::stop`].
    Stop,
    /// The budget is used up: say [`TrimR::conclude`].
    Conclude,
    /// The stream repeats itself: cut it to so many bytes, and say [`TrimR::conclude`].
    Loop(usize),
}

/// One stream that is watched.
#[derive(Debug)]
pub struct Watched<'a> {
    rules: &'a TrimR,
    verifier: &'a dyn Verifier,
    question: &'a str,
    text: String,
    /// Where the thought that is not yet ended begins.
    open: usize,
    before: Option<String>,
    agreed: usize,
    verdict: Verdict,
}

impl TrimR {
    /// Watches a stream of thoughts about a question.
    ///
    /// # Errors
    /// `InvalidArgument` for a budget, agreements or a period of 0, fewer than 2 repeats, or an empty reflection.
    pub fn watch<'a>(
        &'a self,
        question: &'a str,
        verifier: &'a dyn Verifier,
    ) -> Result<Watched<'a>> {
        let least = [
            ("agreements", self.agreements, 1),
            ("budget", self.budget, 1),
            ("repeats", self.repeats, 2),
            ("period", self.period, 1),
        ];
        if let Some((key, value, least)) = least.into_iter().find(|(_, value, least)| value < least)
        {
            return Err(Error::invalid(format!(
                "{key} = {value}; allowed are numbers from {least}"
            )));
        }
        if self.reflections.iter().any(String::is_empty) {
            return Err(Error::invalid("reflections = \"\"; allowed are texts that are not empty"));
        }
        let (text, before, verdict) = (String::new(), None, Verdict::Continue);
        Ok(Watched { rules: self, verifier, question, text, open: 0, before, agreed: 0, verdict })
    }

    /// The thoughts of a text, as bytes: each ends before a sentence that begins with a reflection, unless it is too short.
    #[must_use]
    pub fn thoughts(&self, text: &str) -> Vec<std::ops::Range<usize>> {
        let (mut found, mut from) = (Vec::new(), 0);
        for at in self.turns(text, 0) {
            if words(&text[from..at]) >= self.shortest {
                found.push(from..at);
                from = at;
            }
        }
        if from < text.len() {
            found.push(from..text.len());
        }
        found
    }

    /// Where sentences begin with a reflection, from a byte on.
    fn turns(&self, text: &str, from: usize) -> Vec<usize> {
        let starts = |at: usize| {
            let before = text[..at].trim_end_matches([' ', '\t']);
            before.is_empty() || before.ends_with(['.', '!', '?', '\n'])
        };
        let whole = |at: usize| !text[at..].starts_with(char::is_alphanumeric);
        let of = |word: &String| {
            let word = word.clone();
            let found = text[from..].match_indices(word.as_str()).map(|(at, _)| from + at);
            let found = found.filter(|at| starts(*at) && whole(at + word.len()));
            found.collect::<Vec<usize>>()
        };
        let mut found: Vec<usize> = self.reflections.iter().flat_map(of).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Where a text that ends in a loop is to be cut: behind the first of the equal runs.
    #[must_use]
    pub fn looped(&self, text: &str) -> Option<usize> {
        let ends: Vec<(usize, &str)> = text
            .split_whitespace()
            .map(|w| (w.as_ptr() as usize - text.as_ptr() as usize + w.len(), w))
            .collect();
        let n = ends.len();
        let repeats = |period: usize| {
            let run = period * self.repeats;
            run <= n && (n - run + period..n).all(|at| ends[at].1 == ends[at - period].1)
        };
        let period = (1..=self.period.min(n / self.repeats)).find(|period| repeats(*period))?;
        // More runs than were asked for may have been there before anybody looked.
        let mut first = n - period * self.repeats;
        while first > 0 && ends[first - 1].1 == ends[first - 1 + period].1 {
            first -= 1;
        }
        Some(ends[first + period - 1].0)
    }
}

impl Watched<'_> {
    /// Takes the next piece of the stream, and says what to do. After anything but [`Verdict::Continue`] the verdict stays.
    ///
    /// # Errors
    /// Those of the verifier.
    pub fn push(&mut self, piece: &str) -> Result<Verdict> {
        if self.verdict != Verdict::Continue {
            return Ok(self.verdict);
        }
        self.text += piece;
        self.verdict = self.judge()?;
        Ok(self.verdict)
    }

    /// The stream so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn judge(&mut self) -> Result<Verdict> {
        if let Some(at) = self.rules.looped(&self.text) {
            return Ok(Verdict::Loop(at));
        }
        for at in self.rules.turns(&self.text, self.open) {
            let thought = &self.text[self.open..at];
            if words(thought) < self.rules.shortest {
                continue;
            }
            let agrees = match &self.before {
                Some(before) => self.verifier.agree(self.question, before, thought)?,
                None => false,
            };
            self.before = Some(thought.to_owned());
            self.agreed = if agrees { self.agreed + 1 } else { 0 };
            self.open = at;
            if self.agreed >= self.rules.agreements {
                return Ok(Verdict::Stop);
            }
        }
        if words(&self.text) >= self.rules.budget {
            return Ok(Verdict::Conclude);
        }
        Ok(Verdict::Continue)
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
