//! Rotary position embedding of keys that are held without it.

use ndarray::ArrayViewMut2;
use serde::{Deserialize, Serialize};
use tensorpress_tensor::{Error, Result, ndarray};

/// Rotary embedding in the half-split layout: channel i turns with channel i + dim / 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// The usual frequencies, `theta^(-2i / dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` if `dim` is odd or 0, or `theta` is not positive.
    pub fn new(dim: usize, theta: f64) -> Result<Self> {
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "head_dim = {dim}: rotary embedding takes even numbers"
            )));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(Error::invalid(format!("theta = {theta}: allowed are positive numbers")));
        }
        let frequency = |i: usize| theta.powf(-((2 * i) as f64) / dim as f64) as f32;
        Ok(Self { frequencies: (0..dim / 2).map(frequency).collect() })
    }

    /// Angles per token of each pair of channels, scaled in whatever way a model wants.
    ///
    /// # Errors
    /// `InvalidArgument` if there are none or they are not finite.
    pub fn with_frequencies(frequencies: Vec<f32>) -> Result<Self> {
        let rope = Self { frequencies };
        rope.check()?;
        Ok(rope)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.frequencies.is_empty() || self.frequencies.iter().any(|f| !f.is_finite()) {
            return Err(Error::invalid("frequencies: allowed are one finite number or more"));
        }
        Ok(())
    }

    /// Channels of a head.
    #[must_use]
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Turns vectors of [`Rope::dim`] channels, one after another, to a position.
    pub fn rotate(&self, x: &mut [f32], position: usize) {
        self.turn(x, position, 1.0);
    }

    /// Turns vectors of [`Rope::dim`] channels, one after another, back from a position: what they were before
    /// [`Rope::rotate`], but for rounding.
    pub fn rotate_back(&self, x: &mut [f32], position: usize) {
        self.turn(x, position, -1.0);
    }

    /// Turns keys `[slots, dim]` of tokens at these positions to 0, 1, 2 ...: for models that count what is left, not what
    /// was seen (FINCH, Corallo and Papotti, 2024; LaCache, Shi et al., 2025). The next token then stands at the number
    /// of slots.
    ///
    /// # Errors
    /// `ShapeMismatch` for other channels, or another number of positions.
    pub fn renumber(&self, mut keys: ArrayViewMut2<'_, f32>, positions: &[usize]) -> Result<()> {
        if keys.dim() != (positions.len(), self.dim()) {
            return Err(Error::shape(format!(
                "keys {:?}, {} positions, rotary embedding of {} channels",
                keys.dim(),
                positions.len(),
                self.dim()
            )));
        }
        for (place, (mut key, position)) in keys.rows_mut().into_iter().zip(positions).enumerate() {
            let mut turned = key.to_vec();
            match position.checked_sub(place) {
                Some(back) => self.rotate_back(&mut turned, back),
                None => self.rotate(&mut turned, place - position),
            }
            key.iter_mut().zip(turned).for_each(|(to, x)| *to = x);
        }
        Ok(())
    }

    /// Turns one vector by the mean of the rotations to these positions.
    pub(crate) fn turn_by_mean(&self, x: &mut [f64], positions: std::ops::Range<usize>) {
        let half = self.frequencies.len();
        for (i, (cos, sin)) in self.mean_rotation(positions).into_iter().enumerate() {
            let (cos, sin) = (f64::from(cos), f64::from(sin));
            let (a, b) = (x[i], x[i + half]);
            (x[i], x[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }

    fn turn(&self, x: &mut [f32], position: usize, direction: f32) {
        let half = self.frequencies.len();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            let sin = direction * sin;
            for x in x.chunks_exact_mut(2 * half) {
                let (a, b) = (x[i], x[i + half]);
                (x[i], x[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }

    /// Mean of cosine and sine over `positions`, for each pair of channels.
    pub(crate) fn mean_rotation(&self, positions: std::ops::Range<usize>) -> Vec<(f32, f32)> {
        let n = positions.len().max(1) as f64;
        let mean = |frequency: &f32| {
            let sum = positions.clone().fold((0.0, 0.0), |(c, s), p| {
                let (sin, cos) = (p as f32 * frequency).sin_cos();
                (c + f64::from(cos), s + f64::from(sin))
            });
            ((sum.0 / n) as f32, (sum.1 / n) as f32)
        };
        self.frequencies.iter().map(mean).collect()
    }
}
