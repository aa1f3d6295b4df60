use ndarray::{Array1, ArrayView2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::Merge;
use super::describe::described;
use crate::score::Held;
use crate::statistics::KvNeeds;
use crate::store::Merged;

/// Which set each key `[slots, dim]` belongs to, counted from 0: neighbours share one while the cosine from each to the
/// next is above `cosine`; a key that stands `apart` is a set of its own (KVMerger, Wang et al., 2024).
#[must_use]
pub fn adjacent_sets(
    keys: ArrayView2<'_, f32>,
    cosine: f64,
    apart: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let mut sets = Vec::with_capacity(keys.nrows());
    let mut set = 0;
    for slot in 0..keys.nrows() {
        let joins = slot > 0
            && !apart(slot)
            && !apart(slot - 1)
            && similarity(keys, slot - 1, slot) > cosine;
        set += usize::from(slot > 0 && !joins);
        sets.push(set);
    }
    sets
}

/// Cosine of two rows; 0 beside a row of zeros.
fn similarity(keys: ArrayView2<'_, f32>, a: usize, b: usize) -> f64 {
    let (a, b) = (keys.row(a).mapv(f64::from), keys.row(b).mapv(f64::from));
    let norms = (a.dot(&a) * b.dot(&b)).sqrt();
    if norms > 0.0 { a.dot(&b) / norms } else { 0.0 }
}

/// How much each of `members` counts in what the set becomes: `exp(-|k_p - k_i|² / 2 sigma²)` beside the pivot p, sigma the
/// mean distance to it, the pivot's 0 among them; they add up to 1.
#[must_use]
pub fn gaussian_weights(keys: ArrayView2<'_, f32>, members: &[usize], pivot: usize) -> Vec<f64> {
    let at = keys.row(pivot).mapv(f64::from);
    let distance = |slot: &usize| {
        let off: Array1<f64> = keys.row(*slot).mapv(f64::from) - &at;
        off.dot(&off).sqrt()
    };
    let distances: Vec<f64> = members.iter().map(distance).collect();
    let sigma = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
    let weight = |d: &f64| if sigma > 0.0 { (-d * d / (2.0 * sigma * sigma)).exp() } else { 1.0 };
    let weights: Vec<f64> = distances.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// Runs of keys that are alike become one (KVMerger, Wang et al., 2024): of each set of [`adjacent_sets`] the kept slot that
/// has received most attention, the pivot, takes in those that go, keys and values alike, by [`gaussian_weights`]; sets
/// without a kept slot are dropped. First and newest tokens are in no set. Slots still count as one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GaussianMerge {
    /// Cosine from one key to the next above which they are alike, -1 to 1.
    pub cosine: f64,
    /// First tokens that stand apart.
    pub sinks: usize,
    /// Newest tokens that stand apart.
    pub recent: usize,
}

impl GaussianMerge {
    /// Above this cosine; nothing stands apart.
    #[must_use]
    pub fn new(cosine: f64) -> Self {
        Self { cosine, sinks: 0, recent: 0 }
    }

    /// Sets how many first and newest tokens stand apart.
    #[must_use]
    pub fn with_apart(mut self, sinks: usize, recent: usize) -> Self {
        (self.sinks, self.recent) = (sinks, recent);
        self
    }
}

impl Merge for GaussianMerge {
    fn id(&self) -> &'static str {
        "gaussian"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn check(&self) -> Result<()> {
        if (-1.0..=1.0).contains(&self.cosine) {
            return Ok(());
        }
        Err(Error::invalid(format!("cosine = {}: allowed are -1 to 1", self.cosine)))
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { mass: true, ..KvNeeds::default() }
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let (positions, weights) = (held.store.positions(head), held.store.weights(head));
        let mass = held.statistics.mass(head, weights.len());
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        let newest = held.store.len().saturating_sub(self.recent);
        let apart = |slot: usize| positions[slot] < self.sinks || positions[slot] >= newest;
        let sets = adjacent_sets(keys.view(), self.cosine, apart);
        for set in 0..=sets.last().copied().unwrap_or(0) {
            let first = sets.partition_point(|s| *s < set);
            let members = first..sets.partition_point(|s| *s <= set);
            let kept = members.clone().filter(|s| merged.into[*s].is_some());
            // Of equals the first.
            let Some(pivot) = kept.rev().max_by(|a, b| mass[*a].total_cmp(&mass[*b])) else {
                continue;
            };
            let members: Vec<usize> =
                members.filter(|s| *s == pivot || merged.into[*s].is_none()).collect();
            if members.len() < 2 {
                continue;
            }
            let into = merged.into[pivot].expect("kept");
            let parts = gaussian_weights(keys.view(), &members, pivot);
            for (all, from) in [(&mut merged.keys, &keys), (&mut merged.values, &values)] {
                let mut sum = Array1::<f64>::zeros(from.ncols());
                for (slot, part) in members.iter().zip(&parts) {
                    sum.scaled_add(*part, &from.row(*slot).mapv(f64::from));
                }
                all.row_mut(into).assign(&sum.mapv(|x| x as f32));
            }
            members.iter().for_each(|slot| merged.into[*slot] = Some(into));
        }
        Ok(merged)
    }
}
