//! Embeddings for retrieval: product quantisation that learns to rank, and stores of few bytes.

mod jpq;
mod pca;
mod precision;
mod product;
mod store;
mod sweep;

pub use jpq::{Jpq, Relevant};
pub use pca::Pca;
pub use precision::EmbeddingPrecision;
pub use product::{ProductCodes, ProductQuantizer, ProductSpec, ScoreGradients};
pub use store::{EmbeddingStore, Similarity, StoreSpec};
pub use sweep::{StoreFigure, best_within, pareto, recall, sweep};

/// The first `k` of the numbers by size, largest first, the earlier of equals first.
fn top(scores: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let k = k.min(order.len());
    let by = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if k > 0 && k < order.len() {
        order.select_nth_unstable_by(k - 1, by);
    }
    order.truncate(k);
    order.sort_unstable_by(by);
    order.into_iter().map(|i| (i, scores[i])).collect()
}
