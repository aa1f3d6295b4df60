//! The statistics of one input, as methods read them.

use ndarray::{Array2, ArrayView1};

use super::{Gram, Moments, NonFinite};
use crate::linalg::Par;
use crate::{Error, Result};

/// Statistics of a linear layer's input X `[tokens, channels]`: what was collected of Gram matrix, moments and rows.
///
/// An accessor gives an error if its statistic was not collected (missing calibration), or if the stream had NaN or
/// infinity (numerical, naming the channel). A method turns that into a fallback or passes it on.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    channels: usize,
    tokens: u64,
    non_finite: Option<NonFinite>,
    gram: Slot<Array2<f32>>,
    moments: Slot<Moments>,
    samples: Slot<Array2<f32>>,
}

#[derive(Debug, Clone, Default)]
enum Slot<T> {
    #[default]
    Absent,
    Taken,
    /// Why it cannot be used.
    Unusable(String),
    Ready(T),
}

impl<T> Slot<T> {
    fn map<U>(&self, f: impl FnOnce(&T) -> U) -> Slot<U> {
        match self {
            Self::Absent => Slot::Absent,
            Self::Taken => Slot::Taken,
            Self::Unusable(why) => Slot::Unusable(why.clone()),
            Self::Ready(value) => Slot::Ready(f(value)),
        }
    }

    fn get(&self, what: &str) -> Result<&T> {
        match self {
            Self::Absent => Err(Error::missing_calibration(format!("{what} was not collected"))),
            Self::Taken => Err(Error::missing_calibration(format!("{what} was taken before"))),
            Self::Unusable(why) => Err(Error::numerical(why.clone())),
            Self::Ready(value) => Ok(value),
        }
    }
}

impl<T> From<Option<T>> for Slot<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Ready)
    }
}

impl Calibration {
    /// No statistics, as for a method that needs none.
    #[must_use]
    pub fn none(channels: usize) -> Self {
        Self { channels, ..Self::default() }
    }

    /// From a Gram matrix XᵀX `[channels, channels]` of this many tokens.
    ///
    /// # Errors
    /// Shape, if it is not square. Numerical, if an entry is not finite.
    pub fn from_gram(gram: Array2<f32>, tokens: u64) -> Result<Self> {
        let (rows, channels) = gram.dim();
        if rows != channels {
            let message = format!("a Gram matrix must be square, not {rows} x {channels}");
            return Err(Error::shape(message));
        }
        if let Some(((i, j), v)) = gram.indexed_iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::numerical(format!("Gram matrix: entry [{i}, {j}] is {v}")));
        }
        Ok(Self { channels, tokens, gram: Slot::Ready(gram), ..Self::default() })
    }

    /// All statistics of the rows X `[tokens, channels]`, which are kept as the samples.
    #[must_use]
    pub fn from_samples(x: Array2<f32>, par: Par) -> Self {
        let (tokens, channels) = (x.nrows() as u64, x.ncols());
        let non_finite = NonFinite::find(x.view(), 0);
        let mut gram = Gram::new(channels);
        let mut moments = Moments::new(channels);
        gram.update(x.view(), par);
        moments.update(x.view());
        Self::collected(
            channels,
            tokens,
            non_finite,
            Some(gram.into_matrix()),
            Some(moments),
            Some(x),
        )
    }

    pub(super) fn collected(
        channels: usize,
        tokens: u64,
        non_finite: Option<NonFinite>,
        gram: Option<Result<Array2<f32>>>,
        moments: Option<Moments>,
        samples: Option<Array2<f32>>,
    ) -> Self {
        let gram = match gram {
            None => Slot::Absent,
            Some(Ok(gram)) => Slot::Ready(gram),
            Some(Err(error)) => Slot::Unusable(error.message().to_owned()),
        };
        let (moments, samples) = (moments.into(), samples.into());
        Self { channels, tokens, non_finite, gram, moments, samples }
    }

    /// Columns of X.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows of X that the statistics are of.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The stream had no NaN or infinity.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.non_finite.is_none()
    }

    fn check(&self) -> Result<()> {
        self.non_finite.map_or(Ok(()), |bad| Err(bad.error("calibration")))
    }

    /// XᵀX `[channels, channels]`, symmetric.
    ///
    /// # Errors
    /// See the type.
    pub fn gram(&self) -> Result<&Array2<f32>> {
        self.check()?;
        self.gram.get("the Gram matrix")
    }

    /// Moves the Gram matrix out, so that it can be factored in its own memory.
    ///
    /// # Errors
    /// See the type; missing calibration the second time.
    pub fn take_gram(&mut self) -> Result<Array2<f32>> {
        self.gram()?;
        match std::mem::replace(&mut self.gram, Slot::Taken) {
            Slot::Ready(gram) => Ok(gram),
            _ => unreachable!("checked above"),
        }
    }

    /// Moments of every channel.
    ///
    /// # Errors
    /// See the type.
    pub fn moments(&self) -> Result<&Moments> {
        self.check()?;
        self.moments.get("moments of the channels")
    }

    /// Sampled rows `[rows, channels]`, in the order of the stream.
    ///
    /// # Errors
    /// See the type.
    pub fn samples(&self) -> Result<&Array2<f32>> {
        self.check()?;
        self.samples.get("a sample of rows")
    }

    /// The statistics of X diag(1/s): what a layer sees behind a per-channel scaling, as AWQ and SmoothQuant fold it
    /// into the layer before. Gram'ᵢⱼ = Gramᵢⱼ / (sᵢ sⱼ).
    ///
    /// # Errors
    /// Shape, unless there is one scale per channel. Invalid argument, unless all are positive and finite.
    pub fn scaled(&self, s: &[f32]) -> Result<Self> {
        if s.len() != self.channels {
            let message = format!("{} scales for {} channels", s.len(), self.channels);
            return Err(Error::shape(message));
        }
        if let Some(i) = s.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            let message = format!("scale {} of channel {i} must be positive and finite", s[i]);
            return Err(Error::invalid(message));
        }
        let gram = self.gram.map(|gram| {
            let mut gram = gram.clone();
            for (mut row, &si) in gram.rows_mut().into_iter().zip(s) {
                // One rounded product per pair, the same on both sides of the diagonal.
                row.iter_mut().zip(s).for_each(|(g, &sj)| *g /= si * sj);
            }
            gram
        });
        let s = ArrayView1::from(s);
        Ok(Self {
            channels: self.channels,
            tokens: self.tokens,
            non_finite: self.non_finite,
            gram,
            moments: self.moments.map(|moments| moments.scaled(s)),
            samples: self.samples.map(|samples| samples / &s),
        })
    }
}
