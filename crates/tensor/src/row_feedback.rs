use std::sync::OnceLock;

/// Asks a method that sweeps columns to feed errors among rows too ([`Target::rows`](crate::Target::rows)): the loss is then
/// tr(G E A Eᵀ) in place of tr(E A Eᵀ), with G the Fisher matrix of the outputs
/// ([`Supply::OUTPUT_FISHER`](crate::stats::Supply::OUTPUT_FISHER); *Model-preserving adaptive rounding*, Tseng et al., 2025).
/// A method that does not sweep may make that loss small in its own way.
///
/// ```
/// use tensorpress_tensor::{RowFeedback, Target, ndarray::array};
///
/// let (weight, rows) = (array![[1.0], [2.0]], RowFeedback::new(1.0));
/// let target = Target::new("w", weight.view()).with_rows(Some(&rows));
/// assert!(rows.outcome().is_none(), "nobody took it yet");
/// # drop(target);
/// ```
#[derive(Debug)]
pub struct RowFeedback {
    damp: f64,
    outcome: OnceLock<Option<String>>,
}

impl RowFeedback {
    /// With G's diagonal damped in proportion to each entry: 1 is right for G of a few windows.
    #[must_use]
    pub fn new(damp: f64) -> Self {
        Self { damp, outcome: OnceLock::new() }
    }

    /// What came of it: nothing, if no method took it; else news, such as why rows feed each other nothing.
    #[must_use]
    pub fn outcome(&self) -> Option<Option<&str>> {
        self.outcome.get().map(Option::as_deref)
    }

    /// The damping.
    #[must_use]
    pub fn damp(&self) -> f64 {
        self.damp
    }

    /// Said by a method that takes it: news, or that there are none.
    pub fn say(&self, news: Option<String>) {
        // A matrix that is swept twice says the same twice.
        let _ = self.outcome.set(news);
    }
}
