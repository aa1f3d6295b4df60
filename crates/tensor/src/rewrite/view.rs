//! What a rewrite sees of a block.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};

use super::{BlockLayout, LinearSpec, Outputs, SharedInput};
use crate::error::{Context, Error, Result};
use crate::node::PartSource;
use crate::source::{RawTensor, Tensor};
use crate::stats::{Calibration, ExpertActivity};

/// Hidden states of all calibration tokens around a block, `[tokens, hidden]` each; whole sequences lie one after the
/// other. Where activations of the model overflow, they are NaN.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct States<'a> {
    /// What the block reads.
    pub before: ArrayView2<'a, f32>,
    /// What it makes of that.
    pub after: ArrayView2<'a, f32>,
    /// Tokens of each sequence.
    pub lengths: &'a [usize],
}

impl<'a> States<'a> {
    /// Hidden states.
    #[must_use]
    pub fn new(
        before: ArrayView2<'a, f32>,
        after: ArrayView2<'a, f32>,
        lengths: &'a [usize],
    ) -> Self {
        Self { before, after, lengths }
    }
}

/// A block, its weights, and what was seen of it.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    layout: &'a BlockLayout,
    tensors: &'a dyn PartSource,
    inputs: Option<&'a BTreeMap<SharedInput, Calibration>>,
    states: Option<States<'a>>,
    outputs: Option<Outputs<'a>>,
    experts: Option<&'a ExpertActivity>,
}

impl std::fmt::Debug for BlockView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layout, inputs, states, .. } = self;
        f.debug_struct("BlockView")
            .field("layout", layout)
            .field("inputs", inputs)
            .field("states", states)
            .finish_non_exhaustive()
    }
}

impl<'a> BlockView<'a> {
    /// A block of a model with these tensors, of which nothing was seen.
    #[must_use]
    pub fn new(layout: &'a BlockLayout, tensors: &'a dyn PartSource) -> Self {
        Self { layout, tensors, inputs: None, states: None, outputs: None, experts: None }
    }

    /// Adds the statistics of its inputs.
    #[must_use]
    pub fn with_inputs(mut self, inputs: &'a BTreeMap<SharedInput, Calibration>) -> Self {
        self.inputs = Some(inputs);
        self
    }

    /// Adds the hidden states around it.
    #[must_use]
    pub fn with_states(mut self, states: States<'a>) -> Self {
        self.states = Some(states);
        self
    }

    /// Adds what the head reads of the model with and without it.
    #[must_use]
    pub fn with_outputs(mut self, outputs: Outputs<'a>) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// Adds what its experts made of their tokens.
    #[must_use]
    pub fn with_experts(mut self, experts: &'a ExpertActivity) -> Self {
        self.experts = Some(experts);
        self
    }

    /// What it is built of.
    #[must_use]
    pub fn layout(&self) -> &'a BlockLayout {
        self.layout
    }

    /// A tensor as it is stored, of this block or any other.
    ///
    /// # Errors
    /// `InsufficientData` if there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        self.tensors.part(name).in_tensor(name)
    }

    /// A tensor as a matrix.
    ///
    /// # Errors
    /// As [`BlockView::tensor`]; `Unsupported` if its elements are no floats.
    pub fn matrix(&self, name: &str) -> Result<Array2<f32>> {
        self.tensor(name)?.to_matrix().in_tensor(name)
    }

    /// The weights `[out, in]` of one of its layers, wherever they lie.
    ///
    /// # Errors
    /// As [`BlockView::matrix`]; `ShapeMismatch` for a tensor of another size.
    pub fn weight(&self, spec: &LinearSpec) -> Result<Array2<f32>> {
        let Some(place) = &spec.place else { return self.matrix(&spec.name) };
        let tensor = match self.tensor(&place.tensor) {
            Ok(tensor) => tensor,
            // Decoded, it may lie by itself.
            Err(e) => return self.matrix(&spec.name).map_err(|_| e),
        };
        // A stack as a matrix has a part in a row.
        let values = match place.index {
            None => tensor.to_matrix().in_tensor(&place.tensor)?.into_raw_vec_and_offset().0,
            Some(index) => {
                let [parts, width] = tensor.matrix_shape();
                if index >= parts {
                    let message = format!("part {index} of {parts}");
                    return Err(Error::shape(message).in_tensor(&place.tensor));
                }
                let mut values = vec![0.0; width];
                tensor.read_rows(index..index + 1, &mut values).in_tensor(&place.tensor)?;
                values
            }
        };
        let [out, inp] = spec.shape;
        let stored = if place.transposed { (inp, out) } else { (out, inp) };
        let matrix = Array2::from_shape_vec(stored, values);
        let matrix = matrix.map_err(|e| Error::shape(e.to_string())).in_tensor(&place.tensor)?;
        Ok(match place.transposed {
            true => matrix.t().as_standard_layout().into_owned(),
            false => matrix,
        })
    }

    /// Statistics of an input, as far as they were collected.
    #[must_use]
    pub fn input(&self, input: SharedInput) -> Option<&'a Calibration> {
        self.inputs.and_then(|inputs| inputs.get(&input))
    }

    /// What its experts made of their tokens, if it has any and that was asked for.
    #[must_use]
    pub fn experts(&self) -> Option<&'a ExpertActivity> {
        self.experts
    }

    /// Hidden states around it, if they were asked for.
    #[must_use]
    pub fn states(&self) -> Option<States<'a>> {
        self.states
    }
    /// What the head reads of the model, and of the model without this block, if that was asked for.
    #[must_use]
    pub fn outputs(&self) -> Option<Outputs<'a>> {
        self.outputs
    }
}
