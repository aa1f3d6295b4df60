use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Compressed, Context, Error, Group, Registry, Result, Target, Tensor};

use crate::recipe::Recipe;

/// Compresses one matrix W `[out, in]` by a recipe: an ndarray view or array of f64, f32, f16 or bf16, a slice with its
/// shape, or a tensor of a checkpoint. What is kept as it is, is kept in the type of the matrix.
///
/// ```
/// use tensorpress::prelude::*;
/// use tensorpress::tensor::{ndarray::Array2, stats::Calibration};
///
/// # fn main() -> Result<()> {
/// let weight = Array2::from_shape_fn((32, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = tensorpress::compress(&weight, "rtn(bits=4, group=32)", &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [32, 64]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `InvalidArgument` and `Unsupported` for what is no recipe for one matrix, and for one that folds scales into a layer
/// before; `ShapeMismatch` for statistics of another width or a tensor that is no matrix; `MissingCalibration`;
/// `Numerical` for weights that are not finite.
pub fn compress(
    weight: &dyn Tensor,
    recipe: &str,
    calibration: &Calibration,
) -> Result<Compressed> {
    compress_with(weight, recipe, calibration, &crate::registry())
}

/// [`compress`] with the stages of a registry of your own.
///
/// # Errors
/// As there.
pub fn compress_with(
    weight: &dyn Tensor,
    recipe: &str,
    calibration: &Calibration,
    registry: &Registry,
) -> Result<Compressed> {
    let name = "weight";
    let recipe = Recipe::parse_with(recipe, registry)?;
    let method = recipe
        .chain_for(name)
        .ok_or_else(|| Error::unsupported(format!("`{recipe}` compresses no matrix")))?;
    if let Some((stage, _)) = recipe.rewrites().first() {
        let message = format!("`{stage}` rewrites whole blocks of a model, not one matrix");
        return Err(Error::unsupported(message));
    }
    let method = method.build()?;
    let values = weight.to_matrix().in_tensor(name)?;
    let [_, channels] = weight.matrix_shape();
    if calibration.channels() != channels {
        let of = calibration.channels();
        let message = format!("statistics of {of} inputs for a matrix with {channels}");
        return Err(Error::shape(message).in_tensor(name));
    }
    let target = Target::new(name, values.view()).with_dtype(weight.dtype());
    let group = Group::single(target, calibration.clone());
    let mut made = method.compress_group_dyn(group)?;
    made.layers.pop().ok_or_else(|| Error::invalid("no result").in_tensor(name))
}
