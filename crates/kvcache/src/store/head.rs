use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::ndarray;

use super::form::StoreForm;
use super::int::Role;
use super::rows::Rows;
use super::{Causal, KvShape};

/// Tokens of one head in one form.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) keys: Box<dyn Rows>,
    pub(super) values: Box<dyn Rows>,
    pub(super) dim: usize,
    /// Tokens came in another order than that of their positions: those that were demoted.
    pub(super) scattered: bool,
    /// Positions by slot; absent while they are 0, 1, 2 ...
    pub(super) positions: Option<Vec<u32>>,
}

impl Clone for Tier {
    fn clone(&self) -> Self {
        let positions = self.positions.clone();
        Self {
            keys: self.keys.fork(),
            values: self.values.fork(),
            dim: self.dim,
            scattered: self.scattered,
            positions,
        }
    }
}

impl Tier {
    pub(super) fn new(form: &StoreForm, shape: KvShape) -> Self {
        let rows = |role| form.rows(role, shape.head_dim);
        let (keys, values) = (rows(Role::Keys), rows(Role::Values));
        Self { keys, values, dim: shape.head_dim, scattered: false, positions: None }
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
        self.keys.push(k);
        self.values.push(v);
    }

    /// Tokens at any positions.
    pub(super) fn push_at(&mut self, k: &Array2<f32>, v: &Array2<f32>, at: &[usize]) {
        let before = self.len();
        self.scattered = true;
        let mine = self.positions.get_or_insert_with(|| (0..before as u32).collect());
        mine.extend(at.iter().map(|p| *p as u32));
        self.keys.push(k.view());
        self.values.push(v.view());
    }

    /// Keys or values of all slots.
    pub(super) fn decode(&self, rows: &dyn Rows) -> Array2<f32> {
        let mut out = Array2::zeros((rows.len(), self.dim));
        rows.decode(0..rows.len(), out.view_mut());
        out
    }

    /// Forgets all but these slots, which are ascending.
    pub(super) fn retain(&mut self, keep: &[usize]) {
        if keep.len() == self.len() {
            return;
        }
        let positions = keep.iter().map(|slot| self.position(*slot) as u32).collect();
        self.keys.retain(keep);
        self.values.retain(keep);
        self.positions = Some(positions);
    }

    /// The shortest length in slots, but 0, to which this tier can be cut.
    pub(super) fn earliest(&self) -> usize {
        self.keys.earliest().max(self.values.earliest())
    }

    pub(super) fn truncate(&mut self, slots: usize) {
        self.keys.truncate(slots);
        self.values.truncate(slots);
        if slots == 0 {
            self.positions = None;
        } else if let Some(positions) = &mut self.positions {
            positions.truncate(slots);
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
        self.keys.bytes() + self.values.bytes() + positions
    }
}

/// What queries see.
impl Tier {
    /// Slots that queries at positions `from..=to` may see, with others where positions do not ascend.
    pub(super) fn span(&self, causal: Causal, from: usize, to: usize) -> Range<usize> {
        if self.scattered {
            return 0..self.len();
        }
        let start = causal.window.map_or(0, |w| self.slots_before((from + 1).saturating_sub(w)));
        let end = self.slots_before(to + 1);
        start.min(end)..end
    }

    /// Scores of slots that a query at a position does not see, where those are not outside of [`Tier::span`].
    pub(super) fn hide(&self, scores: &mut [f32], causal: Causal, position: usize) {
        let span = self.span(causal, position, position);
        scores[..span.start].fill(f32::NEG_INFINITY);
        scores[span.end..].fill(f32::NEG_INFINITY);
        let (Some(positions), true) = (&self.positions, self.scattered) else { return };
        let oldest = causal.window.map_or(0, |w| (position + 1).saturating_sub(w));
        for (score, p) in scores.iter_mut().zip(positions) {
            if !(oldest..=position).contains(&(*p as usize)) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}
