//! Rotary position embedding of keys that are held without it.

use serde::{Deserialize, Serialize};
use tensorpress_tensor::{Error, Result};

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
        Self { frequencies }.checked()
    }

    pub(crate) fn checked(self) -> Result<Self> {
        if self.frequencies.is_empty() || self.frequencies.iter().any(|f| !f.is_finite()) {
            return Err(Error::invalid("frequencies: allowed are one finite number or more"));
        }
        Ok(self)
    }

    /// Channels of a head.
    #[must_use]
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Turns a vector of [`Rope::dim`] channels to a position.
    pub fn rotate(&self, x: &mut [f32], position: usize) {
        let (first, second) = x.split_at_mut(self.frequencies.len());
        for ((a, b), frequency) in first.iter_mut().zip(second).zip(&self.frequencies) {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
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
