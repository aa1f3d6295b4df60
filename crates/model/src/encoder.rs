//! Encoder models: from token ids to hidden states and sentence embeddings.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Error, Result, Scratch};

use crate::block::Block;
use crate::config::Config;
use crate::decoder::Embedding;
use crate::layers::Norm;
use crate::tokenizer::Tokenizer;

/// An encoder of the BERT kind, with any node in place of any of its blocks' weights.
#[derive(Debug)]
pub struct Encoder {
    pub(crate) config: Arc<Config>,
    pub(crate) words: Embedding,
    pub(crate) positions: Array2<f32>,
    pub(crate) token_types: Array2<f32>,
    pub(crate) norm: Norm,
    pub(crate) blocks: Vec<Block>,
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
        if types.len() != ids.len() {
            return Err(Error::invalid(format!("{} types of {} tokens", types.len(), ids.len())));
        }
        if ids.len() > self.config.context {
            let message = format!("{} tokens, the model takes {}", ids.len(), self.config.context);
            return Err(Error::invalid(message));
        }
        if let Some(bad) = types.iter().find(|t| **t as usize >= self.config.token_types) {
            let message = format!("token type {bad} of {}", self.config.token_types);
            return Err(Error::invalid(message));
        }
        let mut hidden = self.words.embed(ids, scratch)?;
        for (position, mut row) in hidden.rows_mut().into_iter().enumerate() {
            row += &self.positions.row(position);
            row += &self.token_types.row(types[position] as usize);
        }
        self.norm.apply(hidden.view_mut());
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
        // Leaving masked tokens out is the same as hiding them: positions are in the embeddings already.
        let seen: Vec<usize> = (0..ids.len()).filter(|&i| mask[i] != 0).collect();
        let mut visible = hidden.select(Axis(0), &seen);
        for block in &self.blocks {
            block.forward_sequences(visible.view_mut(), &[seen.len()], None, scratch)?;
        }
        hidden.fill(0.0);
        for (row, &i) in visible.rows().into_iter().zip(&seen) {
            hidden.row_mut(i).assign(&row);
        }
        Ok(hidden)
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
