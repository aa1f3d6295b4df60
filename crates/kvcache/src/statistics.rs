//! What the queries told about the tokens.

use std::collections::VecDeque;

use ndarray::{Array2, ArrayView3, s};
use tensorpress_tensor::{Error, Result, ndarray};

use crate::rope::Rope;
use crate::score::Repetition;
use crate::store::{HeadSlots, KvShape, Merged};

/// What a score wants to know beside the keys and values that are held.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct KvNeeds {
    /// The newest queries, after rotary embedding: this many.
    pub queries: usize,
    /// Attention that every token has received.
    pub mass: bool,
    /// Mean and covariance of the queries before rotary embedding.
    pub moments: Option<QueryMoments>,
    /// Share of the attention received before that is left after each query, above 0 to 1; all where absent.
    pub fades: Option<f32>,
    /// The context said again: the policy waits for it.
    pub repetition: Option<Repetition>,
}

/// Mean and covariance of queries before rotary embedding. Queries come rotated; they are turned back, which is exact but
/// for rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMoments {
    /// The first position that counts.
    pub from: usize,
    /// The model's rotary embedding.
    pub rope: Rope,
}

impl KvNeeds {
    /// These and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            queries: self.queries.max(other.queries),
            mass: self.mass || other.mass,
            moments: self.moments.or(other.moments),
            fades: self.fades.or(other.fades),
            repetition: self.repetition.or(other.repetition),
        }
    }

    /// Whether heads of this shape can give it.
    pub(crate) fn check(&self, shape: KvShape) -> Result<()> {
        let output = self.repetition.as_ref().and_then(|repetition| repetition.output.as_ref());
        let width = shape.heads * shape.value_dim;
        if let Some(output) = output.filter(|output| output.ncols() != width) {
            let found = output.dim();
            return Err(Error::shape(format!("output projection {found:?}: {width} columns")));
        }
        match &self.moments {
            Some(moments) if moments.rope.dim() != shape.head_dim => Err(Error::shape(format!(
                "rotary embedding of {} channels, head_dim = {}",
                moments.rope.dim(),
                shape.head_dim
            ))),
            _ => Ok(()),
        }
    }
}

/// How many of the newest tokens' statistics can be taken back.
pub(crate) const MARGIN: usize = 16;

/// Statistics of the queries of one layer.
#[derive(Debug, Clone)]
pub struct Statistics {
    pub(crate) shape: KvShape,
    pub(crate) needs: KvNeeds,
    /// Position of the next query.
    pub(crate) next: usize,
    /// Newest queries `[heads * head_dim]` and where they stand.
    pub(crate) recent: VecDeque<(usize, Vec<f32>)>,
    /// Attention received, by head of keys and slot, of all queries but those in `pending`.
    pub(crate) mass: Vec<Vec<f32>>,
    /// That of the newest queries, oldest first: added up when they can no longer be taken back.
    pub(crate) pending: VecDeque<(usize, Vec<Vec<f32>>)>,
    /// By head, where they are needed: of all queries but those in `plain`.
    pub(crate) moments: Vec<Moments>,
    /// Newest queries before rotary embedding.
    pub(crate) plain: VecDeque<(usize, Vec<f32>)>,
    /// No going back before this length.
    pub(crate) settled: usize,
    /// What the repetition that ends now looked at, by head of keys and slot.
    pub(crate) peaks: Option<Vec<Vec<f32>>>,
    /// Tokens per head that may stay then, where layers are ranked together.
    pub(crate) tokens: Option<usize>,
    /// The context has been said again.
    pub(crate) repeated: bool,
}

/// Sums over queries of one head.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(crate) count: f64,
    /// `[head_dim]`
    pub(crate) sum: Vec<f64>,
    /// `[head_dim, head_dim]`
    pub(crate) products: Vec<f64>,
}

impl Moments {
    fn none(dim: usize) -> Self {
        Self { count: 0.0, sum: vec![0.0; dim], products: vec![0.0; dim * dim] }
    }

    fn add(&mut self, q: &[f32]) {
        self.count += 1.0;
        for (i, a) in q.iter().enumerate() {
            self.sum[i] += f64::from(*a);
            for (j, b) in q.iter().enumerate() {
                self.products[i * q.len() + j] += f64::from(*a) * f64::from(*b);
            }
        }
    }
}

impl Statistics {
    pub(crate) fn new(shape: KvShape, needs: KvNeeds) -> Self {
        let heads = if needs.moments.is_some() { shape.heads } else { 0 };
        Self {
            shape,
            needs,
            next: 0,
            recent: VecDeque::new(),
            mass: vec![Vec::new(); shape.kv_heads],
            pending: VecDeque::new(),
            moments: vec![Moments::none(shape.head_dim); heads],
            plain: VecDeque::new(),
            settled: 0,
            peaks: None,
            tokens: None,
            repeated: false,
        }
    }

    /// What is collected.
    #[must_use]
    pub fn needs(&self) -> &KvNeeds {
        &self.needs
    }

    /// Takes queries `[tokens, heads, head_dim]` and the attention they paid: `mass[row][head of keys][slot]`, empty where
    /// it is not needed.
    pub(crate) fn observe(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        mass: Vec<Vec<Vec<f32>>>,
    ) {
        let tokens = queries.dim().0;
        self.next = first + tokens;
        if self.needs.queries > 0 {
            let keep = self.needs.queries.saturating_add(MARGIN);
            for row in tokens.saturating_sub(keep)..tokens {
                self.recent.push_back((
                    first + row,
                    queries.slice(s![row, .., ..]).iter().copied().collect(),
                ));
            }
            let over = self.recent.len().saturating_sub(keep);
            self.recent.drain(..over);
        }
        for (row, mass) in mass.into_iter().enumerate() {
            self.pending.push_back((first + row, mass));
            if self.pending.len() > MARGIN {
                self.commit_oldest();
            }
        }
        self.observe_plain(queries, first);
    }

    fn observe_plain(&mut self, queries: ArrayView3<'_, f32>, first: usize) {
        let Some(QueryMoments { from, rope }) = &self.needs.moments else { return };
        for (row, query) in queries.outer_iter().enumerate() {
            let position = first + row;
            if position < *from {
                continue;
            }
            let mut query: Vec<f32> = query.iter().copied().collect();
            rope.rotate_back(&mut query, position);
            self.plain.push_back((position, query));
            if self.plain.len() > MARGIN {
                let (_, query) = self.plain.pop_front().expect("more than the margin");
                add_moments(&mut self.moments, &query, self.shape.head_dim);
            }
        }
    }

    fn commit_oldest(&mut self) {
        let Some((_, mass)) = self.pending.pop_front() else { return };
        for (sum, new) in self.mass.iter_mut().zip(mass) {
            add_mass(sum, &new, self.needs.fades);
        }
    }

    /// The shortest length, but 0, to which these can go back.
    pub(crate) fn earliest(&self) -> usize {
        let KvNeeds { queries, mass, moments, .. } = &self.needs;
        if *queries == 0 && !mass && moments.is_none() {
            return self.settled;
        }
        self.settled.max(self.next.saturating_sub(MARGIN))
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if len == 0 {
            *self = Self::new(self.shape, std::mem::take(&mut self.needs));
            return;
        }
        self.recent.retain(|(p, _)| *p < len);
        self.pending.retain(|(p, _)| *p < len);
        self.plain.retain(|(p, _)| *p < len);
        self.next = self.next.min(len);
    }

    /// Forgets what belongs to slots that go.
    pub(crate) fn retain(&mut self, keep: &HeadSlots) {
        while !self.pending.is_empty() {
            self.commit_oldest();
        }
        if self.needs.mass {
            for (mass, keep) in self.mass.iter_mut().zip(&keep.0) {
                let last = keep.last().map_or(0, |k| k + 1);
                mass.resize(mass.len().max(last), 0.0);
                *mass = keep.iter().map(|slot| mass[*slot]).collect();
            }
        }
        for (peaks, keep) in self.peaks.iter_mut().flatten().zip(&keep.0) {
            *peaks = keep.iter().map(|slot| peaks[*slot]).collect();
        }
        self.settled = self.next;
    }

    /// Takes note that slots were merged: attention received goes with them, all of it or the largest alone.
    pub(crate) fn merge(&mut self, merged: &[Merged], largest: bool) {
        while !self.pending.is_empty() {
            self.commit_oldest();
        }
        if self.needs.mass {
            for (mass, merged) in self.mass.iter_mut().zip(merged) {
                let mut now = vec![0.0; merged.slots.len()];
                for (mass, into) in mass.iter().zip(&merged.into) {
                    if let Some(into) = into {
                        let sum: &mut f32 = &mut now[*into];
                        *sum = if largest { sum.max(*mass) } else { *sum + mass };
                    }
                }
                *mass = now;
            }
        }
        for (peaks, merged) in self.peaks.iter_mut().flatten().zip(merged) {
            let mut now = vec![0.0f32; merged.slots.len()];
            for (peak, into) in peaks.iter().zip(&merged.into) {
                into.iter().for_each(|into| now[*into] = now[*into].max(*peak));
            }
            *peaks = now;
        }
        self.settled = self.next;
    }

    /// Attention received by `slots` of a head, summed over the queries and the query heads of its group.
    #[must_use]
    pub fn mass(&self, head: usize, slots: usize) -> Vec<f32> {
        let mut sum = self.mass[head].clone();
        self.pending.iter().for_each(|(_, mass)| add_mass(&mut sum, &mass[head], self.needs.fades));
        sum.resize(slots, 0.0);
        sum
    }

    /// The newest `count` queries of a head, `[count, head_dim]`, and their positions, oldest first; all there are where
    /// fewer were seen.
    ///
    /// # Errors
    /// `MissingCalibration` if none was seen.
    pub fn queries(&self, head: usize, count: usize) -> Result<(Vec<usize>, Array2<f32>)> {
        let count = count.min(self.recent.len());
        if count == 0 {
            return Err(Error::missing_calibration("queries are needed: none was seen"));
        }
        let start = self.recent.len() - count;
        let dim = self.shape.head_dim;
        let mut out = Array2::zeros((count, dim));
        let rows = self.recent.range(start..);
        let positions = rows.clone().map(|(p, _)| *p).collect();
        for (mut to, (_, q)) in out.rows_mut().into_iter().zip(rows) {
            to.iter_mut().zip(&q[head * dim..]).for_each(|(to, q)| *to = *q);
        }
        Ok((positions, out))
    }

    /// Mean `[head_dim]` and covariance `[head_dim, head_dim]` (divided by the count) of a head's queries before rotary
    /// embedding.
    ///
    /// # Errors
    /// `MissingCalibration` if none was seen, or none was asked for.
    pub fn moments(&self, head: usize) -> Result<(Vec<f64>, Array2<f64>)> {
        let dim = self.shape.head_dim;
        let mut moments = self.moments.get(head).cloned().unwrap_or_else(|| Moments::none(dim));
        self.plain.iter().for_each(|(_, q)| moments.add(&q[head * dim..][..dim]));
        if moments.count == 0.0 {
            let why = "queries are needed for their mean and covariance: none was seen";
            return Err(Error::missing_calibration(why));
        }
        let mean: Vec<f64> = moments.sum.iter().map(|s| s / moments.count).collect();
        let covariance = Array2::from_shape_fn((dim, dim), |(i, j)| {
            moments.products[i * dim + j] / moments.count - mean[i] * mean[j]
        });
        Ok((mean, covariance))
    }
}

fn add_mass(sum: &mut Vec<f32>, new: &[f32], fades: Option<f32>) {
    if let Some(left) = fades {
        sum.iter_mut().for_each(|sum| *sum *= left);
    }
    sum.resize(sum.len().max(new.len()), 0.0);
    sum.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
}

fn add_moments(moments: &mut [Moments], query: &[f32], dim: usize) {
    moments.iter_mut().zip(query.chunks_exact(dim)).for_each(|(m, q)| m.add(q));
}
