use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::ndarray;

use super::KvShape;
use super::form::StoreForm;
use super::int::Role;
use super::rows::Rows;
use super::scoring::Sight;

/// Tokens of one head in one form.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) keys: Box<dyn Rows>,
    /// Absent where values are the first channels of the keys.
    pub(super) values: Option<Box<dyn Rows>>,
    pub(super) value_dim: usize,
    /// Tokens came in another order than that of their positions: those that were demoted.
    pub(super) scattered: bool,
    /// Positions by slot; absent while they are 0, 1, 2 ...
    pub(super) positions: Option<Vec<u32>>,
    /// Tokens that each slot stands for; absent while all are 1.
    pub(super) weights: Option<Vec<f32>>,
}

impl Clone for Tier {
    fn clone(&self) -> Self {
        Self {
            keys: self.keys.fork(),
            values: self.values.as_ref().map(|values| values.fork()),
            value_dim: self.value_dim,
            scattered: self.scattered,
            positions: self.positions.clone(),
            weights: self.weights.clone(),
        }
    }
}

impl Tier {
    pub(super) fn new(form: &StoreForm, shape: KvShape, head: usize, values_in_keys: bool) -> Self {
        let keys = form.rows(Role::Keys, head, shape.head_dim);
        let values = (!values_in_keys).then(|| form.rows(Role::Values, head, shape.value_dim));
        let (value_dim, scattered) = (shape.value_dim, false);
        Self { keys, values, value_dim, scattered, positions: None, weights: None }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn position(&self, slot: usize) -> usize {
        self.positions.as_ref().map_or(slot, |p| p[slot] as usize)
    }

    /// Tokens at positions from `first` on.
    pub(super) fn push(&mut self, k: ArrayView2<'_, f32>, v: ArrayView2<'_, f32>, first: usize) {
        if let Some(positions) = &mut self.positions {
            positions.extend((first..first + k.nrows()).map(|p| p as u32));
        }
        if let Some(weights) = &mut self.weights {
            weights.resize(weights.len() + k.nrows(), 1.0);
        }
        self.keys.push(k);
        if let Some(values) = &mut self.values {
            values.push(v);
        }
    }

    /// Tokens that a slot stands for.
    pub(super) fn weight(&self, slot: usize) -> f32 {
        self.weights.as_ref().map_or(1.0, |weights| weights[slot])
    }

    /// Tokens at any positions, standing for so many.
    pub(super) fn push_at(
        &mut self,
        k: &Array2<f32>,
        v: &Array2<f32>,
        at: &[usize],
        weights: &[f32],
    ) {
        self.scattered = true;
        self.push_kept(k.view(), v.view(), at, weights);
    }

    /// Tokens at positions behind those that are there, standing for so many.
    pub(super) fn push_kept(
        &mut self,
        k: ArrayView2<'_, f32>,
        v: ArrayView2<'_, f32>,
        at: &[usize],
        weights: &[f32],
    ) {
        let before = self.len();
        if self.weights.is_some() || weights.iter().any(|w| *w != 1.0) {
            let mine = self.weights.get_or_insert_with(|| vec![1.0; before]);
            mine.extend_from_slice(weights);
        }
        let mine = self.positions.get_or_insert_with(|| (0..before as u32).collect());
        mine.extend(at.iter().map(|p| *p as u32));
        self.keys.push(k);
        if let Some(values) = &mut self.values {
            values.push(v);
        }
    }

    /// Keys of all slots, as they are held.
    pub(super) fn decode_keys(&self) -> Array2<f32> {
        decode(&*self.keys)
    }

    /// Values of all slots.
    pub(super) fn decode_values(&self) -> Array2<f32> {
        match &self.values {
            Some(values) => decode(&**values),
            None => self.decode_keys().slice(s![.., ..self.value_dim]).to_owned(),
        }
    }

    /// What is added up by the weights: rows that begin with the values.
    pub(super) fn mixed(&self) -> &dyn Rows {
        self.values.as_ref().map_or(&*self.keys, |values| &**values)
    }

    /// Forgets all but these slots, which are ascending.
    pub(super) fn retain(&mut self, keep: &[usize]) {
        if keep.len() == self.len() {
            return;
        }
        let positions = keep.iter().map(|slot| self.position(*slot) as u32).collect();
        if let Some(weights) = &mut self.weights {
            *weights = keep.iter().map(|slot| weights[*slot]).collect();
        }
        self.keys.retain(keep);
        if let Some(values) = &mut self.values {
            values.retain(keep);
        }
        self.positions = Some(positions);
    }

    /// Holds these slots, with other contents, and nothing else.
    pub(super) fn replace(
        &mut self,
        slots: &[usize],
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
        weights: &[f32],
    ) {
        let positions = slots.iter().map(|slot| self.position(*slot) as u32).collect();
        self.keys.truncate(0);
        self.keys.push(keys);
        if let Some(rows) = &mut self.values {
            rows.truncate(0);
            rows.push(values);
        }
        self.positions = Some(positions);
        self.weights = weights.iter().any(|w| *w != 1.0).then(|| weights.to_vec());
    }

    /// The shortest length in slots, but 0, to which this tier can be cut.
    pub(super) fn earliest(&self) -> usize {
        self.keys.earliest().max(self.values.as_ref().map_or(0, |values| values.earliest()))
    }

    pub(super) fn truncate(&mut self, slots: usize) {
        self.keys.truncate(slots);
        if let Some(values) = &mut self.values {
            values.truncate(slots);
        }
        if slots == 0 {
            (self.positions, self.weights) = (None, None);
        }
        if let Some(positions) = &mut self.positions {
            positions.truncate(slots);
        }
        if let Some(weights) = &mut self.weights {
            weights.truncate(slots);
        }
    }

    /// Slots of tokens before a position; positions ascend.
    pub(super) fn slots_before(&self, position: usize) -> usize {
        match &self.positions {
            None => position.min(self.len()),
            Some(p) => p.partition_point(|p| (*p as usize) < position),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let positions = self.positions.as_ref().map_or(0, |p| 4 * p.len() as u64);
        let weights = self.weights.as_ref().map_or(0, |w| 4 * w.len() as u64);
        let values = self.values.as_ref().map_or(0, |values| values.bytes());
        self.keys.bytes() + values + positions + weights
    }
}

fn decode(rows: &dyn Rows) -> Array2<f32> {
    let mut out = Array2::zeros((rows.len(), rows.dim()));
    rows.decode(0..rows.len(), out.view_mut());
    out
}

/// What queries see.
impl Tier {
    /// Slots that queries at positions `from..=to` may see, with others where positions do not ascend.
    pub(super) fn span(&self, sight: Sight, from: usize, to: usize) -> Range<usize> {
        if self.scattered {
            return 0..self.len();
        }
        let oldest = sight.oldest(from);
        let start = if oldest == 0 { 0 } else { self.slots_before(oldest) };
        let end = self.slots_before(to + 1);
        start.min(end)..end
    }

    /// Scores of slots that a query at a position does not see, where those are not outside of [`Tier::span`].
    pub(super) fn hide(&self, scores: &mut [f32], sight: Sight, position: usize) {
        let span = self.span(sight, position, position);
        scores[..span.start].fill(f32::NEG_INFINITY);
        scores[span.end..].fill(f32::NEG_INFINITY);
        let (Some(positions), true) = (&self.positions, self.scattered) else { return };
        let oldest = sight.oldest(position);
        for (score, p) in scores.iter_mut().zip(positions) {
            if !(oldest..=position).contains(&(*p as usize)) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}
