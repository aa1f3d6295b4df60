//! How much a weight matters.

use std::fmt::Debug;

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{ErrorKind, Result};

/// A score for every weight; the least go first.
pub trait Saliency: Debug + Send + Sync {
    /// Name of the method that prunes by it.
    fn id(&self) -> &'static str;
    /// Statistics it uses.
    fn needs(&self) -> Needs;
    /// Scores of a matrix; `Err(reason)` inside if the statistics cannot be used.
    ///
    /// # Errors
    /// `MissingCalibration`, `ShapeMismatch`.
    fn scores(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
    ) -> Result<std::result::Result<Array2<f32>, String>>;
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

    fn scores(
        &self,
        weight: ArrayView2<'_, f32>,
        _: &Calibration,
    ) -> Result<std::result::Result<Array2<f32>, String>> {
        Ok(Ok(weight.mapv(f32::abs)))
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
    ) -> Result<std::result::Result<Array2<f32>, String>> {
        if calibration.tokens() == 0 {
            return Ok(Err("saw no calibration token".into()));
        }
        let moments = match calibration.moments() {
            Ok(moments) => moments,
            Err(e) if e.kind() == ErrorKind::Numerical => return Ok(Err(e.message().to_owned())),
            Err(e) => return Err(e),
        };
        let norms = moments.l2_norm().mapv(|norm| norm as f32);
        Ok(Ok(weight.mapv(f32::abs) * &norms))
    }
}
