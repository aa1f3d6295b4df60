use std::ops::ControlFlow;

use ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{Result, Scratch};

use super::activation::quick_gelu;
use super::{Linear, as_matrix, buffer};
use crate::architecture::Clamp;
use crate::block::Observer;
use crate::config::Activation;

/// The feed-forward network: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) kind: MlpLinears,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
    pub(crate) clamp: Option<Clamp>,
}

#[derive(Debug)]
pub(crate) enum MlpLinears {
    Plain {
        up: Linear,
    },
    Gated {
        gate: Linear,
        up: Linear,
    },
    /// All rows of the gate before the others, or every other row.
    Fused {
        both: Linear,
        alternating: bool,
    },
}

impl Mlp {
    /// Channels inside.
    pub(crate) fn width(&self) -> usize {
        self.down.shape()[1]
    }

    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.kind {
            MlpLinears::Plain { up } => vec![up],
            MlpLinears::Gated { gate, up } => vec![gate, up],
            MlpLinears::Fused { both, .. } => vec![both],
        };
        all.push(&self.down);
        all
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.kind {
            MlpLinears::Plain { up } => vec![up],
            MlpLinears::Gated { gate, up } => vec![gate, up],
            MlpLinears::Fused { both, .. } => vec![both],
        };
        all.push(&mut self.down);
        all
    }

    /// Fills `y` with what the network makes of `x`; `inner` is what the observer calls the input of the last matrix.
    pub(crate) fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        inner: SharedInput,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, width) = (x.nrows(), self.width());
        let mut memory = buffer(scratch, tokens, width);
        Input::with(x, scratch, |x, scratch| -> Result<()> {
            match &self.kind {
                MlpLinears::Plain { up } => {
                    up.forward(x, as_matrix(&mut memory, width), scratch)?;
                    self.activation.apply(&mut memory);
                }
                MlpLinears::Gated { gate, up } => {
                    up.forward(x, as_matrix(&mut memory, width), scratch)?;
                    let mut gated = buffer(scratch, tokens, width);
                    gate.forward(x, as_matrix(&mut gated, width), scratch)?;
                    self.gate(&mut gated, &memory);
                    scratch.put(std::mem::replace(&mut memory, gated));
                }
                MlpLinears::Fused { both, alternating } => {
                    let mut fused = buffer(scratch, tokens, 2 * width);
                    both.forward(x, as_matrix(&mut fused, 2 * width), scratch)?;
                    let mut gated = buffer(scratch, tokens, width);
                    let rows = fused.chunks_exact(2 * width);
                    let targets = gated.chunks_exact_mut(width).zip(memory.chunks_exact_mut(width));
                    for (row, (gate, up)) in rows.zip(targets) {
                        split(row, gate, up, *alternating);
                    }
                    scratch.put(fused);
                    self.gate(&mut gated, &memory);
                    scratch.put(std::mem::replace(&mut memory, gated));
                }
            }
            Ok(())
        })?;
        let middle = as_matrix(&mut memory, width);
        let flow = observer.input(inner, middle.view())?;
        if flow.is_continue() {
            Input::with(middle.view(), scratch, |middle, scratch| {
                self.down.forward(middle, y, scratch)
            })?;
        }
        scratch.put(memory);
        Ok(flow)
    }

    /// `gate = activation(gate) * up`, cut where it is to be.
    pub(crate) fn gate(&self, gate: &mut [f32], up: &[f32]) {
        let Some(Clamp(limit)) = self.clamp else { return self.activation.gate(gate, up) };
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = quick_gelu(gate.min(limit)) * (up.clamp(-limit, limit) + 1.0);
        }
    }
}

/// A row of the fused product as gate and up.
pub(crate) fn split(row: &[f32], gate: &mut [f32], up: &mut [f32], alternating: bool) {
    if alternating {
        for ((pair, gate), up) in row.as_chunks::<2>().0.iter().zip(gate).zip(up) {
            [*gate, *up] = *pair;
        }
    } else {
        let (first, second) = row.split_at(gate.len());
        gate.copy_from_slice(first);
        up.copy_from_slice(second);
    }
}
