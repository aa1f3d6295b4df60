use ndarray::Array1;
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::Merge;
use super::describe::described;
use super::nearest::most_alike;
use crate::score::{GlobalLocal, Held, Score};
use crate::statistics::KvNeeds;
use crate::store::Merged;

/// Evict, then merge (EMS, Li et al., 2024): of what goes, the share of lowest [`GlobalLocal`] scores is forgotten; each of
/// the others goes to the kept slot whose key is most alike, or to a class of nothing where none is alike enough. Keys and
/// values of a slot become the mean of its tokens by score. Slots still count as one token. The paper's normalisation and
/// threshold are not public: these are a reading.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvictThenMerge {
    /// Share of what goes that is forgotten at once, 0 to 1.
    pub evict: f64,
    /// Cosine below which a token goes to no slot, -1 to 1.
    pub cosine: f64,
    /// What tokens count.
    pub score: GlobalLocal,
}

impl EvictThenMerge {
    /// Half is forgotten; alike is a cosine of 0.6.
    #[must_use]
    pub fn new(score: GlobalLocal) -> Self {
        Self { evict: 0.5, cosine: 0.6, score }
    }

    /// Sets the share that is forgotten at once.
    #[must_use]
    pub fn with_evict(mut self, share: f64) -> Self {
        self.evict = share;
        self
    }

    /// Sets the cosine below which a token goes to no slot.
    #[must_use]
    pub fn with_cosine(mut self, cosine: f64) -> Self {
        self.cosine = cosine;
        self
    }
}

impl Merge for EvictThenMerge {
    fn id(&self) -> &'static str {
        "evict_then_merge"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.evict) {
            return Err(Error::invalid(format!("evict = {}: allowed are 0 to 1", self.evict)));
        }
        if !(-1.0..=1.0).contains(&self.cosine) {
            return Err(Error::invalid(format!("cosine = {}: allowed are -1 to 1", self.cosine)));
        }
        self.score.check()
    }

    fn needs(&self) -> KvNeeds {
        self.score.needs()
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let weights = held.store.weights(head);
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        let scores = self.score.of_head(held, head)?;
        let mut gone: Vec<usize> =
            (0..weights.len()).filter(|s| merged.into[*s].is_none()).collect();
        gone.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        gone.truncate(gone.len() - (gone.len() as f64 * self.evict) as usize);
        if keep.is_empty() {
            return Ok(merged);
        }
        for (slot, (at, cosine)) in gone.iter().zip(most_alike(&keys, &gone, keep)) {
            if cosine >= self.cosine {
                merged.into[*slot] = Some(at);
            }
        }
        for (at, centre) in keep.iter().enumerate() {
            let members: Vec<usize> =
                (0..weights.len()).filter(|s| merged.into[*s] == Some(at)).collect();
            let all: f64 = members.iter().map(|s| f64::from(scores[*s])).sum();
            if members == [*centre] || all <= 0.0 {
                continue;
            }
            for (rows, from) in [(&mut merged.keys, &keys), (&mut merged.values, &values)] {
                let mut sum = Array1::<f64>::zeros(from.ncols());
                for slot in &members {
                    sum.scaled_add(f64::from(scores[*slot]), &from.row(*slot).mapv(f64::from));
                }
                rows.row_mut(at).assign(&sum.mapv(|x| (x / all) as f32));
            }
        }
        Ok(merged)
    }
}
