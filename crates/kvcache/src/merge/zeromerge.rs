use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::Merge;
use super::describe::described;
use crate::score::Held;
use crate::statistics::KvNeeds;
use crate::store::Merged;

/// A few slots take in all that goes, each weighing as many tokens as it stands for (ZeroMerge, Liu et al., 2025). The first
/// time the lowest kept slots and all that go are cut, as they stand in the text, into runs of as many tokens as possible
/// alike, and each becomes its mean; later each token that goes is taken in by the residual slot whose key is nearest, their
/// mean by tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResidualMerge {
    /// How many slots.
    pub residual: usize,
    /// Newest tokens, which take nothing in.
    pub recent: usize,
    /// What nearest is.
    pub distance: Distance,
    /// A slot has received what its tokens have in all, not the most that one of them has.
    pub sum: bool,
}

/// What keys are near to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Distance {
    /// Those of the largest product.
    #[default]
    Product,
    /// Those of the smallest squared distance.
    Square,
}

impl ResidualMerge {
    /// So many slots behind which so many newest tokens take nothing in; by product, the most received.
    #[must_use]
    pub fn new(residual: usize, recent: usize) -> Self {
        Self { residual, recent, distance: Distance::Product, sum: false }
    }

    /// Sets what nearest is.
    #[must_use]
    pub fn with_distance(mut self, distance: Distance) -> Self {
        self.distance = distance;
        self
    }

    /// Sets whether a slot has received what its tokens have in all.
    #[must_use]
    pub fn with_sum(mut self, sum: bool) -> Self {
        self.sum = sum;
        self
    }

    /// Runs of `gone` and `residual` slots, ascending, become the residual slots.
    fn begin(
        merged: &mut Merged,
        mut residual: Vec<usize>,
        (keys, values, weights): (&Array2<f32>, &Array2<f32>, &[f32]),
        gone: &[usize],
    ) {
        residual.sort_unstable();
        let kept: Vec<usize> = residual.iter().map(|at| merged.slots[*at]).collect();
        let mut pool: Vec<usize> = gone.iter().copied().chain(kept).collect();
        pool.sort_unstable();
        let (each, more) = (pool.len() / residual.len(), pool.len() % residual.len());
        let mut rest = &pool[..];
        for (run, target) in residual.into_iter().enumerate() {
            let (members, behind) = rest.split_at(each + usize::from(run < more));
            rest = behind;
            let all: f64 = members.iter().map(|slot| f64::from(weights[*slot])).sum();
            for (rows, from) in [(&mut merged.keys, keys), (&mut merged.values, values)] {
                let mut sum = Array1::<f64>::zeros(from.ncols());
                for slot in members {
                    sum.scaled_add(f64::from(weights[*slot]), &from.row(*slot).mapv(f64::from));
                }
                rows.row_mut(target).assign(&sum.mapv(|x| (x / all) as f32));
            }
            merged.weights[target] = all as f32;
            members.iter().for_each(|slot| merged.into[*slot] = Some(target));
        }
    }

    fn near(&self, a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>) -> f32 {
        match self.distance {
            Distance::Product => a.dot(&b),
            Distance::Square => -a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>(),
        }
    }
}

impl Merge for ResidualMerge {
    fn id(&self) -> &'static str {
        "residual"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { mass: true, ..KvNeeds::default() }
    }

    fn takes_largest(&self) -> bool {
        !self.sum
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let received = held.statistics.mass(head, held.store.positions(head).len());
        self.merge_by(held, head, keep, &received)
    }
}

impl ResidualMerge {
    /// [`Merge::merge`] by other numbers than attention received, one a slot.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of them.
    pub fn merge_by(
        &self,
        held: Held<'_>,
        head: usize,
        keep: &[usize],
        mass: &[f32],
    ) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let (positions, weights) = (held.store.positions(head), held.store.weights(head));
        if mass.len() != weights.len() {
            let (found, slots) = (mass.len(), weights.len());
            return Err(Error::shape(format!("{found} scores of {slots} slots")));
        }
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        let newest = held.store.len().saturating_sub(self.recent);
        let old: Vec<usize> = (0..keep.len()).filter(|at| positions[keep[*at]] < newest).collect();
        let residual: Vec<usize> =
            old.iter().copied().filter(|at| merged.weights[*at] > 1.0).collect();
        let mut gone: Vec<usize> =
            (0..weights.len()).filter(|s| merged.into[*s].is_none()).collect();
        if residual.is_empty() {
            let mut lowest = old;
            lowest.sort_by(|a, b| mass[keep[*a]].total_cmp(&mass[keep[*b]]));
            lowest.truncate(self.residual);
            if !lowest.is_empty() && !gone.is_empty() {
                Self::begin(&mut merged, lowest, (&keys, &values, &weights), &gone);
            }
            return Ok(merged);
        }
        gone.sort_by(|a, b| mass[*a].total_cmp(&mass[*b]));
        for slot in gone {
            let near = |at: &usize| self.near(keys.row(slot), merged.keys.row(*at));
            let nearest = residual.iter().rev().max_by(|a, b| near(a).total_cmp(&near(b)));
            let target = *nearest.expect("some slot is residual");
            super::add(&mut merged, target, slot, (&keys, &values), weights[slot]);
        }
        Ok(merged)
    }
}
