//! Images in a safetensors file, for models that read such.

use ndarray::Array4;
use tensorpress_tensor::{Context as _, Error, Result, Tensor};

use super::corpus::Corpus;
use crate::source::Source;

const PIXELS: &str = "pixel_values";

impl Corpus {
    /// The first images, `[images, channels, height, width]`, as a model reads them.
    ///
    /// # Errors
    /// `InvalidArgument` if none is asked for; `Unsupported` for a model that reads none; `InsufficientData` if there is none here; `ShapeMismatch` for images of
    /// another size than the model's, `Corruption` for values that are no floats, `Numerical` for those that are not
    /// finite, each naming tensor and file.
    pub fn images(&self, source: &Source, most: usize) -> Result<Array4<f32>> {
        if most == 0 {
            return Err(Error::invalid("0 images: allowed are 1 and more"));
        }
        let read = || -> Result<Array4<f32>> {
            let Some(images) = source.config().images else {
                return Err(Error::unsupported("images, and the model reads tokens"));
            };
            let Some(pixels) = self.pixels() else {
                return Err(Error::insufficient("is not there, and the model reads images"));
            };
            let [channels, height, width] = images.shape();
            let count = match pixels.shape() {
                [count, rest @ ..] if rest == images.shape() && *count > 0 => (*count).min(most),
                found => {
                    return Err(Error::shape(format!(
                        "is {found:?}; the model reads [images, {channels}, {height}, {width}]"
                    )));
                }
            };
            if !pixels.dtype().is_float() {
                return Err(Error::corruption(format!(
                    "is {:?}; allowed are floats",
                    pixels.dtype()
                )));
            }
            let mut values = vec![0.0; count * channels * height * width];
            pixels.read_rows(0..count, &mut values)?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::numerical(format!("value {at} is {}", values[at])));
            }
            let shape = (count, channels, height, width);
            Ok(Array4::from_shape_vec(shape, values).expect("as many values"))
        };
        read().in_tensor(PIXELS).map_err(|error| self.located(error))
    }
}
