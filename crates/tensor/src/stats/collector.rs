//! Gathering what a set of methods needs, in one pass.

use ndarray::ArrayView2;

use super::{Calibration, Gram, Moments, NonFinite, SampledRows};
use crate::linalg::Par;

/// The calibration statistics a method wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Needs {
    /// The Gram matrix XᵀX.
    pub gram: bool,
    /// Moments of every channel.
    pub moments: bool,
    /// Up to this many sampled rows of X.
    pub samples: usize,
    /// X as the layers before it in its own transformer block will make it, once they are compressed ("true sequential"
    /// in the official code of GPTQ); else as they made it, behind blocks that are compressed. Small errors are made
    /// good one after another; what removes much does better on inputs that are not yet far off.
    pub true_sequential: bool,
}

impl Needs {
    /// Nothing: the method looks at the weight alone.
    pub const NONE: Self = Self { gram: false, moments: false, samples: 0, true_sequential: false };
    /// The Gram matrix.
    pub const GRAM: Self = Self { gram: true, ..Self::NONE };
    /// Moments of every channel.
    pub const MOMENTS: Self = Self { moments: true, ..Self::NONE };

    /// Up to `rows` sampled rows.
    #[must_use]
    pub const fn samples(rows: usize) -> Self {
        Self { samples: rows, ..Self::NONE }
    }

    /// The same, of inputs as compressed layers make them.
    #[must_use]
    pub const fn true_sequentially(self) -> Self {
        Self { true_sequential: true, ..self }
    }

    /// What serves both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            gram: self.gram || other.gram,
            moments: self.moments || other.moments,
            samples: if self.samples > other.samples { self.samples } else { other.samples },
            true_sequential: self.true_sequential || other.true_sequential,
        }
    }

    /// Nothing is wanted.
    #[must_use]
    pub const fn is_none(self) -> bool {
        !self.gram && !self.moments && self.samples == 0
    }
}

impl std::ops::BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// Gathers the statistics of one input as it streams by.
#[derive(Debug, Clone)]
pub struct Collector {
    channels: usize,
    tokens: u64,
    non_finite: Option<NonFinite>,
    gram: Option<Gram>,
    moments: Option<Moments>,
    samples: Option<SampledRows>,
}

impl Collector {
    /// Gathers `needs` of an input of this many channels; `seed` chooses the sampled rows.
    #[must_use]
    pub fn new(channels: usize, needs: Needs, seed: u64) -> Self {
        let samples = SampledRows::new(channels, needs.samples, seed);
        Self {
            channels,
            tokens: 0,
            non_finite: None,
            gram: needs.gram.then(|| Gram::new(channels)),
            moments: needs.moments.then(|| Moments::new(channels)),
            samples: (needs.samples > 0).then_some(samples),
        }
    }

    /// The next token to come is number `token` of the whole stream: for parts that will be merged.
    #[must_use]
    pub fn starting_at(mut self, token: u64) -> Self {
        self.samples = self.samples.map(|samples| samples.starting_at(token));
        self
    }

    /// Adds the tokens X `[tokens, channels]`.
    ///
    /// # Panics
    /// If X has another number of channels.
    pub fn update(&mut self, x: ArrayView2<'_, f32>, par: Par) {
        assert_eq!(x.ncols(), self.channels, "channels of a calibration stream");
        if self.non_finite.is_none() {
            self.non_finite = NonFinite::find(x, self.tokens);
        }
        self.tokens += x.nrows() as u64;
        if self.non_finite.is_some() {
            // Nothing more can come of it; give the memory back.
            (self.gram, self.moments, self.samples) = (None, None, None);
        }
        if let Some(gram) = &mut self.gram {
            gram.update(x, par);
        }
        if let Some(moments) = &mut self.moments {
            moments.update(x);
        }
        if let Some(samples) = &mut self.samples {
            samples.update(x);
        }
    }

    /// Adds what `other`, made with the same needs and seed, has seen.
    ///
    /// # Panics
    /// If channels or needs differ.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(other.channels, self.channels, "channels of merged calibration");
        let later = other.non_finite.map(|bad| NonFinite { token: bad.token + self.tokens, ..bad });
        self.non_finite = self.non_finite.or(later);
        self.tokens += other.tokens;
        if self.non_finite.is_some() {
            (self.gram, self.moments, self.samples) = (None, None, None);
            return;
        }
        fn both<T>(mine: &mut Option<T>, theirs: Option<T>, merge: fn(&mut T, T)) {
            match (mine, theirs) {
                (Some(mine), Some(theirs)) => merge(mine, theirs),
                (None, None) => {}
                _ => panic!("merged calibration must have the same needs"),
            }
        }
        both(&mut self.gram, other.gram, Gram::merge);
        both(&mut self.moments, other.moments, Moments::merge);
        both(&mut self.samples, other.samples, SampledRows::merge);
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The statistics. Those of a stream with NaN or infinity are there as errors, met on access.
    #[must_use]
    pub fn finish(self) -> Calibration {
        let samples = self.samples.map(SampledRows::into_matrix);
        let gram = self.gram.map(Gram::into_matrix);
        Calibration::collected(
            self.channels,
            self.tokens,
            self.non_finite,
            gram,
            self.moments,
            samples,
        )
    }
}
