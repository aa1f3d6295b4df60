//! The whole curve in one run: sizes, some of which are made and judged.

use super::divergence::{Attempt, Next};
use super::share::Sharing;

/// Sizes along a frontier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Points {
    /// Bytes; empty: so many between the bits of [`Points::new`].
    sizes: Vec<u64>,
    count: usize,
    judged: usize,
}

/// Bits a weight of the first and the last of sizes that nobody named.
const BITS: (f64, f64) = (2.0, 8.0);

impl Points {
    /// So many sizes, from 2 to 8 bits a weight as far as levels reach, in equal ratios. Five of them are judged, unless
    /// [`Points::with_judged`] says otherwise.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { sizes: Vec::new(), count: count.max(1), judged: 5 }
    }

    /// These sizes: bytes of all files that hold weights; one that is out of reach is the nearest that is not. All are judged,
    /// unless [`Points::with_judged`] says otherwise.
    #[must_use]
    pub fn of(sizes: impl Into<Vec<u64>>) -> Self {
        let mut sizes = sizes.into();
        sizes.sort_unstable();
        sizes.dedup();
        Self { count: sizes.len(), judged: sizes.len(), sizes }
    }

    /// Sets of how many models are made and judged; what the others lose follows.
    #[must_use]
    pub fn with_judged(mut self, judged: usize) -> Self {
        self.judged = judged.max(1);
        self
    }

    pub(super) fn canonical(&self) -> String {
        let Self { sizes, count, judged } = self;
        format!("{judged} of {count} sizes {sizes:?}")
    }

    /// No size was named, or none is to be looked at.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The sizes, ascending, and what there is to say of those out of reach.
    pub(super) fn sizes(&self, sharing: &Sharing) -> (Vec<u64>, Option<String>) {
        let (weights, fixed) = sharing.scale();
        let (least, most) = (1.002 * sharing.least(0), sharing.most());
        if !self.sizes.is_empty() {
            let (least, most) = ((fixed + least).ceil() as u64, (fixed + most).ceil() as u64);
            let within = |size: &u64| (*size).max(least).min(most.max(least));
            let mut sizes: Vec<u64> = self.sizes.iter().map(within).collect();
            let beyond = sizes != self.sizes;
            sizes.dedup();
            let note = format!("sizes reach from {least} to {most} bytes with these levels");
            return (sizes, beyond.then_some(note));
        }
        let [least, most] = [least, most].map(|bytes| 8.0 * bytes / weights.max(1.0));
        let low = BITS.0.max(least);
        let high = BITS.1.min(most).max(low);
        let size = |at: usize| {
            let share = at as f64 / self.count.saturating_sub(1).max(1) as f64;
            (fixed + low * (high / low).powf(share) * weights / 8.0).round() as u64
        };
        let mut sizes: Vec<u64> = (0..self.count).map(size).collect();
        sizes.dedup();
        (sizes, None)
    }

    /// What follows a number of attempts.
    pub(super) fn next(&self, attempts: &[Attempt], sharing: &Sharing, late: bool) -> Next {
        let sizes = sharing.sizes();
        let order = order(sizes.len(), self.judged);
        match order.get(attempts.len()) {
            Some(at) if attempts.is_empty() || !late => Next::Try(sizes[*at]),
            _ => Next::Done,
        }
    }
}

/// Which of `count` are judged: `judged` of them, evenly; both ends first, then always the middle of the widest gap, so that
/// whenever time is over, what was judged lies well.
fn order(count: usize, judged: usize) -> Vec<usize> {
    let judged = judged.min(count);
    let at = |n: usize| match judged {
        0 | 1 => (count - 1) / 2,
        _ => (n * (count - 1) + (judged - 1) / 2) / (judged - 1),
    };
    let all: Vec<usize> = (0..judged).map(at).collect();
    let mut order: Vec<usize> = Vec::with_capacity(judged);
    while order.len() < judged {
        let distance = |at: &usize| order.iter().map(|done| done.abs_diff(*at)).min();
        let far = |at: &usize| distance(at).unwrap_or(usize::MAX);
        let left = all.iter().filter(|at| !order.contains(at));
        // Of those that are as far the first.
        let Some(next) = left.rev().max_by_key(|at| far(at)) else { break };
        order.push(*next);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_come_first_and_all_lie_evenly() {
        assert_eq!(order(12, 6)[..2], [0, 11]);
        for (count, judged) in [(12, 6), (12, 12), (5, 3), (1, 6), (2, 1), (7, 0)] {
            let mut all = order(count, judged);
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), judged.min(count), "{count} {judged}");
            assert!(all.iter().all(|at| *at < count));
        }
        assert_eq!(order(9, 5), [0, 8, 4, 2, 6]);
    }
}
