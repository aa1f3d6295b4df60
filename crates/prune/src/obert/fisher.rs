use std::fmt;

use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, s};
use tensorpress_tensor::{Error, Result};

/// The inverse of a matrix's empirical Fisher matrix F = λ I + 1/m Σ g gᵀ over the gradients g of m samples, in blocks
/// of neighbours in row-major order (Kurtic et al., 2022, section 3.2): what lies between two blocks is taken to be 0.
///
/// Each gradient changes the inverse by Woodbury's formula (eq. 7), F⁻¹ -= F⁻¹ g gᵀ F⁻¹ / (m + gᵀ F⁻¹ g), starting from
/// I / λ: no matrix is ever inverted, and gradients are read once. Takes out x in x block numbers of f64, and for each
/// gradient twice as many products.
#[derive(Clone)]
pub struct BlockFisher {
    shape: [usize; 2],
    block: usize,
    samples: u64,
    seen: u64,
    /// The last may be smaller.
    inverse: Vec<Array2<f64>>,
}

impl fmt::Debug for BlockFisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, block, samples, seen, .. } = self;
        f.debug_struct("BlockFisher")
            .field("shape", shape)
            .field("block", block)
            .field("samples", samples)
            .field("seen", seen)
            .finish_non_exhaustive()
    }
}

impl BlockFisher {
    /// Of no gradient yet: for a matrix of `shape` `[out, in]`, in blocks of `block` weights (the paper: 50), with λ =
    /// `damp` (the paper: 1e-7), and m = `samples` gradients to come.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter.
    pub fn new(shape: [usize; 2], block: usize, damp: f64, samples: u64) -> Result<Self> {
        if block == 0 {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        if samples == 0 {
            return Err(Error::invalid("samples = 0: allowed are 1 and more"));
        }
        if !(damp.is_normal() && damp > 0.0 && (1.0 / damp).is_finite()) {
            return Err(Error::invalid(format!("damp = {damp}: allowed are numbers above 0")));
        }
        let weights = shape[0].checked_mul(shape[1]);
        let weights = weights.ok_or_else(|| Error::invalid(format!("a matrix of {shape:?}")))?;
        let sizes = (0..weights.div_ceil(block)).map(|b| block.min(weights - b * block));
        let inverse = sizes.map(|size| Array2::from_diag_elem(size, 1.0 / damp)).collect();
        Ok(Self { shape, block, samples, seen: 0, inverse })
    }

    /// Of all gradients at once: `[samples, out x in]`, each of one sample's loss by the matrix, row by row.
    ///
    /// # Errors
    /// As [`BlockFisher::new`] and [`BlockFisher::add`].
    pub fn from_gradients(
        gradients: ArrayView2<'_, f32>,
        shape: [usize; 2],
        block: usize,
        damp: f64,
        par: Par,
    ) -> Result<Self> {
        let mut fisher = Self::new(shape, block, damp, gradients.nrows() as u64)?;
        fisher.add(gradients, par)?;
        Ok(fisher)
    }

    /// Adds gradients `[some, out x in]`, one a row. Neither how they are cut into calls nor threads change a byte.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for one that is not finite; `InvalidArgument` for more of them than `samples`.
    /// Nothing is added then.
    pub fn add(&mut self, gradients: ArrayView2<'_, f32>, par: Par) -> Result<()> {
        let [out, inputs] = self.shape;
        if gradients.ncols() != out * inputs {
            let message = format!("gradients of {} weights of {out} x {inputs}", gradients.ncols());
            return Err(Error::shape(message));
        }
        if let Some(((sample, at), g)) = gradients.indexed_iter().find(|(_, g)| !g.is_finite()) {
            let message = format!("the gradient of sample {sample} is {g} at weight {at}");
            return Err(Error::numerical(message));
        }
        let more = gradients.nrows() as u64;
        if more > self.samples - self.seen {
            return Err(Error::invalid(format!(
                "{} gradients: allowed are as many as were announced, samples = {}",
                self.seen + more,
                self.samples
            )));
        }
        self.seen += more;
        let (samples, block) = (self.samples as f64, self.block);
        par.for_each(self.inverse.iter_mut().enumerate(), |(b, inverse)| {
            let part = gradients.slice(s![.., b * block..b * block + inverse.nrows()]);
            part.rows().into_iter().for_each(|g| woodbury(inverse, &g.mapv(f64::from), samples));
        });
        Ok(())
    }

    /// Weights of a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// The inverses F⁻¹ of the blocks, symmetric, in the order of the weights.
    #[must_use]
    pub fn inverse(&self) -> &[Array2<f64>] {
        &self.inverse
    }

    /// It is of such a matrix, of all samples, and still positive.
    pub(super) fn check(&self, dim: (usize, usize)) -> Result<()> {
        let [out, inputs] = self.shape;
        if dim != (out, inputs) {
            return Err(Error::shape(format!("a Fisher matrix of {out} x {inputs} for {dim:?}")));
        }
        if self.seen < self.samples {
            let (seen, samples) = (self.seen, self.samples);
            return Err(Error::insufficient(format!("{seen} of {samples} gradients were added")));
        }
        let diagonals = self.inverse.iter().flat_map(|block| block.diag().to_vec());
        match diagonals.enumerate().find(|(_, d)| !(*d > 0.0 && d.is_finite())) {
            None => Ok(()),
            Some((at, d)) => Err(Error::numerical(format!(
                "the inverse Fisher matrix is {d} at weight {at}: the damping is lost beside the gradients, raise it"
            ))),
        }
    }

    /// wᵀ ((F⁻¹)_QQ)⁻¹ w of the weights from `at` on, all in one block.
    pub(super) fn cost(&self, at: usize, weights: &[f64]) -> Result<f64> {
        let (block, first) = (&self.inverse[at / self.block], at % self.block);
        if let [w] = weights {
            return Ok(w * w / block[[first, first]]);
        }
        let places = first..first + weights.len();
        let part = block.slice(s![places.clone(), places]).to_owned();
        let factor = linalg::cholesky(part, Par::Seq)?;
        let mut root =
            Array1::from(weights.to_vec()).insert_axis(tensorpress_tensor::ndarray::Axis(1));
        linalg::solve_triangular(factor.view(), Triangle::Lower, root.view_mut(), Par::Seq)?;
        Ok(root.iter().map(|r| r * r).sum())
    }

    /// Runs `each` on the inverse, the support and the weights of every block.
    pub(super) fn each_block(
        &self,
        weight: &mut Array2<f32>,
        keep: &Array2<bool>,
        par: Par,
        each: impl Fn(ArrayView2<'_, f64>, &[bool], ArrayViewMut1<'_, f32>) -> Result<()> + Sync,
    ) -> Result<()> {
        let keep: Vec<bool> = keep.iter().copied().collect();
        let weights = weight.as_slice_mut().expect("standard layout");
        let mut results: Vec<Result<()>> = self.inverse.iter().map(|_| Ok(())).collect();
        let parts = weights.chunks_mut(self.block).zip(keep.chunks(self.block));
        let blocks = self.inverse.iter().zip(parts).zip(&mut results);
        par.for_each(blocks, |((inverse, (weights, keep)), result)| {
            *result = each(inverse.view(), keep, ArrayViewMut1::from(weights));
        });
        results.into_iter().collect()
    }
}

/// F⁻¹ of F + g gᵀ / m.
fn woodbury(inverse: &mut Array2<f64>, gradient: &Array1<f64>, samples: f64) {
    let towards = inverse.dot(gradient);
    let share = 1.0 / (samples + gradient.dot(&towards));
    for (mut row, t) in inverse.rows_mut().into_iter().zip(&towards) {
        row.scaled_add(-share * t, &towards);
    }
}
