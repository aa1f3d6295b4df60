//! What a statistic is, and how those of any type are held together.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use ndarray::ArrayView2;

use super::Calibration;
use crate::error::{Error, Result};
use crate::linalg::Par;
use crate::node::{Map, Side};
use crate::usable::Usable;

/// A statistic of a linear layer, gathered from a stream in bounded memory. The type is the key it is asked for by
/// ([`super::Needs::of`]) and found by ([`Calibration::get`]); a user's own is written like those of this module and
/// needs no entry in any list.
///
/// The guarantees of [the module](super) are the implementor's to keep: the bytes may not depend on `par`, and parts
/// must merge into the statistic of the whole.
///
/// ```
/// use tensorpress_tensor::linalg::Par;
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::stats::{Collector, Needs, TokenNorms};
///
/// let mut collector = Collector::new(2, Needs::of::<TokenNorms>(), 0);
/// collector.update(array![[3.0, 4.0]].view(), Par::Seq);
/// collector.update(array![[0.0, 2.0]].view(), Par::Seq);
/// assert_eq!(collector.finish().get::<TokenNorms>()?[..], [5.0, 2.0]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Statistic: fmt::Debug + Clone + Send + Sync + 'static {
    /// What methods read.
    type Value: Clone + fmt::Debug + Send + Sync + 'static;
    /// Its name in messages, with its article: "the Gram matrix".
    const WHAT: &'static str;
    /// The streams it reads; the first is the layer's input for most.
    const STREAMS: &'static [Stream] = &[Stream::Input];

    /// Nothing seen yet.
    fn begin(ask: Ask) -> Self;

    /// About the bytes that it holds while it is gathered: what decides how many inputs are watched at a time. Default:
    /// those of a matrix of channels by channels.
    #[must_use]
    fn bytes(ask: Ask) -> u64 {
        4 * (ask.channels as u64).pow(2)
    }

    /// Adds a piece of the stream.
    ///
    /// # Panics
    /// If shapes differ from those before.
    fn update(&mut self, batch: &Batch<'_>, par: Par);

    /// Adds what `other`, begun with the same [`Ask`], has seen.
    ///
    /// # Panics
    /// If they do not fit each other.
    fn merge(&mut self, other: Self);

    /// The next token to come is number `token` of the whole stream: for parts that will be merged.
    fn starting_at(&mut self, token: u64) {
        let _ = token;
    }

    /// The value.
    ///
    /// # Errors
    /// `Numerical` if it cannot be used, `MissingCalibration` if a stream was not there.
    fn finish(self) -> Result<Self::Value>;

    /// The same of a layer that stands behind a map: see [`Via`].
    fn through(value: &Arc<Self::Value>, via: &Via<'_>) -> Usable<Arc<Self::Value>>;
}

/// What a statistic is begun with.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Ask {
    /// Columns of X.
    pub channels: usize,
    /// How much is asked for.
    pub amount: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// Streams of tokens that statistics are gathered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// What the layer reads, behind what is compressed already.
    Input,
    /// What the layer reads in the model as it was.
    Original,
    /// What the layer writes.
    Output,
    /// Which of its experts a router chose.
    Routes,
}

/// Some tokens, in all streams that are there.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Batch<'a> {
    /// X `[tokens, channels]`: [`Stream::Input`].
    pub input: ArrayView2<'a, f32>,
    /// The same tokens in the model as it was `[tokens, channels]`: [`Stream::Original`].
    pub original: Option<ArrayView2<'a, f32>>,
    /// Y `[tokens, outputs]`: [`Stream::Output`].
    pub output: Option<ArrayView2<'a, f32>>,
    /// The experts of each token `[tokens, chosen]`: [`Stream::Routes`].
    pub routes: Option<ArrayView2<'a, u32>>,
}

impl<'a> Batch<'a> {
    /// Inputs alone.
    #[must_use]
    pub fn new(input: ArrayView2<'a, f32>) -> Self {
        Self { input, original: None, output: None, routes: None }
    }

    /// With the inputs of the model as it was.
    #[must_use]
    pub fn with_original(mut self, original: ArrayView2<'a, f32>) -> Self {
        self.original = Some(original);
        self
    }

    /// With outputs.
    #[must_use]
    pub fn with_output(mut self, output: ArrayView2<'a, f32>) -> Self {
        self.output = Some(output);
        self
    }

    /// With the choices of a router.
    #[must_use]
    pub fn with_routes(mut self, routes: ArrayView2<'a, u32>) -> Self {
        self.routes = Some(routes);
        self
    }
}

/// On its way through a map: what a statistic is to be translated by.
#[derive(Debug)]
#[non_exhaustive]
pub struct Via<'a> {
    /// The map T.
    pub map: &'a dyn Map,
    /// Where it stands: W = A T (inputs) or W = Tᵀ A (outputs); the statistic of W becomes that of A.
    pub side: Side,
    /// All statistics of W.
    pub of: &'a Calibration,
    /// Parallelism allowed.
    pub par: Par,
}

/// A kind of statistic: a type, as a value.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    id: fn() -> TypeId,
    what: &'static str,
    streams: &'static [Stream],
    begin: fn(Ask) -> Box<dyn Erased>,
    bytes: fn(Ask) -> u64,
    through: fn(&Value, &Via<'_>) -> Usable<Value>,
}

/// A value of any statistic.
pub(super) type Value = Arc<dyn Any + Send + Sync>;

impl Kind {
    pub(super) const fn of<S: Statistic>() -> Self {
        Self {
            id: TypeId::of::<S>,
            what: S::WHAT,
            streams: S::STREAMS,
            begin: |ask| Box::new(S::begin(ask)),
            bytes: S::bytes,
            through: |value, via| {
                let value = value.clone().downcast::<S::Value>().expect("its own value");
                S::through(&value, via).map(|value| value as Value)
            },
        }
    }

    pub(super) fn id(&self) -> TypeId {
        (self.id)()
    }

    pub(super) fn what(&self) -> &'static str {
        self.what
    }

    pub(super) fn reads(&self, stream: Stream) -> bool {
        self.streams.contains(&stream)
    }

    pub(super) fn begin(&self, ask: Ask) -> Box<dyn Erased> {
        (self.begin)(ask)
    }

    pub(super) fn bytes(&self, ask: Ask) -> u64 {
        (self.bytes)(ask)
    }

    pub(super) fn through(&self, value: &Value, via: &Via<'_>) -> Usable<Value> {
        (self.through)(value, via)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Kind {}

/// A [`Statistic`] whose type is forgotten.
pub(super) trait Erased: fmt::Debug + Send + Sync + Any {
    fn update(&mut self, batch: &Batch<'_>, par: Par);
    fn merge(&mut self, other: Box<dyn Erased>);
    fn starting_at(&mut self, token: u64);
    fn finish(self: Box<Self>) -> Result<Value, Error>;
    fn copy(&self) -> Box<dyn Erased>;
}

impl<S: Statistic> Erased for S {
    fn update(&mut self, batch: &Batch<'_>, par: Par) {
        Statistic::update(self, batch, par);
    }

    fn merge(&mut self, other: Box<dyn Erased>) {
        let other: Box<dyn Any> = other;
        Statistic::merge(self, *other.downcast::<S>().expect("of the same kind"));
    }

    fn starting_at(&mut self, token: u64) {
        Statistic::starting_at(self, token);
    }

    fn finish(self: Box<Self>) -> Result<Value, Error> {
        Statistic::finish(*self).map(|value| Arc::new(value) as Value)
    }

    fn copy(&self) -> Box<dyn Erased> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Erased> {
    fn clone(&self) -> Self {
        (**self).copy()
    }
}
