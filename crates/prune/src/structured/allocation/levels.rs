//! Levels by dynamic programming, and what levels cost.

use tensorpress_allocate::{Choice, Exact, Solver, Stopwatch, Table, Unit};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, Result};

use super::{Judged, Module};

/// What a module costs with so many of its units, as measured or computed by the caller: in nanoseconds, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Latency {
    /// Of the attention with `i + 1` units.
    pub attention: Vec<u64>,
    /// Of the feed-forward network with `i + 1` channels.
    pub channels: Vec<u64>,
}

impl Latency {
    /// A table: entry i is what a module with i + 1 units costs.
    #[must_use]
    pub fn new(attention: Vec<u64>, channels: Vec<u64>) -> Self {
        Self { attention, channels }
    }

    /// Times `run`, which does what a module with so many units does in one block, for every number of units.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn measured(
        stopwatch: &Stopwatch,
        units: [usize; 2],
        run: &mut dyn FnMut(Module, usize) -> Result<()>,
    ) -> Result<Self> {
        let mut table = Self::default();
        for (module, units) in Module::ALL.into_iter().zip(units) {
            let times = (1..=units).map(|kept| stopwatch.time(&mut || run(module, kept)));
            let times = times.collect::<Result<Vec<u64>>>()?;
            match module {
                Module::Attention => table.attention = times,
                Module::Channels => table.channels = times,
            }
        }
        Ok(table)
    }

    fn of(&self, module: usize, kept: usize) -> Result<u64> {
        let times = [&self.attention, &self.channels][module];
        let short = || {
            Error::invalid(format!(
                "latency: {} entries for {}, and {kept} units need one",
                times.len(),
                Module::ALL[module].name()
            ))
        };
        kept.checked_sub(1).and_then(|at| times.get(at)).copied().ok_or_else(short)
    }
}

/// The levels of least loss within the budget.
pub(super) fn levels(
    sparsity: f64,
    latency: Option<&Latency>,
    coefficients: &[f64],
    blocks: &[Judged],
) -> Result<Vec<[usize; 2]>> {
    let usable = |c: &f64| c.is_finite() && *c >= 0.0;
    if !(coefficients.is_empty()
        || coefficients.len() == blocks.len() && coefficients.iter().all(usable))
    {
        return Err(Error::invalid(format!(
            "coefficients: {} of them: allowed are one for each of {} blocks, 0 and more",
            coefficients.len(),
            blocks.len()
        )));
    }
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    let mut all = 0u64;
    for (index, block) in blocks.iter().enumerate() {
        let counts = coefficients.get(index).copied().unwrap_or(1.0);
        if latency.is_none() {
            all += block.weights;
        }
        for (module, units) in block.modules.iter().enumerate() {
            let Some(units) = units else { continue };
            let (lost, levels) = (units.track.lost(), units.levels());
            let whole = lost[units.count()];
            let relative = |kept: usize| match whole > 0.0 {
                true => counts * lost[units.count() - kept] / whole,
                false => 0.0,
            };
            let cost = |kept: usize| match latency {
                None => Ok(units.weights * kept as u64),
                Some(latency) => latency.of(module, kept),
            };
            if latency.is_some() {
                all += cost(units.count())?;
            }
            let choices = levels.iter().map(|kept| Ok(Choice::new(cost(*kept)?, relative(*kept))));
            let choices = choices.collect::<Result<Vec<_>>>()?;
            rows.push(Unit::new(format!("block {index}, {}", Module::ALL[module].name()), choices));
            places.push((index, module, levels));
        }
    }
    let fixed = match latency {
        None => all - blocks.iter().map(Judged::movable).sum::<u64>(),
        Some(_) => 0,
    };
    let table = Table::new(rows)?;
    let budget = (all as f64 * (1.0 - sparsity) * (1.0 + 1e-12)).floor();
    let least = table.least_cost() + fixed;
    if budget < least as f64 {
        return Err(Error::invalid(format!(
            "sparsity = {sparsity}: allowed are 0 to {:.3}, for a unit of each module stays",
            1.0 - least as f64 / all.max(1) as f64
        )));
    }
    let found = Exact::new().solve(&table, budget as u64 - fixed)?;
    let mut gone = vec![[0; 2]; blocks.len()];
    for ((block, module, levels), choice) in places.into_iter().zip(found.choices) {
        gone[block][module] = levels[0] - levels[choice];
    }
    Ok(gone)
}

/// Coefficients for [`Allocation::Levels`](super::Allocation::Levels), one a block, by local search (ZipLM;
/// SPDY): from 1 for all, each round draws a tenth of them anew, uniformly between 0 and 1, and keeps what lowers the loss,
/// which is that of the whole model with the levels that they lead to. Also gives the least loss.
///
/// The same seed and losses, the same coefficients.
///
/// # Errors
/// Those of `loss`; `Numerical` if the first loss is no number.
pub fn search_coefficients(
    blocks: usize,
    rounds: usize,
    seed: u64,
    loss: &mut dyn FnMut(&[f64]) -> Result<f64>,
) -> Result<(Vec<f64>, f64)> {
    let mut random = SplitMix::new(seed);
    let mut best = vec![1.0; blocks];
    let mut least = loss(&best)?;
    if least.is_nan() {
        return Err(Error::numerical("the loss of equal coefficients is NaN"));
    }
    for _ in 0..if blocks == 0 { 0 } else { rounds } {
        let mut tried = best.clone();
        for _ in 0..blocks.div_ceil(10) {
            let block = (random.next_f64() * blocks as f64) as usize;
            tried[block.min(blocks - 1)] = random.next_f64();
        }
        let lost = loss(&tried)?;
        if lost < least {
            (best, least) = (tried, lost);
        }
    }
    Ok((best, least))
}
