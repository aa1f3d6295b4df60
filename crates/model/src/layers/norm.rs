use ndarray::ArrayViewMut2;
use tensorpress_tensor::kernels::dot;
use tensorpress_tensor::{Error, Result};

/// A normalisation of rows: RMS norm (x / rms(x) * weight), or layer norm ((x - mean) / std * weight, + bias where there is
/// one). Rows may be made of several that are normalised each.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    pub(crate) name: String,
    /// Nothing stands for ones; more than `width` values serve one part of a row after the other.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    /// Channels that are normalised together.
    pub(crate) width: usize,
    pub(crate) centred: bool,
    /// What is multiplied by is the weight plus this.
    pub(crate) offset: f32,
    pub(crate) eps: f32,
}

impl Norm {
    /// Full name of the weight.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The weight as stored, one value a channel; see [`Norm::offset`].
    #[must_use]
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// What is multiplied by is the weight plus this: 1 in Gemma, else 0.
    #[must_use]
    pub fn offset(&self) -> f32 {
        self.offset
    }

    /// Replaces the weight, as when input scales of the next layer are folded into it.
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
            for (i, part) in row.chunks_exact_mut(self.width).enumerate() {
                self.apply_one(part, i);
            }
        }
    }

    fn apply_one(&self, x: &mut [f32], part: usize) {
        let n = x.len() as f32;
        if self.centred {
            let mean = x.iter().sum::<f32>() / n;
            x.iter_mut().for_each(|v| *v -= mean);
        }
        let factor = 1.0 / (dot(x, x) / n + self.eps).sqrt();
        if self.weight.is_empty() {
            x.iter_mut().for_each(|v| *v *= factor);
            return;
        }
        let from = part * self.width % self.weight.len();
        let weight = &self.weight[from..from + self.width];
        match &self.bias {
            Some(bias) => {
                for ((v, w), b) in x.iter_mut().zip(weight).zip(&bias[from..]) {
                    *v = *v * factor * (w + self.offset) + b;
                }
            }
            None if self.offset == 0.0 => {
                x.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * factor * w);
            }
            None => {
                x.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * factor * (w + self.offset));
            }
        }
    }
}
