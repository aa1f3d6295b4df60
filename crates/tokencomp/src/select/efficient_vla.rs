//! Task-relevant and diverse tokens: Yang et al., *EfficientVLA: Training-Free Acceleration and Compression for
//! Vision-Language-Action Models*, 2025.

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use crate::divprune::DivPrune;
use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::stage::{TokenPart, reduction_of};

/// Keeps the tokens most relevant to a task, then a few more of those, then those that are least like what is kept.
///
/// Of the tokens to keep a share `key` is chosen by relevance; of the further ones a share `alpha` too, and the rest one by
/// one, each the farthest (cosine) from all kept before it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EfficientVla {
    /// Share of the tokens kept that is chosen by relevance alone, 0 to 1.
    pub key: f64,
    /// Share of the further ones that is, 0 to 1.
    pub alpha: f64,
}

impl Default for EfficientVla {
    fn default() -> Self {
        Self { key: 0.125, alpha: 0.5 }
    }
}

impl Knobs for EfficientVla {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("key", &mut self.key, 0.0..=1.0, "share chosen by relevance first")?;
        keys.float("alpha", &mut self.alpha, 0.0..=1.0, "share of the others chosen by relevance")
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "keeps tokens relevant to a task, and those least like them";
    reduction_of::<EfficientVla>("efficient_vla", about)
}

impl EfficientVla {
    /// Chooses this share by relevance first.
    #[must_use]
    pub fn with_key(mut self, key: f64) -> Self {
        self.key = key;
        self
    }

    /// Chooses this share of the further tokens by relevance.
    #[must_use]
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }
}

impl TokenReduce for EfficientVla {
    fn id(&self) -> &'static str {
        "efficient_vla"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check(x, keep)?;
        let relevance = need(hints.relevance, self.id(), "the relevance of the tokens")?;
        let mut order = free(&protected);
        let more = keep - (x.nrows() - order.len());
        order.sort_by(|a, b| relevance[*b].total_cmp(&relevance[*a]));
        let key = (self.key * more as f64).round() as usize;
        let by_task = key + (self.alpha * (more - key.min(more)) as f64).round() as usize;
        let mut kept: Vec<usize> = (0..x.nrows()).filter(|token| protected[*token]).collect();
        kept.extend_from_slice(&order[..by_task.min(more)]);
        // Farthest first from those chosen.
        let hints = TokenHints::default().with_protected(&kept);
        TokenMap::keep(x.nrows(), &DivPrune::new().order(x, &hints, keep)?)
    }
}
