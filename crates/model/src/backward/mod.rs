//! One pass back through a decoder: gradients of the outputs of its linear layers, for methods that weigh errors by what
//! they do to the model's predictions.
//!
//! [`Backward::run`] runs windows of tokens forward, takes the loss -ln p of one label a token (in nats, summed over all
//! tokens), and goes back block by block. Labels are drawn from the model's own predictions ([`Labels::Sampled`]: means
//! of squares are then the Fisher information of the model) or are the next tokens ([`Labels::Next`]: gradients of the
//! usual loss). For every linear layer a [`GradientObserver`] sees what it read, X `[tokens, in]`, and the gradient of the
//! loss by what it wrote, g `[tokens, out]`; a [`Collector`] makes means of them, matrix by matrix.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::ops::ControlFlow;
//! use tensorpress_model::Source;
//! use tensorpress_model::backward::{Backward, Collector, InMemory, Wanted};
//! use tensorpress_tensor::Registry;
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! let source = Source::demo(&Registry::default())?;
//! let windows = [vec![1, 402, 290, 280], vec![1, 333, 44]];
//! let mut found = BTreeMap::new();
//! let wanted = |name: &str| match name.ends_with("down_proj.weight") {
//!     true => Wanted::NONE.with_second_moments(1024),
//!     false => Wanted::NONE,
//! };
//! let mut collector = Collector::new(wanted, |name, gradients| {
//!     found.insert(name.to_owned(), gradients);
//!     Ok(())
//! });
//! let mut states = InMemory::default();
//! Backward::default().run(&source, &windows, &mut states, &mut collector, &|_, _| ControlFlow::Continue(()))?;
//! drop(collector);
//! assert_eq!(found.len(), source.blocks());
//! # Ok(())
//! # }
//! ```
//!
//! # What is guaranteed
//! - **Bytes** depend neither on threads nor on how many windows run together, nor on where hidden states are kept: every
//!   window is computed by itself, and observers see the pieces in one order.
//! - **Memory**: the caller's [`HiddenStates`] hold 4 x hidden bytes for each token and block, and one more; all else is
//!   that of one block and of the windows that run together. Gradients take the place of states that were used.
//! - **Errors** come before any work where a part cannot be differentiated (`Unsupported`, naming it): state-space scans,
//!   encoders, matrices of which nothing is known. NaN and infinity are `Numerical` errors that name the tensor to blame,
//!   or the layer whose gradients they are.
//! - **Choices are held**: a router's factors have gradients, which experts it chooses has none; nor has a clamp outside
//!   its range.

mod attention;
mod block;
mod collector;
mod guided;
mod head;
mod labels;
mod lent;
mod mlp;
mod moe;
mod observer;
mod states;
mod sweep;

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;

use ndarray::{Array2, Axis, Slice};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Error, Result, Scratch, kernels};

use crate::block::Block;
use crate::layers::Linear;

pub use collector::{Collector, Gradients, SecondMoment, Wanted};
pub use labels::Labels;
pub use lent::{Lent, Model};
pub use observer::{GradientObserver, Piece};
pub use states::{HiddenStates, InFile, InMemory};

use head::Heading;
use sweep::{Found, Weights};

/// Told how many steps of how many are done, between groups of windows; a break stops the pass.
pub type Progress<'a> = dyn Fn(usize, usize) -> ControlFlow<()> + 'a;

/// How a pass is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backward {
    /// Where labels come from.
    pub labels: Labels,
    /// Windows run together up to so many tokens, or one if it is longer: more memory, and work for more threads.
    pub chunk: usize,
    /// Threads.
    pub par: Par,
}

impl Default for Backward {
    /// Sampled labels of seed 0, 1024 tokens at a time, all threads.
    fn default() -> Self {
        Self { labels: Labels::Sampled { seed: 0 }, chunk: 1024, par: Par::Rayon }
    }
}

/// What a pass was of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Passed {
    /// Tokens that had a label: what means are over.
    pub tokens: u64,
    /// The mean of -ln p of the labels, nats a token.
    pub loss: f64,
    /// The label of each token of each window; `None` where it has none.
    pub labels: Vec<Vec<Option<u32>>>,
}

impl Backward {
    /// Sets where labels come from.
    #[must_use]
    pub fn with_labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }

    /// Sets how many tokens run together.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens;
        self
    }

    /// Sets the threads.
    #[must_use]
    pub fn with_par(mut self, par: Par) -> Self {
        self.par = par;
        self
    }

    /// Runs the pass. Blocks that `model` makes for the occasion are decoded to f32 while they are used; of those it lends,
    /// one at a time is decoded on the way back unless it is already.
    ///
    /// It goes back no further than to the first block of which the observer wants a layer.
    ///
    /// # Errors
    /// `Unsupported` for parts without a backward pass, before any work; `InvalidArgument` for ids outside the vocabulary,
    /// and empty or too long windows; `InsufficientData` if no token has a label; `Numerical` where something is not finite,
    /// naming the tensor; `Interrupted` if `progress` said so; those of decoding, of `states` and of the observer.
    pub fn run(
        &self,
        model: &dyn Model,
        windows: &[Vec<u32>],
        states: &mut dyn HiddenStates,
        observer: &mut dyn GradientObserver,
        progress: &Progress<'_>,
    ) -> Result<Passed> {
        let config = model.config();
        check_windows(windows, config.context)?;
        let mut first = config.blocks;
        for index in 0..config.blocks {
            let block = model.block(index)?;
            block.differentiable()?;
            if first == config.blocks && block.linears().any(|linear| observer.wants(linear)) {
                first = index;
            }
        }
        let run = Run {
            how: self,
            blocks: config.blocks,
            width: config.hidden,
            groups: groups(windows, self.chunk),
            windows,
            progress,
        };
        run.all(model, first, states, observer)
    }
}

fn check_windows(windows: &[Vec<u32>], context: usize) -> Result<()> {
    if windows.is_empty() {
        return Err(Error::insufficient("no windows to run"));
    }
    match windows.iter().enumerate().find(|(_, ids)| ids.is_empty() || ids.len() > context) {
        None => Ok(()),
        Some((i, ids)) => Err(Error::invalid(format!(
            "window {i} has {} tokens: allowed are 1 to {context}, the model's context",
            ids.len()
        ))),
    }
}

/// Windows that run together, and the tokens they are of all tokens.
struct Group {
    windows: Range<usize>,
    tokens: Range<usize>,
}

fn groups(windows: &[Vec<u32>], most: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut token = 0;
    for (i, ids) in windows.iter().enumerate() {
        let end = token + ids.len();
        match groups.last_mut().filter(|group| end - group.tokens.start <= most) {
            Some(group) => (group.windows.end, group.tokens.end) = (i + 1, end),
            None => groups.push(Group { windows: i..i + 1, tokens: token..end }),
        }
        token = end;
    }
    groups
}

/// A pass on its way.
struct Run<'a> {
    how: &'a Backward,
    blocks: usize,
    width: usize,
    windows: &'a [Vec<u32>],
    groups: Vec<Group>,
    progress: &'a Progress<'a>,
}

impl Run<'_> {
    fn all(
        &self,
        model: &dyn Model,
        first: usize,
        states: &mut dyn HiddenStates,
        observer: &mut dyn GradientObserver,
    ) -> Result<Passed> {
        let tokens = self.windows.iter().map(Vec::len).sum();
        states.begin(self.blocks + 1, tokens, self.width)?;
        // Embeddings and blocks, the head, and the blocks on the way back.
        let each = self.groups.len();
        let steps = each * (1 + self.blocks + 1 + (self.blocks - first));
        let mut done = 0;
        let mut step = |count: usize| {
            done += count;
            match (self.progress)(done, steps) {
                ControlFlow::Break(()) => Err(Error::interrupted("stopped as asked")),
                ControlFlow::Continue(()) => Ok(()),
            }
        };
        self.embed(model, states, &mut step)?;
        for index in 0..self.blocks {
            self.forward(&*model.block(index)?.decoded(self.how.par)?, states, &mut step)?;
        }
        let passed = self.head(model, states, observer, &mut step)?;
        for index in (first..self.blocks).rev() {
            let block = model.block(index)?.decoded(self.how.par)?;
            self.back(&block, passed.tokens, states, observer, &mut step)?;
        }
        Ok(passed)
    }

    fn embed(
        &self,
        model: &dyn Model,
        states: &mut dyn HiddenStates,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let (embedding, mut scratch) = (model.embedding()?, Scratch::new(self.how.par));
        for group in &self.groups {
            let mut first = group.tokens.start;
            for ids in &self.windows[group.windows.clone()] {
                states.put(0, first, embedding.embed(ids, &mut scratch)?.view())?;
                first += ids.len();
            }
            step(1)?;
        }
        Ok(())
    }

    fn forward(
        &self,
        block: &Block,
        states: &mut dyn HiddenStates,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let index = block.index();
        for group in &self.groups {
            let mut hidden = self.get(states, index, group)?;
            let mut rest = hidden.view_mut();
            let mut parts = Vec::new();
            for ids in &self.windows[group.windows.clone()] {
                let (now, later) = rest.split_at(Axis(0), ids.len());
                parts.push(now);
                rest = later;
            }
            each(self.how.par, parts, |hidden, scratch| {
                let lengths = [hidden.nrows()];
                block.forward_sequences(hidden, &lengths, None, scratch)
            })?;
            states.put(index + 1, group.tokens.start, hidden.view())?;
            step(1)?;
        }
        Ok(())
    }

    /// Replaces the last states by their gradients.
    fn head(
        &self,
        model: &dyn Model,
        states: &mut dyn HiddenStates,
        observer: &mut dyn GradientObserver,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Passed> {
        let head = model.head()?.decoded()?;
        let heading = Heading::new(&head, self.how.labels, observer)?;
        let (mut labels, mut loss, mut tokens) = (Vec::new(), 0.0, 0);
        for group in &self.groups {
            let hidden = self.get(states, self.blocks, group)?;
            let mut gradients = Array2::zeros(hidden.dim());
            let (mut from, mut to) = (hidden.view(), gradients.view_mut());
            let mut items = Vec::new();
            for window in group.windows.clone() {
                let ids = &self.windows[window];
                let (now, later) = from.split_at(Axis(0), ids.len());
                let (now_to, later_to) = to.split_at(Axis(0), ids.len());
                items.push((window, ids, now, now_to));
                (from, to) = (later, later_to);
            }
            let made = if heading.watched() {
                // Gradients of logits are large: one piece of them at a time.
                let mut made = Vec::new();
                let mut scratch = Scratch::new(self.how.par);
                for (window, ids, hidden, to) in items {
                    let mut see = |layer: &Linear, x: &Array2<f32>, g: &Array2<f32>| {
                        let piece = Piece { layer, x: x.view(), g: g.view() };
                        observer.see(&[piece], self.how.par)
                    };
                    made.push(heading.back(window, ids, hidden, to, &mut see, &mut scratch)?);
                }
                made
            } else {
                each(self.how.par, items, |(window, ids, hidden, to), scratch| {
                    heading.back(window, ids, hidden, to, &mut |_, _, _| Ok(()), scratch)
                })?
            };
            for (of_window, nats) in made {
                tokens += of_window.iter().flatten().count() as u64;
                loss += nats;
                labels.push(of_window);
            }
            states.put(self.blocks, group.tokens.start, gradients.view())?;
            step(1)?;
        }
        if tokens == 0 {
            return Err(Error::insufficient("no token has a label: every window is of one token"));
        }
        observer.finished(&heading.layers(), tokens)?;
        Ok(Passed { tokens, loss: loss / tokens as f64, labels })
    }

    /// Replaces the states that a block read by their gradients.
    fn back(
        &self,
        block: &Block,
        tokens: u64,
        states: &mut dyn HiddenStates,
        observer: &mut dyn GradientObserver,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let index = block.index();
        let weights = Weights::new(block.linears().collect(), self.how.par)?;
        let wanted: Vec<bool> = block.linears().map(|linear| observer.wants(linear)).collect();
        for group in &self.groups {
            let hidden = self.get(states, index, group)?;
            let mut gradients = self.get(states, index + 1, group)?;
            let (mut from, mut to) = (hidden.view(), gradients.view_mut());
            let mut items = Vec::new();
            for ids in &self.windows[group.windows.clone()] {
                let (now, later) = from.split_at(Axis(0), ids.len());
                let (now_to, later_to) = to.split_at(Axis(0), ids.len());
                items.push((now, now_to));
                (from, to) = (later, later_to);
            }
            let found = each(self.how.par, items, |(hidden, to), scratch| {
                block.back(hidden, to, &weights, &wanted, scratch)
            })?;
            let found: Vec<Found> = found.into_iter().flatten().collect();
            let blame = |name: Option<&str>| {
                block.check_finite()?;
                let what = "gradients are not finite";
                Err(match name {
                    Some(name) => Error::numerical(what).in_tensor(name),
                    None => Error::numerical(format!("{what} at the input of block {index}")),
                })
            };
            for Found { layer, x, g } in &found {
                let finite = |values: &Array2<f32>| {
                    values.as_slice().is_some_and(|values| !kernels::has_non_finite(values))
                };
                if !finite(x) || !finite(g) {
                    return blame(Some(weights.layer(*layer).name()));
                }
            }
            if kernels::has_non_finite(gradients.as_slice().expect("a new matrix")) {
                return blame(None);
            }
            let piece = |Found { layer, x, g }| (weights.layer(layer), x, g);
            let found: Vec<_> = found.into_iter().map(piece).collect();
            let pieces: Vec<Piece<'_>> = found
                .iter()
                .map(|(layer, x, g)| Piece { layer, x: x.view(), g: g.view() })
                .collect();
            if !pieces.is_empty() {
                observer.see(&pieces, self.how.par)?;
            }
            states.put(index, group.tokens.start, gradients.view())?;
            step(1)?;
        }
        let layers = block.linears().zip(wanted).filter(|(_, wanted)| *wanted);
        let layers: Vec<&Linear> = layers.map(|(layer, _)| layer).collect();
        observer.finished(&layers, tokens)
    }

    fn get(
        &self,
        states: &mut dyn HiddenStates,
        slot: usize,
        group: &Group,
    ) -> Result<Array2<f32>> {
        let mut hidden = Array2::zeros((group.tokens.len(), self.width));
        states.get(slot, group.tokens.start, hidden.slice_axis_mut(Axis(0), Slice::from(..)))?;
        Ok(hidden)
    }
}

/// Runs all items, on a thread each where there are enough of them, else one after the other on all threads; results in
/// order, or the first error.
fn each<T: Send, R: Send>(
    par: Par,
    items: Vec<T>,
    run: impl Fn(T, &mut Scratch) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    if items.len() < par.threads() || par.threads() < 2 {
        let mut scratch = Scratch::new(par);
        return items.into_iter().map(|item| run(item, &mut scratch)).collect();
    }
    let mut results: Vec<Option<Result<R>>> = Vec::new();
    results.resize_with(items.len(), || None);
    let results = Mutex::new(results);
    par.for_each_init(
        items.into_iter().enumerate(),
        || Scratch::new(Par::Seq),
        |scratch, (i, item)| {
            let result = run(item, scratch);
            results.lock().expect("nothing panics while it is held")[i] = Some(result);
        },
    );
    let results = results.into_inner().expect("as above");
    results.into_iter().map(|result| result.expect("every item ran")).collect()
}
