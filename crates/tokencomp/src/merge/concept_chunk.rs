//! Chunks of tokens as concepts: *ConceptMoE: Adaptive Token-to-Concept Compression for Implicit Compute Allocation*, 2026;
//! boundaries by cosines as in Hwang, Wang, Gu, *Dynamic Chunking for End-to-End Hierarchical Sequence Modeling*, 2025
//! (H-Net).

use ndarray::{Array2, ArrayView1, ArrayView2, s};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, check_finite, free, grouped};
use crate::similarity::normalised;
use crate::stage::{TokenPart, reduction_of};

/// Runs of neighbours as one token each, cut where a token is least like the one before.
///
/// p_t = (1 - cos(Wq h_(t-1), Wk h_t)) / 2; the first token begins a chunk. A plan cuts at the keep - 1 largest p, the first
/// of equals: an exact ratio. [`ConceptChunk::chunks`] cuts at a threshold. A chunk's concept is its first token, so that no
/// concept knows what comes after it, or the mean ([`TokenReduce::weights`]). Protected tokens stand aside; the others
/// are neighbours across them.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ConceptChunk {
    projections: Option<[Array2<f32>; 2]>,
    /// Concepts are means of their chunks, in place of first tokens.
    pub mean: bool,
}

impl Knobs for ConceptChunk {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.flag("mean", &mut self.mean, "takes the mean of a chunk, not its first token")
    }
}

impl ConceptChunk {
    /// The method without projections: Wq = Wk = I, with which H-Net starts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The method with trained projections Wq and Wk `[out, channels]`.
    ///
    /// # Errors
    /// `ShapeMismatch` unless they have one shape.
    pub fn with_projections(mut self, wq: Array2<f32>, wk: Array2<f32>) -> Result<Self> {
        if wq.dim() != wk.dim() {
            return Err(Error::shape(format!("Wq {:?}, Wk {:?}", wq.dim(), wk.dim())));
        }
        self.projections = Some([wq, wk]);
        Ok(self)
    }

    /// Whether concepts are means of their chunks.
    #[must_use]
    pub fn with_mean(mut self, mean: bool) -> Self {
        self.mean = mean;
        self
    }

    /// p_t for each of `tokens`, against the one before it in the list; 1 for the first.
    fn boundaries(&self, x: ArrayView2<'_, f32>, tokens: &[usize]) -> Result<Vec<f32>> {
        let turned = |which: usize| match &self.projections {
            None => normalised(x, tokens),
            Some(projections) if projections[which].ncols() == x.ncols() => {
                let turned = x.dot(&projections[which].t());
                normalised(turned.view(), tokens)
            }
            Some(projections) => Err(Error::shape(format!(
                "projections {:?} of states of {} channels",
                projections[which].dim(),
                x.ncols()
            ))),
        };
        let (q, k) = (turned(0)?, turned(1)?);
        let before = std::iter::once(None).chain(q.rows().into_iter().map(Some));
        let p = |(k, q): (ArrayView1<'_, f32>, Option<ArrayView1<'_, f32>>)| {
            q.map_or(1.0, |q| ((1.0 - q.dot(&k)) / 2.0).clamp(0.0, 1.0))
        };
        Ok(k.rows().into_iter().zip(before).map(p).collect())
    }

    /// p_t of each token of states `[tokens, channels]`; 1 for the first.
    ///
    /// # Errors
    /// `Numerical` for states that are not finite, `ShapeMismatch` for projections of other channels.
    pub fn boundary_scores(&self, x: ArrayView2<'_, f32>) -> Result<Vec<f32>> {
        check_finite(x)?;
        self.boundaries(x, &(0..x.nrows()).collect::<Vec<_>>())
    }

    /// Chunks that begin where p_t is at least `threshold`: 0.5 in the papers. Whether a token begins one depends on it
    /// and the one before alone.
    ///
    /// # Errors
    /// As [`ConceptChunk::boundary_scores`].
    pub fn chunks(&self, x: ArrayView2<'_, f32>, threshold: f32) -> Result<TokenMap> {
        let scores = self.boundary_scores(x)?;
        let begins: Vec<usize> =
            (0..scores.len()).filter(|t| *t == 0 || scores[*t] >= threshold).collect();
        TokenMap::new(&numbered(&begins, scores.len(), Some), begins.len())
    }

    /// Gives concepts `[chunks, channels]` back to the tokens of their chunks: m_i = (1 - p) m_(i-1) + p c_i with the
    /// boundary score p of the chunk's first token, so that concepts cut with little certainty lean on those before. With
    /// first tokens as concepts no token sees what comes after it.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is a concept a target and a score a source of the map.
    pub fn dechunk(
        concepts: ArrayView2<'_, f32>,
        scores: &[f32],
        chunks: &TokenMap,
    ) -> Result<Array2<f32>> {
        let mut blended = concepts.to_owned();
        let scores = chunks.first_of(scores)?;
        for chunk in 1..blended.nrows().min(scores.len()) {
            let (before, mut now) = blended.multi_slice_mut((s![chunk - 1, ..], s![chunk, ..]));
            now.zip_mut_with(&before, |c, m| *c = (1.0 - scores[chunk]) * m + scores[chunk] * *c);
        }
        chunks.unmerge(blended.view())
    }
}

/// The number of each token's chunk, from the rising tokens that begin one.
fn numbered<T>(begins: &[usize], tokens: usize, of: impl Fn(usize) -> T) -> Vec<T> {
    let mut chunk = 0;
    let mut next = |token: usize| {
        chunk += usize::from(begins.get(chunk + 1) == Some(&token));
        of(chunk)
    };
    (0..tokens).map(&mut next).collect()
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "makes runs of neighbours one, cut where one is least like the one before";
    reduction_of::<ConceptChunk>("concept_chunk", about)
}

impl TokenReduce for ConceptChunk {
    fn id(&self) -> &'static str {
        "concept_chunk"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let free = free(&protected);
        let chunks = keep + free.len() - x.nrows();
        let scores = self.boundaries(x, &free)?;
        let mut begins: Vec<usize> = (1..free.len()).collect();
        begins.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        begins.truncate(chunks.saturating_sub(1));
        begins.push(0);
        begins.sort_unstable();
        grouped(&protected, &numbered(&begins, free.len(), |chunk| chunk), keep)
    }

    fn weights(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        map: &TokenMap,
    ) -> Result<Option<Vec<f32>>> {
        hints.check(x, x.nrows())?;
        map.groups(x.nrows())?;
        if self.mean {
            return Ok(None);
        }
        let mut weights = vec![0.0; x.nrows()];
        map.firsts().into_iter().for_each(|first| weights[first] = 1.0);
        Ok(Some(weights))
    }
}
