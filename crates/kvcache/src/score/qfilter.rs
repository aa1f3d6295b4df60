use crate::factor::{self, svd};
use ndarray::{Array1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// Minus the product with the direction that queries share (Q-Filters, Godey et al., 2025): keys that lie against it are
/// looked at. Directions are given for a model, or are those of the newest queries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueryFilter {
    /// `[layers][heads of keys][head_dim]`, of [`query_filter`]; empty: those of the newest queries.
    pub filters: Vec<Vec<Vec<f32>>>,
    /// How many of the newest queries, where no direction is given.
    pub queries: usize,
}

impl QueryFilter {
    /// The directions of a model: `[layers][heads of keys][head_dim]`.
    #[must_use]
    pub fn given(filters: Vec<Vec<Vec<f32>>>) -> Self {
        Self { filters, queries: 0 }
    }

    /// The directions of this many of the newest queries.
    #[must_use]
    pub fn of_newest(queries: usize) -> Self {
        Self { filters: Vec::new(), queries }
    }
}

/// The direction `[head_dim]` that queries `[n, head_dim]` share: the first right singular vector, turned to where most of
/// them point.
///
/// # Errors
/// `Numerical` for queries that are not finite.
pub fn query_filter(queries: ArrayView2<'_, f32>) -> Result<Vec<f32>> {
    if queries.is_empty() {
        return Ok(vec![0.0; queries.ncols()]);
    }
    let direction = svd(queries)?.vt.index_axis(Axis(0), 0).to_owned();
    let positive = queries.dot(&direction).iter().filter(|dot| **dot > 0.0).count();
    let sign = if 2 * positive < queries.nrows() { -1.0 } else { 1.0 };
    Ok(direction.iter().map(|x| sign * x).collect())
}

impl Score for QueryFilter {
    fn id(&self) -> &'static str {
        "query_filter"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: self.queries, ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        factor::check(self.id())?;
        if self.filters.is_empty() && self.queries == 0 {
            return Err(Error::invalid("queries = 0: at least 1, or filters"));
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let shape = held.store.shape();
        let of = |h| {
            let filter = if self.filters.is_empty() {
                let mut all = ndarray::Array2::zeros((0, shape.head_dim));
                for q in h * shape.group()..(h + 1) * shape.group() {
                    let (_, queries) = held.statistics.queries(q, self.queries)?;
                    all.append(Axis(0), queries.view()).expect("as wide");
                }
                query_filter(all.view())?
            } else {
                let layer = held.at.index;
                let filter = self.filters.get(layer).and_then(|heads| heads.get(h));
                let filter =
                    filter.filter(|f: &&Vec<f32>| f.len() == shape.head_dim).ok_or_else(|| {
                        Error::shape(format!(
                            "filters: none of {} channels for head {h} of layer {layer}",
                            shape.head_dim
                        ))
                    })?;
                filter.clone()
            };
            let filter = Array1::from(filter);
            Ok(held.keys(h).dot(&filter).iter().map(|dot| -dot).collect())
        };
        held.heads().map(of).collect()
    }
}
