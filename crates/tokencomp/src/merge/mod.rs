//! Methods that merge tokens into others.

mod concept_chunk;
mod diffrate;
mod geometry;
mod mask_guided;
mod mig;
mod query_pooling;
mod temporal;

use tensorpress_tensor::stage::Row;

pub use concept_chunk::ConceptChunk;
pub use diffrate::DiffRate;
pub use geometry::GeometryMerge;
pub use mask_guided::MaskGuidedToMe;
pub use mig::MigMerge;
pub use query_pooling::QueryPooling;
pub use temporal::TemporalMerge;

use crate::map::TokenMap;
use crate::stage::TokenPart;

pub(crate) fn stages() -> [Row<TokenPart>; 7] {
    [
        diffrate::stage(),
        geometry::stage(),
        mig::stage(),
        concept_chunk::stage(),
        query_pooling::stage(),
        mask_guided::stage(),
        temporal::stage(),
    ]
}

/// e^score over the largest of the group that a token is in, times its size: 1 times it for the first of a group, and what is
/// dropped. Weights of a mean that are never all 0.
pub(crate) fn softmax_weights(map: &TokenMap, scores: &[f64], sizes: Option<&[f32]>) -> Vec<f32> {
    let mut most = vec![f64::NEG_INFINITY; map.targets()];
    for (token, score) in scores.iter().enumerate() {
        if let Some(target) = map.target(token) {
            most[target] = most[target].max(*score);
        }
    }
    let weight = |token: usize| {
        let size = sizes.map_or(1.0, |sizes| f64::from(sizes[token]));
        let relative = map.target(token).map_or(1.0, |t| (scores[token] - most[t]).exp());
        ((relative * size) as f32).max(f32::MIN_POSITIVE)
    };
    (0..scores.len()).map(weight).collect()
}
