use ndarray::ArrayViewMut2;
use tensorpress_tensor::kernels::dot;
use tensorpress_tensor::{Error, Result};

/// A normalisation of rows: RMS norm (x / rms(x) * weight), or layer norm where there is a bias
/// ((x - mean) / std * weight + bias).
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    pub(crate) name: String,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) eps: f32,
}

impl Norm {
    /// Full name of the weight.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One factor a channel.
    #[must_use]
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Replaces the factors, as when input scales of the next layer are folded into them.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is one value a channel.
    pub fn set_weight(&mut self, weight: Vec<f32>) -> Result<()> {
        if weight.len() != self.weight.len() {
            let message = format!("{} values for {} channels", weight.len(), self.weight.len());
            return Err(Error::shape(message).in_tensor(&self.name));
        }
        self.weight = weight;
        Ok(())
    }

    /// Normalises every row of `x` `[tokens, channels]`.
    pub(crate) fn apply(&self, mut x: ArrayViewMut2<'_, f32>) {
        for mut row in x.rows_mut() {
            let row = row.as_slice_mut().expect("rows are contiguous");
            for head in row.chunks_exact_mut(self.weight.len()) {
                self.apply_one(head);
            }
        }
    }

    fn apply_one(&self, x: &mut [f32]) {
        let n = x.len() as f32;
        if let Some(bias) = &self.bias {
            let mean = x.iter().sum::<f32>() / n;
            x.iter_mut().for_each(|v| *v -= mean);
            let factor = 1.0 / (dot(x, x) / n + self.eps).sqrt();
            for ((v, w), b) in x.iter_mut().zip(&self.weight).zip(bias) {
                *v = *v * factor * w + b;
            }
        } else {
            let factor = 1.0 / (dot(x, x) / n + self.eps).sqrt();
            x.iter_mut().zip(&self.weight).for_each(|(v, w)| *v = *v * factor * w);
        }
    }
}
