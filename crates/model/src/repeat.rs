//! Contexts said once more, for caches whose policy waits for that.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch};

use crate::block::{Observer, SharedInput};
use crate::cache::{KvCache, Repeats};
use crate::decoder::Decoder;
use crate::tokenizer::Tokenizer;

/// What stands between a context and the context said again, as token ids. Without any, the context follows itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepeatPrompts {
    /// Asks for the context, where its first part is said.
    pub first: Vec<u32>,
    /// Asks for a later part, which begins behind the tokens that follow.
    pub next: Vec<u32>,
    /// How many tokens these are: the last before that part.
    pub tail: usize,
    /// Ends the prompt.
    pub end: Vec<u32>,
}

impl RepeatPrompts {
    /// The prompts of KVzip (Kim et al., 2025), and a line's end.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let part = "\n\nRepeat the part of the previous context exactly, starting with";
        Ok(Self {
            first: tokenizer.encode_plain("\n\nRepeat the previous context exactly.")?,
            next: tokenizer.encode_plain(part)?,
            tail: 8,
            end: tokenizer.encode_plain("\n")?,
        })
    }

    /// The prompt behind which the context is said from `start` on.
    fn at(&self, context: &[u32], start: usize) -> Vec<u32> {
        let tail = if start == 0 { start..start } else { start.saturating_sub(self.tail)..start };
        let ask = if start == 0 { &self.first } else { &self.next };
        ask.iter().chain(&context[tail]).chain(&self.end).copied().collect()
    }
}

impl Decoder {
    /// How many tokens of a context are to be said again at a time, if the policy of any cache waits for that.
    ///
    /// # Errors
    /// `Unsupported` where another block's memory cannot take it back, `InvalidArgument` where it does not fit the model's
    /// context.
    pub(crate) fn repetition(
        &self,
        context: &[u32],
        caches: &mut [Box<dyn KvCache>],
    ) -> Result<Option<usize>> {
        let of = |cache: &mut Box<dyn KvCache>| cache.repeats().and_then(|c| c.repetition());
        let Some(chunk) = caches.iter_mut().find_map(of) else { return Ok(None) };
        if let Some(block) = caches.iter_mut().position(|cache| cache.repeats().is_none()) {
            return Err(Error::unsupported(format!(
                "a cache that waits until the context has been said again: the memory of block {block} cannot take that back"
            )));
        }
        let longest = (0..context.len())
            .step_by(chunk)
            .map(|start| self.prompts.at(context, start).len() + chunk.min(context.len() - start));
        let (most, longest) = (self.config.context, longest.max().unwrap_or(0));
        if context.len() + longest > most {
            let held = context.len();
            return Err(Error::invalid(format!(
                "a context of {held} tokens is said again, {longest} at a time with its prompt: the model's context is {most}"
            )));
        }
        Ok(Some(chunk))
    }

    /// Says the context again, so many tokens at a time, and takes that back; then the policies do what they waited for.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; the caches wait as before then.
    pub(crate) fn repeat(
        &self,
        context: &[u32],
        chunk: usize,
        caches: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let said = (0..context.len())
            .step_by(chunk)
            .try_for_each(|start| self.say(context, start, chunk, caches, scratch));
        let each = caches.iter_mut().filter_map(|cache| cache.repeats());
        match said {
            Ok(()) => each.map(Repeats::end_repetition).fold(Ok(()), Result::and),
            Err(error) => {
                each.for_each(Repeats::abandon_repetition);
                Err(error)
            }
        }
    }

    /// One part of it. What begins a text is not said within it.
    fn say(
        &self,
        context: &[u32],
        start: usize,
        chunk: usize,
        caches: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let part = start..(start + chunk).min(context.len());
        for cache in caches.iter_mut().filter_map(|cache| cache.repeats()) {
            cache.begin_repetition(part.clone())?;
        }
        let bos = usize::from(start == 0 && self.config.bos == Some(context[0]));
        let mut ids = self.prompts.at(context, start);
        ids.extend(&context[start + bos..part.end]);
        if ids.is_empty() {
            return Ok(());
        }
        let mut hidden = self.embedding.embed_from(&ids, context.len(), scratch)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            let norms = Mutex::default();
            let mut told = Told { cache: cache.as_mut(), norms: &norms };
            let mut observer = Norms(&norms);
            block.forward(hidden.view_mut(), &mut told, Some(&mut observer), scratch)?;
        }
        Ok(())
    }
}

/// Norms of the hidden states that attention reads.
struct Norms<'a>(&'a Mutex<Vec<f32>>);

impl Observer for Norms<'_> {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if input == SharedInput::Attention {
            let norms = x.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = norms;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A cache that is told these before it is asked.
#[derive(Debug)]
struct Told<'a> {
    cache: &'a mut dyn KvCache,
    norms: &'a Mutex<Vec<f32>>,
}

impl KvCache for Told<'_> {
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn bytes(&self) -> u64 {
        self.cache.bytes()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.cache.append(keys, values)
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if let Some(cache) = self.cache.repeats() {
            cache.tell_hidden_norms(&self.norms.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.cache.attend(queries, first, window, out, scratch)
    }
}
