//! Coverage and diversity in place of nearness: *Beyond Nearest Neighbors: Semantic Compression and
//! Graph-Augmented Retrieval for Enhanced Vector Search*, 2025. The abstract gives the terms, not their weights.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ndarray::ArrayView2;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Result, kernels};

use super::graph::knn_graph;
use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::similarity::normalised;
use crate::stage::{TokenPart, reduction_of};

/// Keeps vectors that stand for all: facility location plus diversity, by the greedy algorithm.
///
/// It raises F(S) = Σ_i w_i max over s in S of (1 + cos(x_i, x_s)) + lambda Σ over pairs of S of (1 - cos) one vector at a
/// time. w are the relevances over their mean, 0 where below (1 where absent), spread over the graph of nearest neighbours
/// where `neighbours` is above 0. Gains are looked at lazily: among choices of one size a gain can only fall once the
/// constant that all share is taken off, so that an old gain is a bound, and the answer is that of looking at all.
/// Protected vectors count as chosen first. The first of equals wins. Memory is linear.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SubmodularSelect {
    /// Weight of diversity, at least 0.
    pub lambda: f64,
    /// Neighbours in the graph that spreads weights; 0 for none.
    pub neighbours: usize,
    /// Share of a weight that goes on at each hop, 0 to 1.
    pub damping: f64,
    /// Hops over the graph.
    pub hops: usize,
}

impl Default for SubmodularSelect {
    fn default() -> Self {
        Self { lambda: 0.1, neighbours: 0, damping: 0.85, hops: 2 }
    }
}

impl Knobs for SubmodularSelect {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("lambda", &mut self.lambda, 0.0..=1e6, "weight of diversity")?;
        keys.int(
            "neighbours",
            &mut self.neighbours,
            0..=1024,
            "in the graph that spreads weights",
        )?;
        keys.float("damping", &mut self.damping, 0.0..=1.0, "share that goes on at each hop")?;
        keys.int("hops", &mut self.hops, 0..=1000, "over the graph")
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "keeps vectors that cover all and differ from one another";
    reduction_of::<SubmodularSelect>("submodular_select", about)
}

impl SubmodularSelect {
    /// Weighs diversity by this.
    #[must_use]
    pub fn with_lambda(mut self, lambda: f64) -> Self {
        self.lambda = lambda;
        self
    }

    /// Spreads weights over the graph of so many nearest neighbours, this share of them at each of so many hops.
    #[must_use]
    pub fn with_graph(mut self, neighbours: usize, damping: f64, hops: usize) -> Self {
        (self.neighbours, self.damping, self.hops) = (neighbours, damping, hops);
        self
    }

    /// The kept vectors in the order in which they are chosen.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`]; for a graph, those of [`KnnGraph::spread`](super::KnnGraph::spread).
    pub fn order(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<Vec<usize>> {
        let protected = hints.check(x, keep)?;
        let weights = self.weights_of(x, hints)?;
        let unit = normalised(x, &(0..x.nrows()).collect::<Vec<_>>())?;
        let row = |token: usize| unit.row(token).to_slice().expect("standard layout");
        let cosine = |a: usize, b: usize| f64::from(kernels::dot(row(a), row(b)));
        // 1 + the cosine of each vector with the nearest chosen one, and of each with all chosen.
        let (mut covered, mut close) = (vec![0.0f64; x.nrows()], vec![0.0; x.nrows()]);
        let mut chosen: Vec<usize> = Vec::with_capacity(keep);
        let mut choose = |token: usize, covered: &mut [f64], close: &mut [f64]| {
            for (i, (covered, close)) in covered.iter_mut().zip(close).enumerate() {
                let near = 1.0 + cosine(token, i);
                (*covered, *close) = (covered.max(near), *close + near);
            }
            chosen.push(token);
            chosen.len()
        };
        let mut count = 0;
        for token in (0..x.nrows()).filter(|token| protected[*token]) {
            count = choose(token, &mut covered, &mut close);
        }
        let gain = |token: usize, covered: &[f64], close: &[f64]| {
            let more = |(i, w): (usize, &f64)| w * (1.0 + cosine(token, i) - covered[i]).max(0.0);
            weights.iter().enumerate().map(more).sum::<f64>() - self.lambda * close[token]
        };
        let seen = |token| Seen { gain: gain(token, &covered, &close), token, at: count };
        let mut heap: BinaryHeap<Seen> = if count < keep {
            free(&protected).into_iter().map(seen).collect()
        } else {
            BinaryHeap::new()
        };
        while count < keep {
            let Some(first) = heap.pop() else { break };
            if first.at == count {
                count = choose(first.token, &mut covered, &mut close);
            } else {
                heap.push(Seen { gain: gain(first.token, &covered, &close), at: count, ..first });
            }
        }
        Ok(chosen)
    }

    /// What covering each vector is worth, 1 on average.
    fn weights_of(&self, x: ArrayView2<'_, f32>, hints: &TokenHints<'_>) -> Result<Vec<f64>> {
        let of = |i: usize| hints.relevance.map_or(1.0, |relevance| relevance[i].max(0.0));
        let mut weights: Vec<f32> = (0..x.nrows()).map(of).collect();
        if self.neighbours > 0 {
            weights = knn_graph(x, self.neighbours)?.spread(&weights, self.damping, self.hops)?;
        }
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let scale = if sum > 0.0 { x.nrows() as f64 / sum } else { 0.0 };
        Ok(weights.into_iter().map(|w| f64::from(w) * scale).collect())
    }
}

/// A gain as it was when so many were chosen.
#[derive(Debug)]
struct Seen {
    gain: f64,
    token: usize,
    at: usize,
}

impl Ord for Seen {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then_with(|| other.token.cmp(&self.token))
    }
}

impl PartialOrd for Seen {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Seen {}

impl TokenReduce for SubmodularSelect {
    fn id(&self) -> &'static str {
        "submodular_select"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        TokenMap::keep(x.nrows(), &self.order(x, hints, keep)?)
    }
}
