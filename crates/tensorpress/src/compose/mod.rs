//! Methods made of methods, in a line of Rust:
//!
//! ```
//! use tensorpress::prelude::*;
//! use tensorpress::{lowrank::eora, prune::{Pattern, wanda}};
//!
//! let method = wanda(Pattern::nm(2, 4))
//!     .then(Gptq::new(GridSpec::new(3, 64)))
//!     .residual(eora(16))
//!     .coded(TileCoder::Rans);
//! # let _: &dyn DynCompress = &method;
//! ```
//!
//! Each result is a [`Compress`] of its own, so they nest; [`crate::recipe`] says the same in text.

mod coded;
mod residual;
mod then;

pub use coded::Coded;
pub use residual::Residual;
pub use then::{Kept, Then};

use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::{Compress, Method, Recode, Select};

/// The stages of this module: what a recipe says in parentheses or after a method.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    vec![residual::stage(), coded::stage()]
}

/// Composition of methods; implemented for all of them.
///
/// ```
/// use tensorpress::prelude::*;
/// use tensorpress::tensor::{ndarray::Array2, stats::Calibration};
///
/// let weight = Array2::from_shape_fn((4, 32), |(r, c)| (r * 32 + c) as f32 - 64.0);
/// let method = magnitude(Pattern::nm(2, 4)).then(Rtn::new(GridSpec::new(4, 32)));
/// let sparse = method.compress(weight.view(), &Calibration::none(32))?;
/// assert_eq!(sparse.node.shape(), [4, 32]);
/// # Ok::<(), Error>(())
/// ```
pub trait Compose: Method + Sized {
    /// The support this selector chooses is fixed, then `method` compresses what stays.
    #[must_use]
    fn then<C: Compress>(self, method: C) -> Then<Self, C>
    where
        Self: Select,
    {
        Then::new(self, method)
    }

    /// `correction` compresses what this method leaves over; the result is their sum.
    #[must_use]
    fn residual<C: Compress>(self, correction: C) -> Residual<Self, C>
    where
        Self: Compress,
    {
        Residual::new(self, correction)
    }

    /// Entropy-codes the integers of what this method returns, without loss.
    #[must_use]
    fn coded<C: Recode>(self, coder: C) -> Coded<Self, C>
    where
        Self: Compress,
    {
        Coded::new(self, coder)
    }
}

impl<M: Method> Compose for M {}
