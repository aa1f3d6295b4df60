//! Vectors of consecutive weights that become points of a lattice or a pyramid: codes without a codebook to store.

mod e8;
mod pvq;

pub use e8::E8;
pub use pvq::Pvq;

use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::{Error, Result, Target};

/// The stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 2] {
    [pvq::stage(), e8::stage()]
}

/// Refuses a target of which only a support is kept.
fn check_whole(target: &Target<'_>) -> Result<()> {
    match target.mask {
        None => Ok(()),
        Some(_) => Err(Error::unsupported("vectors of a matrix of which only a support is kept")),
    }
}
