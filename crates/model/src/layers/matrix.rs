use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::node::{self, Input, check_matmul};
use tensorpress_tensor::{Accum, Error, Node, Result, Scratch, kernels};

/// A weight: a node as stored, or its values decoded once.
#[derive(Debug)]
pub(crate) enum Matrix {
    Stored(Box<dyn Node>),
    Decoded(Array2<f32>),
}

/// Up to this many tokens, the kernel for few tokens beats the general product.
const FEW_TOKENS: usize = 4;

impl Matrix {
    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Stored(node) => node.shape(),
            Self::Decoded(values) => [values.nrows(), values.ncols()],
        }
    }

    /// Y = X Wᵀ.
    pub(crate) fn matmul(
        &self,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let rows = 0..self.shape()[0];
        check_matmul(self.shape(), &rows, x, &y);
        match self {
            Self::Stored(node) => node.matmul_rows(rows, x, y, Accum::Replace, scratch)?,
            Self::Decoded(w) => match (w.as_slice(), y.as_slice_mut()) {
                (Some(ws), Some(ys)) if x.tokens() <= FEW_TOKENS => {
                    kernels::gemm_nt(x.as_slice(), ws, x.tokens(), w.nrows(), w.ncols(), ys, false);
                }
                _ => {
                    let par = scratch.par();
                    linalg::matmul_nt(x.view(), w.view(), y, false, par);
                }
            },
        }
        Ok(())
    }

    /// Decodes one row: an embedding.
    pub(crate) fn row(&self, row: usize, out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        match self {
            Self::Stored(node) => {
                let out = ArrayViewMut2::from_shape((1, out.len()), out).expect("one row");
                node.decode_rows(row..row + 1, out, Accum::Replace, scratch)
            }
            Self::Decoded(values) => {
                values.row(row).iter().zip(out).for_each(|(v, o)| *o = *v);
                Ok(())
            }
        }
    }

    /// All values.
    pub(crate) fn decode(&self) -> Result<Array2<f32>> {
        match self {
            Self::Stored(node) => node::decode(node.as_ref()),
            Self::Decoded(values) => Ok(values.clone()),
        }
    }

    /// Decodes the node once and for all, unless its products are not those of its values.
    pub(crate) fn materialise(&mut self) -> Result<()> {
        if let Self::Stored(node) = self
            && node.is_linear()
        {
            *self = Self::Decoded(node::decode(node.as_ref())?);
            self.check_finite()?;
        }
        Ok(())
    }

    /// Rearranges the node for fast products. After an error nothing is there.
    pub(crate) fn prepack(&mut self) -> Result<()> {
        *self = match std::mem::replace(self, Self::Decoded(Array2::zeros((0, 0)))) {
            Self::Stored(node) => Self::Stored(node.prepack()?),
            decoded => decoded,
        };
        Ok(())
    }

    /// Finds the first NaN or infinity, decoding a few rows at a time.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let [out, inp] = self.shape();
        let mut scratch = Scratch::new(Par::Seq);
        let step = (1 << 16) / inp.max(1) + 1;
        let mut buffer = vec![0.0; step * inp];
        for start in (0..out).step_by(step) {
            let rows: Range<usize> = start..(start + step).min(out);
            let values = &mut buffer[..rows.len() * inp];
            for (row, values) in rows.zip(values.chunks_mut(inp)) {
                self.row(row, values, &mut scratch)?;
                if let Some(col) = values.iter().position(|v| !v.is_finite()) {
                    let value = values[col];
                    return Err(Error::numerical(format!("weight [{row}, {col}] is {value}")));
                }
            }
        }
        Ok(())
    }
}

impl From<Box<dyn Node>> for Matrix {
    fn from(node: Box<dyn Node>) -> Self {
        Self::Stored(node)
    }
}
