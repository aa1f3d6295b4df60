//! A transformer block: attention and a feed-forward network, each around a residual stream.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use tensorpress_kvcache::{Cache, KvShape, Layer, StoreForm};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::Input;
pub use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{DType, Error, ErrorKind, Node, Result, Scratch, kernels};

use crate::cache::KvCache;
use crate::layers::{Attention, Linear, Mlp, Norm, Rope, as_matrix, buffer};

/// Watches the inputs of a block's linear layers.
pub trait Observer {
    /// Sees some tokens X `[tokens, channels]` of an input. A break ends the forward pass there: it has seen enough.
    ///
    /// # Errors
    /// Any error ends the forward pass and is its error.
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>>;
}

/// Watches nothing.
struct Ignore;

impl Observer for Ignore {
    fn input(&mut self, _: SharedInput, _: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// One transformer block, with any node in place of any of its weights.
#[derive(Debug)]
pub struct Block {
    pub(crate) index: usize,
    pub(crate) attention: Attention,
    pub(crate) mlp: Mlp,
    pub(crate) norms: [Norm; 2],
    /// Norms come before what they feed (decoders), or after the residual sum (BERT).
    pub(crate) norm_first: bool,
}

/// Tokens that go through the linear layers together, at least where there are as many: enough for good products,
/// few enough to bound the memory.
const CHUNK: usize = 2048;

/// Cuts sequences of these lengths into groups of about [`CHUNK`] tokens: which sequences, and which rows.
pub(crate) fn chunks(lengths: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut groups = Vec::new();
    let (mut first, mut row, mut tokens) = (0, 0, 0);
    for (i, length) in lengths.iter().enumerate() {
        tokens += length;
        if tokens >= CHUNK || i + 1 == lengths.len() {
            groups.push((first..i + 1, row..row + tokens));
            (first, row, tokens) = (i + 1, row + tokens, 0);
        }
    }
    groups
}

/// Mixes tokens: q, k, v, out, scratch.
pub(crate) type Mix<'a> = dyn FnMut(
        ArrayViewMut2<'_, f32>,
        ArrayViewMut2<'_, f32>,
        ArrayView2<'_, f32>,
        ArrayViewMut2<'_, f32>,
        &mut Scratch,
    ) -> Result<()>
    + 'a;

impl Block {
    /// Number of this block in its model.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Channels of an input.
    #[must_use]
    pub fn channels(&self, input: SharedInput) -> usize {
        let reader = match input {
            SharedInput::Attention => &self.attention.q,
            SharedInput::AttentionOutput => &self.attention.o,
            SharedInput::Mlp => &self.mlp.up,
            SharedInput::MlpOutput => &self.mlp.down,
        };
        reader.shape()[1]
    }

    /// The rotary embedding of queries and keys; encoders have none.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        self.attention.rope.as_deref()
    }

    /// An empty cache for the heads of this block, of every key and value in f32.
    #[must_use]
    pub fn cache(&self) -> Cache {
        let Attention { q, k, head_dim, .. } = &self.attention;
        let heads = |linear: &Linear| linear.shape()[0] / head_dim;
        let layer = KvShape::new(heads(q), heads(k), *head_dim)
            .and_then(|shape| Layer::new(shape, StoreForm::Float(DType::F32)));
        Cache::new(layer.expect("heads were checked against the config, which was checked"))
    }

    /// Continues one sequence: replaces `hidden` `[tokens, hidden]` of its next tokens by the block's output. Where the
    /// observer ends the pass, `hidden` has whatever it has by then, and so has the cache.
    ///
    /// # Errors
    /// `Unsupported` in encoders; `Numerical` where a weight or an activation is not finite, naming the tensor; those
    /// of decoding, of the cache and of the observer.
    ///
    /// # Panics
    /// If `hidden` has another width or is not contiguous.
    pub fn forward(
        &self,
        hidden: ArrayViewMut2<'_, f32>,
        cache: &mut dyn KvCache,
        observer: Option<&mut dyn Observer>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if self.attention.rope.is_none() {
            return Err(Error::unsupported("a KV cache in an encoder"));
        }
        let mut mix = |q: ArrayViewMut2<'_, f32>,
                       k: ArrayViewMut2<'_, f32>,
                       v: ArrayView2<'_, f32>,
                       out: ArrayViewMut2<'_, f32>,
                       scratch: &mut Scratch| {
            self.attention.mix(q, k, v, out, Some(&mut *cache), scratch)
        };
        // A cache refuses what is not finite; a weight may be to blame.
        match self.run(hidden, &mut mix, observer, scratch) {
            Err(error) if error.kind() == ErrorKind::Numerical => {
                self.linears().try_for_each(Linear::check_finite)?;
                Err(error)
            }
            result => result.map(|_| ()),
        }
    }

    /// Runs whole sequences that lie one after the other in `hidden` `[sum of lengths, hidden]`, and replaces them by
    /// the block's output. The same bytes for any parallelism of `scratch`. Where the observer ends the pass, `hidden` has
    /// whatever it has by then.
    ///
    /// # Errors
    /// As [`Block::forward`].
    ///
    /// # Panics
    /// As [`Block::forward`], or if the lengths do not sum to the number of tokens.
    pub fn forward_sequences(
        &self,
        mut hidden: ArrayViewMut2<'_, f32>,
        lengths: &[usize],
        mut observer: Option<&mut dyn Observer>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        assert_eq!(lengths.iter().sum::<usize>(), hidden.nrows(), "tokens of the sequences");
        for (sequences, rows) in chunks(lengths) {
            let chunk = hidden.slice_axis_mut(Axis(0), Slice::from(rows));
            let lengths = &lengths[sequences];
            let mut mix = |q: ArrayViewMut2<'_, f32>,
                           k: ArrayViewMut2<'_, f32>,
                           v: ArrayView2<'_, f32>,
                           out: ArrayViewMut2<'_, f32>,
                           scratch: &mut Scratch| {
                self.mix_sequences(q, k, v, out, lengths, scratch)
            };
            let observer: Option<&mut dyn Observer> = match &mut observer {
                Some(observer) => Some(&mut **observer),
                None => None,
            };
            if self.run(chunk, &mut mix, observer, scratch)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn mix_sequences(
        &self,
        mut q: ArrayViewMut2<'_, f32>,
        mut k: ArrayViewMut2<'_, f32>,
        mut v: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        lengths: &[usize],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut sequences = Vec::with_capacity(lengths.len());
        for &length in lengths {
            let (q1, q2) = q.split_at(Axis(0), length);
            let (k1, k2) = k.split_at(Axis(0), length);
            let (v1, v2) = v.split_at(Axis(0), length);
            let (out1, out2) = out.split_at(Axis(0), length);
            sequences.push((q1, k1, v1, out1));
            (q, k, v, out) = (q2, k2, v2, out2);
        }
        if scratch.par() == Par::Seq {
            return sequences
                .into_iter()
                .try_for_each(|(q, k, v, out)| self.attention.mix(q, k, v, out, None, scratch));
        }
        let failure = Mutex::new(None);
        scratch.par().for_each_init(
            sequences.into_iter(),
            || Scratch::new(Par::Seq),
            |scratch, (q, k, v, out)| {
                if let Err(error) = self.attention.mix(q, k, v, out, None, scratch) {
                    *failure.lock().expect("nothing panics while it is held") = Some(error);
                }
            },
        );
        failure.into_inner().expect("as above").map_or(Ok(()), Err)
    }

    fn run(
        &self,
        mut hidden: ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        observer: Option<&mut dyn Observer>,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let mut ignore = Ignore;
        let observer = observer.unwrap_or(&mut ignore);
        if self.attend(&mut hidden, mix, Some(&mut *observer), scratch)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.feed_forward(&mut hidden, Some(observer), scratch)
    }

    /// The first half of the block: adds attention's output to `hidden`.
    pub(crate) fn attend(
        &self,
        hidden: &mut ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        observer: Option<&mut dyn Observer>,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, width) = hidden.dim();
        let mut memory = buffer(scratch, tokens, width);
        let mut x = as_matrix(&mut memory, width);
        x.assign(hidden);
        if self.norm_first {
            self.norms[0].apply(x.view_mut());
        }
        let flow =
            self.attention_part(x.view_mut(), mix, observer.unwrap_or(&mut Ignore), scratch)?;
        if flow.is_continue() {
            self.add(hidden, x.view(), 0);
        }
        scratch.put(memory);
        Ok(flow)
    }

    /// The second half: adds the feed-forward network's output, and checks the result.
    pub(crate) fn feed_forward(
        &self,
        hidden: &mut ArrayViewMut2<'_, f32>,
        observer: Option<&mut dyn Observer>,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, width) = hidden.dim();
        let mut memory = buffer(scratch, tokens, width);
        let mut x = as_matrix(&mut memory, width);
        x.assign(hidden);
        if self.norm_first {
            self.norms[1].apply(x.view_mut());
        }
        let flow = self.mlp_part(x.view_mut(), observer.unwrap_or(&mut Ignore), scratch)?;
        if flow.is_continue() {
            self.add(hidden, x.view(), 1);
        }
        scratch.put(memory);
        let values = hidden.as_slice().expect("hidden states are contiguous");
        if flow.is_continue() && kernels::has_non_finite(values) {
            return Err(self.find_non_finite());
        }
        Ok(flow)
    }

    fn add(&self, hidden: &mut ArrayViewMut2<'_, f32>, x: ArrayView2<'_, f32>, norm: usize) {
        *hidden += &x;
        if !self.norm_first {
            self.norms[norm].apply(hidden.view_mut());
        }
    }

    /// Replaces x by attention's output.
    fn attention_part(
        &self,
        mut x: ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let Attention { q, k, v, o, .. } = &self.attention;
        let tokens = x.nrows();
        let [q_width, kv_width] = [q.shape()[0], k.shape()[0]];
        if observer.input(SharedInput::Attention, x.view())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut memory = [q_width, kv_width, kv_width, q_width].map(|w| buffer(scratch, tokens, w));
        let [qs, ks, vs, out] = &mut memory;
        let (mut qs, mut out) = (as_matrix(qs, q_width), as_matrix(out, q_width));
        let (mut ks, mut vs) = (as_matrix(ks, kv_width), as_matrix(vs, kv_width));
        Input::with(x.view(), scratch, |x, scratch| {
            q.forward(x, qs.view_mut(), scratch)?;
            k.forward(x, ks.view_mut(), scratch)?;
            v.forward(x, vs.view_mut(), scratch)
        })?;
        mix(qs, ks, vs.view(), out.view_mut(), scratch)?;
        let flow = observer.input(SharedInput::AttentionOutput, out.view())?;
        if flow.is_continue() {
            Input::with(out.view(), scratch, |out, scratch| o.forward(out, x.view_mut(), scratch))?;
        }
        memory.into_iter().for_each(|m| scratch.put(m));
        Ok(flow)
    }

    /// Replaces x by the feed-forward network's output.
    fn mlp_part(
        &self,
        mut x: ArrayViewMut2<'_, f32>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let Mlp { gate, up, down, activation } = &self.mlp;
        let width = up.shape()[0];
        if observer.input(SharedInput::Mlp, x.view())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut memory = buffer(scratch, x.nrows(), width);
        Input::with(x.view(), scratch, |x, scratch| -> Result<()> {
            up.forward(x, as_matrix(&mut memory, width), scratch)?;
            let Some(gate) = gate else {
                activation.apply(&mut memory);
                return Ok(());
            };
            let mut gated = buffer(scratch, x.tokens(), width);
            gate.forward(x, as_matrix(&mut gated, width), scratch)?;
            activation.gate(&mut gated, &memory);
            scratch.put(std::mem::replace(&mut memory, gated));
            Ok(())
        })?;
        let inner = as_matrix(&mut memory, width);
        let flow = observer.input(SharedInput::MlpOutput, inner.view())?;
        if flow.is_continue() {
            Input::with(inner.view(), scratch, |inner, scratch| {
                down.forward(inner, x.view_mut(), scratch)
            })?;
        }
        scratch.put(memory);
        Ok(flow)
    }

    /// The linear layers, in the order in which a token meets them.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q, &a.k, &a.v, &a.o].into_iter().chain(&m.gate).chain([&m.up, &m.down])
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [&mut a.q, &mut a.k, &mut a.v, &mut a.o]
            .into_iter()
            .chain(&mut m.gate)
            .chain([&mut m.up, &mut m.down])
    }

    /// The linear layer whose weight has this full name.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none.
    pub fn linear_mut(&mut self, name: &str) -> Result<&mut Linear> {
        let index = self.index;
        self.linears_mut().find(|l| l.name() == name).ok_or_else(|| {
            Error::invalid(format!("no linear layer of block {index}")).in_tensor(name)
        })
    }

    /// Replaces the weight of this full name by a node of the same shape.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such layer, `ShapeMismatch`.
    pub fn replace(&mut self, name: &str, node: Box<dyn Node>) -> Result<()> {
        self.linear_mut(name)?.replace(node)
    }

    /// The norm whose weight has this full name.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none.
    pub fn norm_mut(&mut self, name: &str) -> Result<&mut Norm> {
        let index = self.index;
        self.norms
            .iter_mut()
            .find(|n| n.name() == name)
            .ok_or_else(|| Error::invalid(format!("no norm of block {index}")).in_tensor(name))
    }

    /// Decodes every weight to f32 once: products are then as fast as dense ones get.
    ///
    /// # Errors
    /// Those of decoding; `Numerical` for NaN or infinity; each names the tensor.
    pub fn materialise(&mut self) -> Result<()> {
        self.linears_mut().try_for_each(Linear::materialise)
    }

    /// Rearranges every compressed weight for fast products.
    ///
    /// # Errors
    /// Those of the nodes, naming the tensor.
    pub fn prepack(self) -> Result<Self> {
        let Attention { q, k, v, o, q_norm, k_norm, rope, head_dim, window } = self.attention;
        let (q, k, v, o) = (q.prepack()?, k.prepack()?, v.prepack()?, o.prepack()?);
        let attention = Attention { q, k, v, o, q_norm, k_norm, rope, head_dim, window };
        let Mlp { gate, up, down, activation } = self.mlp;
        let gate = gate.map(Linear::prepack).transpose()?;
        let mlp = Mlp { gate, up: up.prepack()?, down: down.prepack()?, activation };
        Ok(Self { attention, mlp, ..self })
    }

    /// The error for activations that are not finite: names the weight that is to blame, if there is one.
    fn find_non_finite(&self) -> Error {
        match self.linears().try_for_each(Linear::check_finite) {
            Err(error) => error,
            Ok(()) => {
                Error::numerical(format!("activations of block {} are not finite", self.index))
            }
        }
    }
}
