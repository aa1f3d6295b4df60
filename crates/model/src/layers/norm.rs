use ndarray::{ArrayView2, ArrayViewMut2};
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

    /// Replaces the gradients `g` of what [`apply`](Self::apply) makes by those of `x`, what it reads; both
    /// `[tokens, channels]`.
    pub(crate) fn back(&self, x: ArrayView2<'_, f32>, mut g: ArrayViewMut2<'_, f32>) {
        for (x, mut g) in x.rows().into_iter().zip(g.rows_mut()) {
            let x = x.to_slice().expect("rows are contiguous");
            let g = g.as_slice_mut().expect("rows are contiguous");
            let parts = x.chunks_exact(self.width).zip(g.chunks_exact_mut(self.width));
            for (i, (x, g)) in parts.enumerate() {
                self.back_one(x, g, i);
            }
        }
    }

    /// With c = x less its mean and f = 1 / sqrt(c c / n + eps), y = f c w: dx = f (g w - c f² (g w c) / n), less its mean.
    fn back_one(&self, x: &[f32], g: &mut [f32], part: usize) {
        let n = x.len() as f64;
        let sum = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>();
        let mean = if self.centred { sum(&mut x.iter().map(|v| f64::from(*v))) / n } else { 0.0 };
        let square = sum(&mut x.iter().map(|v| (f64::from(*v) - mean).powi(2)));
        let factor = 1.0 / (square / n + f64::from(self.eps)).sqrt();
        if !self.weight.is_empty() {
            let from = part * self.width % self.weight.len();
            let weight = &self.weight[from..from + self.width];
            g.iter_mut().zip(weight).for_each(|(g, w)| *g *= w + self.offset);
        }
        let mut pairs = x.iter().zip(&*g).map(|(v, g)| (f64::from(*v) - mean) * f64::from(*g));
        let pull = sum(&mut pairs) * factor * factor / n;
        for (g, v) in g.iter_mut().zip(x) {
            *g = (factor * (f64::from(*g) - (f64::from(*v) - mean) * pull)) as f32;
        }
        if self.centred {
            let mean = (sum(&mut g.iter().map(|g| f64::from(*g))) / n) as f32;
            g.iter_mut().for_each(|g| *g -= mean);
        }
    }

    /// Refuses weights that are NaN or infinite, naming the tensor.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let values = self.weight.iter().chain(self.bias.iter().flatten()).enumerate();
        match values.into_iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((i, value)) => {
                let place = i % self.weight.len().max(1);
                let message = format!("a value of channel {place} is {value}");
                Err(Error::numerical(message).in_tensor(&self.name))
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
