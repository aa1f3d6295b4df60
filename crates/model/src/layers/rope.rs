use std::f64::consts::TAU;

use ndarray::ArrayViewMut2;

use crate::config::{RopeConfig, RopeScaling};

/// Rotary position embeddings: dimensions i and i + d/2 of a head are turned by the angle position x frequency(i).
#[derive(Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    /// cos and sin of the first positions, `[position][cos.., sin..]`.
    table: Vec<f32>,
}

/// Positions whose angles are computed beforehand.
const TABLE: usize = 4096;

impl Rope {
    /// Rotations of heads of `head_dim` values, in a model of this context length.
    #[must_use]
    pub fn new(config: &RopeConfig, head_dim: usize, context: usize) -> Self {
        let frequency = |i: usize| {
            let plain = config.theta.powf(-2.0 * i as f64 / head_dim as f64);
            scaled(plain, &config.scaling) as f32
        };
        let mut rope =
            Self { frequencies: (0..head_dim / 2).map(frequency).collect(), table: Vec::new() };
        let mut table = Vec::new();
        for position in 0..context.min(TABLE) {
            rope.angles(position, &mut table);
        }
        rope.table = table;
        rope
    }

    /// Angle per position of each pair of dimensions.
    #[must_use]
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Turns the heads of row t of `x` `[tokens, heads * head_dim]` to position `first + t`.
    ///
    /// # Panics
    /// If a row is not contiguous.
    pub fn apply(&self, mut x: ArrayViewMut2<'_, f32>, first: usize) {
        let half = self.frequencies.len();
        let mut beyond = Vec::new();
        for (t, mut row) in x.rows_mut().into_iter().enumerate() {
            let position = first + t;
            let angles = match self.table.get(position * 2 * half..(position + 1) * 2 * half) {
                Some(known) => known,
                None => {
                    beyond.clear();
                    self.angles(position, &mut beyond);
                    &beyond
                }
            };
            let (cos, sin) = angles.split_at(half);
            let row = row.as_slice_mut().expect("rows are contiguous");
            for head in row.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * sin[i];
                    b[i] = y * cos[i] + x * sin[i];
                }
            }
        }
    }

    fn angles(&self, position: usize, out: &mut Vec<f32>) {
        // The product is rounded to f32 before cos and sin, as everywhere these models run.
        let angle = |f: &f32| position as f32 * f;
        out.extend(self.frequencies.iter().map(|f| angle(f).cos()));
        out.extend(self.frequencies.iter().map(|f| angle(f).sin()));
    }
}

fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // How many turns fit into the original context: few means a long wavelength.
            let turns = original_context * frequency / TAU;
            let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = kept.clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn beyond_the_table_is_the_same_rotation() {
        let config = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default };
        let (short, long) = (Rope::new(&config, 8, 2), Rope::new(&config, 8, 100));
        let mut a = Array2::from_shape_fn((50, 16), |(i, j)| (i * j % 7) as f32);
        let mut b = a.clone();
        short.apply(a.view_mut(), 30);
        long.apply(b.view_mut(), 30);
        assert_eq!(a, b);
    }
}
