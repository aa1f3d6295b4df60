//! How keys and values are held: forms, and the layer that holds all heads in them.

mod attend;
mod bitmap;
mod centred;
mod coded;
mod depth;
mod float;
mod floats;
mod form;
mod gear;
mod hadamard_int;
mod head;
mod int;
mod joint;
mod kept;
mod kivi;
mod kvquant;
mod layer;
mod merged;
mod mustafar;
mod normal;
mod own;
mod parts;
mod pq;
mod projection;
mod reader;
mod rotated;
mod rows;
mod scoring;
#[cfg(test)]
mod tests;
mod weigh;
mod windowed;
mod wire;
mod zipcache;

use std::fmt::Debug;

use ndarray::{Array2, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Error, PartSink, Result, Scratch, ndarray};

use crate::registry::KvRegistry;
use crate::stage::KvPart;

pub(crate) use coded::{floats, put_floats};
pub use depth::{AquaKv, MiniCache, Unmerged, XKv, dissimilar_pairs, share_layers};
pub use form::{Bitmap, Form, Int, StoreForm};
pub use gear::Gear;
pub use hadamard_int::HadamardInt;
pub use int::{Axis, Role};
pub use joint::{Joined, JointForm, JointPage, Paging};
pub(crate) use joint::{MEMBER, Member};
pub use kvquant::{KvLevels, KvQuant, Levels, normal_levels};
pub use layer::Layer;
pub use merged::Merged;
pub(crate) use normal::sample as normal_sample;
pub use own::PerHead;
pub use pq::{Codebooks, PqCache};
pub(crate) use projection::principal_order;
pub use projection::{
    ChannelShrink, HeadSample, Matryoshka, MatryoshkaProj, greedy_ranks, principal_basis,
    weighted_basis,
};
pub use reader::Reader;
pub use rows::{Rows, bytes_part, count, product, read_bytes};
pub(crate) use scoring::Sight;
pub use scoring::{Bias, Scoring};
pub use windowed::{PackedRows, Windowed};
pub use zipcache::{Norm, ZipCache, join_split, split_codes};

/// The stages of this module.
pub(crate) fn stages() -> Vec<Row<KvPart>> {
    let [f32, f16, bf16] = floats::stages();
    let integers = [kivi::stage(), hadamard_int::stage(), zipcache::stage(), gear::stage()];
    let learnt = [kvquant::stage(), pq::stage()];
    let floats = [f32, f16, bf16];
    let all = floats.into_iter().chain(integers).chain(learnt);
    let all = all.chain(projection::stages()).chain([mustafar::stage()]);
    all.chain(depth::stages()).collect()
}

/// A registry that reads the forms of this module.
pub(crate) fn readers(registry: KvRegistry) -> KvRegistry {
    let registry = own::reads::<ZipCache>(own::reads::<HadamardInt>(registry));
    let registry = own::reads::<KvQuant>(own::reads::<Gear>(registry));
    let registry = own::reads::<ChannelShrink>(own::reads::<PqCache>(registry));
    depth::readers(own::reads::<MatryoshkaProj>(registry))
}

/// Heads of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head of queries and keys.
    pub head_dim: usize,
    /// Channels of a head of values and of what attention gives.
    pub value_dim: usize,
}

impl KvShape {
    /// A shape; values are as wide as keys.
    ///
    /// # Errors
    /// `InvalidArgument` for zeros, or query heads that are no multiple of the others.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        if heads == 0 || kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::invalid(format!(
                "heads = {heads}, kv_heads = {kv_heads}, head_dim = {head_dim}: all at least 1, heads a multiple of kv_heads"
            )));
        }
        Ok(Self { heads, kv_heads, head_dim, value_dim: head_dim })
    }

    /// Sets another width of values: MLA's, whose keys have channels of position beside them.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    pub fn with_value_dim(mut self, value_dim: usize) -> Result<Self> {
        if value_dim == 0 {
            return Err(Error::invalid("value_dim = 0: at least 1"));
        }
        self.value_dim = value_dim;
        Ok(self)
    }

    /// Query heads that share a head of keys and values.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(crate) fn check_keys(&self, dim: (usize, usize, usize)) -> Result<()> {
        check("keys", self.kv_heads, self.head_dim, dim)
    }

    pub(crate) fn check_values(&self, dim: (usize, usize, usize)) -> Result<()> {
        check("values", self.kv_heads, self.value_dim, dim)
    }

    /// Whether queries can be these, and what attention gives can go there.
    pub(crate) fn check_queries(
        &self,
        queries: (usize, usize, usize),
        out: (usize, usize, usize),
    ) -> Result<()> {
        check("queries", self.heads, self.head_dim, queries)?;
        check("out", self.heads, self.value_dim, out)?;
        if out.0 != queries.0 {
            return Err(Error::shape(format!("out {out:?}, queries {queries:?}")));
        }
        Ok(())
    }
}

fn check(what: &str, heads: usize, width: usize, dim: (usize, usize, usize)) -> Result<()> {
    if (dim.1, dim.2) == (heads, width) {
        return Ok(());
    }
    let (tokens, found, channels) = dim;
    Err(Error::shape(format!(
        "{what} [{tokens}, {found}, {channels}]: [tokens, {heads}, {width}] expected"
    )))
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

/// Sees the attention of one query: query head, row among the queries, and the weight of every slot (sum 1, but for the
/// share of the head's sink). Slots of a low tier follow those of the main one.
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

    /// Tokens that each slot of a head stands for: more than 1 where others were merged into it.
    ///
    /// # Panics
    /// If there is no such head.
    fn weights(&self, head: usize) -> Vec<f32> {
        vec![1.0; self.positions(head).len()]
    }

    /// How products of queries and keys become weights.
    fn scoring(&self) -> &Scoring;

    /// Takes keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of the next tokens.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for what is not finite or too large for the form; `InvalidArgument` for values that
    /// are not in the keys where they must be. The store is then as it was.
    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()>;

    /// [`KvStore::attend_with`] without a bias.
    ///
    /// # Errors
    /// As there.
    fn attend(
        &self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        self.attend_with(queries, causal, None, out, scratch, watch)
    }

    /// `softmax(q k^T / sqrt(head_dim)) v`, or what else [`KvStore::scoring`] says, over the stored form for queries
    /// `[tokens, heads, head_dim]` into `out` `[tokens, heads, value_dim]`; a query that sees nothing gets zeros.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for a bias that is NaN or plus infinity.
    fn attend_with(
        &self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()>;

    /// Keys `[slots, head_dim]` of a head, as attention uses them.
    ///
    /// # Panics
    /// If there is no such head.
    fn keys(&self, head: usize) -> Array2<f32>;

    /// Values `[slots, value_dim]` of a head, as attention uses them.
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
