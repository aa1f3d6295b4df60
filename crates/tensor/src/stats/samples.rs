//! A fixed number of rows drawn from a stream.

use std::collections::BinaryHeap;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use super::statistic::{Ask, Batch, Statistic, Via};
use crate::Result;
use crate::linalg::{Par, SplitMix};
use crate::node::Side;
use crate::usable::Usable;

/// Up to `capacity` rows of a stream X `[tokens, channels]`, a uniform sample without replacement.
///
/// Every token has a priority, a hash of (seed, its index in the stream); the `capacity` smallest priorities stay.
/// That is deterministic, independent of how the stream is cut into updates, and merges exactly: parts that know
/// where they begin ([`SampledRows::starting_at`]) merge into the sample of the whole. (Every k-th token would not
/// do: k would fall in step with the windows of a corpus and sample one position of each.)
#[derive(Debug, Clone)]
pub struct SampledRows {
    channels: usize,
    capacity: usize,
    rng: SplitMix,
    /// Index of the next token.
    next: u64,
    /// Largest priority on top.
    kept: BinaryHeap<Kept>,
    /// One row a slot.
    rows: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    priority: u64,
    /// Index in the stream; settles ties in favour of earlier tokens.
    token: u64,
    slot: usize,
}

impl SampledRows {
    /// No tokens yet.
    #[must_use]
    pub fn new(channels: usize, capacity: usize, seed: u64) -> Self {
        Self {
            channels,
            capacity,
            rng: SplitMix::new(seed),
            next: 0,
            kept: BinaryHeap::new(),
            rows: Vec::new(),
        }
    }

    /// The next token to come is number `token` of the whole stream: for parts that will be merged.
    #[must_use]
    pub fn starting_at(mut self, token: u64) -> Self {
        self.next = token;
        self
    }

    /// Offers the tokens X `[tokens, channels]`.
    ///
    /// # Panics
    /// If X has another number of channels.
    pub fn update(&mut self, x: ArrayView2<'_, f32>) {
        assert_eq!(x.ncols(), self.channels, "channels of sampled rows");
        for row in x.rows() {
            let (priority, token) = (self.rng.at(self.next), self.next);
            self.next += 1;
            if let Some(slot) = self.slot_for(priority, token) {
                let slot = &mut self.rows[slot * self.channels..][..self.channels];
                slot.iter_mut().zip(row).for_each(|(s, &v)| *s = v);
            }
        }
    }

    /// Takes what `other` kept into account. The parts must have had the same seed and must not overlap: see
    /// [`SampledRows::starting_at`].
    ///
    /// # Panics
    /// If channels or capacities differ.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(other.channels, self.channels, "channels of merged samples");
        assert_eq!(other.capacity, self.capacity, "capacities of merged samples");
        self.next = self.next.max(other.next);
        for kept in other.kept.into_sorted_vec() {
            let Some(slot) = self.slot_for(kept.priority, kept.token) else { break };
            let n = self.channels;
            self.rows[slot * n..][..n].copy_from_slice(&other.rows[kept.slot * n..][..n]);
        }
    }

    /// A slot to write the row to, if its priority is among the smallest so far.
    fn slot_for(&mut self, priority: u64, token: u64) -> Option<usize> {
        let slot = if self.kept.len() < self.capacity {
            self.rows.resize((self.kept.len() + 1) * self.channels, 0.0);
            self.kept.len()
        } else {
            let worst = self.kept.peek()?;
            if (worst.priority, worst.token) <= (priority, token) {
                return None;
            }
            self.kept.pop()?.slot
        };
        self.kept.push(Kept { priority, token, slot });
        Some(slot)
    }

    /// Rows kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Nothing was kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The rows kept, `[len, channels]`, in the order of the stream.
    #[must_use]
    pub fn into_matrix(self) -> Array2<f32> {
        let mut kept = self.kept.into_vec();
        kept.sort_unstable_by_key(|kept| kept.token);
        let mut matrix = Array2::zeros((kept.len(), self.channels));
        for (mut row, kept) in matrix.rows_mut().into_iter().zip(&kept) {
            let values = &self.rows[kept.slot * self.channels..][..self.channels];
            row.iter_mut().zip(values).for_each(|(r, &v)| *r = v);
        }
        matrix
    }
}

impl Statistic for SampledRows {
    type Value = Array2<f32>;
    const WHAT: &'static str = "a sample of rows";

    fn bytes(ask: Ask) -> u64 {
        4 * ask.channels as u64 * ask.amount as u64
    }

    fn begin(ask: Ask) -> Self {
        Self::new(ask.channels, ask.amount, ask.seed)
    }

    fn update(&mut self, batch: &Batch<'_>, _: Par) {
        self.update(batch.input);
    }

    fn merge(&mut self, other: Self) {
        self.merge(other);
    }

    fn starting_at(&mut self, token: u64) {
        self.next = token;
    }

    fn finish(self) -> Result<Array2<f32>> {
        Ok(self.into_matrix())
    }

    fn through(value: &Arc<Array2<f32>>, via: &Via<'_>) -> Usable<Arc<Array2<f32>>> {
        Usable::Yes(match via.side {
            Side::In => Arc::new(via.map.inputs(value.view(), via.par)),
            Side::Out => value.clone(),
        })
    }
}
