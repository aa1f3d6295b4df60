//! Structured operators: a matrix as a composition of small ones that multiplies without being expanded.
//!
//! A form ([`Form`]: which small matrices, and how they are the closest) x how they are stored ([`crate::Factors`]) is a
//! method, [`Operator`]. [`compacter`] (sums of Kronecker products), [`compactif_ai`] (matrix product operators),
//! [`block_shuffle`] and [`block_dense`] are one form each. Every form is fitted in double precision by truncated singular
//! value decompositions of the matrix rearranged, and knows its exact error.
//!
//! Two operators are about several matrices: [`MatrixAtoms`] (layers that share atoms) and [`RandomHypernet`] (all weights
//! from a small latent and a seed); [`Compacter::fit`] shares rules among layers.

mod form;
mod matrix_atom_sharing;
mod matrix_product_operator;
mod phm_kron;
mod random_hypernet;
mod split;
mod structured_ffn;

use tensorpress_tensor::DynCompress;
use tensorpress_tensor::stage::{Row, WeightPart};

pub use form::{Effort, Fitted, Form, Operator, Tree};
pub use matrix_atom_sharing::{AtomFit, MatrixAtoms};
pub use matrix_product_operator::{BondPoint, MatrixProduct, MatrixProductFit, compactif_ai};
pub use phm_kron::{Compacter, KroneckerFit, compacter};
pub use random_hypernet::{Latent, RandomHypernet};
pub use structured_ffn::{BlockLowRank, block_dense, block_shuffle};

/// The stages of this module.
pub(crate) fn stages() -> Vec<Row<WeightPart>> {
    let rank = crate::Rank::default;
    vec![
        row("a sum of Kronecker products of small matrices with low-rank ones", move || {
            compacter(4, rank())
        }),
        row("a matrix product operator: a train of small tensors", move || compactif_ai(2, rank())),
        row("two block-diagonal factors with a shuffle between them", move || {
            block_shuffle(4, rank())
        }),
        row("a block-diagonal factor, then a dense one", move || block_dense(4, rank())),
    ]
}

/// A form's stage has the form's name; a method in its parentheses stores its factors.
fn row<F: Form + Clone + 'static>(
    about: &'static str,
    default: impl Fn() -> Operator<F> + Copy + Send + Sync + 'static,
) -> Row<WeightPart> {
    let name = default().form.id();
    Row::method_with(name, about, default, move |method: Operator<F>, inner| {
        let method: Box<dyn DynCompress> = match inner {
            Some(inner) => Box::new(method.stored_by(inner, &default().factors)?),
            None => Box::new(method),
        };
        Ok(method)
    })
}
