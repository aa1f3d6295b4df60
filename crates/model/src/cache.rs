//! Keys and values of the tokens seen so far.

use std::fmt::Debug;

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, Axis};
use tensorpress_tensor::{Result, Scratch};

use crate::layers::{Visible, attend};

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

/// Every key and value, in f32.
#[derive(Debug, Clone, Default)]
pub struct DenseCache {
    /// Per head, `[position][dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    head_dim: usize,
    len: usize,
}

impl DenseCache {
    /// An empty cache.
    #[must_use]
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        let none = vec![Vec::new(); kv_heads];
        Self { keys: none.clone(), values: none, head_dim, len: 0 }
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for held in self.keys.iter_mut().chain(&mut self.values) {
            held.truncate(self.len * self.head_dim);
        }
    }

    /// Keys `[positions, head_dim]` of a head.
    ///
    /// # Panics
    /// If there is no such head.
    #[must_use]
    pub fn keys(&self, head: usize) -> ArrayView2<'_, f32> {
        self.held(&self.keys[head])
    }

    /// Values `[positions, head_dim]` of a head.
    ///
    /// # Panics
    /// If there is no such head.
    #[must_use]
    pub fn values(&self, head: usize) -> ArrayView2<'_, f32> {
        self.held(&self.values[head])
    }

    fn held<'a>(&self, values: &'a [f32]) -> ArrayView2<'a, f32> {
        ArrayView2::from_shape((self.len, self.head_dim), values).expect("len x head_dim values")
    }
}

impl KvCache for DenseCache {
    fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self) -> u64 {
        let heads = self.keys.iter().chain(&self.values);
        heads.map(|held| size_of_val(held.as_slice()) as u64).sum()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        for (mine, new) in [(&mut self.keys, keys.reborrow()), (&mut self.values, values)] {
            for (held, new) in mine.iter_mut().zip(new.axis_iter(Axis(1))) {
                held.extend(new.iter());
            }
        }
        self.len += keys.dim().0;
        Ok(())
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let keys: Vec<_> = (0..self.keys.len()).map(|head| self.keys(head)).collect();
        let values: Vec<_> = (0..self.values.len()).map(|head| self.values(head)).collect();
        attend(queries, &keys, &values, Visible::Causal { first, window }, out, scratch);
        Ok(())
    }
}

/// Any store, with or without a policy.
impl KvCache for tensorpress_kvcache::Cache {
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
