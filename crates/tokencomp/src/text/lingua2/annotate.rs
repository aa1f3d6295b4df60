//! From a compressed text to labels of the original's words: the data side of LLMLingua-2, section 3.2.

use tensorpress_tensor::{Error, Result};

/// Labels of words, and how far they can be trusted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Annotation {
    /// Which words of the original were kept.
    pub labels: Vec<bool>,
    /// Share of the compressed text's words that are not words of the original: what its writer made up.
    pub variation_rate: f64,
    /// Words of the compressed text that occur in the original, less labels given, as a share of the original's words: what
    /// the labels lost (hitting rate less matching rate).
    pub alignment_gap: f64,
}

/// Finds the words of a compressed text again in the original.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Annotator {
    window: usize,
    fuzzy: f64,
}

impl Default for Annotator {
    /// Windows of 150 words; words are alike whose shared beginning is two thirds of the longer.
    fn default() -> Self {
        Self { window: 150, fuzzy: 2.0 / 3.0 }
    }
}

impl Annotator {
    /// Looks for each word at most half of this many words to either side of the last that was found.
    ///
    /// # Errors
    /// `InvalidArgument` below 2.
    pub fn with_window(mut self, words: usize) -> Result<Self> {
        if words < 2 {
            return Err(Error::invalid(format!("window = {words}; allowed are numbers from 2")));
        }
        self.window = words;
        Ok(self)
    }

    /// Words are alike if they share so large a part of the longer as their beginning; 1 asks for equal ones.
    ///
    /// # Errors
    /// `InvalidArgument` outside 0 to 1, 0 excluded.
    pub fn with_fuzzy(mut self, share: f64) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(format!("fuzzy = {share}; allowed are 0 to 1, 0 excluded")));
        }
        self.fuzzy = share;
        Ok(self)
    }

    /// Labels the words of `original` that `compressed` kept. Each of its words is looked for from the last one found on,
    /// to the right and then to the left at each distance; words that have a label already are passed over. Case does not count.
    #[must_use]
    pub fn annotate(&self, original: &[&str], compressed: &[&str]) -> Annotation {
        let lower =
            |words: &[&str]| words.iter().map(|w| w.to_lowercase()).collect::<Vec<String>>();
        let (original, compressed) = (lower(original), lower(compressed));
        let mut labels = vec![false; original.len()];
        let (mut last, mut found) = (0, 0usize);
        for word in &compressed {
            let alike = |at: &usize| !labels[*at] && self.alike(&original[*at], word);
            let near = (0..=self.window / 2)
                .flat_map(|by| [Some(last + by), last.checked_sub(by)])
                .flatten()
                .filter(|at| *at < original.len());
            if let Some(at) = near.clone().find(alike) {
                labels[at] = true;
                last = at;
                found += 1;
            }
        }
        let known: std::collections::HashSet<&str> = original.iter().map(String::as_str).collect();
        let absent = compressed.iter().filter(|w| !known.contains(w.as_str())).count();
        let hits = (compressed.len() - absent) as f64;
        let n = original.len().max(1) as f64;
        let variation_rate = absent as f64 / compressed.len().max(1) as f64;
        Annotation { labels, variation_rate, alignment_gap: hits / n - found as f64 / n }
    }

    fn alike(&self, a: &str, b: &str) -> bool {
        let shared = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
        let longer = a.chars().count().max(b.chars().count());
        longer > 0 && shared as f64 >= self.fuzzy * longer as f64
    }
}

/// Which annotations are worth learning from: those outside the worst `made_up` share by variation rate (the paper's worst
/// 5 of 100), and of these those outside the worst `lost` share by alignment gap (10 of 100). Equal ones stay or go together:
/// they stay.
///
/// # Errors
/// `InvalidArgument` for a share outside 0 to 1.
pub fn trustworthy(annotations: &[Annotation], made_up: f64, lost: f64) -> Result<Vec<bool>> {
    for (key, share) in [("made_up", made_up), ("lost", lost)] {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("{key} = {share}; allowed are 0 to 1")));
        }
    }
    let mut kept = vec![true; annotations.len()];
    drop_worst(&mut kept, made_up, &|at| annotations[at].variation_rate);
    drop_worst(&mut kept, lost, &|at| annotations[at].alignment_gap);
    Ok(kept)
}

/// Drops those of what is kept that lie above the value that a share of it reaches.
fn drop_worst(kept: &mut [bool], share: f64, value: &dyn Fn(usize) -> f64) {
    let mut values: Vec<f64> = (0..kept.len()).filter(|at| kept[*at]).map(value).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let Some(most) = values.get((share * values.len() as f64).floor() as usize) else {
        return kept.fill(false);
    };
    (0..kept.len()).filter(|at| value(*at) > *most).for_each(|at| kept[at] = false);
}
