use std::time::Instant;

use tensorpress_tensor::{Error, Result};

use crate::{Choice, Table, Unit};

/// Measures what levels take on the machine at hand, for costs in nanoseconds.
///
/// Levels take turns, so that a machine that slows down or is interrupted hurts all alike; of the repeats of each the least
/// counts, or the median.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopwatch {
    repeats: usize,
    warm_up: usize,
    median: bool,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self { repeats: 9, warm_up: 1, median: false }
    }
}

impl Stopwatch {
    /// A stopwatch with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how often each level is measured. Default 9; at least 1.
    #[must_use]
    pub fn with_repeats(mut self, repeats: usize) -> Self {
        self.repeats = repeats.max(1);
        self
    }

    /// Sets how often each level runs before it is measured. Default 1.
    #[must_use]
    pub fn with_warm_up(mut self, warm_up: usize) -> Self {
        self.warm_up = warm_up;
        self
    }

    /// Sets whether the median counts in place of the least. Default no.
    #[must_use]
    pub fn with_median(mut self, median: bool) -> Self {
        self.median = median;
        self
    }

    /// Nanoseconds of one piece of work, at least 1.
    ///
    /// # Errors
    /// Those of the work.
    pub fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let times = self.take_turns(1, &mut |_| work())?;
        Ok(times[0])
    }

    /// The table with the same errors, and nanoseconds as costs: what `run` takes for each unit and level.
    ///
    /// # Errors
    /// Those of `run`, naming the unit; those of [`Table::new`].
    pub fn costs(
        &self,
        table: &Table,
        run: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Table> {
        let mut units = Vec::with_capacity(table.units().len());
        for (at, unit) in table.units().iter().enumerate() {
            let times = self.take_turns(unit.choices().len(), &mut |level| {
                run(at, level).map_err(|error: Error| error.in_tensor(unit.name()))
            })?;
            let timed = unit.choices().iter().zip(times);
            let choices = timed.map(|(choice, time)| Choice::new(time, choice.error));
            units.push(Unit::new(unit.name(), choices.collect::<Vec<_>>()));
        }
        Table::new(units)
    }

    fn take_turns(
        &self,
        levels: usize,
        run: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<u64>> {
        let mut times = vec![Vec::with_capacity(self.repeats); levels];
        for turn in 0..self.warm_up + self.repeats {
            for (level, times) in times.iter_mut().enumerate() {
                let start = Instant::now();
                run(level)?;
                let taken = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                if turn >= self.warm_up {
                    times.push(taken.max(1));
                }
            }
        }
        let counts = |mut times: Vec<u64>| {
            times.sort_unstable();
            times[if self.median { times.len() / 2 } else { 0 }]
        };
        Ok(times.into_iter().map(counts).collect())
    }
}
