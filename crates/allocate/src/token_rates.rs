use tensorpress_tensor::{Error, Result};

use crate::paths::{self, Edge};

/// What layers of a transformer cost and lose where tokens leave in between.
///
/// In each layer attention sees the tokens that came; then some are pruned, then some merged into others; the MLP sees the
/// rest.
pub trait Tokens: Send + Sync {
    /// How many layers there are.
    fn layers(&self) -> usize;

    /// What the attention of a layer takes of the budget: FLOPs, as a rule.
    fn attention(&self, layer: usize, tokens: usize) -> u64;

    /// What the MLP of a layer takes of it.
    fn mlp(&self, layer: usize, tokens: usize) -> u64;

    /// What is lost if so many of the tokens of a layer stay behind when the last are pruned.
    fn pruning(&self, layer: usize, before: usize, after: usize) -> f64;

    /// What is lost if so many are left when others are merged into them.
    fn merging(&self, layer: usize, before: usize, after: usize) -> f64;
}

/// Tokens of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// How many are left by pruning.
    pub pruned: usize,
    /// How many of those are left by merging.
    pub merged: usize,
}

/// Tokens that each layer keeps when it prunes, and when it merges, at the least sum of losses within a budget: DiffRate's
/// question (Chen et al., *DiffRate: Differentiable Compression Rate for Efficient Vision Transformers*, ICCV 2023).
/// Where the paper learns the rates by gradients, here losses are given, and the optimum is found by dynamic programming
/// over (layer, tokens left).
///
/// `counts` are the numbers of tokens to choose among; the largest is what the first layer gets.
///
/// # Errors
/// `InvalidArgument` without counts, and if even the cheapest costs more than `budget`, saying what it does; `Numerical` for
/// a loss that is no finite number; `Unsupported` where costs have too little in common: give them in a coarser measure.
pub fn token_rates(tokens: &dyn Tokens, counts: &[usize], budget: u64) -> Result<Vec<Kept>> {
    let mut counts = counts.to_vec();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts.dedup();
    if counts.is_empty() {
        return Err(Error::invalid("no counts of tokens to choose among"));
    }
    // Rows of nodes, a node a count: what comes to a layer, what pruning leaves of it; what merging leaves comes to the
    // next. The first row has one, and all that is left at the end leads to the last.
    let (n, rows) = (counts.len(), 2 * tokens.layers());
    let node = |row: usize, at: usize| if row == 0 { 0 } else { 1 + (row - 1) * n + at };
    let mut edges = Vec::new();
    for row in 0..rows {
        let layer = row / 2;
        for (at, before) in counts.iter().enumerate().take(if row == 0 { 1 } else { n }) {
            for (left, after) in counts.iter().enumerate().skip(at) {
                let (cost, loss) = match row % 2 {
                    0 => (tokens.attention(layer, *before), tokens.pruning(layer, *before, *after)),
                    _ => (tokens.mlp(layer, *after), tokens.merging(layer, *before, *after)),
                };
                edges.push(Edge { from: node(row, at), to: node(row + 1, left), cost, loss });
            }
        }
    }
    let last = node(rows + 1, 0);
    for at in 0..if rows == 0 { 1 } else { n } {
        edges.push(Edge { from: node(rows, at), to: last, cost: 0, loss: 0.0 });
    }
    let best = paths::best(last + 1, &edges, budget)?;
    let of = |at: &usize| counts[(edges[*at].to - 1) % n];
    let kept = |pair: &[usize]| Kept { pruned: of(&pair[0]), merged: of(&pair[1]) };
    Ok(best[..rows].chunks_exact(2).map(kept).collect())
}
