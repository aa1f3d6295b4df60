//! Keys and values of the tokens seen so far.

use std::fmt::Debug;

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_kvcache::Cache;
use tensorpress_tensor::{Result, Scratch};

/// The keys and values of one block, all heads.
pub trait KvCache: Debug + Send {
    /// Tokens appended so far, dropped ones included: the position of the next token.
    fn len(&self) -> usize;

    /// Nothing was appended yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held for keys and values.
    fn bytes(&self) -> u64;

    /// Takes the keys (after rotary embedding) and values `[tokens, kv_heads, head_dim]` of the next tokens.
    ///
    /// # Errors
    /// Whatever the store cannot do.
    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()>;

    /// softmax(q kᵀ / sqrt(head_dim)) v, or what else the attention of the model is, for queries `[tokens, heads, head_dim]`, the first at position `first`, over
    /// what is held: causal, and no further back than `window` tokens (the token itself included).
    ///
    /// # Errors
    /// Whatever the store cannot do.
    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()>;
}

/// Any store, with or without a policy.
impl KvCache for Cache {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        Self::append(self, keys, values)
    }

    /// The queries are those of the tokens appended last.
    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        _first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        Self::attend(self, queries, window, out, scratch)
    }
}
