//! W as the product of a small dense factor and a sparse one: a dictionary of atoms, and for each vector a code of a few
//! of them.

mod atoms;
mod code;
mod dsformer;
mod pursuit;
mod rocket;

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::{Compressed, Node, Result, Storage, Target};

pub use atoms::Atoms;
pub use dsformer::DsFormer;
pub use rocket::Rocket;

pub(crate) use dsformer::stage as dsformer_stage;
pub(crate) use rocket::stage as rocket_stage;

/// The product, or the matrix itself where the factors would take as many bytes.
pub(crate) fn unless_larger(
    target: &Target<'_>,
    weight: &Array2<f32>,
    product: Product,
    note: Option<String>,
) -> Result<Compressed> {
    let (bytes, dense) = (Storage::of(&product)?.bytes(), weight.len() * target.dtype.size());
    if bytes < dense as u64 {
        return Ok(Compressed::new(product).boxed().with_note(note));
    }
    kept(target, weight, format!("factors would take {bytes} bytes, the matrix {dense}"))
}

/// The matrix as it is.
pub(crate) fn kept(
    target: &Target<'_>,
    weight: &Array2<f32>,
    reason: String,
) -> Result<Compressed> {
    let node = Dense::from_f32(weight.view(), target.dtype)?.boxed();
    Ok(Compressed::new(node).with_fallback(Some(format!("{reason}: kept dense"))))
}
