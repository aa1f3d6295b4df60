//! Prompts whose tokens leave a decoder behind some of its blocks.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use tensorpress_tensor::{Error, Result, Scratch};
use tensorpress_tokencomp::TokenHints;

use super::left::{Left, metric};
use super::{Reduced, Reduction};
use crate::block::{Block, Ignore, Mix, Past};
use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::layers::Attention;

/// What a plan is made by: what attention saw in a block.
struct Seen {
    /// The mean of the heads' keys, `[tokens, head_dim]`.
    metric: Array2<f32>,
    /// Attention that each token receives, a mean over heads and queries.
    received: Vec<f32>,
    /// Attention that the last token pays to each, a mean over heads.
    last: Vec<f32>,
}

impl Decoder {
    /// Reads a prompt whose tokens are merged or dropped behind the blocks of the schedule: the blocks after them, and their
    /// caches, see what is left. Tokens keep their positions; a merged one stands where the last of its tokens stood, so
    /// that nothing knows what comes after it, and weighs in attention as the tokens it stands for (ln size is added to
    /// its scores). The last token stays alone; what the head reads is the last row. The caches then have seen the whole
    /// prompt, and [`Decoder::forward`] or [`generate`](crate::generate()) goes on behind it.
    ///
    /// A method plans by what the block's attention saw: keys before norm and rotary embedding (the mean over heads), the attention
    /// that each token receives, and as class attention and as relevance that which the last token pays to it. Which
    /// tokens stay so depends on the whole prompt, which is read at once.
    ///
    /// ```
    /// use tensorpress_model::{Generation, Reduction, Source, generate};
    /// use tensorpress_tensor::{Registry, Scratch};
    /// use tensorpress_tokencomp::{AttentionTopK, Schedule};
    ///
    /// # fn main() -> tensorpress_tensor::Result<()> {
    /// let source = Source::demo(&Registry::default())?;
    /// let (model, tokenizer) = (source.decoder()?.materialise()?, source.tokenizer()?);
    /// let ids = tokenizer.encode("Once upon a time, there was a little girl named Lily. She")?;
    /// let (prompt, last) = ids.split_at(ids.len() - 1);
    ///
    /// // Six tokens leave behind the second block.
    /// let (method, schedule) = (AttentionTopK::new(), Schedule::Tokens(vec![0, 6]));
    /// let reduction = Reduction { method: &method, schedule: &schedule, protected: &[0] };
    /// let mut cache = model.cache();
    /// let read = model.read_reduced(prompt, reduction, &mut cache, &mut Scratch::default())?;
    /// assert_eq!(read.map.targets(), prompt.len() - 6);
    /// let how = Generation { max_tokens: 5, ..Generation::default() };
    /// assert_eq!(generate(&model, last, how, &mut cache, &mut |_| Ok(true))?.len(), 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Decoder::forward`]; `InvalidArgument` without tokens, and for caches that are not empty; `Unsupported` for blocks
    /// without attention, which hand every token on to the next, for caches that take every token and
    /// for those that wait for a repetition; those of the method.
    pub fn read_reduced(
        &self,
        ids: &[u32],
        reduction: Reduction<'_>,
        cache: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<Reduced> {
        if let Some(cache) = cache.iter().find(|cache| !cache.is_empty()) {
            let message = format!("a cache of {} tokens: a prompt is reduced whole", cache.len());
            return Err(Error::invalid(message));
        }
        let Some(last) = ids.len().checked_sub(1) else {
            return Err(Error::invalid("no tokens to continue"));
        };
        let mut attentions = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let attends = block.attention().filter(|a| a.causal && block.scan().is_none());
            attentions.push(attends.ok_or_else(|| {
                let message = format!("token reduction in block {}, which scans", block.index());
                Error::unsupported(message)
            })?);
        }
        if self.repetition(ids, cache)?.is_some() {
            let why = "a reduced prompt for caches that wait until it has been said again";
            return Err(Error::unsupported(why));
        }
        let mut hidden = self.enter(ids, cache, scratch)?;
        let mut left = Left::new(ids.len(), [reduction.protected, &[last]].concat());
        for ((block, attention), cache) in self.blocks.iter().zip(attentions).zip(cache) {
            let keep = left.keep(reduction, block.index());
            let reduces = keep < hidden.nrows();
            if !reduces && hidden.nrows() == ids.len() {
                block.forward(hidden.view_mut(), cache.as_mut(), None, scratch)?;
                continue;
            }
            let (positions, sizes) = (left.map.lasts(), left.sizes()?);
            let mut seen = None;
            let mut attend = |q: ArrayViewMut2<'_, f32>,
                              k: ArrayViewMut2<'_, f32>,
                              v: ArrayView2<'_, f32>,
                              out: ArrayViewMut2<'_, f32>,
                              scratch: &mut Scratch| {
                let at = (&positions[..], &sizes[..]);
                if !reduces {
                    return attention.mix_kept(q, k, v, at, out, cache.as_mut(), scratch, None);
                }
                let mut notes = Seen::new(k.view(), attention);
                let rows = k.nrows();
                let mut watch = |_: usize, row: usize, weights: &[f32]| {
                    notes.note(row + 1 == rows, weights);
                };
                let watch = Some(&mut watch as _);
                attention.mix_kept(q, k, v, at, out, cache.as_mut(), scratch, watch)?;
                notes.finish(attention);
                seen = Some(notes);
                Ok(())
            };
            let mut mix = Mix { attend: &mut attend, past: Past::None(&[]) };
            block.run_watched(&mut hidden.view_mut(), &mut mix, scratch)?;
            let Some(seen) = seen else { continue };
            let hints = TokenHints::default()
                .with_protected(left.protected())
                .with_sizes(&sizes)
                .with_attention(&seen.received)
                .with_class_attention(&seen.last)
                .with_relevance(&seen.last);
            let plan = reduction.method.plan(seen.metric.view(), &hints, keep)?;
            let weights = reduction.method.weights(seen.metric.view(), &hints, &plan)?;
            let plan = plan.sorted_by_lasts();
            hidden = plan.merge(hidden.view(), Some(weights.as_deref().unwrap_or(&sizes)))?;
            left.shrink(&plan, reduction)?;
        }
        Ok(Reduced { hidden, map: left.map })
    }
}

impl Seen {
    fn new(k: ArrayView2<'_, f32>, attention: &Attention) -> Self {
        let none = vec![0.0; k.nrows()];
        Self { metric: metric(k, attention.head_dim), received: none.clone(), last: none }
    }

    /// Adds the weights that a query gives to all tokens.
    fn note(&mut self, last: bool, weights: &[f32]) {
        let add = |(sum, w): (&mut f32, &f32)| *sum += w;
        self.received.iter_mut().zip(weights).for_each(add);
        if last {
            self.last.iter_mut().zip(weights).for_each(add);
        }
    }

    /// Sums become means.
    fn finish(&mut self, attention: &Attention) {
        let heads = attention.heads as f32;
        let queries = heads * self.received.len() as f32;
        self.received.iter_mut().for_each(|sum| *sum /= queries);
        self.last.iter_mut().for_each(|sum| *sum /= heads);
    }
}

impl Block {
    /// All parts, one after the other.
    fn run_watched(
        &self,
        hidden: &mut ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let result = self.run_parts(0..self.parts.len(), hidden, mix, &mut Ignore, scratch);
        self.blame(result.map(|_| ()))
    }
}
