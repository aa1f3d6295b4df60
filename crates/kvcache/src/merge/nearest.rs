use ndarray::{Array1, Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::Merge;
use super::describe::described;
use crate::score::Held;
use crate::store::Merged;

/// Values that go are mixed into the value of the kept slot whose key is most alike (kvpress's merging, after ToMe and
/// D2O): by the cosine of the keys times the value's share of both values' norms. Keys stay as they are, and slots count
/// as one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NearestValues {
    /// Cosine below which a token is forgotten, 0 to 1.
    pub cosine: f64,
    /// Share of what goes that is mixed in, those most alike; above 0 to 1.
    pub share: f64,
}

impl Default for NearestValues {
    fn default() -> Self {
        Self { cosine: 0.0, share: 1.0 }
    }
}

impl NearestValues {
    /// Tokens at least so alike, and of those this share.
    #[must_use]
    pub fn new(cosine: f64, share: f64) -> Self {
        Self { cosine, share }
    }
}

/// Keeps what has no length from being divided by it.
const EPSILON: f64 = 1e-6;

fn norms(x: ArrayView2<'_, f64>) -> Array1<f64> {
    x.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect()
}

impl Merge for NearestValues {
    fn id(&self) -> &'static str {
        "nearest_values"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.cosine) {
            return Err(Error::invalid(format!("cosine = {}: allowed are 0 to 1", self.cosine)));
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(Error::invalid(format!("share = {}: above 0 to 1", self.share)));
        }
        Ok(())
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let weights = held.store.weights(head);
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        let gone: Vec<usize> = (0..weights.len()).filter(|s| merged.into[*s].is_none()).collect();
        if gone.is_empty() || keep.is_empty() {
            return Ok(merged);
        }
        let mut keys: Array2<f64> = keys.mapv(f64::from);
        let values = values.mapv(f64::from);
        let lengths = norms(keys.view());
        for (mut key, length) in keys.rows_mut().into_iter().zip(&lengths) {
            key /= length.max(EPSILON);
        }
        let rows = |x: &Array2<f64>, slots: &[usize]| x.select(ndarray::Axis(0), slots);
        let alike = rows(&keys, &gone).dot(&rows(&keys, keep).t());
        let nearest: Vec<(usize, f64)> = alike
            .rows()
            .into_iter()
            .map(|row| {
                let best = row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
                best.map(|(at, cosine)| (at, *cosine)).expect("a kept slot")
            })
            .collect();
        let least = self.least(&nearest);
        let norm = norms(values.view());
        let mut sums = rows(&values, keep);
        let mut parts = vec![1.0; keep.len()];
        for (slot, (at, cosine)) in gone.iter().zip(nearest) {
            if cosine < least {
                continue;
            }
            let (mine, theirs) = (norm[*slot], norm[keep[at]]);
            let part = cosine.max(0.0) * mine / (mine + theirs + EPSILON);
            sums.row_mut(at).scaled_add(part, &values.row(*slot));
            parts[at] += part;
            merged.into[*slot] = Some(at);
        }
        for ((mut row, sum), part) in
            merged.values.rows_mut().into_iter().zip(sums.rows()).zip(parts)
        {
            if part > 1.0 {
                row.assign(&sum.mapv(|x| (x / part) as f32));
            }
        }
        Ok(merged)
    }
}

impl NearestValues {
    /// The cosine that is alike enough: the given one, or that which the share of all tokens is above.
    fn least(&self, nearest: &[(usize, f64)]) -> f64 {
        let mut cosines: Vec<f64> = nearest.iter().map(|(_, cosine)| *cosine).collect();
        cosines.sort_by(f64::total_cmp);
        // Between the two beside the place, as quantiles are; a token that is not alike is below all.
        let place = (1.0 - self.share) * (cosines.len() - 1) as f64;
        let (low, part) = (place as usize, place.fract());
        let of = |at: usize| {
            let cosine = cosines[at.min(cosines.len() - 1)];
            if cosine < self.cosine { f64::NEG_INFINITY } else { cosine }
        };
        let (below, above) = (of(low), of(low + 1));
        let between = if part > 0.0 { below + part * (above - below) } else { below };
        // Where one side of the place is alike and the other is not, all that are alike count.
        if between.is_finite() { between.max(self.cosine) } else { self.cosine }
    }
}
