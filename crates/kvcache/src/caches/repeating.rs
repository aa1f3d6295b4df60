//! Contexts said once more, layer by layer.

use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::Caches;
use crate::repeating::within;
use crate::score::Repetition;

impl Caches {
    /// What the policy of a layer waits for: see [`crate::Cache::repetition`].
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn repetition(&self, layer: usize) -> Option<&Repetition> {
        self.layers[layer].repetition()
    }

    /// As [`crate::Cache::begin_repetition`], for a layer; all of them say the same, those that read another layer's keys too.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there, `Unsupported` with shared pages, which cannot be taken back.
    pub fn begin_repetition(&mut self, layer: usize, part: Range<usize>) -> Result<()> {
        self.check(layer)?;
        if self.joint.is_some() {
            return Err(Error::unsupported("a repetition where layers share pages"));
        }
        let context = self.contexts[layer].unwrap_or(self.seen[layer]);
        self.layers[layer].begin_repetition(if self.owners[layer] == layer {
            part
        } else {
            0..0
        })?;
        (self.contexts[layer], self.seen[layer]) = (Some(context), context);
        Ok(())
    }

    /// As [`crate::Cache::tell_hidden_norms`], for a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn tell_hidden_norms(&mut self, layer: usize, norms: &[f32]) {
        self.layers[layer].tell_hidden_norms(norms);
    }

    /// As [`crate::Cache::end_repetition`], for a layer.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there.
    pub fn end_repetition(&mut self, layer: usize) -> Result<()> {
        self.check(layer)?;
        self.seen[layer] = self.contexts[layer].take().unwrap_or(self.seen[layer]);
        self.layers[layer].end_repetition()
    }

    /// As [`crate::Cache::abandon_repetition`], for a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn abandon_repetition(&mut self, layer: usize) {
        self.seen[layer] = self.contexts[layer].take().unwrap_or(self.seen[layer]);
        self.layers[layer].abandon_repetition();
    }

    /// What cannot be while any layer says its context again.
    pub(super) fn check_whole(&self, what: &str) -> Result<()> {
        self.contexts.iter().flatten().next().map_or(Ok(()), |_| Err(within(what)))
    }
}
