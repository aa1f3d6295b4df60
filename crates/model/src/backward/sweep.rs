//! What all parts of a block share on the way back: its weights, and the pieces that are found.

use std::sync::{Arc, Mutex};

use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::{Result, Scratch};

use crate::layers::Linear;

/// Linear layers, and the values of their weights: borrowed where they are decoded, else decoded here.
pub(super) struct Weights<'a> {
    layers: Vec<&'a Linear>,
    values: Vec<CowArray<'a, f32, Ix2>>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(layers: Vec<&'a Linear>, par: Par) -> Result<Self> {
        let found = Mutex::new(Vec::new());
        par.for_each(layers.iter().copied().enumerate(), |(i, layer): (usize, &'a Linear)| {
            let values = layer.values();
            found.lock().expect("nothing panics while it is held").push((i, values));
        });
        let mut found = found.into_inner().expect("as above");
        found.sort_by_key(|(i, _)| *i);
        let values = found.into_iter().map(|(_, values)| values).collect::<Result<_>>()?;
        Ok(Self { layers, values })
    }

    pub(super) fn layer(&self, index: usize) -> &'a Linear {
        self.layers[index]
    }

    fn index(&self, layer: &Linear) -> usize {
        let found = self.layers.iter().position(|known| std::ptr::eq(*known, layer));
        found.expect("a layer of this block")
    }
}

/// Some tokens of a layer: what it read, and the gradients of what it wrote.
pub(super) struct Found {
    pub(super) layer: usize,
    pub(super) x: Arc<Array2<f32>>,
    pub(super) g: Array2<f32>,
}

/// One window on its way through one block.
pub(super) struct Sweep<'a, 'w> {
    pub(super) weights: &'a Weights<'w>,
    /// Which layers somebody wants to see.
    pub(super) wanted: &'a [bool],
    pub(super) found: Vec<Found>,
    pub(super) scratch: &'a mut Scratch,
}

impl Sweep<'_, '_> {
    /// Y of a layer.
    pub(super) fn forward(
        &mut self,
        layer: &Linear,
        x: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>> {
        let mut y = Array2::zeros((x.nrows(), layer.shape()[0]));
        Input::with(x, self.scratch, |x, scratch| layer.forward(x, y.view_mut(), scratch))?;
        Ok(y)
    }

    /// `dx += g W`: from gradients of a layer's outputs to those of its inputs.
    pub(super) fn back(
        &mut self,
        layer: &Linear,
        x: &Arc<Array2<f32>>,
        g: Array2<f32>,
        dx: &mut Array2<f32>,
    ) {
        let layer = self.weights.index(layer);
        let weight = &self.weights.values[layer];
        let par = self.scratch.par();
        linalg::matmul(g.view(), weight.view(), dx.view_mut(), true, par);
        if self.wanted[layer] {
            self.found.push(Found { layer, x: x.clone(), g });
        }
    }
}
