use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};

/// How far a token spreads beside the tokens that come a lag later (LagKV, Liang et al., 2025). Slots behind the sinks are
/// cut into parts of `lag`; channels of a part are brought to 0 and 1 at the least and largest of the next part, and a
/// token counts by the standard deviation over its channels, softmax over its part; the mean of keys and values. No query is
/// looked at. Sinks, the last full part and what is behind it stay; of fewer than two parts the newest stay.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LagRelative {
    /// Tokens of a part.
    pub lag: usize,
    /// First tokens that belong to no part.
    pub sinks: usize,
    /// Compare tokens of different parts by their numbers, not by their ranks within the part.
    pub across: bool,
}

impl Default for LagRelative {
    fn default() -> Self {
        Self { lag: 128, sinks: 4, across: false }
    }
}

impl LagRelative {
    /// Parts of this many tokens behind this many sinks.
    #[must_use]
    pub fn new(lag: usize, sinks: usize) -> Self {
        Self { lag, sinks, across: false }
    }

    /// Compares tokens of different parts by their numbers.
    #[must_use]
    pub fn with_across(mut self, across: bool) -> Self {
        self.across = across;
        self
    }

    fn of_head(&self, keys: &Array2<f32>, values: &Array2<f32>, sinks: usize) -> Vec<f32> {
        let (slots, lag) = (keys.nrows(), self.lag);
        if slots < sinks + 2 * lag {
            let newest = |slot: usize| match slot.checked_sub(sinks) {
                None => f32::INFINITY,
                Some(slot) => slot as f32 / (slots - sinks) as f32,
            };
            return (0..slots).map(newest).collect();
        }
        let parts = (slots - sinks) / lag;
        let mut scores = vec![f32::INFINITY; slots];
        for part in 0..parts - 1 {
            let first = sinks + part * lag;
            let of = |x: &Array2<f32>| {
                spread(
                    x.slice(s![first..first + lag, ..]),
                    x.slice(s![first + lag..first + 2 * lag, ..]),
                )
            };
            let mut mean: Vec<f32> =
                of(keys).into_iter().zip(of(values)).map(|(k, v)| (k + v) / 2.0).collect();
            if !self.across {
                mean = ranks(&mean).into_iter().map(|rank| rank as f32 / lag as f32).collect();
            }
            scores[first..first + lag].copy_from_slice(&mean);
        }
        scores
    }
}

/// Softmax of the standard deviations over channels, which `next` brings to one scale.
fn spread(part: ArrayView2<'_, f32>, next: ArrayView2<'_, f32>) -> Vec<f32> {
    let least = next.fold_axis(Axis(0), f32::INFINITY, |a, b| a.min(*b));
    let range = next.fold_axis(Axis(0), f32::NEG_INFINITY, |a, b| a.max(*b)) - &least;
    let deviations: Vec<f64> = part
        .rows()
        .into_iter()
        .map(|row| {
            let scaled: Vec<f64> = row
                .iter()
                .zip(least.iter().zip(&range))
                .map(|(x, (least, range))| match *range > 0.0 {
                    true => f64::from(x - least) / f64::from(*range),
                    // A channel that is constant tells nothing.
                    false => 0.0,
                })
                .collect();
            let mean = scaled.iter().sum::<f64>() / scaled.len() as f64;
            let squares: f64 = scaled.iter().map(|x| (x - mean).powi(2)).sum();
            (squares / (scaled.len() as f64 - 1.0).max(1.0)).sqrt()
        })
        .collect();
    let most = deviations.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f64 = deviations.iter().map(|d| (d - most).exp()).sum();
    deviations.into_iter().map(|d| ((d - most).exp() / sum) as f32).collect()
}

/// The place of each number among all, from 0 for the least; of equals the later one is the larger.
fn ranks(numbers: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    let mut ranks = vec![0; numbers.len()];
    order.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank);
    ranks
}

impl Score for LagRelative {
    fn id(&self) -> &'static str {
        "lag_relative"
    }

    fn check(&self) -> Result<()> {
        if self.lag > 0 {
            return Ok(());
        }
        Err(Error::invalid("lag = 0: at least 1"))
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |h| {
            let (keys, values) = held.store.decode(h);
            let sinks = held.store.positions(h).partition_point(|p| *p < self.sinks);
            self.of_head(&keys, &values, sinks)
        };
        let mut scores: Vec<Vec<f32>> = held.heads().map(of).collect();
        super::attention::keep_over(&mut scores);
        Ok(scores)
    }
}
