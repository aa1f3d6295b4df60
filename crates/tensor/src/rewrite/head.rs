//! What comes behind the last block: what a rewrite knows and sees of it.

use ndarray::{Array2, ArrayView2};

use crate::error::{Context, Error, Result};
use crate::node::PartSource;
use crate::source::{RawTensor, Tensor};

/// The matrix that makes logits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadLayout {
    /// Full name of the weight.
    pub name: String,
    /// `[vocabulary, width]`.
    pub shape: [usize; 2],
    /// It is the table of embeddings too. An edit gives the head a matrix of its own then, and the table stays.
    pub tied: bool,
}

impl HeadLayout {
    /// A matrix of its own.
    #[must_use]
    pub fn new(name: impl Into<String>, shape: [usize; 2]) -> Self {
        Self { name: name.into(), shape, tied: false }
    }

    /// Sets whether it is the table of embeddings too.
    #[must_use]
    pub fn with_tied(mut self, tied: bool) -> Self {
        self.tied = tied;
        self
    }
}

/// What the head's matrix reads of all calibration tokens in two models, `[tokens, width]` each. Where activations
/// overflow, they are NaN.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Outputs<'a> {
    /// In the model that the other is compared with.
    pub reference: ArrayView2<'a, f32>,
    /// In the one that was changed.
    pub changed: ArrayView2<'a, f32>,
}

impl<'a> Outputs<'a> {
    /// Outputs of two models.
    ///
    /// # Panics
    /// If they differ in shape.
    #[must_use]
    pub fn new(reference: ArrayView2<'a, f32>, changed: ArrayView2<'a, f32>) -> Self {
        assert_eq!(reference.dim(), changed.dim(), "outputs of the same tokens");
        Self { reference, changed }
    }

    /// The tokens whose outputs are finite in both, some at a time and in f64: those of the reference, and those of the
    /// changed model.
    pub fn for_each_chunk(&self, mut see: impl FnMut(ArrayView2<'_, f64>, ArrayView2<'_, f64>)) {
        const TOKENS: usize = 1024;
        let finite = |t: &usize| {
            let of = |x: ArrayView2<'_, f32>| x.row(*t).iter().all(|v| v.is_finite());
            of(self.reference) && of(self.changed)
        };
        let usable: Vec<usize> = (0..self.reference.nrows()).filter(finite).collect();
        for tokens in usable.chunks(TOKENS) {
            let wide = |x: ArrayView2<'_, f32>| x.select(ndarray::Axis(0), tokens).mapv(f64::from);
            see(wide(self.reference).view(), wide(self.changed).view());
        }
    }
}

/// The head, the weights of the model, and what the head reads.
#[derive(Clone, Copy)]
pub struct HeadView<'a> {
    layout: &'a HeadLayout,
    tensors: &'a dyn PartSource,
    outputs: Outputs<'a>,
}

impl std::fmt::Debug for HeadView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layout, outputs, .. } = self;
        f.debug_struct("HeadView")
            .field("layout", layout)
            .field("outputs", outputs)
            .finish_non_exhaustive()
    }
}

impl<'a> HeadView<'a> {
    /// A head of a model with these tensors.
    #[must_use]
    pub fn new(layout: &'a HeadLayout, tensors: &'a dyn PartSource, outputs: Outputs<'a>) -> Self {
        Self { layout, tensors, outputs }
    }

    /// What it is.
    #[must_use]
    pub fn layout(&self) -> &'a HeadLayout {
        self.layout
    }

    /// What it reads: in the model as it was before all rewrites, and as it is with the edits of its blocks.
    #[must_use]
    pub fn outputs(&self) -> Outputs<'a> {
        self.outputs
    }

    /// Its matrix as it is stored.
    ///
    /// # Errors
    /// `InsufficientData` if there is none; `ShapeMismatch` for another shape than the layout's.
    pub fn tensor(&self) -> Result<RawTensor> {
        let HeadLayout { name, shape, .. } = self.layout;
        let tensor = self.tensors.part(name).in_tensor(name)?;
        let found = tensor.matrix_shape();
        if found == *shape {
            return Ok(tensor);
        }
        Err(Error::shape(format!("{found:?}, the head is {shape:?}")).in_tensor(name))
    }

    /// Its matrix.
    ///
    /// # Errors
    /// As [`HeadView::tensor`]; `Unsupported` if its elements are no floats.
    pub fn matrix(&self) -> Result<Array2<f32>> {
        self.tensor()?.to_matrix().in_tensor(&self.layout.name)
    }
}
