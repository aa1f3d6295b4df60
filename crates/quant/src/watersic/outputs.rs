use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::{Calibration, Supply};
use tensorpress_tensor::{ErrorKind, Result, Target, Usable};

use super::{RowSteps, Watersic};
use tensorpress_tensor::obs::{Damping, Factor};

/// What errors in a matrix's outputs cost.
#[derive(Debug)]
pub(super) struct Outputs {
    /// A squared error of each, positive.
    pub costs: Vec<f64>,
    /// Unit upper: what rows feed each other.
    pub feedback: Option<Array2<f32>>,
}

impl Outputs {
    /// All alike, so that the outputs' mean energy is 1: errors are relative then.
    fn equal(target: &Target<'_>, inputs: &Factor) -> Self {
        let mut energy = 0.0f64;
        for row in target.kept_weight().rows() {
            let squares = row.iter().zip(&inputs.diagonal).map(|(w, a)| f64::from(*w).powi(2) * a);
            energy += squares.sum::<f64>();
        }
        let rows = target.weight.nrows();
        let cost = rows as f64 / energy;
        let cost = if cost.is_finite() && cost > 0.0 { cost } else { 1.0 };
        Self { costs: vec![cost; rows], feedback: None }
    }
}

impl Watersic {
    /// What errors in the outputs cost: of each row, and what rows feed each other.
    pub(super) fn outputs(
        &self,
        target: &Target<'_>,
        inputs: &Factor,
        calibration: &Calibration,
        par: Par,
    ) -> Result<(Outputs, Option<String>)> {
        let supplied = match self.rows {
            RowSteps::None => Usable::no(""),
            _ => self.fisher(target, calibration, par)?,
        };
        let found = supplied.and_then(|g| self.costs(&g, par));
        Ok(match found {
            Usable::Yes(found) => found,
            Usable::No(reason) => {
                let wanted = matches!(self.rows, RowSteps::Diag | RowSteps::Full);
                let note = wanted.then(|| format!("{reason}: rows of equal steps"));
                (Outputs::equal(target, inputs), note)
            }
        })
    }

    /// G `[out, out]`, or its diagonal `[1, out]` where that will do.
    fn fisher(
        &self,
        target: &Target<'_>,
        calibration: &Calibration,
        par: Par,
    ) -> Result<Usable<Array2<f32>>> {
        let mut missing = None;
        for supply in [self.supply(), Supply::OUTPUT_FISHER] {
            match calibration.supplied(supply, target, par) {
                Err(e) if e.kind() == ErrorKind::MissingCalibration => missing = Some(e),
                other => return Usable::of(other),
            }
        }
        Ok(Usable::no(missing.map_or(String::new(), |e| e.message().to_owned())))
    }

    pub(super) fn supply(&self) -> Supply {
        match self.rows {
            RowSteps::Full => Supply::OUTPUT_FISHER,
            _ => Supply::OUTPUT_FISHER_DIAGONAL,
        }
    }

    /// Costs by G `[out, out]` or its diagonal `[1, out]`.
    fn costs(&self, g: &Array2<f32>, par: Par) -> Usable<(Outputs, Option<String>)> {
        let whole = g.is_square();
        if self.rows == RowSteps::Full && whole {
            let damp = f64::from(self.gdamp.unwrap_or(1.0));
            return match Factor::of("output Fisher matrix", g.view(), 1.0, damp, Damping::Each, par)
            {
                Ok(factor) => Usable::Yes((
                    Outputs { costs: factor.pivots, feedback: Some(factor.unit) },
                    factor.note,
                )),
                Err(e) => Usable::no(e.message()),
            };
        }
        let diagonal = if whole { g.diag() } else { g.row(0) };
        let diagonal: Vec<f64> = diagonal.iter().map(|v| f64::from(v.max(0.0))).collect();
        let mean = diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return Usable::no("its output Fisher matrix is 0");
        }
        // Rows that nothing was seen to depend on still cost something.
        let damp = f64::from(self.gdamp.unwrap_or(0.1)).max(1e-6) * mean;
        let costs = diagonal.into_iter().map(|g| g + damp).collect();
        let note = (self.rows == RowSteps::Full)
            .then(|| "only the diagonal of the output Fisher matrix: rows feed nothing".to_owned());
        Usable::Yes((Outputs { costs, feedback: None }, note))
    }
}
