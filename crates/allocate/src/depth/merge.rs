use tensorpress_tensor::{Error, Result};

use super::Spans;
use crate::paths::{self, Edge};

/// One convolution that a span may become.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Kernel {
    /// Width of the kernel.
    pub width: usize,
    /// What the convolution takes of the budget.
    pub latency: u64,
    /// How little the network loses by it.
    pub importance: f64,
}

impl Kernel {
    /// A kernel of this width, latency and importance.
    #[must_use]
    pub fn new(width: usize, latency: u64, importance: f64) -> Self {
        Self { width, latency, importance }
    }
}

/// A span that becomes one convolution.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Merge {
    /// The boundary where it begins.
    pub from: usize,
    /// The boundary where it ends.
    pub to: usize,
    /// What it becomes.
    pub kernel: Kernel,
}

/// The spans and kernels that are worth most within a budget of latency (Kim et al., *LayerMerge: Neural Network Depth
/// Compression through Layer Pruning and Merging*, ICML 2024): `M[l, t] = max_{k, w} M[k, t - T[k, l, w]] + I[k, l, w]`. Latencies
/// are whole numbers, in as fine a measure as their sums stay few.
///
/// # Errors
/// `InvalidArgument` if even the fastest takes more than `budget`, saying how long, or no spans lead from the first layer to
/// the last; `Numerical` for an importance that is no finite number.
pub fn layer_merge(kernels: &Spans<Vec<Kernel>>, budget: u64) -> Result<Vec<Merge>> {
    let mut merges = Vec::new();
    for (from, to, kernels) in kernels.iter() {
        merges.extend(kernels.iter().map(|kernel| Merge { from, to, kernel: *kernel }));
    }
    let edge = |merge: &Merge| {
        let Merge { from, to, kernel: Kernel { latency, importance, .. } } = *merge;
        Edge { from, to, cost: latency, loss: -importance }
    };
    let edges: Vec<Edge> = merges.iter().map(edge).collect();
    let best = paths::best(kernels.layers() + 1, &edges, budget)?;
    Ok(best.into_iter().map(|at| merges[at]).collect())
}

/// A convolution of a span.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Conv {
    /// Width of its kernel.
    pub width: usize,
    /// Sum of its weights' magnitudes.
    pub norm: f64,
    /// Whether it may become the identity: not where it has a stride, or changes the channels.
    pub reducible: bool,
}

impl Conv {
    /// A convolution that may become the identity.
    #[must_use]
    pub fn new(width: usize, norm: f64) -> Self {
        Self { width, norm, reducible: true }
    }

    /// One that may not.
    #[must_use]
    pub fn irreducible(width: usize, norm: f64) -> Self {
        Self { width, norm, reducible: false }
    }
}

/// The convolutions of a span that stay where its kernel is to have a width: those of the largest sum of norms, whose kernels,
/// composed, have that width (Σ (width - 1) + 1); the others become identities (LayerMerge). Nothing where none have.
///
/// # Errors
/// `InvalidArgument` for a width of 0, or above 4,096; `Numerical` for a norm that is below 0 or no finite number.
pub fn kept_layers(convs: &[Conv], width: usize) -> Result<Option<Vec<usize>>> {
    let widths = convs.iter().map(|conv| conv.width).chain([width]);
    if let Some(width) = widths.into_iter().find(|width| !(1..=4096).contains(width)) {
        return Err(Error::invalid(format!("a kernel {width} wide: allowed is 1 to 4096")));
    }
    if let Some(conv) = convs.iter().find(|conv| !(0.0..f64::INFINITY).contains(&conv.norm)) {
        return Err(Error::numerical(format!("the norm of a convolution is {}", conv.norm)));
    }
    // The best sum of norms for each growth so far, and whether the last convolution is part of it.
    let mut best: Vec<Option<f64>> = vec![None; width];
    best[0] = Some(0.0);
    let mut trail = Vec::with_capacity(convs.len());
    for conv in convs {
        let grown = |growth: usize| {
            let before = best[growth.checked_sub(conv.width - 1)?]?;
            Some(before + conv.norm)
        };
        let choose = |growth: usize| {
            let left = best[growth].filter(|_| conv.reducible);
            match grown(growth) {
                // Of equals the one that stays.
                Some(kept) if left.is_none_or(|left| kept >= left) => (Some(kept), true),
                _ => (left, false),
            }
        };
        let (next, kept): (Vec<_>, Vec<bool>) = (0..width).map(choose).unzip();
        best = next;
        trail.push(kept);
    }
    if best[width - 1].is_none() {
        return Ok(None);
    }
    let (mut growth, mut kept) = (width - 1, Vec::new());
    for (at, stays) in trail.iter().enumerate().rev() {
        if stays[growth] {
            kept.push(at);
            growth -= convs[at].width - 1;
        }
    }
    kept.reverse();
    Ok(Some(kept))
}
