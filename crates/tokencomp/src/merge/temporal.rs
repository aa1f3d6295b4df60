//! New detail alone: what *PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large
//! Vision-Language Models*, 2025, trains an encoder for, as a rule: a later frame carries what the one before did not show.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Result, kernels};

use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::similarity::normalised;
use crate::stage::{TokenPart, reduction_of};
use crate::tome::ToMe;

/// Takes away tokens like (cosine) the one at the same place of the frame before, the most similar first: merged into it,
/// or dropped. Where that does not suffice, [`ToMe`] merges what is left.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TemporalMerge {
    /// Drops tokens, in place of merging them into those before.
    pub drop: bool,
}

impl Knobs for TemporalMerge {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.flag("drop", &mut self.drop, "drops tokens in place of merging them")
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "takes away what the frame before showed at the same place";
    reduction_of::<TemporalMerge>("temporal_merge", about)
}

impl TemporalMerge {
    /// Whether tokens are dropped.
    #[must_use]
    pub fn with_drop(mut self, drop: bool) -> Self {
        self.drop = drop;
        self
    }
}

impl TokenReduce for TemporalMerge {
    fn id(&self) -> &'static str {
        "temporal_merge"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let places = need(hints.places, self.id(), "the places of the tokens")?;
        let frames = need(hints.frames, self.id(), "the frames of the tokens")?;
        let free = free(&protected);
        let crop = |token: usize| hints.crops.map_or(0, |crops| crops.of[token]);
        let at = |token: &usize| Some(((frames[*token], crop(*token), places[*token]?), *token));
        let by_place: BTreeMap<_, usize> = free.iter().filter_map(at).collect();
        let unit = normalised(x, &(0..x.nrows()).collect::<Vec<_>>())?;
        let row = |token: usize| unit.row(token).to_slice().expect("standard layout");
        let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
        for &token in &free {
            let (Some(place), Some(frame)) = (places[token], frames[token].checked_sub(1)) else {
                continue;
            };
            if let Some(before) = by_place.get(&(frame, crop(token), place)) {
                pairs.push((kernels::dot(row(token), row(*before)), token, *before));
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        pairs.truncate(x.nrows() - keep);
        let mut into: Vec<usize> = (0..x.nrows()).collect();
        pairs.iter().for_each(|(_, token, before)| into[*token] = *before);
        let map = if self.drop {
            let stays: Vec<usize> = (0..x.nrows()).filter(|token| into[*token] == *token).collect();
            TokenMap::keep(x.nrows(), &stays)?
        } else {
            TokenMap::from_roots(&into)?
        };
        if map.targets() == keep {
            return Ok(map);
        }
        let (states, sizes) = (map.merge(x, hints.sizes)?, map.sizes(hints.sizes)?);
        let at = map.first_of(&protected)?;
        let protected: Vec<usize> = (0..at.len()).filter(|target| at[*target]).collect();
        let hints = TokenHints::default().with_protected(&protected).with_sizes(&sizes);
        map.then(&ToMe::new().plan(states.view(), &hints, keep)?)
    }
}
