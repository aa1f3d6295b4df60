//! How many micro-experts each expert keeps.

use std::cmp::Ordering;

use crate::pattern::count;

/// Who competes with whom: of those the lowest scores go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// Those of one expert: each keeps as many, where they are alike.
    Expert,
    /// Those of all experts of a block.
    Block,
    /// Those of the whole model.
    Model,
}

/// What is known of a block's micro-experts.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Rival {
    /// Finite scores, expert by expert; no experts in a block that has none.
    pub scores: Vec<Vec<f64>>,
    /// Its scores are in a unit of their own: it competes with no other block.
    pub alone: bool,
    /// Its experts stay as wide as each other.
    pub even: bool,
}

impl Rival {
    /// A block that competes with any, and whose experts may have any widths.
    #[must_use]
    pub fn new(scores: Vec<Vec<f64>>) -> Self {
        Self { scores, ..Self::default() }
    }

    /// Sets whether its scores are in a unit of their own.
    #[must_use]
    pub fn with_alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }

    /// Sets whether its experts stay as wide as each other.
    #[must_use]
    pub fn with_even(mut self, even: bool) -> Self {
        self.even = even;
        self
    }
}

impl Choice {
    /// How many stay of each expert of each block. Of those that compete ⌊number x `sparsity`⌋ go, where at least one of
    /// each expert stays; of equal scores those of later blocks, later experts, later channels. Where experts stay as wide
    /// as each other, what a block keeps is shared out evenly, and rounded up.
    ///
    /// ```
    /// use tensorpress_prune::experts::micro::{Choice, Rival};
    ///
    /// let blocks = [
    ///     Rival::new(vec![vec![9.0, 8.0, 1.0, 7.0], vec![2.0, 3.0, 4.0, 5.0]]),
    ///     Rival::new(vec![vec![0.1, 0.2, 0.3, 0.4]]),
    /// ];
    /// assert_eq!(Choice::Expert.widths(0.5, &blocks), [vec![2, 2], vec![2]]);
    /// assert_eq!(Choice::Block.widths(0.5, &blocks), [vec![3, 1], vec![2]]);
    /// assert_eq!(Choice::Model.widths(0.5, &blocks), [vec![3, 2], vec![1]]);
    /// ```
    #[must_use]
    pub fn widths(self, sparsity: f64, blocks: &[Rival]) -> Vec<Vec<usize>> {
        let wide = |block: &Rival| block.scores.iter().map(Vec::len).collect();
        let mut widths: Vec<Vec<usize>> = blocks.iter().map(wide).collect();
        let all = || {
            let experts =
                |(at, block): (usize, &Rival)| (0..block.scores.len()).map(move |e| (at, e));
            blocks.iter().enumerate().flat_map(experts)
        };
        let mut pools: Vec<Vec<(usize, usize)>> = Vec::new();
        match self {
            Self::Expert => pools.extend(all().map(|one| vec![one])),
            Self::Block => {
                pools.extend((0..blocks.len()).map(|b| all().filter(|at| at.0 == b).collect()));
            }
            Self::Model => {
                pools.push(all().filter(|at| !blocks[at.0].alone).collect());
                let alone = (0..blocks.len()).filter(|b| blocks[*b].alone);
                pools.extend(alone.map(|b| all().filter(|at| at.0 == b).collect()));
            }
        }
        for pool in pools {
            let number = pool.iter().map(|(b, e)| blocks[*b].scores[*e].len()).sum();
            let lost = lowest(blocks, &pool, count(number, sparsity));
            for ((block, expert), lost) in pool.into_iter().zip(lost) {
                widths[block][expert] -= lost;
            }
        }
        for (widths, block) in widths.iter_mut().zip(blocks).filter(|(_, block)| block.even) {
            let each = widths.iter().sum::<usize>().div_ceil(widths.len().max(1));
            let most = block.scores.iter().map(|of| of.len());
            widths.iter_mut().zip(most).for_each(|(width, most)| *width = each.min(most));
        }
        widths
    }
}

/// How many of so many lowest scores each expert of a pool has; the best of each is not among them. Models have tens of
/// millions of scores: none is held but once, and they are not sorted.
fn lowest(blocks: &[Rival], pool: &[(usize, usize)], gone: usize) -> Vec<usize> {
    let rivals = |(block, expert): &(usize, usize)| {
        let scores = &blocks[*block].scores[*expert];
        let stays = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        let others = scores.iter().enumerate().filter(move |(at, _)| Some(*at) != stays);
        others.map(|(_, score)| *score)
    };
    let mut all: Vec<f64> = pool.iter().flat_map(rivals).collect();
    let gone = gone.min(all.len());
    if gone == 0 {
        return vec![0; pool.len()];
    }
    let last = *all.select_nth_unstable_by(gone - 1, f64::total_cmp).1;
    let count = |at, which| rivals(at).filter(|score| score.total_cmp(&last) == which).count();
    let mut numbers: Vec<usize> = pool.iter().map(|at| count(at, Ordering::Less)).collect();
    // Of those that equal the last, the later ones.
    let mut left = gone - numbers.iter().sum::<usize>();
    for (number, at) in numbers.iter_mut().zip(pool).rev() {
        let equal = count(at, Ordering::Equal).min(left);
        *number += equal;
        left -= equal;
    }
    numbers
}

/// So many of the best, the best first; of equal ones the first.
pub(super) fn best(scores: &[f64], number: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(number);
    order
}
