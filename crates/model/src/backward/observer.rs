//! What sees the gradients.

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;

use crate::layers::Linear;

/// Some tokens of a linear layer on the way back.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Piece<'a> {
    /// The layer; its name is that of the weight.
    pub layer: &'a Linear,
    /// What it read, X `[tokens, in]`.
    pub x: ArrayView2<'a, f32>,
    /// The gradient of the summed loss by what it wrote, `[tokens, out]`, nats.
    pub g: ArrayView2<'a, f32>,
}

/// Watches the linear layers on the way back: the head, then the blocks from the last to the first.
pub trait GradientObserver {
    /// Whether it is to see this layer; the answer may not change during a pass. Default: yes.
    fn wants(&self, layer: &Linear) -> bool {
        let _ = layer;
        true
    }

    /// Sees some pieces: those of one layer come in the order of the windows, a window in one piece (of a head: in several;
    /// of an expert: the tokens that went there). How many come at a time depends on how the pass is run, their order does
    /// not.
    ///
    /// # Errors
    /// Any error ends the pass and is its error.
    fn see(&mut self, pieces: &[Piece<'_>], par: Par) -> Result<()>;

    /// Of these layers, a block's or the head's, it has seen all: of `tokens` tokens, though an expert saw fewer.
    ///
    /// # Errors
    /// As [`GradientObserver::see`].
    fn finished(&mut self, layers: &[&Linear], tokens: u64) -> Result<()> {
        let _ = (layers, tokens);
        Ok(())
    }
}
