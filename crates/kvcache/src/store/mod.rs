//! How keys and values are held: forms, and the layer that holds all heads in them.

mod attend;
mod bitmap;
mod float;
mod floats;
mod form;
mod head;
mod int;
mod kivi;
mod layer;
mod mustafar;
mod rows;
#[cfg(test)]
mod tests;
mod windowed;
mod wire;

use std::fmt::Debug;

use ndarray::{Array2, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Error, PartSink, Result, Scratch, ndarray};

use crate::stage::KvPart;

pub use form::{Bitmap, Int, StoreForm};
pub use int::Axis;
pub use layer::Layer;
pub(crate) use rows::{bytes_part, count, product, read_bytes};

/// The stages of this module.
pub(crate) fn stages() -> Vec<Row<KvPart>> {
    let [f32, f16, bf16] = floats::stages();
    vec![f32, f16, bf16, kivi::stage(), mustafar::stage()]
}

/// Heads of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// A shape.
    ///
    /// # Errors
    /// `InvalidArgument` for zeros, or query heads that are no multiple of the others.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        if heads == 0 || kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::invalid(format!(
                "heads = {heads}, kv_heads = {kv_heads}, head_dim = {head_dim}: all at least 1, heads a multiple of kv_heads"
            )));
        }
        Ok(Self { heads, kv_heads, head_dim })
    }

    /// Query heads that share a head of keys and values.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(crate) fn check(&self, what: &str, heads: usize, dim: (usize, usize, usize)) -> Result<()> {
        if (dim.1, dim.2) == (heads, self.head_dim) {
            return Ok(());
        }
        let (tokens, found, channels) = dim;
        Err(Error::shape(format!(
            "{what} [{tokens}, {found}, {channels}]: [tokens, {heads}, {}] expected",
            self.head_dim
        )))
    }
}

/// Slots to keep, ascending, for each head of keys and values. A slot is the place of a token among those held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeadSlots(pub Vec<Vec<usize>>);

impl HeadSlots {
    /// Tokens kept, over all heads.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

/// Sees the attention of one query: query head, row among the queries, and the weight of every slot (sum 1). Slots of a
/// low tier follow those of the main one.
pub type Watch<'a> = dyn FnMut(usize, usize, &[f32]) + 'a;

/// What a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causal {
    /// Position of the first query.
    pub first: usize,
    /// How many tokens back a query sees, itself included; all where absent.
    pub window: Option<usize>,
}

impl Causal {
    /// Every earlier token and the query's own, the first query being at this position.
    #[must_use]
    pub fn from(first: usize) -> Self {
        Self { first, window: None }
    }
}

/// The keys and values of one layer, all heads, in some form.
///
/// Positions count tokens from 0 and never change; evicting leaves gaps. Slots count what a head still holds.
pub trait KvStore: Debug + Send + Sync {
    /// Heads.
    fn shape(&self) -> KvShape;

    /// Tokens appended, evicted ones included: the position of the next.
    fn len(&self) -> usize;

    /// Nothing was appended yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions of the tokens held for a head, by slot.
    ///
    /// # Panics
    /// If there is no such head.
    fn positions(&self, head: usize) -> Vec<usize>;

    /// Takes keys and values `[tokens, kv_heads, head_dim]` of the next tokens.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for what is not finite or too large for the form. The store is then as it was.
    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()>;

    /// `softmax(q k^T / sqrt(head_dim)) v` over the stored form for queries `[tokens, heads, head_dim]`; a query that
    /// sees nothing gets zeros.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    fn attend(
        &self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()>;

    /// Keys `[slots, head_dim]` of a head, as attention uses them.
    ///
    /// # Panics
    /// If there is no such head.
    fn keys(&self, head: usize) -> Array2<f32>;

    /// Values `[slots, head_dim]` of a head, as attention uses them.
    ///
    /// # Panics
    /// If there is no such head.
    fn values(&self, head: usize) -> Array2<f32>;

    /// Keys and values of a head.
    ///
    /// # Panics
    /// If there is no such head.
    fn decode(&self, head: usize) -> (Array2<f32>, Array2<f32>) {
        (self.keys(head), self.values(head))
    }

    /// Forgets all slots but these. Integers and bitmaps are packed anew: what stays is rounded a second time.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument` for slots that are not there or not ascending. The store is then as it was.
    fn retain(&mut self, keep: &HeadSlots) -> Result<()>;

    /// The shortest length, but 0, to which [`KvStore::truncate`] can go back: nothing evicted or packed since.
    fn earliest(&self) -> usize;

    /// Goes back to the first `len` tokens: as if the others had never been.
    ///
    /// # Errors
    /// `InvalidArgument` past the end, `Unsupported` before [`KvStore::earliest`]. The store is then as it was.
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// A store of its own with the same contents; full pages are shared until one side changes them.
    fn fork(&self) -> Box<dyn KvStore>;

    /// What a reader must know to read the parts.
    fn describe(&self) -> Json;

    /// Hands over every array, named from `prefix` on.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;

    /// Bytes held for keys and values: those of all parts.
    fn bytes(&self) -> u64;
}
