//! Keys and values of the tokens seen so far.

use std::fmt::Debug;

use std::sync::Arc;

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_kvcache::Cache;
use tensorpress_tensor::{Error, Result, Scratch};

use crate::layers::{Scoring, attend};

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

    /// softmax(q kᵀ / sqrt(head_dim)) v for queries `[tokens, heads, head_dim]`, the first at position `first`, over
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

/// Every key and value in f32, for attention of any kind.
#[derive(Debug)]
pub(crate) struct PlainCache {
    scoring: Arc<Scoring>,
    kv_heads: usize,
    /// Channels of a head's keys and values.
    dims: [usize; 2],
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl PlainCache {
    pub(crate) fn new(scoring: Arc<Scoring>, kv_heads: usize, dims: [usize; 2]) -> Self {
        Self { scoring, kv_heads, dims, keys: Vec::new(), values: Vec::new() }
    }
}

impl KvCache for PlainCache {
    fn len(&self) -> usize {
        self.keys.len() / (self.kv_heads * self.dims[0])
    }

    fn bytes(&self) -> u64 {
        (size_of::<f32>() * (self.keys.len() + self.values.len())) as u64
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        if keys.iter().chain(&values).any(|value| !value.is_finite()) {
            return Err(Error::numerical("keys or values are not finite"));
        }
        self.keys.extend(keys.iter());
        self.values.extend(values.iter());
        Ok(())
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        _window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tokens = self.len();
        let view = |values, dim| {
            ArrayView3::from_shape((tokens, self.kv_heads, dim), values).expect("whole tokens")
        };
        let (keys, values) = (view(&self.keys, self.dims[0]), view(&self.values, self.dims[1]));
        attend(queries, keys, values, &self.scoring, first, &[], out, scratch);
        Ok(())
    }
}
