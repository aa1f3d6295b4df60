use ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;
use crate::similarity::{normalised, tiles};

/// Each vector's nearest others, with weights that sum to 1.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KnnGraph {
    /// Neighbours of each vector, the nearest first, and how much of its score goes to each.
    pub neighbours: Vec<Vec<(usize, f64)>>,
}

/// Joins each row of x `[vectors, channels]` to the `k` others of largest cosine, the first of equals, in proportion to the
/// cosine where it is above 0. A row with no such neighbour is joined to none.
///
/// # Errors
/// `InvalidArgument` for k of 0; `Numerical` for values that are not finite.
pub fn knn_graph(x: ArrayView2<'_, f32>, k: usize) -> Result<KnnGraph> {
    if k == 0 {
        return Err(Error::invalid("k = 0 neighbours; allowed are 1 and above"));
    }
    check_finite(x)?;
    let unit = normalised(x, &(0..x.nrows()).collect::<Vec<_>>())?;
    let mut nearest: Vec<Vec<(usize, f64)>> = vec![Vec::new(); x.nrows()];
    tiles(unit.view(), unit.view(), |from, other, tile| {
        for (r, row) in tile.rows().into_iter().enumerate() {
            let list = &mut nearest[from + r];
            let others = row.iter().enumerate().map(|(c, cosine)| (other + c, f64::from(*cosine)));
            list.extend(others.filter(|(to, cosine)| *to != from + r && *cosine > 0.0));
            list.sort_by(|a, b| b.1.total_cmp(&a.1));
            list.truncate(k);
        }
    });
    for list in &mut nearest {
        let sum: f64 = list.iter().map(|(_, cosine)| cosine).sum();
        list.iter_mut().for_each(|(_, cosine)| *cosine /= sum);
    }
    Ok(KnnGraph { neighbours: nearest })
}

impl KnnGraph {
    /// Scores spread over the graph: `hops` times r = (1 - damping) s + damping Pᵀ r, from r = s; s are the `seeds` divided by
    /// their sum (all alike where it is 0). With many hops it is personalised PageRank. Vectors without neighbours hand
    /// their score back to the seeds, so that it sums to 1.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is a seed a vector; `InvalidArgument` for a seed below 0 or not finite, or a damping
    /// outside 0 to 1.
    pub fn spread(&self, seeds: &[f32], damping: f64, hops: usize) -> Result<Vec<f32>> {
        let n = self.neighbours.len();
        if seeds.len() != n {
            return Err(Error::shape(format!("{} seeds for {n} vectors", seeds.len())));
        }
        if !(0.0..=1.0).contains(&damping) {
            return Err(Error::invalid(format!("damping = {damping}; allowed are 0 to 1")));
        }
        if let Some(bad) = seeds.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
            return Err(Error::invalid(format!("a seed of {bad}; allowed are 0 and above")));
        }
        let sum: f64 = seeds.iter().map(|s| f64::from(*s)).sum();
        let seed = |i: usize| if sum > 0.0 { f64::from(seeds[i]) / sum } else { 1.0 / n as f64 };
        let mut scores: Vec<f64> = (0..n).map(seed).collect();
        for _ in 0..hops {
            let mut flown = vec![0.0; n];
            let mut back = 0.0;
            for (score, neighbours) in scores.iter().zip(&self.neighbours) {
                neighbours.iter().for_each(|(to, weight)| flown[*to] += score * weight);
                back += if neighbours.is_empty() { *score } else { 0.0 };
            }
            for (i, score) in scores.iter_mut().enumerate() {
                *score = (1.0 - damping + damping * back) * seed(i) + damping * flown[i];
            }
        }
        Ok(scores.into_iter().map(|score| score as f32).collect())
    }
}
