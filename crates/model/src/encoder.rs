//! Encoder models: from token ids, or images, to hidden states and embeddings.

mod images;
mod towers;

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::Input;
use tensorpress_tensor::{Error, Result, Scratch};

use crate::block::Block;
use crate::config::{Activation, Config};
use crate::decoder::Embedding;
use crate::layers::{Linear, Norm};
use crate::tokenizer::Tokenizer;

pub(crate) use images::{ImageHead, Patches};
pub use towers::TwoTowers;

/// An encoder of texts or of images, with any node in place of any of its blocks' weights. What it does with the other
/// kind is `Unsupported`.
#[derive(Debug)]
pub struct Encoder {
    pub(crate) config: Arc<Config>,
    pub(crate) reads: Reading,
    pub(crate) blocks: Vec<Block>,
    /// The norm behind the last block.
    pub(crate) last_norm: Option<Norm>,
    pub(crate) head: Option<MaskedHead>,
    pub(crate) image_head: ImageHead,
}

/// From what an encoder reads to the states before its first block.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a model, moved once")]
pub(crate) enum Reading {
    Tokens(TokenEmbedding),
    Images(Patches),
}

#[derive(Debug)]
pub(crate) struct TokenEmbedding {
    pub(crate) words: Embedding,
    pub(crate) positions: Option<Positions>,
    pub(crate) types: Option<Array2<f32>>,
    pub(crate) norm: Option<Norm>,
}

/// A table of positions.
#[derive(Debug)]
pub(crate) struct Positions {
    pub(crate) table: Array2<f32>,
    /// The row of the first position.
    pub(crate) first: usize,
    /// This token has no position: it gets the row before the first, and is not counted.
    pub(crate) pad: Option<u32>,
}

impl Positions {
    /// The row of each token.
    fn rows(&self, ids: &[u32]) -> Vec<usize> {
        let mut next = self.first;
        let row = |id: &u32| {
            if self.pad == Some(*id) {
                return self.first - 1;
            }
            next += 1;
            next - 1
        };
        ids.iter().map(row).collect()
    }
}

/// From an encoder's states to logits over the vocabulary: dense, activation, norm, matrix.
#[derive(Debug)]
pub(crate) struct MaskedHead {
    pub(crate) dense: Linear,
    pub(crate) activation: Activation,
    pub(crate) norm: Norm,
    pub(crate) matrix: Linear,
}

impl Encoder {
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

    /// Decodes every matrix of the blocks to f32 once.
    ///
    /// # Errors
    /// As [`crate::Decoder::materialise`].
    pub fn materialise(mut self) -> Result<Self> {
        self.blocks.par_iter_mut().try_for_each(Block::materialise)?;
        Ok(self)
    }

    /// What the first block reads, `[tokens, hidden]`: for calibration.
    ///
    /// # Errors
    /// `InvalidArgument` for ids or types that the model does not have, too long a sequence, or other lengths of
    /// `types`.
    pub fn embeddings(
        &self,
        ids: &[u32],
        types: &[u32],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let Reading::Tokens(reads) = &self.reads else {
            return Err(Error::unsupported("tokens in an encoder of images"));
        };
        if types.len() != ids.len() {
            return Err(Error::invalid(format!("{} types of {} tokens", types.len(), ids.len())));
        }
        if ids.len() > self.config.context {
            let message = format!("{} tokens, the model takes {}", ids.len(), self.config.context);
            return Err(Error::invalid(message));
        }
        // Models without types know one.
        let kinds = self.config.token_types.max(1);
        if let Some(bad) = types.iter().find(|t| **t as usize >= kinds) {
            return Err(Error::invalid(format!("token type {bad} of {kinds}")));
        }
        let mut hidden = reads.words.embed(ids, scratch)?;
        if let Some(positions) = &reads.positions {
            for (mut row, at) in hidden.rows_mut().into_iter().zip(positions.rows(ids)) {
                row += &positions.table.row(at);
            }
        }
        if let Some(table) = &reads.types {
            for (mut row, kind) in hidden.rows_mut().into_iter().zip(types) {
                row += &table.row(*kind as usize);
            }
        }
        reads.norm.iter().for_each(|norm| norm.apply(hidden.view_mut()));
        Ok(hidden)
    }

    /// The last block's output `[tokens, hidden]` of one text. Tokens with mask 0 are seen by no other, and their
    /// own rows are 0.
    ///
    /// # Errors
    /// As [`Encoder::embeddings`], for `mask` too; `Numerical` where something is not finite; those of decoding.
    pub fn last_hidden_state(
        &self,
        ids: &[u32],
        mask: &[u32],
        types: &[u32],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        if mask.len() != ids.len() {
            return Err(Error::invalid(format!(
                "a mask of {} tokens, not {}",
                mask.len(),
                ids.len()
            )));
        }
        let mut hidden = self.embeddings(ids, types, scratch)?;
        // Leaving masked tokens out is the same as hiding them: positions are in the embeddings already, or attention knows
        // nothing of them but distances.
        let seen: Vec<usize> = (0..ids.len()).filter(|&i| mask[i] != 0).collect();
        let gap = seen.windows(2).any(|pair| pair[1] != pair[0] + 1);
        if gap && !self.has_positions() {
            return Err(Error::unsupported(
                "masked tokens between others, where attention knows distances",
            ));
        }
        let mut visible = hidden.select(Axis(0), &seen);
        self.run(&mut visible, scratch)?;
        hidden.fill(0.0);
        for (row, &i) in visible.rows().into_iter().zip(&seen) {
            hidden.row_mut(i).assign(&row);
        }
        Ok(hidden)
    }

    /// One sequence through all blocks, and the norm behind the last.
    fn run(&self, hidden: &mut Array2<f32>, scratch: &mut Scratch) -> Result<()> {
        let lengths = [hidden.nrows()];
        for block in &self.blocks {
            block.forward_sequences(hidden.view_mut(), &lengths, None, scratch)?;
        }
        self.last_norm.iter().for_each(|norm| norm.apply(hidden.view_mut()));
        Ok(())
    }

    /// Whether embeddings say where tokens stand.
    fn has_positions(&self) -> bool {
        match &self.reads {
            Reading::Tokens(tokens) => tokens.positions.is_some(),
            Reading::Images(_) => true,
        }
    }

    /// Whether there is a head over the vocabulary, for masked tokens.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Logits `[tokens, vocabulary]` of last hidden states.
    ///
    /// # Errors
    /// `Unsupported` without a head; those of decoding.
    pub fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let Some(MaskedHead { dense, activation, norm, matrix }) = &self.head else {
            return Err(Error::unsupported("logits of an encoder without a head"));
        };
        let mut x = Array2::zeros((hidden.nrows(), dense.shape()[0]));
        Input::with(hidden, scratch, |hidden, scratch| {
            dense.forward(hidden, x.view_mut(), scratch)
        })?;
        activation.apply(x.as_slice_mut().expect("a new matrix"));
        norm.apply(x.view_mut());
        let mut logits = Array2::zeros((hidden.nrows(), matrix.shape()[0]));
        Input::with(x.view(), scratch, |x, scratch| matrix.forward(x, logits.view_mut(), scratch))?;
        Ok(logits)
    }

    /// The embedding of tokens: the mean of the unmasked tokens' last hidden states, divided by its length.
    ///
    /// # Errors
    /// As [`Encoder::last_hidden_state`]; `InvalidArgument` if every token is masked.
    pub fn embed_ids(&self, ids: &[u32], mask: &[u32], scratch: &mut Scratch) -> Result<Vec<f32>> {
        if mask.iter().all(|m| *m == 0) {
            return Err(Error::invalid("a text without tokens has no embedding"));
        }
        let types = vec![0; ids.len()];
        let hidden = self.last_hidden_state(ids, mask, &types, scratch)?;
        let weights: Vec<f32> = mask.iter().map(|m| f32::from(*m != 0)).collect();
        Ok(pool(hidden.view(), &weights))
    }

    /// Embeddings `[texts, hidden]`, each of length 1, in parallel over the texts.
    ///
    /// # Errors
    /// As [`Encoder::embed_ids`], and those of the tokenizer.
    pub fn embed(&self, tokenizer: &Tokenizer, texts: &[&str]) -> Result<Array2<f32>> {
        let one = |scratch: &mut Scratch, text: &&str| {
            let ids = tokenizer.encode_template(text)?;
            self.embed_ids(&ids, &vec![1; ids.len()], scratch)
        };
        let rows: Vec<Vec<f32>> =
            texts.par_iter().map_init(|| Scratch::new(Par::Seq), one).collect::<Result<_>>()?;
        let mut out = Array2::zeros((texts.len(), self.config.hidden));
        for (mut row, values) in out.rows_mut().into_iter().zip(rows) {
            row.assign(&ndarray::ArrayView1::from(&values));
        }
        Ok(out)
    }
}

/// Mean of the rows by their weights, normalised.
pub(crate) fn pool(hidden: ArrayView2<'_, f32>, weights: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0f64; hidden.ncols()];
    for (row, weight) in hidden.rows().into_iter().zip(weights) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*weight) * f64::from(*v));
    }
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    let mean: Vec<f64> = sum.iter().map(|s| s / total).collect();
    let length = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    mean.iter().map(|v| (v / length) as f32).collect()
}
