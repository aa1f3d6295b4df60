//! The statistics of one layer, as methods read them.

use std::any::TypeId;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use super::statistic::{Kind, Value};
use super::supplied::Supplies;
use super::{Gram, Moments, Needs, NonFinite, SampledRows, Statistic, Stream, Via};
use crate::linalg::Par;
use crate::node::{Map, Scale, Side};
use crate::source::Element;
use crate::usable::Usable;
use crate::{Error, ErrorKind, Result};

/// Statistics of a linear layer's input X `[tokens, channels]`: what was collected, by the type of the statistic.
///
/// An accessor gives an error if its statistic was not collected (missing calibration), or if the stream had NaN or
/// infinity (numerical, naming the channel). A method turns that into a fallback or passes it on.
///
/// Values are shared: a clone costs a few pointers. [`Calibration::take`] gives a value that nobody else holds without a
/// copy, and copies it else.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    channels: usize,
    tokens: u64,
    non_finite: Option<NonFinite>,
    statistics: Vec<(Kind, Slot)>,
    pub(super) supplies: Supplies,
}

#[derive(Debug, Clone)]
enum Slot {
    Taken,
    /// Why it cannot be used.
    Failed(ErrorKind, String),
    Ready(Value),
}

impl From<Result<Value>> for Slot {
    fn from(result: Result<Value>) -> Self {
        match result {
            Ok(value) => Self::Ready(value),
            Err(error) => Self::Failed(error.kind(), error.message().to_owned()),
        }
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
        Ok(Self { channels, tokens, ..Self::default() }.with::<Gram>(gram))
    }

    /// Gram matrix, moments and samples of the rows X `[tokens, channels]`, all of which are kept as the samples.
    #[must_use]
    pub fn from_samples(x: Array2<f32>, par: Par) -> Self {
        let mut collector = super::Collector::new(x.ncols(), Needs::GRAM | Needs::MOMENTS, 0);
        collector.update(x.view(), par);
        collector.finish().with::<SampledRows>(x)
    }

    /// [`Calibration::from_samples`] of a view of f32, f16 or bf16 values `[tokens, channels]`, on this thread.
    ///
    /// ```
    /// # use tensorpress_tensor::{ndarray::aview2, stats::Calibration};
    /// let calibration = Calibration::of(aview2(&[[1.0f32, 2.0], [3.0, 4.0]]));
    /// assert_eq!(calibration.gram().unwrap()[[0, 0]], 10.0);
    /// ```
    #[must_use]
    pub fn of<T: Element>(x: ArrayView2<'_, T>) -> Self {
        Self::from_samples(x.mapv(Element::to_f32), Par::Seq)
    }

    /// [`Calibration::of`] of the rows, one after the other, of so many values each.
    ///
    /// # Errors
    /// Shape, unless the rows divide the slice. Invalid argument for 0 channels.
    pub fn of_slice<T: Element>(x: &[T], channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::invalid("channels = 0: allowed are 1 and more"));
        }
        let view = ArrayView2::from_shape((x.len() / channels, channels), x);
        let rows = view.ok().filter(|_| x.len().is_multiple_of(channels));
        let message = || format!("{} values in rows of {channels}", x.len());
        rows.map(Self::of).ok_or_else(|| Error::shape(message()))
    }

    pub(super) fn collected(
        channels: usize,
        tokens: u64,
        non_finite: Option<NonFinite>,
        statistics: impl Iterator<Item = (Kind, Result<Value>)>,
    ) -> Self {
        let statistics = statistics.map(|(kind, result)| (kind, result.into())).collect();
        Self { channels, tokens, non_finite, statistics, supplies: Supplies::default() }
    }

    /// The same with a statistic that was found elsewhere, in place of one of its kind if there is one.
    #[must_use]
    pub fn with<S: Statistic>(mut self, value: S::Value) -> Self {
        let kind = Kind::of::<S>();
        self.statistics.retain(|(other, _)| *other != kind);
        self.statistics.push((kind, Slot::Ready(Arc::new(value))));
        self
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

    /// The slot of a statistic that can be read.
    fn ready<S: Statistic>(&self) -> Result<usize> {
        self.non_finite.map_or(Ok(()), |bad| Err(bad.error("calibration")))?;
        let (id, what) = (TypeId::of::<S>(), S::WHAT);
        let at = self.statistics.iter().position(|(kind, _)| kind.id() == id);
        let missing = |how| Error::missing_calibration(format!("{what} was {how}"));
        let at = at.ok_or_else(|| missing("not collected"))?;
        match &self.statistics[at].1 {
            Slot::Taken => Err(missing("taken before")),
            Slot::Failed(kind, why) => Err(Error::new(*kind, why.clone())),
            Slot::Ready(_) => Ok(at),
        }
    }

    /// A statistic by its type.
    ///
    /// # Errors
    /// See the type.
    pub fn get<S: Statistic>(&self) -> Result<&S::Value> {
        match &self.statistics[self.ready::<S>()?].1 {
            Slot::Ready(value) => Ok(value.downcast_ref().expect("the value of its kind")),
            _ => unreachable!("checked above"),
        }
    }

    /// Moves a statistic out, so that it can be worked on in its own memory; a value that a clone of this calibration
    /// still holds is copied.
    ///
    /// # Errors
    /// See the type; missing calibration the second time.
    pub fn take<S: Statistic>(&mut self) -> Result<S::Value> {
        let at = self.ready::<S>()?;
        match std::mem::replace(&mut self.statistics[at].1, Slot::Taken) {
            Slot::Ready(value) => {
                Ok(Arc::unwrap_or_clone(value.downcast::<S::Value>().expect("of its kind")))
            }
            _ => unreachable!("checked above"),
        }
    }

    /// A statistic, or why it cannot be used: no token was seen, or not finite ones.
    ///
    /// # Errors
    /// `MissingCalibration`.
    pub fn usable<S: Statistic>(&self) -> Result<Usable<&S::Value>> {
        let usable = Usable::of(self.get::<S>())?;
        Ok(usable.and_then(|value| self.seen().map(|()| value)))
    }

    /// Whether any token was seen, and why nothing can be said if not.
    pub fn seen(&self) -> Usable<()> {
        match self.tokens {
            0 => Usable::no("saw no calibration token"),
            _ => Usable::Yes(()),
        }
    }

    /// XᵀX `[channels, channels]`, symmetric.
    ///
    /// # Errors
    /// See the type.
    pub fn gram(&self) -> Result<&Array2<f32>> {
        self.get::<Gram>()
    }

    /// Moves the Gram matrix out, so that it can be factored in its own memory.
    ///
    /// # Errors
    /// Those of [`Calibration::take`].
    pub fn take_gram(&mut self) -> Result<Array2<f32>> {
        self.take::<Gram>()
    }

    /// Moments of every channel.
    ///
    /// # Errors
    /// See the type.
    pub fn moments(&self) -> Result<&Moments> {
        self.get::<Moments>()
    }

    /// Sampled rows `[rows, channels]`, in the order of the stream.
    ///
    /// # Errors
    /// See the type.
    pub fn samples(&self) -> Result<&Array2<f32>> {
        self.get::<SampledRows>()
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
        self.through(Arc::new(Scale::dividing(s.to_vec())?), Side::In, Par::Seq)
    }

    /// The statistics of the node A in W = A T (inputs) or W = Tᵀ A (outputs): see [`Map`]. What cannot be carried through
    /// the map becomes an error met on access.
    ///
    /// # Errors
    /// Shape, if the map is of other channels.
    pub fn through(&self, map: Arc<dyn Map>, side: Side, par: Par) -> Result<Self> {
        let mapped = self.mapped(&*map, side, par)?;
        Ok(Self { supplies: self.supplies.through(map, side, None), ..mapped })
    }

    /// The same of the matrix `tensor` in W = Tᵀ A, which may share its input with others: what is known of outputs
    /// belongs to it only if it is `alone`. Else a statistic of outputs becomes an error met on access: whose outputs
    /// it is of is not known, and no one map would carry it.
    pub(crate) fn behind_outputs(
        &self,
        map: Arc<dyn Map>,
        tensor: &str,
        alone: bool,
        par: Par,
    ) -> Result<Self> {
        let mapped =
            if alone { self.mapped(&*map, Side::Out, par)? } else { self.without_outputs() };
        Ok(Self { supplies: self.supplies.through(map, Side::Out, Some(tensor)), ..mapped })
    }

    fn without_outputs(&self) -> Self {
        let mut without = self.clone();
        for (kind, slot) in &mut without.statistics {
            if matches!(slot, Slot::Ready(_)) && kind.reads(Stream::Output) {
                let what = kind.what();
                let message =
                    format!("{what} does not go through maps on the outputs of several matrices");
                *slot = Slot::Failed(ErrorKind::Numerical, message);
            }
        }
        without
    }

    fn mapped(&self, map: &dyn Map, side: Side, par: Par) -> Result<Self> {
        if side == Side::In && map.outer() != self.channels {
            let message = format!("a map of {} channels on {}", map.outer(), self.channels);
            return Err(Error::shape(message));
        }
        let via = Via { map, side, of: self, par };
        let through = |(kind, slot): &(Kind, Slot)| {
            let slot = match slot {
                Slot::Ready(value) => match kind.through(value, &via) {
                    Usable::Yes(value) => Slot::Ready(value),
                    Usable::No(reason) => Slot::Failed(ErrorKind::Numerical, reason),
                },
                other => other.clone(),
            };
            (*kind, slot)
        };
        Ok(Self {
            channels: if side == Side::In { map.inner() } else { self.channels },
            tokens: self.tokens,
            non_finite: self.non_finite,
            statistics: self.statistics.iter().map(through).collect(),
            supplies: Supplies::default(),
        })
    }
}
