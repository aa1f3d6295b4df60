//! Activations in few bits: smoothing that moves their range into the weights, integers and products of integers.

mod division;
mod dynaquant;
mod fptq;
mod int8;
mod smooth;
mod smoothquant;

pub use division::{Division, DualPrecision};
pub use dynaquant::{DynaQuant, DynamicGradients, DynamicGrid, choose_bits};
pub use fptq::{ActivationRegime, Fptq};
pub use int8::Int8Rows;
pub use smoothquant::{ActivationRounding, SmoothQuant};

use tensorpress_tensor::stage::{Row, WeightPart};

/// The stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 2] {
    [smoothquant::stage(), fptq::stage()]
}
