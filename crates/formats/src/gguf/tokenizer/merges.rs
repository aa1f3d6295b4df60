//! Merges of pairs and scores of tokens, each from the other: llama.cpp merges what makes the token of the highest
//! score, `tokenizer.json` the pair that comes first in a list.

use std::collections::{HashMap, HashSet};

/// Pairs of ids that make tokens with a score, those of the highest scores first; of equal ones, by the ids of the
/// token and its parts. (As transformers makes them of SentencePiece's files.)
///
/// `tokens` are ids, texts, and scores of what may come of merging.
pub(super) fn from_scores(tokens: &[(usize, &str, Option<f64>)]) -> Vec<(usize, usize)> {
    let ids: HashMap<&str, usize> = tokens.iter().map(|(id, text, _)| (*text, *id)).collect();
    let lengths: HashSet<usize> = tokens.iter().map(|(_, text, _)| text.len()).collect();
    let mut merges: Vec<(f64, (usize, usize))> = Vec::new();
    for (_, text, score) in tokens {
        let Some(score) = score else { continue };
        let first = merges.len();
        for (at, _) in text.char_indices().skip(1) {
            if !lengths.contains(&at) || !lengths.contains(&(text.len() - at)) {
                continue;
            }
            let (left, right) = text.split_at(at);
            if let (Some(left), Some(right)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, (*left, *right)));
            }
        }
        merges[first..].sort_unstable_by_key(|(_, pair)| *pair);
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    merges.into_iter().map(|(_, pair)| pair).collect()
}

/// Scores by which the tokens that merges make come in their order, and the others after them: 0, -1 and so on, as
/// SentencePiece has them. `made` are the ids that merges make, in order; `normal` all that have a score.
pub(super) fn scores(
    made: impl Iterator<Item = usize>,
    normal: impl Iterator<Item = usize>,
) -> HashMap<usize, f32> {
    let mut scores = HashMap::new();
    for id in made.chain(normal) {
        let next = 0.0 - scores.len() as f32;
        scores.entry(id).or_insert(next);
    }
    scores
}
