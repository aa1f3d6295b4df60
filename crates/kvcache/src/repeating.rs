//! A context said once more, and taken back: what a policy that waits for it looks at.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use crate::budget::Budget;
use crate::cache::Cache;
use crate::score::{Reconstruction, Repetition};
use crate::store::{Bias, Causal, KvStore, Layer};

/// What a repetition must give back.
///
/// Tokens that are said again go into the layer itself, so that they are held and looked at as any; the layer as it was is
/// what stays. Forms that pack need not know how to undo anything.
#[derive(Debug, Clone)]
pub(crate) struct Repeating {
    context: Layer,
    /// Where the policy waits for it.
    seen: Option<Reconstruction>,
    /// Norms of the hidden states of the tokens that come next.
    hidden: Option<Vec<f32>>,
    deferred: bool,
}

impl Cache {
    /// What the policy waits for: until [`Cache::end_repetition`] nothing goes, and what comes after it stays whole. `None`
    /// where it waits for nothing, or does so no longer.
    #[must_use]
    pub fn repetition(&self) -> Option<&Repetition> {
        let (_, statistics) = self.policy.as_ref()?;
        statistics.needs().repetition.as_ref().filter(|_| !statistics.repeated)
    }

    /// From here on the context, which is all that is held, is said again: its tokens at the positions `part`, behind a
    /// prompt or none, are appended and attended as any, and taken back exactly by the next call of this, for the next part,
    /// or by [`Cache::end_repetition`]. Where the policy waits for nothing they are taken back all the same.
    ///
    /// ```
    /// use tensorpress_kvcache::KvRecipe;
    /// use tensorpress_tensor::ndarray::Array3;
    /// use tensorpress_tensor::Scratch;
    ///
    /// let recipe: KvRecipe = "f16 | kvzip(keep=0.25)".parse()?;
    /// let mut cache = recipe.with_repetition().caches(1, 2, 1, 32)?.remove(0);
    /// let [k, q] = [1, 2].map(|heads| Array3::from_elem((40, heads, 32), 0.5));
    /// let mut out = q.clone();
    /// cache.append(k.view(), k.view())?;
    /// cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default())?;
    ///
    /// let chunk = cache.repetition().expect("it waits").chunk;
    /// assert!(chunk >= 40, "all of the context at once");
    /// cache.begin_repetition(0..40)?;
    /// cache.append(k.view(), k.view())?;
    /// cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default())?;
    /// cache.end_repetition()?;
    /// assert_eq!((cache.len(), cache.store().held(0)), (40, 10));
    /// # Ok::<(), tensorpress_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` for positions that are not in the context, or drafts that are not settled; `MissingCalibration`
    /// where the score needs an output projection that it was not told. What was said so far is abandoned then.
    pub fn begin_repetition(&mut self, part: Range<usize>) -> Result<()> {
        if let Some(repeating) = &mut self.repeating {
            self.layer = repeating.context.clone();
            repeating.hidden = None;
        } else {
            if self.settled() != self.len() {
                let drafts = self.len() - self.settled();
                let why = format!("a repetition behind {drafts} drafts: settle them first");
                return Err(Error::invalid(why));
            }
            let seen = self.repetition().map(|wanted| reconstruction(&self.layer, wanted));
            let (seen, context) = (seen.transpose()?, self.layer.clone());
            let deferred = self.drafts.take().is_some();
            self.repeating = Some(Box::new(Repeating { context, seen, hidden: None, deferred }));
        }
        let sinks = self.policy.as_ref().map_or(0, |(policy, _)| policy.sinks);
        let seen = self.repeating.as_mut().and_then(|repeating| repeating.seen.as_mut());
        let begun = seen.map_or(Ok(()), |seen| seen.begin(part, sinks));
        if begun.is_err() {
            self.abandon_repetition();
        }
        begun
    }

    /// Tells the norms of the hidden states, as attention reads them, of the tokens that are attended next: a [`Repetition`]
    /// with `plus` divides by them. Nothing happens outside of a repetition.
    pub fn tell_hidden_norms(&mut self, norms: &[f32]) {
        if let Some(repeating) = &mut self.repeating {
            repeating.hidden = Some(norms.to_vec());
        }
    }

    /// Takes back what was said, and then does what the policy says, if it has waited for this: once.
    ///
    /// # Errors
    /// `InvalidArgument` if none was begun; those of the score. What was said is taken back all the same.
    pub fn end_repetition(&mut self) -> Result<()> {
        self.end_repetition_with(None)
    }

    /// What slots are worth so far, and how many tokens per head may stay, where the policy waits and counts tokens.
    pub(crate) fn repeated_so_far(&self) -> Option<(&[Vec<f32>], usize)> {
        let repeating = self.repeating.as_ref()?;
        let (policy, seen) = (&self.policy.as_ref()?.0, repeating.seen.as_ref()?);
        if matches!(policy.budget, Budget::Bytes(_)) {
            return None;
        }
        let (layer, heads) = (&repeating.context, self.layer.shape().kv_heads);
        let held: usize = (0..heads).map(|h| layer.held(h)).sum();
        let tokens = policy.tokens(layer.len(), self.at, held.div_ceil(heads), layer.bytes());
        Some((seen.scores(), tokens))
    }

    /// As [`Cache::end_repetition`], where so many tokens per head may stay; else as the policy says.
    pub(crate) fn end_repetition_with(&mut self, tokens: Option<usize>) -> Result<()> {
        let Some(repeating) = self.repeating.take() else {
            return Err(Error::invalid("the end of a repetition that was not begun"));
        };
        self.layer = repeating.context;
        let mut planned = Ok(());
        if let (Some((_, statistics)), Some(seen)) = (&mut self.policy, repeating.seen) {
            statistics.peaks = Some(seen.into_scores());
            statistics.tokens = tokens;
            planned = self.plan(false);
        }
        if let Some((_, statistics)) = &mut self.policy
            && statistics.peaks.take().is_some()
        {
            statistics.tokens = None;
            statistics.repeated = planned.is_ok();
        }
        if repeating.deferred {
            self.mark();
        }
        planned
    }

    /// Takes back what was said as if it had never been: the policy waits as before. Nothing happens outside of a
    /// repetition.
    pub fn abandon_repetition(&mut self) {
        if let Some(repeating) = self.repeating.take() {
            self.layer = repeating.context;
            if repeating.deferred {
                self.mark();
            }
        }
    }

    /// Attention of what is said again.
    pub(crate) fn repeat(
        &mut self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let repeating = self.repeating.as_mut().expect("within a repetition");
        let hidden = repeating.hidden.take();
        let Some(seen) = &mut repeating.seen else {
            return self.layer.attend_with(queries, causal, bias, out, scratch, None);
        };
        let hidden = match seen.is_plus() {
            false => None,
            true => Some(hidden.ok_or_else(|| {
                let why = "norms of hidden states are needed: tell_hidden_norms before each call";
                Error::missing_calibration(why)
            })?),
        };
        seen.attend(&self.layer, queries, causal, bias, hidden.as_deref(), out, scratch)
    }

    /// What cannot be while a context is said again.
    pub(crate) fn check_whole(&self, what: &str) -> Result<()> {
        self.repeating.as_ref().map_or(Ok(()), |_| Err(within(what)))
    }
}

/// The error for what cannot be while a context is said again.
pub(crate) fn within(what: &str) -> Error {
    Error::invalid(format!(
        "{what} while the context is said again: end or abandon the repetition first"
    ))
}

fn reconstruction(layer: &Layer, wanted: &Repetition) -> Result<Reconstruction> {
    let seen = Reconstruction::new(layer);
    if !wanted.plus {
        return Ok(seen);
    }
    let output = wanted.output.as_ref().ok_or_else(|| {
        Error::missing_calibration("the layer's output projection is needed: it was not told")
    })?;
    seen.with_outputs(layer, output.view())
}
