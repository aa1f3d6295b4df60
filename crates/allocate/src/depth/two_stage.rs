use tensorpress_tensor::{Error, Result};

use super::Spans;
use crate::paths::{self, Edge};

/// How little a network loses if all activations within a span are left out: `[before][after]`, where 1 stands for an
/// activation at that boundary and 0 for none.
pub type Importance = [[f64; 2]; 2];

/// What stays of a network's depth.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Depth {
    /// Boundaries whose activation stays.
    pub activations: Vec<usize>,
    /// Boundaries where a merged convolution ends, all of the activations among them.
    pub merges: Vec<usize>,
    /// What all merged convolutions take together.
    pub latency: u64,
    /// The sum of importances.
    pub importance: f64,
}

/// The first stage: for each span the least latency of convolutions merged in any parts, `T_opt[i, j] = min(T[i, j], min_m
/// T_opt[i, m] + T[m, j])`, with the boundaries where the parts end.
#[must_use]
pub fn fastest(latency: &Spans<u64>) -> Spans<(u64, Vec<usize>)> {
    best_parts(latency, |whole| *whole, |sum, part| sum.saturating_add(*part), |a, b| a < b)
}

/// Keeps the activations and merges the convolutions that are worth most within a budget of latency (Kim et al.,
/// *Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming*, ICML 2023): `D[l, t] = max_k D[k, t -
/// T_opt[k, l]] + I_ext[k, l]`, where `I_ext` comes of `I` as `T_opt` of `T` ([`fastest`]), with maxima, and no activation
/// where parts meet. Of equal sums of latencies one is kept, so that a coarser measure is a faster one.
///
/// # Errors
/// `ShapeMismatch` for tables of different depths; `InvalidArgument` if even the fastest takes more than `budget`, saying
/// how long, or no spans lead from the first layer to the last; `Numerical` for an importance that is no finite number.
pub fn two_stage(
    latency: &Spans<u64>,
    importance: &Spans<Importance>,
    budget: u64,
) -> Result<Depth> {
    let layers = latency.layers();
    if importance.layers() != layers {
        let message =
            format!("latencies of {layers} layers, importances of {}", importance.layers());
        return Err(Error::shape(message));
    }
    if importance.iter().any(|(_, _, of)| !of.as_flattened().iter().all(|of| of.is_finite())) {
        return Err(Error::numerical("an importance is no finite number"));
    }
    let fastest = fastest(latency);
    let parts =
        [[0, 0], [0, 1], [1, 0], [1, 1]].map(|[before, after]| extended(importance, before, after));
    let [off_off, off_on, on_off, on_on] = &parts;
    let importance = [[off_off, off_on], [on_off, on_on]];
    // A node a boundary and state of its activation. The input counts as active; after the last layer anything goes.
    let node = |boundary: usize, active: usize| match boundary {
        0 => 0,
        _ => 2 * boundary - 1 + active,
    };
    let nodes = 2 * layers + 2;
    let mut edges = Vec::new();
    for (from, to, (cost, _)) in fastest.iter() {
        for before in if from == 0 { 1..2 } else { 0..2 } {
            for after in 0..2 {
                if let Some(of) = importance[before][after].get(from, to) {
                    let (from, to) = (node(from, before), node(to, after));
                    edges.push(Edge { from, to, cost: *cost, loss: -of });
                }
            }
        }
    }
    let ends = (0..2).map(|active| node(layers, active));
    let ends = ends.map(|from| Edge { from, to: nodes - 1, cost: 0, loss: 0.0 });
    edges.extend(ends.take(if layers == 0 { 1 } else { 2 }));
    let mut depth =
        Depth { activations: Vec::new(), merges: Vec::new(), latency: 0, importance: 0.0 };
    for at in paths::best(nodes, &edges, budget)? {
        let edge = edges[at];
        if edge.to == nodes - 1 {
            break;
        }
        let (from, to) = (edge.from.div_ceil(2), edge.to.div_ceil(2));
        if edge.to == node(to, 1) {
            depth.activations.push(to);
        }
        depth.merges.extend(fastest.get(from, to).iter().flat_map(|(_, ends)| ends));
        depth.latency += edge.cost;
        depth.importance -= edge.loss;
    }
    Ok(depth)
}

/// I_ext for one state of the activations at either end.
fn extended(importance: &Spans<Importance>, before: usize, after: usize) -> Spans<f64> {
    // Parts up to the last begin as the span does and end without an activation; the last ends as the span does.
    let (whole, add) = (|of: &Importance| of[before][0], |sum, of: &Importance| sum + of[0][0]);
    let head = best_parts(importance, whole, add, |a, b| a > b);
    Spans::of(importance.layers(), |from, to| {
        let whole = importance.get(from, to).map(|whole| whole[before][after]);
        let split = |middle: usize| {
            let (head, _) = head.get(from, middle)?;
            Some(head + importance.get(middle, to)?[0][after])
        };
        (from + 1..to).filter_map(split).chain(whole).max_by(f64::total_cmp)
    })
}

/// For each span the best of the whole and of all sequences of parts, with the boundaries where they end.
fn best_parts<T, S: Copy>(
    spans: &Spans<T>,
    whole: impl Fn(&T) -> S,
    add: impl Fn(S, &T) -> S,
    better: impl Fn(&S, &S) -> bool,
) -> Spans<(S, Vec<usize>)> {
    let layers = spans.layers();
    // The best of each span, and where its last part begins.
    let mut rows: Vec<Vec<Option<(S, usize)>>> = Vec::with_capacity(layers);
    for from in 0..layers {
        let mut row: Vec<Option<(S, usize)>> = Vec::with_capacity(layers - from);
        for to in from + 1..=layers {
            let mut best = spans.get(from, to).map(|of| (whole(of), from));
            for middle in from + 1..to {
                if let (Some((head, _)), Some(part)) =
                    (row[middle - from - 1], spans.get(middle, to))
                {
                    let sum = add(head, part);
                    if best.as_ref().is_none_or(|(best, _)| better(&sum, best)) {
                        best = Some((sum, middle));
                    }
                }
            }
            row.push(best);
        }
        rows.push(row);
    }
    Spans::of(layers, |from, to| {
        let (sum, mut begin) = rows[from][to - from - 1]?;
        let mut ends = vec![to];
        while begin > from {
            ends.push(begin);
            begin = rows[from][begin - from - 1]?.1;
        }
        ends.reverse();
        Some((sum, ends))
    })
}
