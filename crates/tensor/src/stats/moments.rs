//! Moments of every channel of a stream.

use std::sync::Arc;

use ndarray::{Array1, ArrayView1, ArrayView2, Axis, Zip};

use super::NonFinite;
use super::statistic::{Ask, Batch, Statistic, Via};
use crate::linalg::Par;
use crate::node::{Channels, Side};
use crate::usable::Usable;
use crate::{Error, Result};

/// Rows taken at once: the second pass over a block finds it in the cache.
const ROWS: usize = 128;
/// Channels taken at once: their sums stay in the first-level cache.
const CHANNELS: usize = 512;

/// Per channel: mean, variance, mean of absolute values, sum of squares, smallest and largest value.
///
/// Sums are f64. The variance is that of each block about its own mean, combined as Chan, Golub and LeVeque (1983)
/// show, so that a large mean costs no digits. Merging differs from one long stream by f64 rounding only.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    tokens: u64,
    mean: Array1<f64>,
    /// Sum of squared distances from the mean.
    spread: Array1<f64>,
    abs_sum: Array1<f64>,
    square_sum: Array1<f64>,
    min: Array1<f32>,
    max: Array1<f32>,
    non_finite: Option<NonFinite>,
}

impl Moments {
    /// No tokens yet.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self {
            tokens: 0,
            mean: Array1::zeros(channels),
            spread: Array1::zeros(channels),
            abs_sum: Array1::zeros(channels),
            square_sum: Array1::zeros(channels),
            min: Array1::from_elem(channels, f32::INFINITY),
            max: Array1::from_elem(channels, f32::NEG_INFINITY),
            non_finite: None,
        }
    }

    /// Adds the tokens X `[tokens, channels]`.
    ///
    /// # Panics
    /// If X has another number of channels.
    pub fn update(&mut self, x: ArrayView2<'_, f32>) {
        assert_eq!(x.ncols(), self.channels(), "channels of moments");
        if self.non_finite.is_none() {
            self.non_finite = NonFinite::find(x, self.tokens);
        }
        if self.non_finite.is_some() {
            self.tokens += x.nrows() as u64;
            return;
        }
        for block in x.axis_chunks_iter(Axis(0), ROWS) {
            self.merge(Self::of_block(block));
        }
    }

    fn of_block(x: ArrayView2<'_, f32>) -> Self {
        let (rows, channels) = x.dim();
        let mut block = Self::new(channels);
        block.tokens = rows as u64;
        let x = x.as_standard_layout();
        let Some(values) = x.as_slice().filter(|values| !values.is_empty()) else { return block };
        for start in (0..channels).step_by(CHANNELS) {
            let end = (start + CHANNELS).min(channels);
            let row = |i: usize| &values[i * channels..][start..end];
            // Four rows at once: a quarter of the traffic to the sums.
            let fours = rows - rows % 4;
            for i in (0..fours).step_by(4) {
                block.add_rows(start, [row(i), row(i + 1), row(i + 2), row(i + 3)]);
            }
            (fours..rows).for_each(|i| block.add_rows(start, [row(i)]));
            let mean = &mut block.mean.as_slice_mut().expect("contiguous")[start..end];
            mean.iter_mut().for_each(|mean| *mean /= rows as f64);
            for i in (0..fours).step_by(4) {
                block.add_distances(start, [row(i), row(i + 1), row(i + 2), row(i + 3)]);
            }
            (fours..rows).for_each(|i| block.add_distances(start, [row(i)]));
        }
        block
    }

    /// Adds rows to the sums (that of the values stands in `mean`) of the channels from `start` on.
    fn add_rows<const R: usize>(&mut self, start: usize, rows: [&[f32]; R]) {
        let n = rows[0].len();
        let rows = rows.map(|row| &row[..n]);
        let sum = &mut self.mean.as_slice_mut().expect("contiguous")[start..][..n];
        let abs_sum = &mut self.abs_sum.as_slice_mut().expect("contiguous")[start..][..n];
        let square_sum = &mut self.square_sum.as_slice_mut().expect("contiguous")[start..][..n];
        for i in 0..n {
            let values = rows.map(|row| f64::from(row[i]));
            sum[i] += values.iter().sum::<f64>();
            abs_sum[i] += values.iter().map(|v| v.abs()).sum::<f64>();
            square_sum[i] += values.iter().map(|v| v * v).sum::<f64>();
        }
        let min = &mut self.min.as_slice_mut().expect("contiguous")[start..][..n];
        let max = &mut self.max.as_slice_mut().expect("contiguous")[start..][..n];
        for i in 0..n {
            // Plain comparisons: there is no NaN here, and f32::min would pay for its handling.
            for v in rows.map(|row| row[i]) {
                min[i] = if v < min[i] { v } else { min[i] };
                max[i] = if v > max[i] { v } else { max[i] };
            }
        }
    }

    /// Adds the squared distances of rows from the mean.
    fn add_distances<const R: usize>(&mut self, start: usize, rows: [&[f32]; R]) {
        let n = rows[0].len();
        let rows = rows.map(|row| &row[..n]);
        let mean = &self.mean.as_slice().expect("contiguous")[start..][..n];
        let spread = &mut self.spread.as_slice_mut().expect("contiguous")[start..][..n];
        for i in 0..n {
            let distances = rows.map(|row| f64::from(row[i]) - mean[i]);
            spread[i] += distances.iter().map(|d| d * d).sum::<f64>();
        }
    }

    /// Adds what `other` has seen.
    ///
    /// # Panics
    /// If the numbers of channels differ.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(other.channels(), self.channels(), "channels of merged moments");
        let later = other.non_finite.map(|bad| NonFinite { token: bad.token + self.tokens, ..bad });
        self.non_finite = self.non_finite.or(later);
        if other.tokens == 0 {
            return;
        }
        let (before, added) = (self.tokens as f64, other.tokens as f64);
        self.tokens += other.tokens;
        let share = added / (before + added);
        Zip::from(&mut self.mean)
            .and(&mut self.spread)
            .and(&other.mean)
            .and(&other.spread)
            .for_each(|mean, spread, &other_mean, &other_spread| {
                let step = other_mean - *mean;
                *mean += step * share;
                *spread += other_spread + step * step * before * share;
            });
        self.abs_sum += &other.abs_sum;
        self.square_sum += &other.square_sum;
        self.min.zip_mut_with(&other.min, |a, &b| *a = a.min(b));
        self.max.zip_mut_with(&other.max, |a, &b| *a = a.max(b));
    }

    /// Statistics of X diag(1/s).
    ///
    /// # Panics
    /// Unless there is one positive, finite scale per channel.
    #[must_use]
    pub fn scaled(&self, s: ArrayView1<'_, f32>) -> Self {
        assert_eq!(s.len(), self.channels(), "scales");
        assert!(s.iter().all(|s| s.is_finite() && *s > 0.0), "scales must be positive and finite");
        let wide = s.mapv(f64::from);
        Self {
            tokens: self.tokens,
            mean: &self.mean / &wide,
            spread: &self.spread / &wide / &wide,
            abs_sum: &self.abs_sum / &wide,
            square_sum: &self.square_sum / &wide / &wide,
            min: &self.min / &s,
            max: &self.max / &s,
            non_finite: self.non_finite,
        }
    }

    /// The moments of these channels, in this order.
    ///
    /// # Panics
    /// If there is no such channel.
    #[must_use]
    pub fn select(&self, index: &[usize]) -> Self {
        let wide = |values: &Array1<f64>| values.select(Axis(0), index);
        let narrow = |values: &Array1<f32>| values.select(Axis(0), index);
        Self {
            tokens: self.tokens,
            mean: wide(&self.mean),
            spread: wide(&self.spread),
            abs_sum: wide(&self.abs_sum),
            square_sum: wide(&self.square_sum),
            min: narrow(&self.min),
            max: narrow(&self.max),
            non_finite: self.non_finite,
        }
    }

    /// An error naming the first channel with NaN or infinity, if there was one; what such a stream holds from there
    /// on is not in the moments.
    ///
    /// # Errors
    /// Numerical.
    pub fn check(&self) -> Result<()> {
        self.non_finite.map_or(Ok(()), |bad| Err::<(), Error>(bad.error("moments")))
    }

    /// No NaN or infinity was seen.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.non_finite.is_none()
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Columns of X.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Mean of each channel; 0 of no tokens.
    #[must_use]
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        self.mean.view()
    }

    /// Mean squared distance from the mean (divided by the number of tokens); 0 of no tokens.
    #[must_use]
    pub fn variance(&self) -> Array1<f64> {
        &self.spread / self.tokens.max(1) as f64
    }

    /// Mean of absolute values; 0 of no tokens.
    #[must_use]
    pub fn mean_abs(&self) -> Array1<f64> {
        &self.abs_sum / self.tokens.max(1) as f64
    }

    /// Sum of squares.
    #[must_use]
    pub fn sum_of_squares(&self) -> ArrayView1<'_, f64> {
        self.square_sum.view()
    }

    /// Euclidean norm of each channel over all tokens, as Wanda uses it.
    #[must_use]
    pub fn l2_norm(&self) -> Array1<f64> {
        self.square_sum.mapv(f64::sqrt)
    }

    /// Largest absolute value; 0 of no tokens.
    #[must_use]
    pub fn abs_max(&self) -> Array1<f32> {
        if self.tokens == 0 {
            return Array1::zeros(self.channels());
        }
        Zip::from(&self.min).and(&self.max).map_collect(|min, max| min.abs().max(max.abs()))
    }

    /// Smallest value; infinity of no tokens.
    #[must_use]
    pub fn min(&self) -> ArrayView1<'_, f32> {
        self.min.view()
    }

    /// Largest value; minus infinity of no tokens.
    #[must_use]
    pub fn max(&self) -> ArrayView1<'_, f32> {
        self.max.view()
    }
}

impl Statistic for Moments {
    type Value = Self;
    const WHAT: &'static str = "moments of the channels";

    fn bytes(ask: Ask) -> u64 {
        40 * ask.channels as u64
    }

    fn begin(ask: Ask) -> Self {
        Self::new(ask.channels)
    }

    fn update(&mut self, batch: &Batch<'_>, _: Par) {
        self.update(batch.input);
    }

    fn merge(&mut self, other: Self) {
        self.merge(other);
    }

    fn finish(self) -> Result<Self> {
        Ok(self)
    }

    /// Through a map that mixes channels: the moments of the mapped sample, if rows were sampled.
    fn through(value: &Arc<Self>, via: &Via<'_>) -> Usable<Arc<Self>> {
        if via.side == Side::Out {
            return Usable::Yes(value.clone());
        }
        match via.map.channels() {
            Channels::Scaled(s) => Usable::Yes(Arc::new(value.scaled(s.into()))),
            Channels::Moved(index) => {
                let index: Vec<usize> = index.iter().map(|i| *i as usize).collect();
                Usable::Yes(Arc::new(value.select(&index)))
            }
            Channels::Mixed => match via.of.samples() {
                Ok(rows) => {
                    let rows = via.map.inputs(rows.view(), via.par);
                    let mut moments = Self::new(rows.ncols());
                    moments.update(rows.view());
                    Usable::Yes(Arc::new(moments))
                }
                Err(_) => Usable::no(
                    "moments do not go through a map that mixes channels, and no rows were sampled",
                ),
            },
        }
    }
}
