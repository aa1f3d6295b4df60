//! What blocks remember of the tokens seen so far: keys and values, or the state of a scan.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_kvcache::store::Watch;
use tensorpress_kvcache::{Cache, Caches};
use tensorpress_tensor::{Error, Result, Scratch};

/// The keys and values of one block, all heads; or, of a block without attention, its [`ScanState`].
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

    /// [`append`](Self::append) of some of the next tokens: those at `positions`, ascending from [`len`](Self::len) on, each
    /// weighing as `weights` tokens do. The others have left the model before they came here.
    ///
    /// # Errors
    /// Whatever the store cannot do; `Unsupported` unless it says otherwise.
    fn append_at(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        let _ = (keys, values, positions, weights);
        Err(Error::unsupported("a cache that takes every token, where some have left before"))
    }

    /// [`attend`](Self::attend) for queries at `positions`, those that [`append_at`](Self::append_at) took last; `watch` sees
    /// the weights of all that is held.
    ///
    /// # Errors
    /// As there.
    fn attend_at(
        &mut self,
        queries: ArrayView3<'_, f32>,
        positions: &[usize],
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        let _ = (queries, positions, window, out, scratch, watch);
        Err(Error::unsupported("a cache that takes every token, where some have left before"))
    }

    /// What a block without attention remembers, if it is this.
    fn state(&mut self) -> Option<&mut ScanState> {
        None
    }

    /// How a context is said to it once more, if it can take that back.
    fn repeats(&mut self) -> Option<&mut dyn Repeats> {
        None
    }
}

/// A cache to which the context can be said once more. A [`Decoder`](crate::Decoder) does so, where a policy waits for it,
/// behind the first tokens that it reads at once.
pub trait Repeats {
    /// How many tokens at a time, if its policy waits for them: see [`Cache::repetition`].
    fn repetition(&self) -> Option<usize>;

    /// As [`Cache::begin_repetition`].
    ///
    /// # Errors
    /// As there.
    fn begin_repetition(&mut self, part: Range<usize>) -> Result<()>;

    /// As [`Cache::tell_hidden_norms`].
    fn tell_hidden_norms(&mut self, norms: &[f32]);

    /// As [`Cache::end_repetition`].
    ///
    /// # Errors
    /// As there.
    fn end_repetition(&mut self) -> Result<()>;

    /// As [`Cache::abandon_repetition`].
    fn abandon_repetition(&mut self);
}

/// One layer of caches that know each other.
#[derive(Debug)]
pub(crate) struct OneOf {
    caches: Arc<Mutex<Caches>>,
    layer: usize,
}

impl OneOf {
    /// Every layer of these.
    pub(crate) fn each(caches: Caches) -> Vec<Box<dyn KvCache>> {
        let layers = caches.layers();
        let caches = Arc::new(Mutex::new(caches));
        let one = |layer| Box::new(Self { caches: caches.clone(), layer }) as Box<dyn KvCache>;
        (0..layers).map(one).collect()
    }

    /// A panic elsewhere leaves caches that still are what they were.
    fn caches(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that layers share count for the first of them.
impl KvCache for OneOf {
    fn len(&self) -> usize {
        self.caches().seen(self.layer)
    }

    fn bytes(&self) -> u64 {
        self.caches().layer_bytes(self.layer)
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.caches().append(self.layer, keys, values)
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        _first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.caches().attend(self.layer, queries, window, None, out, scratch)
    }

    fn append_at(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        self.caches().append_at(self.layer, keys, values, positions, weights)
    }

    fn attend_at(
        &mut self,
        queries: ArrayView3<'_, f32>,
        positions: &[usize],
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        self.caches().attend_at(self.layer, queries, positions, window, out, scratch, watch)
    }

    fn repeats(&mut self) -> Option<&mut dyn Repeats> {
        Some(self)
    }
}

impl Repeats for OneOf {
    fn repetition(&self) -> Option<usize> {
        self.caches().repetition(self.layer).map(|repetition| repetition.chunk)
    }

    fn begin_repetition(&mut self, part: Range<usize>) -> Result<()> {
        self.caches().begin_repetition(self.layer, part)
    }

    fn tell_hidden_norms(&mut self, norms: &[f32]) {
        self.caches().tell_hidden_norms(self.layer, norms);
    }

    fn end_repetition(&mut self) -> Result<()> {
        self.caches().end_repetition(self.layer)
    }

    fn abandon_repetition(&mut self) {
        self.caches().abandon_repetition(self.layer);
    }
}

/// What a block without attention remembers of the tokens before: the last inputs of its convolution, and the state of
/// its scan. Its size does not depend on how many they were.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanState {
    pub(crate) tokens: usize,
    /// `[inputs, channels]`, the oldest first.
    pub(crate) conv: Vec<f32>,
    /// `[channels, values]`.
    pub(crate) scan: Vec<f32>,
}

impl ScanState {
    /// Of no tokens: zeros.
    pub(crate) fn new(conv: usize, scan: usize) -> Self {
        Self { tokens: 0, conv: vec![0.0; conv], scan: vec![0.0; scan] }
    }
}

impl KvCache for ScanState {
    fn len(&self) -> usize {
        self.tokens
    }

    fn bytes(&self) -> u64 {
        ((self.conv.len() + self.scan.len()) * size_of::<f32>()) as u64
    }

    /// `Unsupported`: there are no keys and values.
    fn append(&mut self, _: ArrayView3<'_, f32>, _: ArrayView3<'_, f32>) -> Result<()> {
        Err(Error::unsupported("keys and values in the state of a scan"))
    }

    /// `Unsupported`: there are no keys and values.
    fn attend(
        &mut self,
        _: ArrayView3<'_, f32>,
        _: usize,
        _: Option<usize>,
        _: ArrayViewMut3<'_, f32>,
        _: &mut Scratch,
    ) -> Result<()> {
        Err(Error::unsupported("attention over the state of a scan"))
    }

    fn state(&mut self) -> Option<&mut ScanState> {
        Some(self)
    }
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

    fn append_at(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        Self::append_at(self, keys, values, positions, weights)
    }

    fn attend_at(
        &mut self,
        queries: ArrayView3<'_, f32>,
        positions: &[usize],
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        Self::attend_at(self, queries, positions, window, out, scratch, watch)
    }

    fn repeats(&mut self) -> Option<&mut dyn Repeats> {
        Some(self)
    }
}

impl Repeats for Cache {
    fn repetition(&self) -> Option<usize> {
        Self::repetition(self).map(|repetition| repetition.chunk)
    }

    fn begin_repetition(&mut self, part: Range<usize>) -> Result<()> {
        Self::begin_repetition(self, part)
    }

    fn tell_hidden_norms(&mut self, norms: &[f32]) {
        Self::tell_hidden_norms(self, norms);
    }

    fn end_repetition(&mut self) -> Result<()> {
        Self::end_repetition(self)
    }

    fn abandon_repetition(&mut self) {
        Self::abandon_repetition(self);
    }
}
