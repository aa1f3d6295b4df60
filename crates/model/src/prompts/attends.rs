//! What a decoder's heads look at.

use std::ops::Range;

use ndarray::{Array2, ArrayView3, ArrayViewMut3, s};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Error, Result, Scratch};
use tensorpress_tokencomp::text::{Asking, Attends, Attention, Head};

use super::LanguageModel;
use crate::cache::KvCache;
use crate::layers;

/// What is noted of the attention of one layer: which queries, which keys, the sums of their weights.
#[derive(Debug)]
struct Notes {
    /// Heads of this layer, and their rows of the sums.
    heads: Vec<(usize, usize)>,
    /// All keys so far, `[tokens, kv_heads * head_dim]`.
    keys: Vec<f32>,
}

/// A cache that notes whom some queries attend to.
#[derive(Debug)]
struct Watched<'a> {
    inner: &'a mut dyn KvCache,
    attention: &'a layers::Attention,
    notes: &'a mut Notes,
    /// Positions of the queries.
    rows: Range<usize>,
    /// Positions of the keys.
    columns: Range<usize>,
    sums: &'a mut Array2<f32>,
}

impl KvCache for Watched<'_> {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.notes.keys.extend(keys.iter());
        self.inner.append(keys, values)
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (dim, group) =
            (self.attention.head_dim, self.attention.heads / self.attention.kv_heads);
        let width = dim * self.attention.kv_heads;
        let (mut weights, mut special) = (Vec::new(), Vec::new());
        let here = first..first + queries.dim().0;
        for row in self.rows.start.max(here.start)..self.rows.end.min(here.end) {
            for (head, sum) in &self.notes.heads {
                let query = queries.slice(s![row - first, *head, ..]);
                let from = head / group * dim;
                let keys = self.notes.keys.chunks_exact(width).take(row + 1);
                weights.clear();
                weights.extend(keys.map(|key| {
                    key[from..from + dim].iter().zip(query).map(|(k, q)| k * q).sum::<f32>()
                }));
                self.attention.weigh(*head, row, row + 1, 0, &[], &mut weights, &mut special);
                let mut sums = self.sums.row_mut(*sum);
                let seen = &weights[self.columns.clone()];
                sums.iter_mut().zip(seen).for_each(|(sum, weight)| *sum += weight);
            }
        }
        self.inner.attend(queries, first, window, out, scratch)
    }
}

/// One reading of a model.
struct Reader<'a> {
    model: &'a LanguageModel<'a>,
    memory: Vec<(Box<dyn KvCache>, Notes)>,
    columns: Range<usize>,
    scratch: Scratch,
}

impl Reader<'_> {
    /// Reads on, and adds the attention of the queries at `rows`; gives the logits behind the last token.
    fn read(
        &mut self,
        ids: &[u32],
        rows: Range<usize>,
        sums: &mut Array2<f32>,
    ) -> Result<Vec<f32>> {
        let decoder = self.model.decoder;
        let seen = self.memory.first().map_or(0, |(cache, _)| cache.len());
        let mut hidden = decoder.embedding().embed_from(ids, seen, &mut self.scratch)?;
        for (block, (cache, notes)) in decoder.blocks().iter().zip(&mut self.memory) {
            let watched = block.attention().filter(|_| !notes.heads.is_empty());
            let Some(attention) = watched else {
                block.forward(hidden.view_mut(), cache.as_mut(), None, &mut self.scratch)?;
                continue;
            };
            let (rows, columns) = (rows.clone(), self.columns.clone());
            let inner = cache.as_mut();
            let mut watched = Watched { inner, attention, notes, rows, columns, sums };
            block.forward(hidden.view_mut(), &mut watched, None, &mut self.scratch)?;
        }
        let last = hidden.slice(s![hidden.nrows() - 1.., ..]);
        let logits = decoder.head().logits(last, &mut self.scratch)?;
        Ok(logits.into_raw_vec_and_offset().0)
    }
}

impl Attends for LanguageModel<'_> {
    fn reads(&self) -> usize {
        self.decoder.config().context
    }

    fn length(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode_plain(text)?.len())
    }

    fn attention(&self, asking: Asking<'_>, heads: &[Head]) -> Result<Attention> {
        let blocks = self.decoder.blocks();
        let of = |layer: usize| blocks.get(layer).and_then(|block| block.attention());
        if let Some((layer, head)) =
            heads.iter().find(|(l, h)| of(*l).is_none_or(|attention| *h >= attention.heads))
        {
            let (layers, most) = (blocks.len(), of(0).map_or(0, |attention| attention.heads));
            let message =
                format!("head {layer}.{head} of a model of {layers} layers of {most} heads");
            return Err(Error::invalid(message));
        }
        let before = self.tokenizer.encode(asking.before)?;
        let context = self.tokenizer.encode_with_offsets(asking.context)?;
        let behind = [asking.between, asking.question, asking.after].concat();
        let behind = self.tokenizer.encode_with_offsets(&behind)?;
        let columns = before.len()..before.len() + context.len();
        let bytes = asking.between.len()..asking.between.len() + asking.question.len();
        let asked = |(_, at): &(u32, Range<usize>)| at.start >= bytes.start && at.end <= bytes.end;
        let first = behind.iter().position(asked).unwrap_or(behind.len());
        let asked = behind[first..].iter().take_while(|token| asked(token)).count();
        let rows = columns.end + first..columns.end + first + asked;
        let ids: Vec<u32> =
            before.into_iter().chain(context.iter().chain(&behind).map(|(id, _)| *id)).collect();
        if ids.len() + asking.answer > self.reads() {
            let (n, most) = (ids.len(), self.reads());
            let message =
                format!("{n} tokens and {} to answer, the model reads {most}", asking.answer);
            return Err(Error::invalid(message));
        }
        let notes = |layer: usize| {
            let of = |(row, (l, head)): (usize, &Head)| (*l == layer).then_some((*head, row));
            Notes { heads: heads.iter().enumerate().filter_map(of).collect(), keys: Vec::new() }
        };
        let memory = self.decoder.cache().into_iter().enumerate();
        let memory = memory.map(|(layer, cache)| (cache, notes(layer))).collect();
        let scratch = Scratch::new(Par::Rayon);
        let mut reader = Reader { model: self, memory, columns, scratch };
        let shape = (heads.len(), context.len());
        let mut question = Array2::zeros(shape);
        let mut answer = Array2::zeros(shape);
        let end = ids.len();
        let mut logits = reader.read(&ids, rows, &mut question)?;
        let mut said = 0;
        while said < asking.answer {
            let next = (0..logits.len())
                .fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
            if self.decoder.config().eos.contains(&(next as u32)) {
                break;
            }
            let at = end + said;
            logits = reader.read(&[next as u32], at..at + 1, &mut answer)?;
            said += 1;
        }
        question /= asked.max(1) as f32;
        answer /= said.max(1) as f32;
        let tokens = context.into_iter().map(|(_, bytes)| bytes).collect();
        Ok(Attention { tokens, question, answer })
    }
}
