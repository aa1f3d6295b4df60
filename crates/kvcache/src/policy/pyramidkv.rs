use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::row;
use super::snapkv::{paper, snapkv};
use crate::budget::{Budget, Layers, Rule};
use crate::stage::KvPart;

/// PyramidKV (Cai et al., 2024): SnapKV's score, more tokens in the first layers, by the rule of its authors.
#[must_use]
pub fn pyramidkv(window: usize, beta: f64, budget: Budget) -> Policy {
    let rule = Rule::Authors;
    snapkv(window, 5, budget).with_layers(Layers::Pyramid { beta, window, rule })
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the newest queries look at, more of it in the first layers";
    row("pyramidkv", about, || paper(|window, _, budget| pyramidkv(window, 20.0, budget)))
}
