//! What is computed now and then, and used in between.

use tensorpress_tensor::{Error, Result};

/// Keeps what was computed for the steps or layers that follow: plans over layers (LiteVGGT), features of attention
/// and MLP over denoising steps (EfficientVLA). Computed at 0, N, 2N ...
#[derive(Debug, Clone)]
pub struct Reuse<T> {
    every: usize,
    held: Option<(usize, T)>,
}

impl<T> Reuse<T> {
    /// Computes anew every so many steps.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    pub fn every(steps: usize) -> Result<Self> {
        if steps == 0 {
            return Err(Error::invalid("anew every 0 steps; allowed are 1 and above"));
        }
        Ok(Self { every: steps, held: None })
    }

    /// Whether something is computed at a step: the first that is asked for in each run of N steps.
    #[must_use]
    pub fn is_fresh(&self, step: usize) -> bool {
        self.held.as_ref().is_none_or(|(at, _)| at / self.every != step / self.every)
    }

    /// What holds at a step: computed, or what was.
    ///
    /// # Errors
    /// Those of `compute`; what was held is then held still.
    pub fn at(&mut self, step: usize, compute: impl FnOnce() -> Result<T>) -> Result<&T> {
        if self.is_fresh(step) {
            self.held = Some((step, compute()?));
        }
        let (_, held) = self.held.as_ref().expect("just computed, or held");
        Ok(held)
    }

    /// Forgets what is held: another picture, another sequence.
    pub fn clear(&mut self) {
        self.held = None;
    }
}
