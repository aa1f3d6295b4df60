use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::node::{self, Input, Multiply, check_matmul};
use tensorpress_tensor::{Accum, Error, Node, Result, Scratch, kernels};

use super::as_matrix;

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
    pub(crate) fn rows(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut out = as_matrix(out, out.len() / rows.len().max(1));
        match self {
            Self::Stored(node) => node.decode_rows(rows, out, Accum::Replace, scratch),
            Self::Decoded(values) => {
                out.assign(&values.slice(s![rows, ..]));
                Ok(())
            }
        }
    }

    /// How it is multiplied as it is kept.
    pub(crate) fn multiply(&self) -> Multiply {
        match self {
            Self::Stored(node) => node.multiply(),
            Self::Decoded(_) => Multiply::Fused,
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
                self.rows(row..row + 1, values, &mut scratch)?;
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
