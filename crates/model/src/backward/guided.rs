//! Gram matrices of a layer's inputs, weighted by what the loss makes of its outputs.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis, Slice};
use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stats::Gram;

/// Sum over tokens of s x xᵀ, s the mean of the squared gradients of some outputs.
pub(super) struct Guided {
    outputs: Range<usize>,
    gram: Gram,
    /// The sum of s.
    weight: f64,
}

impl Guided {
    pub(super) fn new(outputs: Range<usize>, inp: usize) -> Self {
        Self { outputs, gram: Gram::new(inp), weight: 0.0 }
    }

    /// Adds some tokens: what they read, and the gradients of all that is made of it.
    pub(super) fn update(&mut self, x: ArrayView2<'_, f32>, g: ArrayView2<'_, f32>, par: Par) {
        let (mut x, outputs) = (x.to_owned(), self.outputs.len().max(1) as f64);
        let g = g.slice_axis(Axis(1), Slice::from(self.outputs.clone()));
        for (mut x, g) in x.rows_mut().into_iter().zip(g.rows()) {
            let square = g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / outputs;
            self.weight += square;
            x *= square.sqrt() as f32;
        }
        self.gram.update(x.view(), par);
    }
}

/// The weighted means `[in, in]` of all groups of outputs, one above the other; 0 where all gradients are. Nothing of no
/// groups.
pub(super) fn stacked(groups: Vec<Guided>, inp: usize) -> Result<Option<Array2<f32>>> {
    if groups.is_empty() {
        return Ok(None);
    }
    let mut stack = Array2::zeros((groups.len() * inp, inp));
    let places = stack.axis_chunks_iter_mut(Axis(0), inp.max(1));
    for (Guided { gram, weight, .. }, mut place) in groups.into_iter().zip(places) {
        let sums = gram.into_matrix()?;
        if weight > 0.0 {
            place.zip_mut_with(&sums, |mean, sum| *mean = (f64::from(*sum) / weight) as f32);
        }
    }
    Ok(Some(stack))
}
