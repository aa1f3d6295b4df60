//! Levels that lose least: exact k-means of numbers.

use crate::{Error, Result};

/// Distinct numbers that are told apart: what lies behind is merged with its neighbours first, in as many runs.
const MOST_POINTS: usize = 1 << 16;

/// The levels, ascending, that minimise the sum of `weight (value - nearest level)²`: the global optimum, to rounding in f64,
/// for up to 65536 distinct values; of more, neighbours are taken together first. Where fewer values than `count` are
/// distinct, the greatest fills the table. All weights count alike if none is given, or if all are 0.
///
/// Optimal partitions of sorted numbers are intervals whose ends grow with what there is to divide (Wu, 1991), so that
/// divide and conquer finds those of n numbers in O(count n log n).
///
/// ```
/// let levels = tensorpress_tensor::cluster::optimal_levels(&[5.0, 1.0, 1.5, 9.0], None, 3)?;
/// assert_eq!(levels, [1.25, 5.0, 9.0]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` unless `count` is 1 to 65536, `ShapeMismatch` for weights of another length, `Numerical` for values that
/// are not finite and weights that are not, or negative.
pub fn optimal_levels(values: &[f32], weights: Option<&[f32]>, count: usize) -> Result<Vec<f32>> {
    if !(1..=1 << 16).contains(&count) {
        return Err(Error::invalid(format!("{count} levels: allowed are 1 to 65536")));
    }
    if let Some(weights) = weights.filter(|weights| weights.len() != values.len()) {
        let (got, wanted) = (weights.len(), values.len());
        return Err(Error::shape(format!("{got} weights of {wanted} values")));
    }
    if let Some((i, v)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(Error::numerical(format!("value {i} is {v}")));
    }
    let bad = |w: &f32| !w.is_finite() || *w < 0.0;
    if let Some((i, w)) = weights.into_iter().flatten().enumerate().find(|(_, w)| bad(w)) {
        return Err(Error::numerical(format!("weight {i} is {w}")));
    }
    let weights = weights.filter(|weights| weights.iter().any(|w| *w > 0.0));
    let mut points: Vec<(f64, f64)> = match weights {
        None => values.iter().map(|v| (f64::from(*v), 1.0)).collect(),
        Some(weights) => {
            let pairs = values.iter().zip(weights).filter(|(_, w)| **w > 0.0);
            pairs.map(|(v, w)| (f64::from(*v), f64::from(*w))).collect()
        }
    };
    // Stable, so that sums are those of the order given.
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 += if same { next.1 } else { 0.0 };
        same
    });
    if points.len() > MOST_POINTS {
        points = merged(&points);
    }
    let mut levels: Vec<f32> = if points.len() <= count {
        points.iter().map(|(value, _)| *value as f32).collect()
    } else {
        Partition::new(&points).best(count)
    };
    levels.resize(count, levels.last().copied().unwrap_or(0.0));
    Ok(levels)
}

/// Runs of neighbours as points in their means.
fn merged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let run = points.len().div_ceil(MOST_POINTS);
    let mean = |run: &[(f64, f64)]| {
        let weight: f64 = run.iter().map(|point| point.1).sum();
        (run.iter().map(|(value, weight)| value * weight).sum::<f64>() / weight, weight)
    };
    points.chunks(run).map(mean).collect()
}

/// Sums over the first points, about their mean: what the cost of any interval is found from.
struct Partition {
    mean: f64,
    weight: Vec<f64>,
    sum: Vec<f64>,
    square: Vec<f64>,
}

impl Partition {
    fn new(points: &[(f64, f64)]) -> Self {
        let total: f64 = points.iter().map(|point| point.1).sum();
        let mean = points.iter().map(|(value, weight)| value * (weight / total)).sum::<f64>();
        let sums = |of: &dyn Fn(f64, f64) -> f64| {
            let mut sum = 0.0;
            let next = |(value, weight): &(f64, f64)| {
                sum += of(value - mean, *weight);
                sum
            };
            [0.0].into_iter().chain(points.iter().map(next)).collect::<Vec<f64>>()
        };
        Self {
            mean,
            weight: sums(&|_, weight| weight),
            sum: sums(&|value, weight| value * weight),
            square: sums(&|value, weight| value * value * weight),
        }
    }

    fn points(&self) -> usize {
        self.weight.len() - 1
    }

    /// What the points `from..to`, at least one, lose around their mean.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let sum = self.sum[to] - self.sum[from];
        let loss =
            self.square[to] - self.square[from] - sum * sum / (self.weight[to] - self.weight[from]);
        loss.max(0.0)
    }

    /// The means of the best `count` intervals; there are more points than that.
    fn best(&self, count: usize) -> Vec<f32> {
        let n = self.points();
        // The least loss of the first points in so many intervals, and where the last of these begins.
        let mut least: Vec<f64> =
            (0..=n).map(|to| if to == 0 { 0.0 } else { self.cost(0, to) }).collect();
        let mut begins: Vec<Vec<u32>> = Vec::with_capacity(count);
        let mut next = vec![0.0; n + 1];
        for intervals in 2..=count {
            let mut begin = vec![0u32; n + 1];
            // Of the last layer the whole alone is asked for.
            let first = if intervals == count { n } else { intervals };
            let layer = Layer { partition: self, least: &least };
            layer.fill(first..n + 1, intervals - 1..n, &mut next, &mut begin);
            std::mem::swap(&mut least, &mut next);
            begins.push(begin);
        }
        let mut levels = Vec::with_capacity(count);
        let mut to = n;
        let firsts = begins.iter().rev().map(Some).chain([None]);
        for begin in firsts {
            let from = begin.map_or(0, |begin| begin[to] as usize);
            let mean = (self.sum[to] - self.sum[from]) / (self.weight[to] - self.weight[from]);
            levels.push((self.mean + mean) as f32);
            to = from;
        }
        levels.reverse();
        levels
    }
}

/// One interval more than `least` is for.
struct Layer<'a> {
    partition: &'a Partition,
    least: &'a [f64],
}

impl Layer<'_> {
    /// Fills `next` and `begin` of the ends `to`, whose last intervals begin in `from`.
    fn fill(
        &self,
        to: std::ops::Range<usize>,
        from: std::ops::Range<usize>,
        next: &mut [f64],
        begin: &mut [u32],
    ) {
        if to.is_empty() {
            return;
        }
        let middle = to.start + to.len() / 2;
        let mut best = (f64::INFINITY, from.start);
        for at in from.start..from.end.min(middle) {
            let loss = self.least[at] + self.partition.cost(at, middle);
            if loss < best.0 {
                best = (loss, at);
            }
        }
        (next[middle], begin[middle]) = (best.0, best.1 as u32);
        self.fill(to.start..middle, from.start..best.1 + 1, next, begin);
        self.fill(middle + 1..to.end, best.1..from.end, next, begin);
    }
}
