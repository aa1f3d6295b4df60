//! Gathering what a set of methods needs, in one pass.

use ndarray::ArrayView2;

use super::statistic::{Ask, Erased, Kind};
use super::{Batch, Calibration, Needs, NonFinite};
use crate::linalg::Par;

/// Gathers the statistics of one layer's input as it streams by.
#[derive(Debug, Clone)]
pub struct Collector {
    channels: usize,
    tokens: u64,
    non_finite: Option<NonFinite>,
    /// One of each kind; those of a stream with NaN hold nothing any more.
    statistics: Vec<(Kind, Option<Box<dyn Erased>>)>,
}

impl Collector {
    /// Gathers `needs` of an input of this many channels; `seed` chooses the sampled rows.
    #[must_use]
    pub fn new(channels: usize, needs: Needs, seed: u64) -> Self {
        let statistics = needs.begin(Ask { channels, amount: 1, seed });
        let statistics = statistics.into_iter().map(|(kind, of)| (kind, Some(of))).collect();
        Self { channels, tokens: 0, non_finite: None, statistics }
    }

    /// The next token to come is number `token` of the whole stream: for parts that will be merged.
    #[must_use]
    pub fn starting_at(mut self, token: u64) -> Self {
        for statistic in self.statistics.iter_mut().filter_map(|(_, statistic)| statistic.as_mut())
        {
            statistic.starting_at(token);
        }
        self
    }

    /// Adds the tokens X `[tokens, channels]`.
    ///
    /// # Panics
    /// If X has another number of channels.
    pub fn update(&mut self, x: ArrayView2<'_, f32>, par: Par) {
        self.update_all(&Batch::new(x), par);
    }

    /// Adds tokens in several streams.
    ///
    /// # Panics
    /// If the streams differ in tokens, or have other widths than before.
    pub fn update_all(&mut self, batch: &Batch<'_>, par: Par) {
        let x = batch.input;
        assert_eq!(x.ncols(), self.channels, "channels of a calibration stream");
        let beside = [batch.original.map(|o| o.nrows()), batch.output.map(|y| y.nrows())];
        for tokens in beside.into_iter().flatten().chain(batch.routes.map(|r| r.nrows())) {
            assert_eq!(tokens, x.nrows(), "tokens of the streams of one batch");
        }
        if self.non_finite.is_none() {
            self.non_finite = NonFinite::find(x, self.tokens);
        }
        self.tokens += x.nrows() as u64;
        self.forget_if_bad();
        for statistic in self.statistics.iter_mut().filter_map(|(_, statistic)| statistic.as_mut())
        {
            statistic.update(batch, par);
        }
    }

    /// Adds what `other`, made with the same needs and seed, has seen.
    ///
    /// # Panics
    /// If channels or needs differ.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(other.channels, self.channels, "channels of merged calibration");
        let kinds = |of: &Self| of.statistics.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
        assert_eq!(kinds(&other), kinds(self), "merged calibration must have the same needs");
        let later = other.non_finite.map(|bad| NonFinite { token: bad.token + self.tokens, ..bad });
        self.non_finite = self.non_finite.or(later);
        self.tokens += other.tokens;
        self.forget_if_bad();
        for ((_, mine), (_, theirs)) in self.statistics.iter_mut().zip(other.statistics) {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                mine.merge(theirs);
            }
        }
    }

    /// Nothing more can come of a stream with NaN; gives the memory back.
    fn forget_if_bad(&mut self) {
        if self.non_finite.is_some() {
            self.statistics.iter_mut().for_each(|(_, statistic)| *statistic = None);
        }
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The statistics. Those of a stream with NaN or infinity are there as errors, met on access.
    #[must_use]
    pub fn finish(self) -> Calibration {
        let finish = |(kind, statistic): (Kind, Option<Box<dyn Erased>>)| {
            statistic.map(|statistic| (kind, statistic.finish()))
        };
        let statistics = self.statistics.into_iter().filter_map(finish);
        Calibration::collected(self.channels, self.tokens, self.non_finite, statistics)
    }
}
