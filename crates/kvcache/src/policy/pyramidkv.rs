use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::row;
use super::snapkv::{paper, snapkv};
use crate::budget::{Budget, Layers};
use crate::stage::KvPart;

/// PyramidKV (Cai et al., 2024): SnapKV's score, more tokens in the first layers.
#[must_use]
pub fn pyramidkv(window: usize, beta: f64, budget: Budget) -> Policy {
    snapkv(window, 5, budget).with_layers(Layers::Pyramid { beta, window })
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the newest queries look at, more of it in the first layers";
    row("pyramidkv", about, || paper(|window, _, budget| pyramidkv(window, 20.0, budget)))
}
