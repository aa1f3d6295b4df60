//! What a token takes in a matrix, for a limit of time beside that of size.

use std::time::Duration;

use tensorpress_allocate::{Allocation, Exact, Solver, Stopwatch, Table, TwoBudgets};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Accum, Error, Node, Result, Scratch};

/// Nanoseconds of the product with one token on one thread, laid out as for generation.
pub(in crate::pipeline) fn token_nanos(node: Box<dyn Node>) -> Result<u64> {
    let node = node.prepack()?;
    let [rows, cols] = node.shape();
    let x = Array2::from_elem((1, cols), 0.5_f32);
    let (mut y, mut scratch) = (Array2::zeros((1, rows)), Scratch::new(Par::Seq));
    Stopwatch::new().time(&mut || node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut scratch))
}

/// The limit, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenTime {
    limit: Duration,
    spent: u64,
}

impl TokenTime {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, spent: 0 }
    }

    fn left(self) -> u64 {
        u64::try_from(self.limit.as_nanos()).unwrap_or(u64::MAX).saturating_sub(self.spent)
    }

    pub(super) fn spend(&mut self, nanos: u64) {
        self.spent = self.spent.saturating_add(nanos);
    }

    /// The choices that lose least within a size and what is left of the time, `nanos` being what each takes. Where the first
    /// matrices turned out so large that what is left of the size leaves no choice that is fast enough, the fastest.
    ///
    /// # Errors
    /// `InvalidArgument` if even the fastest takes longer where nothing is spent yet, saying how long.
    pub(super) fn solve(
        self,
        table: &Table,
        nanos: Vec<Vec<u64>>,
        size: u64,
    ) -> Result<Allocation> {
        let limited = TwoBudgets::new(nanos, self.left());
        match limited.solve(table, size) {
            Err(_) if table.least_cost() <= size => {
                let fastest = limited.least(table, size)?;
                if self.spent > 0 {
                    return Ok(fastest);
                }
                let least = limited.cost(&fastest.choices) as f64 / 1e6;
                Err(Error::invalid(format!(
                    "a token may take {:.3} ms: within this size the matrices take at least about {least:.3} ms",
                    self.limit.as_secs_f64() * 1e3
                )))
            }
            found => found,
        }
    }
}

/// Without a limit of time.
pub(super) fn solve(
    time: Option<TokenTime>,
    table: &Table,
    nanos: impl FnOnce() -> Vec<Vec<u64>>,
    size: u64,
) -> Result<Allocation> {
    match time {
        Some(time) => time.solve(table, nanos(), size),
        None => Exact::new().solve(table, size),
    }
}
