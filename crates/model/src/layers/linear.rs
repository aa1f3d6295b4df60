use std::ops::Range;
use std::path::PathBuf;

use ndarray::{Array2, ArrayViewMut2, CowArray, Ix2};
use tensorpress_tensor::node::{Input, Multiply};
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{Context, Error, Node, Result, Scratch};

use super::Matrix;

/// A linear layer: Y = X Wᵀ + b, where W is any node.
#[derive(Debug)]
pub struct Linear {
    pub(crate) name: String,
    /// Where the weight was read from.
    pub(crate) file: Option<PathBuf>,
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
    /// The input of its block that it reads, if it lies in one.
    pub(crate) input: Option<SharedInput>,
}

impl Linear {
    /// Full name of the weight.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// The node, unless it was decoded once and for all ([`crate::Decoder::materialise`]).
    #[must_use]
    pub fn node(&self) -> Option<&dyn Node> {
        match &self.weight {
            Matrix::Stored(node) => Some(node.as_ref()),
            Matrix::Decoded(_) => None,
        }
    }

    /// The bias, one value an output.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Replaces the bias; `None` removes it.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is one value an output.
    pub fn set_bias(&mut self, bias: Option<Vec<f32>>) -> Result<()> {
        if let Some(values) = bias.as_ref().filter(|b| b.len() != self.shape()[0]) {
            let message = format!("{} bias values for {} outputs", values.len(), self.shape()[0]);
            return Err(Error::shape(message).in_tensor(&self.name));
        }
        self.bias = bias;
        Ok(())
    }

    /// Replaces the weight by a node of the same shape.
    ///
    /// # Errors
    /// `ShapeMismatch`, naming the tensor.
    pub fn replace(&mut self, node: Box<dyn Node>) -> Result<()> {
        if node.shape() != self.shape() {
            let message =
                format!("a node of {:?} for a weight of {:?}", node.shape(), self.shape());
            return Err(Error::shape(message).in_tensor(&self.name));
        }
        self.weight = node.into();
        self.file = None;
        Ok(())
    }

    /// The weight's values `[out, in]`.
    ///
    /// # Errors
    /// Those of decoding, naming the tensor.
    pub fn decode(&self) -> Result<Array2<f32>> {
        self.located(self.weight.decode())
    }

    /// The weight's values `[out, in]`, decoded if they are not yet.
    pub(crate) fn values(&self) -> Result<CowArray<'_, f32, Ix2>> {
        match &self.weight {
            Matrix::Decoded(values) => Ok(values.view().into()),
            Matrix::Stored(_) => Ok(self.decode()?.into()),
        }
    }

    pub(crate) fn forward(
        &self,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.located(self.weight.matmul(x, y.view_mut(), scratch))?;
        if let Some(bias) = &self.bias {
            for mut row in y.rows_mut() {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }

    /// Decodes one row, which must be finite: an embedding.
    pub(crate) fn row(&self, row: usize, out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        self.located(self.weight.rows(row..row + 1, out, scratch))?;
        self.check_row(row, out)
    }

    /// How its weight is multiplied.
    pub(crate) fn multiply(&self) -> Multiply {
        self.weight.multiply()
    }

    /// Rows in one reading, whose values are not looked at yet.
    pub(crate) fn rows(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.located(self.weight.rows(rows, out, scratch))
    }

    /// Refuses values of a row that are NaN or infinite.
    pub(crate) fn check_row(&self, row: usize, values: &[f32]) -> Result<()> {
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => {
                let message = format!("weight [{row}, {i}] is {}", values[i]);
                self.located(Err(Error::numerical(message)))
            }
        }
    }

    pub(crate) fn materialise(&mut self) -> Result<()> {
        let done = self.weight.materialise();
        self.located(done)
    }

    pub(crate) fn prepack(&mut self) -> Result<()> {
        let done = self.weight.prepack();
        self.located(done)
    }

    pub(crate) fn check_finite(&self) -> Result<()> {
        self.located(self.weight.check_finite())?;
        match self.bias.iter().flatten().enumerate().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((i, value)) => {
                let message = format!("its bias [{i}] is {value}");
                self.located(Err(Error::numerical(message)))
            }
        }
    }

    /// Adds this layer's name and file to an error.
    fn located<T>(&self, result: Result<T>) -> Result<T> {
        let result = result.in_tensor(&self.name);
        match &self.file {
            Some(file) => result.in_file(file),
            None => result,
        }
    }
}
