//! A block: a list of parts (attention, a feed-forward network, a mixture of experts, a scan) around a residual stream.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use tensorpress_kvcache::{Cache, Layer, StoreForm};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::Input;
pub use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{DType, Error, ErrorKind, Node, Result, Scratch, kernels};

use crate::cache::{KvCache, ScanState};
use crate::layers::{Attention, Linear, Mlp, Moe, Norm, Rope, Routing, Scan, as_matrix, buffer};

/// Watches the inputs of a block's linear layers.
pub trait Observer {
    /// Sees some tokens X `[tokens, channels]` of an input. A break ends the forward pass there: it has seen enough.
    ///
    /// # Errors
    /// Any error ends the forward pass and is its error.
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>>;

    /// Sees which experts the tokens of the input before it go to.
    fn routed(&mut self, routing: &Routing) {
        let _ = routing;
    }

    /// Whether [`Observer::sent`] and [`Observer::expert`] are to be called.
    fn watches_experts(&self) -> bool {
        false
    }

    /// Tokens go through an expert now, with the factors that the router gave it; `weighed`: these were put on what it
    /// reads, and are in all it makes of that.
    fn sent(&mut self, index: usize, factors: &[f32], weighed: bool) {
        let _ = (index, factors, weighed);
    }

    /// Sees what an expert makes of the tokens that were sent to it, `[tokens, hidden]`.
    fn expert(&mut self, index: usize, outputs: ArrayView2<'_, f32>) {
        let _ = (index, outputs);
    }

    /// Which experts the tokens of the input before it are to go to, if not where the router sends them.
    fn route(&mut self) -> Option<Routing> {
        None
    }
}

/// Watches nothing.
pub(crate) struct Ignore;

impl Observer for Ignore {
    fn input(&mut self, _: SharedInput, _: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// One block of a model, with any node in place of any of its weights.
#[derive(Debug)]
pub struct Block {
    pub(crate) index: usize,
    pub(crate) parts: Vec<Part>,
    /// All parts read what the block reads; else each reads what those before it made of that.
    pub(crate) parallel: bool,
}

/// stream = then(stream + scale x after(mixer(norm(stream))))
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) norm: Option<Norm>,
    /// Reads what the part before it read.
    pub(crate) same: bool,
    pub(crate) mixer: Mixer,
    pub(crate) after: Option<Norm>,
    pub(crate) scale: f32,
    pub(crate) then: Option<Norm>,
}

#[derive(Debug)]
pub(crate) enum Mixer {
    Attention(Box<Attention>),
    Mlp(Box<Mlp>),
    Moe(Box<Moe>),
    Scan(Box<Scan>),
    /// Of which nothing is known: it has no forward pass.
    Other(Vec<Linear>),
}

impl Mixer {
    fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Attention(attention) => attention.linears(),
            Self::Mlp(mlp) => mlp.linears(),
            Self::Moe(moe) => moe.linears(),
            Self::Scan(scan) => scan.linears(),
            Self::Other(linears) => linears.iter().collect(),
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Attention(attention) => attention.linears_mut(),
            Self::Mlp(mlp) => mlp.linears_mut(),
            Self::Moe(moe) => moe.linears_mut(),
            Self::Scan(scan) => scan.linears_mut(),
            Self::Other(linears) => linears.iter_mut().collect(),
        }
    }
}

/// Tokens that go through the linear layers together, at least where there are as many: enough for good products,
/// few enough to bound the memory.
const CHUNK: usize = 1024;

/// Cuts sequences of these lengths into groups of about a thousand tokens, in which [`Block::forward_sequences`] runs
/// them: which sequences, and which rows.
#[must_use]
pub fn chunks(lengths: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
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

/// How tokens know of each other in a pass.
pub(crate) struct Mix<'a> {
    pub(crate) attend: &'a mut Attend<'a>,
    pub(crate) past: Past<'a>,
}

/// Attention: q, k, v, out, scratch.
pub(crate) type Attend<'a> = dyn FnMut(
        ArrayViewMut2<'_, f32>,
        ArrayViewMut2<'_, f32>,
        ArrayView2<'_, f32>,
        ArrayViewMut2<'_, f32>,
        &mut Scratch,
    ) -> Result<()>
    + 'a;

/// What a scan begins with.
pub(crate) enum Past<'a> {
    /// The state that the tokens before left, of one sequence.
    State(&'a mut ScanState),
    /// Nothing: whole sequences of these lengths.
    None(&'a [usize]),
}

/// The attention of parts that have none.
pub(crate) fn no_attention(
    _: ArrayViewMut2<'_, f32>,
    _: ArrayViewMut2<'_, f32>,
    _: ArrayView2<'_, f32>,
    _: ArrayViewMut2<'_, f32>,
    _: &mut Scratch,
) -> Result<()> {
    Ok(())
}

impl Block {
    /// Number of this block in its model.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The inputs of its linear layers, in the order in which a token meets them.
    #[must_use]
    pub fn inputs(&self) -> Vec<SharedInput> {
        let mut inputs: Vec<SharedInput> = Vec::new();
        for input in self.linears().filter_map(|linear| linear.input) {
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        inputs
    }

    /// Channels of an input; 0 if nothing here reads it.
    #[must_use]
    pub fn channels(&self, input: SharedInput) -> usize {
        let reader = self.linears().find(|linear| linear.input == Some(input));
        reader.map_or(0, |reader| reader.shape()[1])
    }

    pub(crate) fn attention(&self) -> Option<&Attention> {
        self.parts.iter().find_map(|part| match &part.mixer {
            Mixer::Attention(attention) => Some(&**attention),
            _ => None,
        })
    }

    pub(crate) fn scan(&self) -> Option<&Scan> {
        self.parts.iter().find_map(|part| match &part.mixer {
            Mixer::Scan(scan) => Some(&**scan),
            _ => None,
        })
    }

    /// Whether it looks back at keys and values; a block that does not has a [`ScanState`].
    #[must_use]
    pub fn attends(&self) -> bool {
        self.attention().is_some()
    }

    /// An empty memory of the tokens before, of the kind that this block has: keys and values in f32 ([`Block::cache`]), or
    /// a state.
    #[must_use]
    pub fn memory(&self) -> Box<dyn KvCache> {
        match self.scan() {
            Some(scan) => Box::new(scan.empty()),
            None => Box::new(self.cache()),
        }
    }

    /// The rotary embedding of queries and keys, where there is one.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        self.attention()?.rope.as_deref()
    }

    /// An empty cache for the heads of this block, of every key and value in f32.
    ///
    /// # Panics
    /// If it has no heads: [`Block::attends`].
    #[must_use]
    pub fn cache(&self) -> Cache {
        let attention = self.attention().expect("a block attends");
        let layer =
            attention.shape().and_then(|shape| Layer::new(shape, StoreForm::Float(DType::F32)));
        let cache =
            layer.and_then(|layer| Cache::new(layer).with_scoring(attention.scoring.clone()));
        cache.expect("heads were checked against the config, which was checked")
    }

    /// Continues one sequence: replaces `hidden` `[tokens, hidden]` of its next tokens by the block's output. Where the
    /// observer ends the pass, `hidden` has whatever it has by then, and so has the cache.
    ///
    /// # Errors
    /// `Unsupported` in encoders, and for a cache of another kind than [`Block::memory`]; `Numerical` where a weight or an activation is not finite, naming the tensor; those
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
        if self.scan().is_some() {
            let Some(state) = cache.state() else {
                return Err(Error::unsupported("a KV cache in a block that has a state instead"));
            };
            let mut mix = Mix { attend: &mut no_attention, past: Past::State(state) };
            return self.run(hidden, &mut mix, observer, scratch).map(|_| ());
        }
        let Some(attention) = self.attention().filter(|attention| attention.causal) else {
            return Err(Error::unsupported("a KV cache in an encoder"));
        };
        let mut attend = |q: ArrayViewMut2<'_, f32>,
                          k: ArrayViewMut2<'_, f32>,
                          v: ArrayView2<'_, f32>,
                          out: ArrayViewMut2<'_, f32>,
                          scratch: &mut Scratch| {
            attention.mix(q, k, v, out, Some(&mut *cache), scratch)
        };
        let mut mix = Mix { attend: &mut attend, past: Past::None(&[]) };
        let result = self.run(hidden, &mut mix, observer, scratch);
        self.blame(result.map(|_| ()))
    }

    /// A cache refuses what is not finite; a weight may be to blame.
    pub(crate) fn blame(&self, result: Result<()>) -> Result<()> {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Numerical) {
            self.linears().try_for_each(Linear::check_finite)?;
        }
        result
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
            let mut attend = |q: ArrayViewMut2<'_, f32>,
                              k: ArrayViewMut2<'_, f32>,
                              v: ArrayView2<'_, f32>,
                              out: ArrayViewMut2<'_, f32>,
                              scratch: &mut Scratch| {
                self.mix_sequences(q, k, v, out, lengths, scratch)
            };
            let mut mix = Mix { attend: &mut attend, past: Past::None(lengths) };
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
        let Some(attention) = self.attention() else { return Ok(()) };
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
                .try_for_each(|(q, k, v, out)| attention.mix(q, k, v, out, None, scratch));
        }
        let failure = Mutex::new(None);
        scratch.par().for_each_init(
            sequences.into_iter(),
            || Scratch::new(Par::Seq),
            |scratch, (q, k, v, out)| {
                if let Err(error) = attention.mix(q, k, v, out, None, scratch) {
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
        self.run_parts(0..self.parts.len(), &mut hidden, mix, observer, scratch)
    }

    /// Some of the parts, one after the other; checks the result behind the last.
    pub(crate) fn run_parts(
        &self,
        parts: Range<usize>,
        hidden: &mut ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, width) = hidden.dim();
        let mut memory = [0; 3].map(|_| buffer(scratch, tokens, width));
        let [given, normed, made] = &mut memory;
        let (mut given, mut normed) = (as_matrix(given, width), as_matrix(normed, width));
        let mut made = as_matrix(made, width);
        if self.parallel {
            given.assign(hidden);
        }
        let last = parts.end == self.parts.len();
        for part in &self.parts[parts] {
            if !part.same {
                normed.assign(if self.parallel { &given } else { hidden });
                part.norm.iter().for_each(|norm| norm.apply(normed.view_mut()));
            }
            let flow =
                part.mixer.forward(normed.view(), made.view_mut(), mix, observer, scratch)?;
            if flow.is_break() {
                return Ok(flow);
            }
            part.after.iter().for_each(|norm| norm.apply(made.view_mut()));
            match part.scale {
                1.0 => *hidden += &made,
                scale => hidden.scaled_add(scale, &made),
            }
            part.then.iter().for_each(|norm| norm.apply(hidden.view_mut()));
        }
        memory.into_iter().for_each(|memory| scratch.put(memory));
        let values = hidden.as_slice().expect("hidden states are contiguous");
        if last && kernels::has_non_finite(values) {
            return Err(self.find_non_finite());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The linear layers, in the order in which a token meets them.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.parts.iter().flat_map(|part| part.mixer.linears())
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.parts.iter_mut().flat_map(|part| part.mixer.linears_mut())
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
        let norms = self.parts.iter_mut();
        norms
            .flat_map(|part| [&mut part.norm, &mut part.after, &mut part.then])
            .flatten()
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
    pub fn prepack(mut self) -> Result<Self> {
        self.linears_mut().try_for_each(Linear::prepack)?;
        Ok(self)
    }

    /// The error for activations that are not finite: names the weight that is to blame, if there is one.
    fn find_non_finite(&self) -> Error {
        match self.check_finite() {
            Err(error) => error,
            Ok(()) => {
                Error::numerical(format!("activations of block {} are not finite", self.index))
            }
        }
    }

    /// Refuses weights of layers and norms that are NaN or infinite, naming the tensor.
    pub(crate) fn check_finite(&self) -> Result<()> {
        self.linears().try_for_each(Linear::check_finite)?;
        for part in &self.parts {
            let of_heads = match &part.mixer {
                Mixer::Attention(attention) => [&attention.q_norm, &attention.k_norm],
                _ => [&None, &None],
            };
            let norms = [&part.norm, &part.after, &part.then].into_iter().chain(of_heads);
            norms.flatten().try_for_each(Norm::check_finite)?;
        }
        Ok(())
    }
}

impl Mixer {
    /// Fills `y` with what it makes of `x`.
    fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        mix: &mut Mix<'_>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let input = match self {
            Self::Attention(_) => SharedInput::Attention,
            Self::Mlp(_) | Self::Moe(_) => SharedInput::Mlp,
            Self::Scan(_) => SharedInput::Scan,
            Self::Other(_) => return Err(Error::unsupported("a forward pass of unknown matrices")),
        };
        if observer.input(input, x)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        match self {
            Self::Attention(attention) => {
                attention.forward(x, y, &mut *mix.attend, observer, scratch)
            }
            Self::Mlp(mlp) => mlp.forward(x, y, SharedInput::MlpOutput, observer, scratch),
            Self::Moe(moe) => moe.forward(x, y, observer, scratch),
            Self::Scan(scan) => scan.forward(x, y, &mut mix.past, observer, scratch),
            Self::Other(_) => unreachable!("refused above"),
        }
    }
}

impl Attention {
    fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        attend: &mut Attend<'_>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, width) = (x.nrows(), self.width());
        let [q, k, v] = self.widths();
        let mut memory = [q, k, v, width].map(|width| buffer(scratch, tokens, width));
        let [qs, ks, vs, out] = &mut memory;
        let (mut qs, mut ks) = (as_matrix(qs, q), as_matrix(ks, k));
        let (mut vs, mut out) = (as_matrix(vs, v), as_matrix(out, width));
        let views = [qs.view_mut(), ks.view_mut(), vs.view_mut()];
        if self.project(x, views, observer, scratch)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        attend(qs, ks, vs.view(), out.view_mut(), scratch)?;
        let flow = observer.input(SharedInput::AttentionOutput, out.view())?;
        if flow.is_continue() {
            Input::with(out.view(), scratch, |out, scratch| self.o.forward(out, y, scratch))?;
        }
        memory.into_iter().for_each(|memory| scratch.put(memory));
        Ok(flow)
    }
}
