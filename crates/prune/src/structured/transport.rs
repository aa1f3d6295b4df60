//! Units that go, fused into those that stay by optimal transport (Theus, Geimer, Wicke, Hofmann, Anagnostidis, Singh:
//! "Towards Meta-Pruning via Optimal Transport", ICLR 2024).

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::rewrite::{Change, Edit};
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{Context, DType, RawTensor, Result};

use super::Track;
use super::emd::transport_plan;
use super::repair::{Site, renewed};

/// How units that go are fused into those that stay.
///
/// The plan is the optimal transport from all units to those that stay; the cost of a pair is the norm of the difference of
/// their features, joined from incoming and outgoing weights and scaled to length 1. With its columns scaled to sum to 1,
/// rows that write units and the columns that read them become its averages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Transport {
    /// The norm that distances are measured by. Default: Euclid's.
    pub norm: Norm,
    /// Units have the mass of what they cost in their track; else all have the same. Default false.
    pub by_importance: bool,
}

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Norm {
    /// Sum of absolute values.
    L1,
    /// Euclid's.
    #[default]
    L2,
}

impl Knobs for Transport {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let norms = [("l2", Norm::L2), ("l1", Norm::L1)];
        keys.choice("norm", &mut self.norm, &norms, "what distances of units are measured by")?;
        let about = "units have the mass of their score, else all the same";
        keys.flag("by_importance", &mut self.by_importance, about)
    }
}

/// Masses in all: fine enough for any score, and their sums are exact.
const WHOLE: u64 = 1 << 50;

impl Transport {
    /// Sets the norm.
    #[must_use]
    pub fn with_norm(mut self, norm: Norm) -> Self {
        self.norm = norm;
        self
    }

    /// Sets whether masses are scores.
    #[must_use]
    pub fn with_by_importance(mut self, by_importance: bool) -> Self {
        self.by_importance = by_importance;
        self
    }

    /// Costs `[units, kept]` between features `[units, features]` scaled to length 1 (those of zeros stay).
    #[must_use]
    pub fn costs(&self, features: ArrayView2<'_, f32>, kept: &[usize]) -> Array2<f64> {
        let mut unit = features.mapv(f64::from);
        for mut row in unit.rows_mut() {
            let length = row.dot(&row).sqrt();
            row.mapv_inplace(|v| if length > 0.0 { v / length } else { 0.0 });
        }
        let mut costs = Array2::zeros((unit.nrows(), kept.len()));
        let rows = costs.rows_mut().into_iter().zip(unit.rows());
        Par::Rayon.for_each(rows.collect::<Vec<_>>().into_iter(), |(mut costs, a)| {
            for (cost, b) in costs.iter_mut().zip(kept) {
                let differences = a.iter().zip(unit.row(*b)).map(|(a, b)| a - b);
                *cost = match self.norm {
                    Norm::L1 => differences.map(f64::abs).sum(),
                    Norm::L2 => differences.map(|d| d * d).sum::<f64>().sqrt(),
                };
            }
        });
        costs
    }

    /// Shares `[units, kept]`: the optimal plan, each column scaled to sum to 1.
    ///
    /// # Errors
    /// Those of [`transport_plan`].
    pub fn shares(
        &self,
        features: ArrayView2<'_, f32>,
        track: &Track,
        kept: &[usize],
    ) -> Result<Array2<f64>> {
        let costs = self.costs(features, kept);
        let weights = track.by_unit();
        let of_kept: Vec<f64> = kept.iter().map(|unit| weights[*unit]).collect();
        let (supply, demand) = match self.by_importance {
            true => (masses(&weights), masses(&of_kept)),
            // Exactly the same for each on both sides.
            false => {
                (vec![kept.len() as u64; weights.len()], vec![weights.len() as u64; kept.len()])
            }
        };
        let mut shares = transport_plan(costs.view(), &supply, &demand)?.mapv(|mass| mass as f64);
        for ((mut column, mass), unit) in shares.columns_mut().into_iter().zip(&demand).zip(kept) {
            match *mass {
                // Nothing goes there: the unit stays as it is.
                0 => column[*unit] = 1.0,
                mass => column.mapv_inplace(|share| share / mass as f64),
            }
        }
        Ok(shares)
    }

    /// Makes every matrix of the module anew from the shares.
    pub(super) fn fuse(&self, site: &Site<'_, '_>, mut edit: Edit) -> Result<Edit> {
        let part = site.part;
        let shares = self.shares(part.features()?.view(), site.track, site.kept)?;
        let reader = part.reader();
        let fused = fused(part.weight()?.t(), shares.view());
        edit = renewed(part, &reader.name, fused.t(), edit)?;
        for (spec, weight) in part.writers()? {
            edit = renewed(part, &spec.name, fused_view(&weight, shares.view()).view(), edit)?;
            if let Some(bias) = part.bias(spec) {
                let bias = Array2::from_shape_vec((bias.len(), 1), bias).expect("one column");
                let values = fused_view(&bias, shares.view()).remove_axis(Axis(1));
                let dtype: DType = part.dtype(&spec.bias)?;
                let tensor = RawTensor::from_f32(values.view().into_dyn(), dtype);
                edit = edit.with_change(&spec.bias, Change::New(tensor.in_tensor(&spec.bias)?));
            }
        }
        Ok(edit)
    }
}

fn fused_view(rows: &Array2<f32>, shares: ArrayView2<'_, f64>) -> Array2<f32> {
    fused(rows.view(), shares)
}

/// Rows `[units * n, in]` become `[kept * n, in]`: row i of a unit that stays is the mean of the rows i of all units, by its
/// shares. Sums are f64.
fn fused(rows: ArrayView2<'_, f32>, shares: ArrayView2<'_, f64>) -> Array2<f32> {
    let (units, kept) = shares.dim();
    let each = rows.nrows() / units.max(1);
    let mut fused = Array2::<f64>::zeros((kept * each, rows.ncols()));
    for ((unit, to), share) in shares.indexed_iter().filter(|(_, share)| **share > 0.0) {
        for i in 0..each {
            let row = rows.row(unit * each + i);
            let mut sum = fused.row_mut(to * each + i);
            sum.zip_mut_with(&row, |sum, v| *sum += share * f64::from(*v));
        }
    }
    fused.mapv(|v| v as f32)
}

/// Whole masses that sum to [`WHOLE`], in proportion to weights; the same for all if these are all 0. What rounding leaves
/// goes to the largest, of equals the first.
fn masses(weights: &[f64]) -> Vec<u64> {
    let most = weights.iter().copied().fold(0.0, f64::max);
    let scaled: Vec<f64> =
        weights.iter().map(|w| if most > 0.0 { w / most } else { 1.0 }).collect();
    let sum: f64 = scaled.iter().sum();
    let mut masses: Vec<u64> =
        scaled.iter().map(|w| (w / sum * (WHOLE as f64) * (1.0 - 1e-12)) as u64).collect();
    let largest = (0..masses.len()).rev().max_by(|a, b| scaled[*a].total_cmp(&scaled[*b]));
    if let Some(largest) = largest {
        masses[largest] += WHOLE - masses.iter().sum::<u64>();
    }
    masses
}
