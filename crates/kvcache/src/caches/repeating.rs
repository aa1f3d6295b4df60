//! Contexts said once more, layer by layer.

use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::Caches;
use crate::cache::Cache;
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

    /// As [`crate::Cache::end_repetition`], for a layer. Nothing goes before all layers that began one have ended it: then
    /// their slots are ranked together, as the authors do, so that layers that copy may hold more than others.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there. What was said is taken back all the same.
    pub fn end_repetition(&mut self, layer: usize) -> Result<()> {
        self.check(layer)?;
        if self.contexts[layer].is_none() {
            return self.layers[layer].end_repetition();
        }
        self.ended[layer] = true;
        if self.contexts.iter().zip(&self.ended).any(|(context, ended)| context.is_some() && !ended)
        {
            return Ok(());
        }
        let tokens = self.ranked_together();
        let mut all = Ok(());
        for layer in 0..self.layers.len() {
            self.ended[layer] = false;
            if let Some(context) = self.contexts[layer].take() {
                self.seen[layer] = context;
                all = all.and(self.layers[layer].end_repetition_with(tokens[layer]));
            }
        }
        all
    }

    /// Tokens per head of each layer that waits, so that the best slots of all of them stay, as many as all may hold; the
    /// first ones of each, which always stay, among them.
    fn ranked_together(&self) -> Vec<Option<usize>> {
        let mut order: Vec<(f32, usize)> = Vec::new();
        let mut total = 0;
        for (l, layer) in self.layers.iter().enumerate() {
            let Some((scores, tokens)) = layer.repeated_so_far() else { continue };
            total += tokens * scores.len();
            let sinks = layer.policy().map_or(0, |(policy, _)| policy.sinks);
            for head in scores {
                let first = head.iter().take(sinks).map(|_| f32::INFINITY);
                order.extend(first.chain(head.iter().skip(sinks).copied()).map(|x| (x, l)));
            }
        }
        // Stable: of equals the first layer's stay.
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut slots = vec![0; self.layers.len()];
        order.iter().take(total).for_each(|(_, l)| slots[*l] += 1);
        // Whole tokens per head; what is left over goes on to the next layer.
        let mut over = 0;
        let share = |(layer, slots): (&Cache, usize)| {
            let (scores, _) = layer.repeated_so_far()?;
            let heads = scores.len();
            let tokens = (slots + over) / heads;
            over = slots + over - tokens * heads;
            Some(tokens.max(1))
        };
        self.layers.iter().zip(slots).map(share).collect()
    }

    /// As [`crate::Cache::abandon_repetition`], for a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn abandon_repetition(&mut self, layer: usize) {
        self.ended[layer] = false;
        self.seen[layer] = self.contexts[layer].take().unwrap_or(self.seen[layer]);
        self.layers[layer].abandon_repetition();
    }

    /// What cannot be while any layer says its context again.
    pub(super) fn check_whole(&self, what: &str) -> Result<()> {
        self.contexts.iter().flatten().next().map_or(Ok(()), |_| Err(within(what)))
    }
}
