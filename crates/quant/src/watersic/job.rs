use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::{Mask, StepFormat};
use tensorpress_tensor::rate::{OCTAVE, RateCurve};

use super::path::{self, Paths};
use super::rate;
use super::sweep::Sweep;

/// A matrix to be rounded at one step or another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub weight: ArrayView2<'a, f32>,
    pub inputs: ArrayView2<'a, f32>,
    pub outputs: Option<ArrayView2<'a, f32>>,
    /// log2 of the columns' steps, where delta is 1.
    pub columns: &'a [f64],
    pub row_exponents: &'a [i32],
    pub paths: Option<(&'a Paths, f32)>,
    pub mask: Option<&'a Mask>,
    pub par: Par,
}

impl Job<'_> {
    /// Codes, and the exponents of the columns' steps.
    pub(super) fn run(&self, delta_log2: f64) -> (Array2<i32>, Vec<i32>) {
        let exponent = |log2: &f64| StepFormat::eighths((log2 + delta_log2).exp2());
        let exponents: Vec<i32> = self.columns.iter().map(exponent).collect();
        let steps = |of: &[i32]| of.iter().map(|e| StepFormat::step(*e)).collect::<Vec<f32>>();
        let codes = Sweep {
            weight: self.weight.reborrow(),
            inputs: self.inputs.reborrow(),
            outputs: self.outputs.map(ArrayView2::reborrow),
            row_steps: &steps(self.row_exponents),
            column_steps: &steps(&exponents),
            paths: self.paths,
            mask: self.mask,
            par: self.par,
        }
        .run();
        (codes, exponents)
    }

    /// The codes that take nearest to `bits` a weight. Some rows find the step nearly, where rows do not feed each other; all
    /// of them find it.
    pub(super) fn search(&self, bits: f64) -> (Array2<i32>, Vec<i32>) {
        let mut start = rate::first_guess(self, bits);
        if let Some(few) = self.few().filter(|_| self.outputs.is_none() && self.mask.is_none()) {
            start = rate::search(&few.job(self), bits, start).0;
        }
        let (_, codes, exponents) = rate::search(self, bits, start);
        (codes, exponents)
    }

    /// About the bits of the matrix by the step, found on some of its rows: points finer and coarser than where it takes
    /// about `bits` a weight.
    pub(super) fn curve(&self, bits: f64) -> RateCurve {
        let few = self.few();
        let job = match &few {
            Some(few) => few.job(self),
            None => self.one_sided(),
        };
        let weights = self.weight.len() as u64;
        // Rows differ in their steps: those chosen stand for all where their sizes in steps are the same on average.
        let apart = rate::first_guess(self, bits) - rate::first_guess(&job, bits);
        let units = f64::from(OCTAVE);
        let point = |bits: f64| {
            let step = rate::first_guess(&job, bits);
            let rate = rate::of(&job, &job.run(step).0);
            (((step + apart) * units).round() as i32, (rate * weights as f64).round() as u64)
        };
        RateCurve::new(weights, AROUND.iter().map(|off| point(bits + off)).collect())
    }

    /// The same without feedback among rows.
    fn one_sided(&self) -> Job<'_> {
        Job {
            weight: self.weight.reborrow(),
            inputs: self.inputs.reborrow(),
            outputs: None,
            ..*self
        }
    }

    /// Some rows, if there are many more: whole pieces, far apart.
    fn few(&self) -> Option<Few> {
        let rows = self.weight.nrows();
        let pieces = rows.div_ceil(path::ROWS);
        if pieces <= 2 * SOME {
            return None;
        }
        let piece = |n: usize| n * pieces / SOME * path::ROWS;
        let chosen: Vec<usize> =
            (0..SOME).flat_map(|n| piece(n)..(piece(n) + path::ROWS).min(rows)).collect();
        let weight = self.weight.select(Axis(0), &chosen);
        Some(Few { weight, row_exponents: chosen.iter().map(|r| self.row_exponents[*r]).collect() })
    }
}

/// Pieces of rows that stand for all.
const SOME: usize = 4;

/// Bits a weight, from those asked for, at the points of a curve.
const AROUND: [f64; 3] = [1.5, 0.0, -1.0];

/// Some rows of a matrix.
struct Few {
    weight: Array2<f32>,
    row_exponents: Vec<i32>,
}

impl Few {
    /// The same job on them.
    fn job<'s>(&'s self, all: &'s Job<'_>) -> Job<'s> {
        Job {
            weight: self.weight.view(),
            inputs: all.inputs.reborrow(),
            outputs: None,
            columns: all.columns,
            row_exponents: &self.row_exponents,
            paths: all.paths,
            mask: None,
            par: all.par,
        }
    }
}
