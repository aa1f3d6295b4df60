use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::cluster::optimal_levels;
use tensorpress_tensor::{Error, Result, ndarray};

use crate::store::normal;

/// Where the levels come from that numbers from -1 to 1 become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Levels {
    /// The weighted k-means of the data, solved exactly.
    #[default]
    Fitted,
    /// Equally far apart.
    Uniform,
    /// Equally likely in a normal distribution, 0 among them ([`normal_levels`]).
    Normal,
}

impl Levels {
    /// The levels, ascending: fitted to these numbers, of which each counts as its weight says, or the known ones.
    pub(super) fn of(self, values: &[f32], weights: Option<&[f32]>, bits: u32) -> Result<Vec<f32>> {
        let count = 1usize << bits;
        Ok(match self {
            Self::Fitted => optimal_levels(values, weights, count)?,
            Self::Uniform => {
                (0..count).map(|i| 2.0 * i as f32 / (count - 1) as f32 - 1.0).collect()
            }
            Self::Normal => normal_levels(bits),
        })
    }
}

/// The levels of NormalFloat (Dettmers et al., 2023) for any number of bits: quantiles of a normal distribution that end at
/// -1 and 1 and have 0 among them, half of them and one more not below it.
///
/// # Panics
/// Unless `bits` is 2 to 8.
#[must_use]
pub fn normal_levels(bits: u32) -> Vec<f32> {
    assert!((2..=8).contains(&bits), "bits = {bits}: 2 to 8");
    const END: f64 = 0.967_708_3;
    let half = 1usize << (bits - 1);
    // Shares from the end to the middle, in so many steps, the middle left out.
    let side = |steps: usize| {
        (0..steps).map(move |i| normal::quantile(END + (0.5 - END) * i as f64 / steps as f64))
    };
    let end = normal::quantile(END);
    let below = side(half - 1).map(|x| -x);
    let above = side(half).collect::<Vec<f64>>().into_iter().rev();
    below.chain([0.0]).chain(above).map(|x| (x / end) as f32).collect()
}

/// What KVQuant learns from calibration data for the keys of a head: the range of every channel, and levels within it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KvLevels {
    /// Where the range of each channel begins and ends; empty for values, whose tokens have ranges of their own.
    pub lower: Vec<f32>,
    /// Its end.
    pub upper: Vec<f32>,
    /// What numbers, mapped from their range to -1 to 1, are compared with, ascending.
    pub points: Vec<f32>,
    /// What the nearest point becomes: itself, unless mean and spread are restored ([`KvLevels::with_spread_of`]).
    pub levels: Vec<f32>,
}

/// A linear-interpolated percentile, as a share, of sorted numbers.
pub(super) fn percentile(sorted: &[f32], share: f64) -> f32 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, rest) = (at as usize, at.fract());
    let next = sorted[(low + 1).min(sorted.len() - 1)];
    (f64::from(sorted[low]) + f64::from(next - sorted[low]) * rest) as f32
}

/// The interval that all but this share of the numbers are in, as much at either end.
pub(super) fn interval(x: ArrayView1<'_, f32>, outliers: f64) -> (f32, f32) {
    let mut sorted = x.to_vec();
    sorted.sort_by(f32::total_cmp);
    (percentile(&sorted, outliers / 2.0), percentile(&sorted, 1.0 - outliers / 2.0))
}

/// A number of a range on -1 to 1, and back.
pub(super) fn inward(x: f32, (lower, upper): (f32, f32)) -> f32 {
    let half = (upper - lower) / 2.0;
    if half > 0.0 { (x - (lower + upper) / 2.0) / half } else { 0.0 }
}

pub(super) fn outward(level: f32, (lower, upper): (f32, f32)) -> f32 {
    level * ((upper - lower) / 2.0) + (lower + upper) / 2.0
}

/// The nearest point, the lower of two.
pub(crate) fn nearest(points: &[f32], x: f32) -> u8 {
    let mut best = (f32::INFINITY, 0);
    for (i, point) in points.iter().enumerate() {
        let far = (x - point).abs();
        if far < best.0 {
            best = (far, i as u8);
        }
    }
    best.1
}

impl KvLevels {
    /// Learns from keys `[tokens, channels]`, before rotary embedding. Of each channel the share `outliers` lies outside of its
    /// range, half at either end; the levels minimise the squared error of the rest within their ranges, each entry weighing
    /// as `weights`, of the same shape, say (the paper's are those of Fisher's information: squared gradients).
    ///
    /// # Errors
    /// `InvalidArgument` for no tokens, `bits` but 2 to 8 or `outliers` but 0 to below 1; `ShapeMismatch`; `Numerical` for
    /// what is not finite.
    pub fn of_keys(
        keys: ArrayView2<'_, f32>,
        weights: Option<ArrayView2<'_, f32>>,
        bits: u32,
        outliers: f64,
        levels: Levels,
    ) -> Result<Self> {
        check(keys, bits, outliers)?;
        if let Some(found) = weights.map(|w| w.dim()).filter(|dim| *dim != keys.dim()) {
            let expected = keys.dim();
            return Err(Error::shape(format!("weights {found:?} of keys {expected:?}")));
        }
        let (mut lower, mut upper) = (Vec::new(), Vec::new());
        let (mut inner, mut weigh) = (Vec::new(), Vec::new());
        for (c, channel) in keys.columns().into_iter().enumerate() {
            let range = interval(channel, outliers);
            for (t, x) in channel.iter().enumerate() {
                let x = inward(*x, range);
                // Dense ranges end at the largest, which counts as well.
                if x.abs() <= 1.0 {
                    inner.push(x);
                    weigh.extend(weights.map(|w| w[[t, c]]));
                }
            }
            lower.push(range.0);
            upper.push(range.1);
        }
        let points = levels.of(&inner, weights.map(|_| &*weigh), bits)?;
        Ok(Self { lower, upper, levels: points.clone(), points })
    }

    /// Learns levels from values `[tokens, channels]`, whose ranges are those of each token when it is packed.
    ///
    /// # Errors
    /// As [`KvLevels::of_keys`].
    pub fn of_values(
        values: ArrayView2<'_, f32>,
        bits: u32,
        outliers: f64,
        levels: Levels,
    ) -> Result<Self> {
        check(values, bits, outliers)?;
        let mut inner = Vec::new();
        for token in values.rows() {
            let (range, out) = dynamic(&token.to_vec(), outliers);
            let rest = token.iter().zip(&out).filter(|(_, out)| !**out);
            inner.extend(rest.map(|(x, _)| inward(*x, range)));
        }
        let points = levels.of(&inner, None, bits)?;
        Ok(Self { lower: Vec::new(), upper: Vec::new(), levels: points.clone(), points })
    }

    /// Q-Norm: moves and stretches what the points become, so that mean and spread of these numbers, mapped to -1 to 1, are the
    /// same after quantisation as before. Helps at 2 bits.
    #[must_use]
    pub fn with_spread_of(mut self, inner: &[f32]) -> Self {
        let moments = |x: &mut dyn Iterator<Item = f64>| {
            let (mut n, mut sum, mut squares) = (0.0f64, 0.0, 0.0);
            for x in x {
                n += 1.0;
                sum += x;
                squares += x * x;
            }
            let mean = sum / n.max(1.0);
            (mean, (squares / n.max(1.0) - mean * mean).max(0.0).sqrt())
        };
        let before = moments(&mut inner.iter().map(|x| f64::from(*x)));
        let code = |x: &f32| f64::from(self.points[usize::from(nearest(&self.points, *x))]);
        let after = moments(&mut inner.iter().map(code));
        if after.1 > 0.0 {
            let stretch = before.1 / after.1;
            let level = |p: &f32| ((f64::from(*p) - after.0) * stretch + before.0) as f32;
            self.levels = self.points.iter().map(level).collect();
        }
        self
    }

    /// The numbers of keys `[tokens, channels]` inside their ranges, or of values within those of their tokens, on -1 to 1:
    /// what [`KvLevels::with_spread_of`] takes.
    #[must_use]
    pub fn inner(&self, x: ArrayView2<'_, f32>, outliers: f64) -> Vec<f32> {
        let mut inner = Vec::with_capacity(x.len());
        for token in x.rows() {
            if self.lower.is_empty() {
                let (range, out) = dynamic(&token.to_vec(), outliers);
                let rest = token.iter().zip(&out).filter(|(_, out)| !**out);
                inner.extend(rest.map(|(x, _)| inward(*x, range)));
            } else {
                let ranges = self.lower.iter().copied().zip(self.upper.iter().copied());
                let all = token.iter().zip(ranges).map(|(x, range)| inward(*x, range));
                inner.extend(all.filter(|x| x.abs() <= 1.0));
            }
        }
        inner
    }
}

/// Which numbers of a vector are outliers, those at the ends among them, and the range of the rest: these become the lower
/// median first, as the released code does. Without outliers the range is that of all.
pub(super) fn dynamic(x: &[f32], outliers: f64) -> ((f32, f32), Vec<bool>) {
    let mut sorted = x.to_vec();
    sorted.sort_by(f32::total_cmp);
    if outliers == 0.0 {
        return ((sorted[0], sorted[sorted.len() - 1]), vec![false; x.len()]);
    }
    let (low, high) =
        (percentile(&sorted, outliers / 2.0), percentile(&sorted, 1.0 - outliers / 2.0));
    let out: Vec<bool> = x.iter().map(|x| *x <= low || *x >= high).collect();
    let median = sorted[(sorted.len() - 1) / 2];
    let rest = x.iter().zip(&out).map(|(x, out)| if *out { median } else { *x });
    let range = rest.fold((median, median), |(a, b), x| (a.min(x), b.max(x)));
    (range, out)
}

fn check(x: ArrayView2<'_, f32>, bits: u32, outliers: f64) -> Result<()> {
    if x.is_empty() {
        return Err(Error::invalid("no numbers to learn levels from: at least one token expected"));
    }
    if !(2..=8).contains(&bits) {
        return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 8")));
    }
    if !(0.0..1.0).contains(&outliers) {
        return Err(Error::invalid(format!("outliers = {outliers}: allowed are 0 to below 1")));
    }
    match x.iter().find(|x| !x.is_finite()) {
        Some(bad) => Err(Error::numerical(format!("{bad} among what levels are learnt from"))),
        None => Ok(()),
    }
}
