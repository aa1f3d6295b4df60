use tensorpress_tensor::{Error, Result};

/// DynaQuant's quantiser (2025): an affine grid whose scale and offset follow from the statistics of each input,
/// its levels `offset + scale code`, codes 0 to 2^bits - 1.
///
/// The grid is centred on the mean and spans `spread` standard deviations to each side, but no more than what there is; both
/// are computed from the input itself, so nothing is stored but they. (The paper's abstract names the statistics and
/// the two parameters; the formula is ours.)
///
/// ```
/// use tensorpress_quant::activation::{DynaQuant, DynamicGrid};
///
/// let x = [0.0, 1.0, 2.0, 3.0];
/// let grid = DynaQuant::default().grid(&x, 2)?;
/// assert_eq!(x.map(|x| grid.code(x)), [0, 1, 2, 3]);
/// assert_eq!(grid.level(2), 2.0);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DynaQuant {
    /// Standard deviations that a grid spans to each side of the mean, if the input reaches so far. Default 4.
    pub spread: f32,
    /// How much the gradient depends on the distance from the level: 0 not at all, up to 1. Default 0.5.
    pub strength: f32,
}

impl Default for DynaQuant {
    fn default() -> Self {
        Self { spread: 4.0, strength: 0.5 }
    }
}

/// The grid of one input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicGrid {
    /// Distance of two levels; 0 for an input of one value.
    pub scale: f32,
    /// The lowest level.
    pub offset: f32,
    /// The largest code.
    pub most: u16,
}

/// What flows back through a quantiser.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicGradients {
    /// Of the input.
    pub input: Vec<f32>,
    /// Of the scale, times what the scale depends on.
    pub scale: f32,
    /// Of the offset.
    pub offset: f32,
}

impl DynamicGrid {
    /// The nearest code, half to even; the first or last one for what lies outside, and 0 for NaN.
    #[must_use]
    pub fn code(&self, x: f32) -> u16 {
        if self.scale > 0.0 {
            self.place(x).round_ties_even().clamp(0.0, self.most()) as u16
        } else {
            0
        }
    }

    /// The level of a code.
    #[must_use]
    pub fn level(&self, code: u16) -> f32 {
        (f64::from(self.offset) + f64::from(self.scale) * f64::from(code)) as f32
    }

    fn most(&self) -> f32 {
        f32::from(self.most)
    }

    /// Where a number lies, in steps from the lowest level.
    fn place(&self, x: f32) -> f32 {
        ((f64::from(x) - f64::from(self.offset)) / f64::from(self.scale)) as f32
    }
}

impl DynaQuant {
    /// Sets the standard deviations that a grid spans.
    #[must_use]
    pub fn with_spread(mut self, spread: f32) -> Self {
        self.spread = spread;
        self
    }

    /// Sets how much gradients depend on the distance.
    #[must_use]
    pub fn with_strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    fn check(&self, x: &[f32]) -> Result<()> {
        if !(self.spread.is_finite() && self.spread > 0.0) {
            return Err(Error::invalid(format!(
                "spread = {}: allowed are positive numbers",
                self.spread
            )));
        }
        if !(0.0..=1.0).contains(&self.strength) {
            return Err(Error::invalid(format!(
                "strength = {}: allowed are 0 to 1",
                self.strength
            )));
        }
        match x.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(Error::numerical(format!("input {i} is {}", x[i]))),
            None => Ok(()),
        }
    }

    /// The grid of an input in `bits` bits.
    ///
    /// # Errors
    /// `InvalidArgument` unless `bits` is 1 to 16 and the parameters are in their ranges, `Numerical` for numbers that are
    /// not finite.
    pub fn grid(&self, x: &[f32], bits: u8) -> Result<DynamicGrid> {
        if !(1..=16).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 16")));
        }
        self.check(x)?;
        let most = ((1u32 << bits) - 1) as u16;
        let count = x.len().max(1) as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let reach = f64::from(self.spread) * variance.sqrt();
        let least = x.iter().fold(f32::INFINITY, |a, b| a.min(*b));
        let largest = x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        if least >= largest {
            return Ok(DynamicGrid {
                scale: 0.0,
                offset: if x.is_empty() { 0.0 } else { least },
                most,
            });
        }
        let low = f64::from(least).max(mean - reach);
        let high = f64::from(largest).min(mean + reach);
        let scale = ((high - low) / f64::from(most)) as f32;
        Ok(DynamicGrid { scale, offset: low as f32, most })
    }

    /// What flows back to the input, the scale and the offset, given what flows to the rounded numbers.
    ///
    /// Rounding is passed by the straight-through estimator, times a factor that says how far the estimate can be trusted: for
    /// a number u steps from its level (0 to 1/2) `1 + strength (1 - 4u)`: more where the level is near, less
    /// where it may change, 1 on average over a step. Beyond the grid nothing reaches the input, all the offset.
    ///
    /// # Errors
    /// `ShapeMismatch` if there are not as many gradients as numbers; else as [`DynaQuant::grid`].
    pub fn gradients(
        &self,
        x: &[f32],
        grid: &DynamicGrid,
        upstream: &[f32],
    ) -> Result<DynamicGradients> {
        self.check(x)?;
        if x.len() != upstream.len() {
            let message = format!("{} gradients of {} numbers", upstream.len(), x.len());
            return Err(Error::shape(message));
        }
        let (mut scale, mut offset) = (0f64, 0f64);
        let mut input = Vec::with_capacity(x.len());
        for (x, up) in x.iter().zip(upstream) {
            if grid.scale <= 0.0 {
                input.push(0.0);
                offset += f64::from(*up);
                continue;
            }
            let place = grid.place(*x);
            let code = f32::from(grid.code(*x));
            if !(0.0..=grid.most()).contains(&place) {
                input.push(0.0);
                scale += f64::from(*up) * f64::from(code);
                offset += f64::from(*up);
                continue;
            }
            let distance = (place - code).abs();
            input.push(up * (1.0 + self.strength * (1.0 - 4.0 * distance)));
            // The level is offset + scale round((x - offset) / scale), rounding passed through.
            scale += f64::from(*up) * f64::from(code - place);
        }
        Ok(DynamicGradients { input, scale: scale as f32, offset: offset as f32 })
    }
}

/// Bits for each layer by scores that depend on the input (DynaQuant's selector; the scores come from a small network of the
/// caller): the width with the best score, and the mean width under the scores' softmax, which a loss can be taken of.
///
/// # Errors
/// `InvalidArgument` without widths, `ShapeMismatch` unless there is one score a width in every layer, `Numerical` for scores
/// that are not finite.
pub fn choose_bits(scores: &[Vec<f32>], widths: &[u8]) -> Result<Vec<(u8, f32)>> {
    let Some(first) = widths.first() else {
        return Err(Error::invalid("no widths to choose from"));
    };
    let choose = |(layer, scores): (usize, &Vec<f32>)| {
        if scores.len() != widths.len() {
            let message =
                format!("layer {layer}: {} scores for {} widths", scores.len(), widths.len());
            return Err(Error::shape(message));
        }
        if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
            return Err(Error::numerical(format!("layer {layer}: a score is {score}")));
        }
        let (mut best, mut chosen) = (f32::NEG_INFINITY, *first);
        for (score, width) in scores.iter().zip(widths) {
            if *score > best {
                (best, chosen) = (*score, *width);
            }
        }
        let shares = scores.iter().map(|score| f64::from(score - best).exp());
        let (mut total, mut mean) = (0.0, 0.0);
        for (share, width) in shares.zip(widths) {
            total += share;
            mean += share * f64::from(*width);
        }
        Ok((chosen, (mean / total) as f32))
    };
    scores.iter().enumerate().map(choose).collect()
}
