use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::{Error, Result};

/// SLoRB, the bypass of AST (Huang et al., 2024): y += S (X x), where X `[k, in]` is fixed and sums `in / k`
/// neighbouring inputs, and S `[out, k]` is trained. Rank k with only `out x k` numbers.
///
/// S starts as the mean of the pruned weights of each block, (1 - M) ∘ W summed over the block and divided by its
/// length: of all S the one with which S X is nearest to (1 - M) ∘ W in the norm of Frobenius.
///
/// ```
/// use tensorpress_prune::train::BlockSums;
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::Mask;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let w = array![[1.0f32, 5.0, 7.0, 2.0]];
/// let mask = Mask::from_bools(array![[false, true, true, false]].view());
/// let bypass = BlockSums::of_pruned(w.view(), &mask, 2)?;
/// assert_eq!(bypass.dense(), array![[0.5, 0.5, 1.0, 1.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSums {
    /// S, `[out, k]`: what is trained.
    pub weight: Array2<f32>,
    block: usize,
}

impl BlockSums {
    /// The bypass that makes good best for what the mask drops, with blocks of `block` inputs.
    ///
    /// # Errors
    /// `InvalidArgument` if `block` does not divide the inputs; `ShapeMismatch`; `Numerical` for a weight that is not
    /// finite.
    pub fn of_pruned(weight: ArrayView2<'_, f32>, mask: &Mask, block: usize) -> Result<Self> {
        let (out, inputs) = weight.dim();
        if block == 0 || !inputs.is_multiple_of(block) {
            return Err(Error::invalid(format!(
                "block = {block}: allowed are numbers that divide the {inputs} inputs"
            )));
        }
        if mask.shape() != [out, inputs] {
            let shape = mask.shape();
            return Err(Error::shape(format!(
                "a mask of {shape:?} for a weight of {out} x {inputs}"
            )));
        }
        if let Some(((row, col), w)) = weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            return Err(Error::numerical(format!("weight [{row}, {col}] is {w}")));
        }
        let mean = |(row, at): (usize, usize)| {
            let columns = (at * block..(at + 1) * block).filter(|c| !mask.keeps(row, *c));
            let sum: f64 = columns.map(|c| f64::from(weight[[row, c]])).sum();
            (sum / block as f64) as f32
        };
        Ok(Self { weight: Array2::from_shape_fn((out, inputs / block), mean), block })
    }

    /// Adds S (X x) of each row of x `[tokens, in]` to y `[tokens, out]`.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn add(&self, x: ArrayView2<'_, f32>, mut y: ArrayViewMut2<'_, f32>) -> Result<()> {
        let sums = self.sums(x)?;
        if y.dim() != (x.nrows(), self.weight.nrows()) {
            let (dim, out) = (y.dim(), self.weight.nrows());
            return Err(Error::shape(format!(
                "outputs {dim:?} of {} tokens and {out} outputs",
                x.nrows()
            )));
        }
        y += &sums.dot(&self.weight.t());
        Ok(())
    }

    /// X x of each row of x `[tokens, in]`: `[tokens, k]`. With the gradient G `[tokens, out]` by the outputs, Gᵀ times
    /// it is the gradient by S.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn sums(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let inputs = self.weight.ncols() * self.block;
        if x.ncols() != inputs {
            return Err(Error::shape(format!("{} inputs for a bypass of {inputs}", x.ncols())));
        }
        let mut sums = Array2::zeros((x.nrows(), self.weight.ncols()));
        for (block, mut sum) in x.axis_chunks_iter(Axis(1), self.block).zip(sums.columns_mut()) {
            sum.assign(&block.sum_axis(Axis(1)));
        }
        Ok(sums)
    }

    /// S X `[out, in]`.
    #[must_use]
    pub fn dense(&self) -> Array2<f32> {
        let (out, blocks) = self.weight.dim();
        Array2::from_shape_fn((out, blocks * self.block), |(r, c)| self.weight[[r, c / self.block]])
    }
}
