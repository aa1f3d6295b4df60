//! How much a weight matters.

use std::fmt::Debug;

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stats::{Calibration, Moments, Needs};
use tensorpress_tensor::{Result, Usable};

/// A score for every weight; the least go first.
pub trait Saliency: Debug + Send + Sync {
    /// Name of the method that prunes by it.
    fn id(&self) -> &'static str;
    /// Statistics it uses.
    fn needs(&self) -> Needs;
    /// Scores of a matrix, if the statistics can be used.
    ///
    /// # Errors
    /// `MissingCalibration`, `ShapeMismatch`.
    fn scores(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
    ) -> Result<Usable<Array2<f32>>>;
}

/// |w|: what is small goes (LeCun et al., 1989, call it the baseline; Han et al., 2015).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Magnitude;

impl Saliency for Magnitude {
    fn id(&self) -> &'static str {
        "magnitude"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn scores(&self, weight: ArrayView2<'_, f32>, _: &Calibration) -> Result<Usable<Array2<f32>>> {
        Ok(Usable::Yes(weight.mapv(f32::abs)))
    }
}

/// |w| times the norm of its input over the calibration (Wanda: Sun et al., "A Simple and Effective Pruning Approach
/// for Large Language Models", 2024, eq. 1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputNorm;

impl Saliency for InputNorm {
    fn id(&self) -> &'static str {
        "wanda"
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS
    }

    fn scores(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
    ) -> Result<Usable<Array2<f32>>> {
        if let Usable::No(reason) = calibration.seen() {
            return Ok(Usable::No(reason));
        }
        Ok(calibration.usable::<Moments>()?.map(|moments| {
            let norms = moments.l2_norm().mapv(|norm| norm as f32);
            weight.mapv(f32::abs) * &norms
        }))
    }
}
