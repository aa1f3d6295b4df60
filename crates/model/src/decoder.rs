//! Decoder models: from token ids to logits over the vocabulary.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use tensorpress_kvcache::{KvRecipe, Rope};
use tensorpress_tensor::node::{Input, Multiply};
use tensorpress_tensor::{Error, ErrorKind, Result, Scratch};

use crate::block::Block;
use crate::cache::{KvCache, OneOf};
use crate::config::Config;
use crate::layers::{Linear, Norm};
use crate::repeat::RepeatPrompts;

/// The embedding of tokens; the rows of these are read alone, so that the table stays in the memory map.
#[derive(Debug)]
pub struct Embedding {
    pub(crate) table: Linear,
    pub(crate) scale: f32,
    /// A table of positions, and the row of the first.
    pub(crate) positions: Option<(Array2<f32>, usize)>,
    /// From the table's width to that of the hidden states.
    pub(crate) project: Option<Linear>,
}

/// Rows of a table that are decoded together, where they are decoded.
const BAND: usize = 512;

impl Embedding {
    /// The embeddings `[tokens, hidden]` of the first tokens of a sequence.
    ///
    /// # Errors
    /// As [`Embedding::embed_from`].
    pub fn embed(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        self.embed_from(ids, 0, scratch)
    }

    /// The embeddings `[tokens, hidden]` of some tokens of a sequence, the first at position `first`.
    ///
    /// # Errors
    /// `InvalidArgument` for an id outside the vocabulary, or a position outside the table; `Numerical` for NaN in a row,
    /// naming the tensor; those of decoding.
    pub fn embed_from(
        &self,
        ids: &[u32],
        first: usize,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        self.embed_sequences(&[ids], first, scratch)
    }

    /// The embeddings `[sum of lengths, hidden]` of several sequences one after the other, the first tokens of all at position
    /// `first`: rows of a table that has to be decoded are so once for all.
    ///
    /// # Errors
    /// As [`Embedding::embed_from`].
    pub fn embed_sequences<S: AsRef<[u32]>>(
        &self,
        sequences: &[S],
        first: usize,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let ids = sequences.iter().flat_map(AsRef::as_ref).copied().collect::<Vec<u32>>();
        let mut out = self.rows(&ids, scratch)?;
        if self.scale != 1.0 {
            out *= self.scale;
        }
        if let Some(project) = &self.project {
            let mut wide = Array2::zeros((ids.len(), project.shape()[0]));
            Input::with(out.view(), scratch, |out, scratch| {
                project.forward(out, wide.view_mut(), scratch)
            })?;
            out = wide;
        }
        if let Some((positions, offset)) = &self.positions {
            let places = sequences.iter().flat_map(|sequence| 0..sequence.as_ref().len());
            for (t, mut row) in places.zip(out.rows_mut()) {
                let position = offset + first + t;
                if position >= positions.nrows() {
                    let most = positions.nrows() - offset;
                    return Err(Error::invalid(format!(
                        "position {} in a model of {most}",
                        first + t
                    )));
                }
                row += &positions.row(position);
            }
        }
        Ok(out)
    }

    /// Rows of the table. Where they cannot be read one by one without decoding others, those that lie near each other are
    /// decoded together, whatever the order of the tokens.
    fn rows(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        let [vocab, width] = self.table.shape();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::invalid(format!("token {id} in a vocabulary of {vocab}")));
        }
        let mut out = Array2::zeros((ids.len(), width));
        let mut order: Vec<usize> = (0..ids.len()).collect();
        let apart = self.table.multiply() == Multiply::Fused;
        if !apart {
            order.sort_by_key(|at| ids[*at]);
        }
        let mut decoded = Vec::new();
        for near in
            order.chunk_by(|a, b| !apart && ids[*a] as usize / BAND == ids[*b] as usize / BAND)
        {
            let rows = ids[near[0]] as usize..ids[near[near.len() - 1]] as usize + 1;
            if rows.len() == 1 {
                for at in near {
                    let mut row = out.row_mut(*at);
                    let row = row.as_slice_mut().expect("a row of a new matrix");
                    self.table.row(rows.start, row, scratch)?;
                }
                continue;
            }
            decoded.resize(rows.len() * width, 0.0);
            self.table.rows(rows.clone(), &mut decoded, scratch)?;
            for at in near {
                let row = ids[*at] as usize;
                let from = &decoded[(row - rows.start) * width..][..width];
                self.table.check_row(row, from)?;
                out.row_mut(*at)
                    .as_slice_mut()
                    .expect("a row of a new matrix")
                    .copy_from_slice(from);
            }
        }
        Ok(out)
    }

    /// The table `[vocabulary, width]` as a layer.
    #[must_use]
    pub fn table(&self) -> &Linear {
        &self.table
    }
}

/// The final norm and the matrix over the vocabulary.
#[derive(Debug)]
pub struct Head {
    pub(crate) norm: Option<Norm>,
    /// From the hidden states' width to the matrix's.
    pub(crate) project: Option<Linear>,
    pub(crate) linear: Linear,
    /// Logits are multiplied by this.
    pub(crate) scale: f32,
    /// And squeezed into this: cap tanh(logit / cap).
    pub(crate) softcap: Option<f32>,
}

impl Head {
    /// Logits `[tokens, vocabulary]` of the last block's output `[tokens, hidden]`.
    ///
    /// # Errors
    /// Those of decoding.
    pub fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let normed = self.input(hidden, scratch)?;
        let mut logits = Array2::zeros((hidden.nrows(), self.vocab()));
        Input::with(normed.view(), scratch, |normed, scratch| {
            self.linear.forward(normed, logits.view_mut(), scratch)
        })?;
        if self.scale != 1.0 {
            logits *= self.scale;
        }
        if let Some(cap) = self.softcap {
            logits.mapv_inplace(|logit| cap * (logit / cap).tanh());
        }
        Ok(logits)
    }

    /// What the matrix over the vocabulary reads `[tokens, width]` of the last block's output `[tokens, hidden]`.
    ///
    /// # Errors
    /// Those of decoding.
    pub fn input(&self, hidden: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
        let mut normed = hidden.to_owned();
        self.norm.iter().for_each(|norm| norm.apply(normed.view_mut()));
        let Some(project) = &self.project else { return Ok(normed) };
        let mut narrow = Array2::zeros((hidden.nrows(), project.shape()[0]));
        Input::with(normed.view(), scratch, |normed, scratch| {
            project.forward(normed, narrow.view_mut(), scratch)
        })?;
        Ok(narrow)
    }

    /// Tokens in the vocabulary.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.linear.shape()[0]
    }

    /// The matrix over the vocabulary as a layer.
    #[must_use]
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    /// Replaces the matrix by a node of the same shape.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn replace(&mut self, node: Box<dyn tensorpress_tensor::Node>) -> Result<()> {
        self.linear.replace(node)
    }
}

/// A decoder model, with any node in place of any weight.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) config: Arc<Config>,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) head: Head,
    pub(crate) prompts: RepeatPrompts,
}

impl Decoder {
    /// A model of these parts.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there are as many blocks as the config says.
    pub fn new(
        config: Config,
        embedding: Embedding,
        blocks: Vec<Block>,
        head: Head,
    ) -> Result<Self> {
        if blocks.len() != config.blocks {
            let message = format!("{} blocks, the config says {}", blocks.len(), config.blocks);
            return Err(Error::shape(message));
        }
        let prompts = RepeatPrompts::default();
        Ok(Self { config: Arc::new(config), embedding, blocks, head, prompts })
    }

    /// Sets what stands before a context that is said again, for caches whose policy waits for that: nothing at first.
    #[must_use]
    pub fn with_repeat_prompts(mut self, prompts: RepeatPrompts) -> Self {
        self.prompts = prompts;
        self
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The blocks, to be changed.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// The embedding.
    #[must_use]
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The final norm and the head.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The final norm and the head, to be changed.
    pub fn head_mut(&mut self) -> &mut Head {
        &mut self.head
    }

    /// Decodes every matrix of the blocks and the head to f32 once (4 bytes a weight), which makes judging several
    /// times faster. Results are those of the nodes.
    ///
    /// # Errors
    /// Those of decoding; `Numerical` for NaN or infinity; each names tensor and file.
    pub fn materialise(mut self) -> Result<Self> {
        self.blocks.par_iter_mut().try_for_each(Block::materialise)?;
        self.head.linear.materialise()?;
        Ok(self)
    }

    /// [`materialise`](Self::materialise) if that takes no more than so many bytes; else the weights stay as they are stored.
    ///
    /// # Errors
    /// As there.
    pub fn materialise_within(self, bytes: u64) -> Result<Self> {
        let linears = self.blocks.iter().flat_map(Block::linears).chain([&self.head.linear]);
        let weights: u64 = linears.map(Linear::shape).map(|[r, c]| r as u64 * c as u64).sum();
        if weights.saturating_mul(4) <= bytes { self.materialise() } else { Ok(self) }
    }

    /// Rearranges compressed weights for fast products: for generation.
    ///
    /// # Errors
    /// Those of the nodes, naming the tensor.
    pub fn prepack(mut self) -> Result<Self> {
        self.blocks = self.blocks.into_iter().map(Block::prepack).collect::<Result<_>>()?;
        self.head.linear.prepack()?;
        Ok(self)
    }

    /// An empty cache for every block, or what else it has: [`Block::memory`].
    #[must_use]
    pub fn cache(&self) -> Vec<Box<dyn KvCache>> {
        self.blocks.iter().map(Block::memory).collect()
    }

    /// An empty cache for every block, as a recipe says, which may share what they hold; scores and forms that want to know
    /// them are told this model's rotary embedding and output projections.
    ///
    /// # Errors
    /// Those of [`KvRecipe::together`]; `Unsupported` for blocks without attention, which have no keys and values.
    pub fn caches(&self, recipe: &KvRecipe) -> Result<Vec<Box<dyn KvCache>>> {
        let attention = |(index, block): (usize, &'_ Block)| {
            block.attention().map(|attention| attention.shape()).unwrap_or_else(|| {
                let kind = self.config.architecture;
                Err(Error::unsupported(format!(
                    "block {index} of {kind:?} has no keys and values to keep in another form: it \
                     remembers a state of fixed size"
                )))
            })
        };
        let shapes = self.blocks.iter().enumerate().map(attention).collect::<Result<Vec<_>>>()?;
        let mut ropes = Vec::with_capacity(shapes.len());
        for block in &self.blocks {
            let rope = block.rope().filter(|rope| rope.is_plain());
            let rope = rope.map(|rope| Rope::with_frequencies(rope.frequencies().to_vec()));
            ropes.push(rope.transpose()?);
        }
        let recipe = recipe.clone().with_ropes(ropes).with_repetition();
        let mut caches = recipe.together(&shapes);
        if caches.as_ref().is_err_and(|e| e.kind() == ErrorKind::MissingCalibration) {
            let outputs = self.blocks.iter().map(|block| {
                Ok(Arc::new(block.attention().expect("they were looked at").o.decode()?))
            });
            caches = recipe.with_outputs(outputs.collect::<Result<_>>()?).together(&shapes);
        }
        let mut caches = caches?;
        for (index, block) in self.blocks.iter().enumerate() {
            let attention = block.attention().expect("they were looked at");
            caches = caches.with_scoring(index, attention.scoring.clone())?;
        }
        Ok(OneOf::each(caches))
    }

    /// Logits `[tokens, vocabulary]` of the next tokens of a sequence; `cache` has one object a block. Where the policies of
    /// these wait until the context has been said again ([`Cache::repetition`](tensorpress_kvcache::Cache::repetition)), the
    /// context is what the first call reads, and is said again within it, behind [`Decoder::with_repeat_prompts`].
    ///
    /// # Errors
    /// `InvalidArgument` for ids outside the vocabulary, too long a sequence, or a wrong number of caches; `Unsupported` for
    /// caches that wait for what others of them cannot take back; `Numerical` where something is not finite; those of decoding and of the cache.
    pub fn forward(
        &self,
        ids: &[u32],
        cache: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let hidden = self.advance(ids, cache, scratch)?;
        self.head.logits(hidden.view(), scratch)
    }

    /// [`Decoder::forward`], logits of the last token only.
    ///
    /// # Errors
    /// As there, and `InvalidArgument` without tokens.
    pub fn logits_last(
        &self,
        ids: &[u32],
        cache: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::invalid("no tokens to continue"));
        }
        let hidden = self.advance(ids, cache, scratch)?;
        let logits = self.head.logits(hidden.slice(s![-1.., ..]), scratch)?;
        Ok(logits.into_raw_vec_and_offset().0)
    }

    /// The last block's output `[tokens, hidden]` of the next tokens.
    pub(crate) fn advance(
        &self,
        ids: &[u32],
        cache: &mut [Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let mut hidden = self.enter(ids, cache, scratch)?;
        let begins = cache.first().is_none_or(|c| c.is_empty()) && !ids.is_empty();
        let repeats = if begins { self.repetition(ids, cache)? } else { None };
        for (block, cache) in self.blocks.iter().zip(&mut *cache) {
            block.forward(hidden.view_mut(), cache.as_mut(), None, scratch)?;
        }
        if let Some(chunk) = repeats {
            self.repeat(ids, chunk, cache, scratch)?;
        }
        Ok(hidden)
    }

    /// What the first block reads of the next tokens.
    pub(crate) fn enter(
        &self,
        ids: &[u32],
        cache: &[Box<dyn KvCache>],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        if cache.len() != self.blocks.len() {
            let message = format!("{} caches for {} blocks", cache.len(), self.blocks.len());
            return Err(Error::invalid(message));
        }
        let seen = cache.first().map_or(0, |c| c.len());
        self.check_length(seen.saturating_add(ids.len()))?;
        self.embedding.embed_from(ids, seen, scratch)
    }

    /// The last block's output `[tokens, hidden]` of a whole sequence, before the final norm.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn hidden(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        self.check_length(ids.len())?;
        let mut hidden = self.embedding.embed(ids, scratch)?;
        for block in &self.blocks {
            block.forward_sequences(hidden.view_mut(), &[ids.len()], None, scratch)?;
        }
        Ok(hidden)
    }

    /// The states `[tokens, hidden]` of a whole sequence behind the final norm: what embedding models give.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn last_hidden_state(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        let mut hidden = self.hidden(ids, scratch)?;
        self.head.norm.iter().for_each(|norm| norm.apply(hidden.view_mut()));
        Ok(hidden)
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let context = self.config.context;
        if tokens <= context {
            return Ok(());
        }
        Err(Error::invalid(format!("{tokens} tokens, the model's context is {context}")))
    }
}
