//! Geometry-aware merging: *LiteVGGT: Boosting Vanilla VGGT via Geometry-aware Cached Token Merging*, 2025.
//! A plan is used for several layers through [`Reuse`](crate::Reuse).

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use crate::grid::{local_variance, picture};
use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::similarity::nearest;
use crate::stage::{TokenPart, reduction_of};

/// Merges tokens of flat surfaces into anchors spread over the picture; edges and texture stay.
///
/// The geometry of a token is 0.3 times the variance of states around it (3 x 3 places) plus 0.7 times its saliency, the
/// gradient of the pixels, each between 0 and 1 over its picture. The tokens of most geometry, a share `protect` of each
/// picture, stay alone. Of the others each cell of s x s places has one anchor, the one of least geometry; s is the
/// least with which there are few enough. The rest are merged into the most similar (cosine) anchor, the most
/// similar first, as many as must go.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GeometryMerge {
    /// Share of a picture's tokens that stay alone for their geometry, 0 to 1; fewer where there is no room.
    pub protect: f64,
}

impl Default for GeometryMerge {
    fn default() -> Self {
        Self { protect: 0.1 }
    }
}

impl Knobs for GeometryMerge {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float(
            "protect",
            &mut self.protect,
            0.0..=1.0,
            "share of a picture kept alone for its geometry",
        )
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "merges tokens of flat surfaces into anchors of a grid";
    reduction_of::<GeometryMerge>("geometry_cached_merge", about)
}

impl GeometryMerge {
    /// Keeps this share of a picture alone for its geometry.
    #[must_use]
    pub fn with_protect(mut self, protect: f64) -> Self {
        self.protect = protect;
        self
    }

    /// The geometry of each token, 0 to 1.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`]: places must be there.
    pub fn geometry(&self, x: ArrayView2<'_, f32>, hints: &TokenHints<'_>) -> Result<Vec<f64>> {
        let places = need(hints.places, self.id(), "the places of the tokens")?;
        let variance = relative(local_variance(x, hints, places), hints);
        let Some(saliency) = hints.saliency else { return Ok(variance) };
        let saliency = relative(saliency.iter().map(|v| f64::from(*v)).collect(), hints);
        Ok(variance.iter().zip(saliency).map(|(v, s)| 0.3 * v + 0.7 * s).collect())
    }
}

/// Values moved and scaled to 0 to 1 over each picture; 0 where they are all alike.
fn relative(values: Vec<f64>, hints: &TokenHints<'_>) -> Vec<f64> {
    let mut bounds = BTreeMap::new();
    for (token, value) in values.iter().enumerate() {
        let (least, most) = bounds.entry(picture(hints, token)).or_insert((*value, *value));
        (*least, *most) = (least.min(*value), most.max(*value));
    }
    let scaled = |(token, value): (usize, f64)| {
        let (least, most) = bounds[&picture(hints, token)];
        if most > least { (value - least) / (most - least) } else { 0.0 }
    };
    values.into_iter().enumerate().map(scaled).collect()
}

/// The first token of each cell of `side` x `side` places of a picture; those of no place are one cell.
fn anchors(tokens: &[usize], hints: &TokenHints<'_>, side: usize) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let places = hints.places.unwrap_or_default();
    let cell = |token: usize| {
        (picture(hints, token), places[token].map(|[row, col]| [row / side, col / side]))
    };
    tokens.iter().copied().filter(|token| seen.insert(cell(*token))).collect()
}

impl TokenReduce for GeometryMerge {
    fn id(&self) -> &'static str {
        "geometry_cached_merge"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let geometry = self.geometry(x, hints)?;
        let mut order = free(&protected);
        let (alone, more) = (x.nrows() - order.len(), x.nrows() - keep);
        if more == 0 {
            return Ok(TokenMap::identity(x.nrows()));
        }
        order.sort_by(|a, b| geometry[*b].total_cmp(&geometry[*a]));
        // One is left to be an anchor.
        let mut room = keep - alone;
        let mut left = BTreeMap::new();
        order.iter().for_each(|token| *left.entry(picture(hints, *token)).or_insert(0.0) += 1.0);
        left.values_mut().for_each(|count| *count = (*count * self.protect).floor());
        let mut flat = Vec::new();
        for token in order {
            match left.get_mut(&picture(hints, token)) {
                Some(count) if *count > 0.0 && room > 1 => {
                    (*count, room) = (*count - 1.0, room - 1)
                }
                _ => flat.push(token),
            }
        }
        flat.reverse();
        let mut found = flat.clone();
        let mut side = 1;
        while found.len() > room && side <= 1 << 32 {
            // By ones where cells are small, then faster: places may be far apart.
            side += 1 + side / 16;
            found = anchors(&flat, hints, side);
        }
        // More pictures than there is room for.
        found.truncate(room);
        let mut is_anchor = vec![false; x.nrows()];
        found.iter().for_each(|token| is_anchor[*token] = true);
        let go: Vec<usize> = flat.into_iter().filter(|token| !is_anchor[*token]).collect();
        let into = nearest(x.as_standard_layout().view(), &go, &found)?;
        let mut pairs: Vec<usize> = (0..go.len()).collect();
        pairs.sort_by(|a, b| into[*b].0.total_cmp(&into[*a].0).then(go[*a].cmp(&go[*b])));
        let mut root: Vec<usize> = (0..x.nrows()).collect();
        pairs[..more].iter().for_each(|pair| root[go[*pair]] = found[into[*pair].1]);
        TokenMap::from_roots(&root)
    }
}
