use tensorpress_tensor::node::LevelTable;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result};

use super::LevelSpec;

/// Differentiable k-means (DKM; Cho et al., 2022; eDKM, 2023): levels are the fixed point of soft assignments, in which each
/// weight belongs to all levels, the more the nearer; then each weight becomes the nearest. Needs no calibration.
///
/// Assignments are made for the distinct values of 16 bits that weights have, not for each weight.
///
/// ```
/// use tensorpress_quant::{Dkm, LevelSpec};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Dkm::new(LevelSpec::new(3)).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Dkm {
    /// Levels, and which rows share them. Default 3 bits, one table for the matrix.
    pub levels: LevelSpec,
    /// Softness: the temperature τ over the variance of the weights a table is for, times 4^bits; above 0. Default 0.1.
    pub temperature: f32,
    /// Steps at most. Default 100.
    pub iterations: usize,
}

impl Default for Dkm {
    fn default() -> Self {
        let levels = LevelSpec::new(3).with_rows(0);
        Self { levels, temperature: 0.1, iterations: 100 }
    }
}

/// A step that moves no level by more, as a part of the largest weight, is the last.
const STILL: f64 = 1e-6;
/// Below this an exponential counts for nothing beside 1.
const FARTHEST: f64 = -40.0;

impl Dkm {
    /// Tables as they are specified.
    #[must_use]
    pub fn new(levels: LevelSpec) -> Self {
        Self { levels, ..Self::default() }
    }

    /// Sets the softness.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets the most steps.
    #[must_use]
    pub fn with_iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    fn check_temperature(&self) -> Result<()> {
        let temperature = self.temperature;
        match temperature.is_finite() && temperature > 0.0 {
            true => Ok(()),
            false => {
                Err(Error::invalid(format!("temperature = {temperature}: allowed are above 0")))
            }
        }
    }

    /// The levels of some finite values, ascending: from those at the middles of as many equal parts of the sorted values on,
    /// a_vk = softmax over levels of -(v - c_k)² / τ, c_k = Σ_v n_v a_vk v / Σ_v n_v a_vk, until they stand still.
    #[must_use]
    pub fn fixed_point(&self, values: &[f32], count: usize) -> Vec<f32> {
        let unique = unique(values);
        let total: f64 = unique.iter().map(|(_, n)| n).sum();
        if unique.is_empty() || count == 0 {
            return vec![0.0; count];
        }
        let mean = unique.iter().map(|(v, n)| n * v).sum::<f64>() / total;
        let variance = unique.iter().map(|(v, n)| n * (v - mean).powi(2)).sum::<f64>() / total;
        let most = unique.iter().fold(0f64, |most, (v, _)| most.max(v.abs()));
        let mut levels = quantiles(&unique, total, count);
        let tau = f64::from(self.temperature) * variance / (count * count) as f64;
        if tau > 0.0 {
            for _ in 0..self.iterations {
                let moved = step(&unique, &mut levels, tau);
                if moved <= STILL * most {
                    break;
                }
            }
        }
        levels.sort_by(f64::total_cmp);
        levels.into_iter().map(|level| level as f32).collect()
    }
}

/// Distinct values, as 16 bits tell them apart, and how many weights have each; ascending.
fn unique(values: &[f32]) -> Vec<(f64, f64)> {
    let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
    // Brought to where f16 is exact to 11 bits for all but the smallest.
    let unit = if most > 0.0 { most / 32768.0 } else { 1.0 };
    let unit = if unit.is_normal() { unit } else { f32::MIN_POSITIVE };
    let mut sorted: Vec<f32> = values.iter().map(|v| DType::F16.round(v / unit)).collect();
    sorted.sort_by(f32::total_cmp);
    let mut unique: Vec<(f64, f64)> = Vec::new();
    for value in sorted {
        let value = f64::from(value) * f64::from(unit);
        match unique.last_mut() {
            Some((last, n)) if *last == value => *n += 1.0,
            _ => unique.push((value, 1.0)),
        }
    }
    unique
}

fn quantiles(unique: &[(f64, f64)], total: f64, count: usize) -> Vec<f64> {
    let (mut at, mut before) = (0, 0.0);
    let middle = |k: usize| total * (k as f64 + 0.5) / count as f64;
    (0..count)
        .map(|k| {
            while at + 1 < unique.len() && before + unique[at].1 < middle(k) {
                before += unique[at].1;
                at += 1;
            }
            unique[at].0
        })
        .collect()
}

/// One step; how far the farthest level moved.
fn step(unique: &[(f64, f64)], levels: &mut [f64], tau: f64) -> f64 {
    let mut sums = vec![(0.0, 0.0); levels.len()];
    let mut near = vec![0.0; levels.len()];
    for (value, n) in unique {
        let least = levels.iter().fold(f64::INFINITY, |least, l| least.min((value - l).abs()));
        let mut total = 0.0;
        for (near, level) in near.iter_mut().zip(&*levels) {
            // The nearest counts 1: nothing underflows to a sum of 0.
            let far = (least * least - (value - level).powi(2)) / tau;
            *near = if far > FARTHEST { far.exp() } else { 0.0 };
            total += *near;
        }
        for ((sum, weight), near) in sums.iter_mut().zip(&near) {
            let part = n * near / total;
            *sum += part * value;
            *weight += part;
        }
    }
    let mut moved = 0f64;
    for (level, (sum, weight)) in levels.iter_mut().zip(sums) {
        // A level that no value is near to stays.
        if weight > 0.0 {
            let next = sum / weight;
            moved = moved.max((next - *level).abs());
            *level = next;
        }
    }
    moved
}

impl Knobs for Dkm {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.levels.knobs(keys)?;
        let about = "softness of assignments: their temperature over variance / 4^bits";
        keys.float("temperature", &mut self.temperature, 1e-6..=1e6, about)?;
        keys.int("iterations", &mut self.iterations, 0..=1 << 16, "steps at most")
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "dkm",
        "rounds to levels that are the fixed point of soft assignments; needs no calibration",
        Dkm::default,
    )
}

impl Method for Dkm {
    fn id(&self) -> &'static str {
        "dkm"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for Dkm {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        self.check_temperature()?;
        group.each(|target| {
            self.levels
                .fit_by(target, group.par, |values, _, count| self.fixed_point(values, count))
        })
    }
}
