//! Methods that keep some tokens and drop the others.

mod efficient_vla;
mod globalcom2;
mod graph;
mod submodular;
mod token_corr;

use tensorpress_tensor::stage::Row;

pub use efficient_vla::EfficientVla;
pub use globalcom2::GlobalCom2;
pub use graph::{KnnGraph, knn_graph};
pub use submodular::SubmodularSelect;
pub use token_corr::TokenCorr;

use crate::stage::TokenPart;

pub(crate) fn stages() -> [Row<TokenPart>; 4] {
    [token_corr::stage(), globalcom2::stage(), efficient_vla::stage(), submodular::stage()]
}

/// Tokens that are free, by a number of each: its crop, its frame.
pub(crate) fn by_number(free: &[usize], number: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut sorted = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    free.iter().for_each(|token| sorted.entry(number(*token)).or_default().push(*token));
    sorted.into_values().collect()
}

/// The tokens of each set that score highest, as many as are given for it; the first of equals.
pub(crate) fn best(
    sets: &[Vec<usize>],
    counts: &[usize],
    score: impl Fn(usize) -> f64,
) -> Vec<usize> {
    let mut kept = Vec::new();
    for (set, count) in sets.iter().zip(counts) {
        let mut order = set.clone();
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        kept.extend_from_slice(&order[..*count]);
    }
    kept
}
