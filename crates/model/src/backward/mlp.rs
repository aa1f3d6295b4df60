//! Feed-forward networks on the way back.

use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::Result;

use super::sweep::Sweep;
use crate::architecture::Clamp;
use crate::layers::activation::sloped;
use crate::layers::mlp::split;
use crate::layers::{Mlp, MlpLinears};

/// What a network leaves on the way forward.
pub(super) struct MlpTape {
    pub(super) x: Arc<Array2<f32>>,
    /// Before the activation; none where there is no gate.
    gate: Option<Array2<f32>>,
    /// What the gate is for, or what the activation is of.
    up: Array2<f32>,
    /// What the last matrix reads.
    pub(super) middle: Arc<Array2<f32>>,
}

impl Mlp {
    pub(super) fn record(&self, x: Arc<Array2<f32>>, sweep: &mut Sweep<'_, '_>) -> Result<MlpTape> {
        let (gate, up) = match &self.kind {
            MlpLinears::Plain { up } => (None, sweep.forward(up, x.view())?),
            MlpLinears::Gated { gate, up } => {
                (Some(sweep.forward(gate, x.view())?), sweep.forward(up, x.view())?)
            }
            MlpLinears::Fused { both, alternating } => {
                let fused = sweep.forward(both, x.view())?;
                let shape = (x.nrows(), self.width());
                let (mut gate, mut up) = (Array2::zeros(shape), Array2::zeros(shape));
                let rows = gate.rows_mut().into_iter().zip(up.rows_mut());
                for (row, (mut gate, mut up)) in fused.rows().into_iter().zip(rows) {
                    let row = row.to_slice().expect("rows of a new matrix");
                    let gate = gate.as_slice_mut().expect("as above");
                    split(row, gate, up.as_slice_mut().expect("as above"), *alternating);
                }
                (Some(gate), up)
            }
        };
        let mut middle = gate.as_ref().unwrap_or(&up).clone();
        let values = middle.as_slice_mut().expect("a new matrix");
        match &gate {
            Some(_) => self.gate(values, up.as_slice().expect("a new matrix")),
            None => self.activation.apply(values),
        }
        Ok(MlpTape { x, gate, up, middle: Arc::new(middle) })
    }

    /// Adds to `dx` what the gradients `g` of its outputs make of its inputs.
    pub(super) fn back(
        &self,
        tape: MlpTape,
        g: Array2<f32>,
        dx: &mut Array2<f32>,
        sweep: &mut Sweep<'_, '_>,
    ) {
        let MlpTape { x, gate, up, middle } = tape;
        let mut by_middle = Array2::zeros(middle.dim());
        sweep.back(&self.down, &middle, g, &mut by_middle);
        let Some(gate) = gate else {
            let values = by_middle.as_slice_mut().expect("a new matrix");
            let read = up.as_slice().expect("a new matrix");
            self.activation.with_slopes(read, |i, _, slope| values[i] *= slope);
            if let MlpLinears::Plain { up } = &self.kind {
                sweep.back(up, &x, by_middle, dx);
            }
            return;
        };
        let (mut by_gate, mut by_up) = (by_middle, up);
        self.ungate(
            gate.as_slice().expect("a new matrix"),
            by_gate.as_slice_mut().expect("a new matrix"),
            by_up.as_slice_mut().expect("a new matrix"),
        );
        match &self.kind {
            MlpLinears::Plain { .. } => {}
            MlpLinears::Gated { gate, up } => {
                sweep.back(gate, &x, by_gate, dx);
                sweep.back(up, &x, by_up, dx);
            }
            MlpLinears::Fused { both, alternating } => {
                let width = by_gate.ncols();
                let mut fused = Array2::zeros((by_gate.nrows(), 2 * width));
                for (mut row, (gate, up)) in
                    fused.rows_mut().into_iter().zip(by_gate.rows().into_iter().zip(by_up.rows()))
                {
                    for i in 0..width {
                        let places = if *alternating { [2 * i, 2 * i + 1] } else { [i, width + i] };
                        (row[places[0]], row[places[1]]) = (gate[i], up[i]);
                    }
                }
                sweep.back(both, &x, fused, dx);
            }
        }
    }

    /// Replaces the gradients `g` of activation(gate) x up by those of the gate, and `up` by those of up.
    fn ungate(&self, gate: &[f32], g: &mut [f32], up: &mut [f32]) {
        let Some(Clamp(limit)) = self.clamp else {
            self.activation.with_slopes(gate, |i, y, slope| {
                (g[i], up[i]) = (g[i] * up[i] * slope, g[i] * y);
            });
            return;
        };
        for ((gate, g), up) in gate.iter().zip(g).zip(up) {
            let (y, slope) = sloped(gate.min(limit), 1.702);
            let open = f32::from(u8::from(*gate <= limit));
            let within = f32::from(u8::from(up.abs() <= limit));
            (*g, *up) = (*g * (up.clamp(-limit, limit) + 1.0) * slope * open, *g * y * within);
        }
    }
}
