//! Token merging outside a mask: Mehraban et al., *FastHMR: Accelerating Human Mesh Recovery via Token and Layer Merging
//! with Diffusion Decoding*, 2025 (Mask-ToMe).

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::stage::Row;

use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::TokenReduce;
use crate::stage::{TokenPart, reduction};
use crate::tome::ToMe;

/// [`ToMe`] among the tokens of the background; the foreground stays as it is, as long as there is background to merge. Where
/// all of it as one token is still too much, all merge with all.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MaskGuidedToMe;

impl MaskGuidedToMe {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "merges the most similar tokens of the background, a mask before the others";
    reduction("mask_guided_tome", about, MaskGuidedToMe::new)
}

impl TokenReduce for MaskGuidedToMe {
    fn id(&self) -> &'static str {
        "mask_guided_tome"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let foreground = need(hints.foreground, self.id(), "a mask of the foreground")?;
        let stay: Vec<usize> =
            (0..x.nrows()).filter(|token| protected[*token] || foreground[*token]).collect();
        let least = (stay.len() + 1).min(x.nrows());
        let first = ToMe::new().plan(x, &hints.with_protected(&stay), keep.max(least))?;
        if keep >= least {
            return Ok(first);
        }
        let merged = first.merge(x, hints.sizes)?;
        let sizes = first.sizes(hints.sizes)?;
        let at = first.first_of(&protected)?;
        let protected: Vec<usize> = (0..at.len()).filter(|target| at[*target]).collect();
        let hints = TokenHints::default().with_protected(&protected).with_sizes(&sizes);
        first.then(&ToMe::new().plan(merged.view(), &hints, keep)?)
    }
}
