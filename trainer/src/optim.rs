//! AdamW and the learning rate's course.

use rayon::prelude::*;

use crate::llama::Llama;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPSILON: f32 = 1e-8;
const CLIP: f32 = 1.0;
const WARMUP: f64 = 0.02;

/// Share of the peak learning rate at a fraction of the run: a short linear rise, then half a
/// cosine down to nothing.
pub fn schedule(fraction: f64) -> f32 {
    let f = fraction.clamp(0.0, 1.0);
    let rate = match f < WARMUP {
        true => f / WARMUP,
        false => 0.5 + 0.5 * (std::f64::consts::PI * (f - WARMUP) / (1.0 - WARMUP)).cos(),
    };
    // Never quite nothing, so that the very first step moves.
    rate.max(1e-3) as f32
}

/// AdamW with decoupled weight decay on the matrices.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Steps taken.
    pub steps: u64,
    decays: Vec<f32>,
}

impl AdamW {
    /// Fresh state for a model.
    pub fn new(model: &Llama, weight_decay: f32) -> Self {
        let mut decays = vec![0.0; model.layout.len];
        for (_, range, shape) in model.layout.tensors(&model.config) {
            if shape.len() > 1 {
                decays[range].fill(weight_decay);
            }
        }
        AdamW { m: vec![0.0; decays.len()], v: vec![0.0; decays.len()], steps: 0, decays }
    }

    /// One step, the gradient clipped to norm 1; returns the gradient's norm.
    pub fn step(&mut self, params: &mut [f32], grad: &[f32], rate: f32) -> f32 {
        self.steps += 1;
        let norm = grad.iter().map(|&g| g as f64 * g as f64).sum::<f64>().sqrt() as f32;
        let clip = (CLIP / norm).min(1.0);
        let correct1 = 1.0 / (1.0 - BETA1.powi(self.steps as i32));
        let correct2 = 1.0 / (1.0 - BETA2.powi(self.steps as i32));
        const CHUNK: usize = 1 << 16;
        let state = self.m.par_chunks_mut(CHUNK).zip(self.v.par_chunks_mut(CHUNK));
        let values = params.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
        let chunks = values.zip(state).zip(self.decays.par_chunks(CHUNK));
        chunks.for_each(|(((p, g), (m, v)), decay)| {
            for i in 0..p.len() {
                let g = g[i] * clip;
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                v[i] = BETA2 * v[i] + (1.0 - BETA2) * g * g;
                let move_by = m[i] * correct1 / ((v[i] * correct2).sqrt() + EPSILON);
                p[i] -= rate * (move_by + decay[i] * p[i]);
            }
        });
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_rises_and_falls() {
        assert!(schedule(0.0) < 0.01 && schedule(WARMUP) > 0.999 && schedule(1.0) <= 1e-3);
        assert!(schedule(0.3) > schedule(0.6));
    }
}
