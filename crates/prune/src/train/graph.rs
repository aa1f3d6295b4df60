//! Networks as graphs of operators: which variables go together, and what is left without them.

mod operators;
mod shrink;

use tensorpress_tensor::{Error, Result};

use super::Groups;
use super::groups::check_scores;

/// A node of a [`Graph`], by number.
pub type NodeId = usize;

/// What a node computes of its inputs. Variables are places in one flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// The network's input.
    Input,
    /// W x + b: W `[out, in]` row by row from `weight` on, b from `bias` on. A convolution is one with a kernel for a
    /// weight.
    Linear {
        /// The first weight.
        weight: usize,
        /// The first bias.
        bias: usize,
        /// Outputs.
        out: usize,
        /// Inputs.
        inputs: usize,
    },
    /// γ x + β, channel by channel: what is left of a batch normalisation.
    Affine {
        /// The first γ.
        gain: usize,
        /// The first β.
        bias: usize,
    },
    /// A function of each channel by itself; `true` if it makes 0 of 0.
    Activation(bool),
    /// The sum of its inputs.
    Add,
    /// Its inputs, one behind the other.
    Concat,
    /// Each channel so many times: positions of a picture that are laid flat.
    Repeat(usize),
    /// The network's output.
    Output,
}

/// A node with its inputs and what it puts out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Nodes before it.
    pub inputs: Vec<NodeId>,
    /// Channels of its output: those of one number are the same one.
    channels: Vec<usize>,
}

impl Node {
    /// Number of channels it puts out.
    #[must_use]
    pub fn width(&self) -> usize {
        self.channels.len()
    }
}

/// A network as operators and who reads whom, so that what has to go together is found, not listed (OTOv2: Chen et al.,
/// 2023; OTOv3: Chen et al., "OTOv3: Automatic Architecture-Agnostic Neural Network Training and Compression from
/// Structured Pruning to Erasing Operators", 2023).
///
/// Each output of a linear makes a channel; affine operators, activations and copies hand it on; a sum makes one
/// channel of all that it adds up. All variables that make a channel form a zero-invariant group: where they are 0, the
/// channel is, whatever the input. Channels that reach the input or the output by identity, or an activation that makes
/// something of 0, may not go.
///
/// ```
/// use tensorpress_prune::train::graph::Graph;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let mut graph = Graph::new();
/// let x = graph.input(3);
/// let up = graph.linear(x, 4);
/// let up = graph.activation(up, true);
/// let down = graph.linear(up, 3);
/// let sum = graph.add(&[x, down])?;
/// graph.output(sum);
/// // The 4 hidden channels; those of the residual stream stay.
/// let channels = graph.channels()?;
/// assert_eq!((channels.len(), channels.members(0).len()), (4, 3 + 1));
/// let x = vec![0.0; graph.variables()];
/// let (smaller, x) = graph.without(&x, &[0, 2], &[])?;
/// assert_eq!((smaller.variables(), x.len()), (2 * 4 + 3 * 3, 17));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    nodes: Vec<Node>,
    variables: usize,
    /// Of each channel made, one that it is the same as; itself at the end of the chain.
    same: Vec<usize>,
}

impl Graph {
    /// Without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Its nodes; each reads only such that come before it.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Length of the vector of all variables.
    #[must_use]
    pub fn variables(&self) -> usize {
        self.variables
    }

    /// Adds an input.
    pub fn input(&mut self, channels: usize) -> NodeId {
        let channels = self.make(channels);
        self.push(Op::Input, &[], channels)
    }

    /// Adds a linear operator with bias.
    pub fn linear(&mut self, from: NodeId, out: usize) -> NodeId {
        let inputs = self.nodes[from].width();
        let weight = self.variables;
        let bias = weight + out * inputs;
        self.variables = bias + out;
        let channels = self.make(out);
        self.push(Op::Linear { weight, bias, out, inputs }, &[from], channels)
    }

    /// The channels of a node go so many neighbours at a time: the channels of a head.
    ///
    /// # Errors
    /// `InvalidArgument` if the unit does not divide the channels.
    pub fn tie(&mut self, node: NodeId, unit: usize) -> Result<()> {
        let channels = self.nodes[node].channels.clone();
        if unit == 0 || !channels.len().is_multiple_of(unit) {
            let width = channels.len();
            return Err(Error::invalid(format!(
                "unit = {unit}: allowed are numbers that divide the {width} channels"
            )));
        }
        for head in channels.chunks(unit) {
            head.iter().for_each(|channel| self.join(head[0], *channel));
        }
        Ok(())
    }

    /// Adds γ x + β.
    pub fn affine(&mut self, from: NodeId) -> NodeId {
        let width = self.nodes[from].width();
        let gain = self.variables;
        self.variables += 2 * width;
        self.pass(Op::Affine { gain, bias: gain + width }, from)
    }

    /// Adds a function of each channel by itself; says whether it makes 0 of 0.
    pub fn activation(&mut self, from: NodeId, keeps_zero: bool) -> NodeId {
        self.pass(Op::Activation(keeps_zero), from)
    }

    /// Adds a sum.
    ///
    /// # Errors
    /// `ShapeMismatch` for inputs of different widths; `InvalidArgument` for none.
    pub fn add(&mut self, from: &[NodeId]) -> Result<NodeId> {
        let first = *from.first().ok_or_else(|| Error::invalid("a sum of nothing"))?;
        let channels = self.nodes[first].channels.clone();
        for node in from {
            if self.nodes[*node].width() != channels.len() {
                let (width, other) = (channels.len(), self.nodes[*node].width());
                return Err(Error::shape(format!("a sum of {width} and {other} channels")));
            }
        }
        for node in from {
            for (at, channel) in channels.iter().enumerate() {
                self.join(*channel, self.nodes[*node].channels[at]);
            }
        }
        Ok(self.push(Op::Add, from, channels))
    }

    /// Adds what puts its inputs one behind the other.
    pub fn concat(&mut self, from: &[NodeId]) -> NodeId {
        let channels = from.iter().flat_map(|node| self.nodes[*node].channels.clone()).collect();
        self.push(Op::Concat, from, channels)
    }

    /// Adds what copies each channel so many times.
    pub fn repeat(&mut self, from: NodeId, times: usize) -> NodeId {
        let channels = self.nodes[from].channels.iter();
        let channels = channels.flat_map(|c| std::iter::repeat_n(*c, times)).collect();
        self.push(Op::Repeat(times), &[from], channels)
    }

    /// Makes a node an output.
    pub fn output(&mut self, from: NodeId) -> NodeId {
        self.pass(Op::Output, from)
    }

    fn pass(&mut self, op: Op, from: NodeId) -> NodeId {
        let channels = self.nodes[from].channels.clone();
        self.push(op, &[from], channels)
    }

    fn push(&mut self, op: Op, from: &[NodeId], channels: Vec<usize>) -> NodeId {
        self.nodes.push(Node { op, inputs: from.to_vec(), channels });
        self.nodes.len() - 1
    }

    fn make(&mut self, number: usize) -> Vec<usize> {
        let first = self.same.len();
        self.same.extend(first..first + number);
        (first..first + number).collect()
    }

    /// The one that stands for all channels that are the same as this one.
    fn root(&self, mut channel: usize) -> usize {
        while self.same[channel] != channel {
            channel = self.same[channel];
        }
        channel
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.same[a.max(b)] = a.min(b);
    }

    /// The zero-invariant groups: the variables that make each channel that may go.
    ///
    /// # Errors
    /// None for a graph that was built by the methods here.
    pub fn channels(&self) -> Result<Groups> {
        Groups::new(self.variables, self.removable().into_iter().map(|(_, members)| members))
    }

    /// The channels that may go, with the variables that make them.
    fn removable(&self) -> Vec<(usize, Vec<usize>)> {
        let mut stays = vec![false; self.same.len()];
        let mut members = vec![Vec::new(); self.same.len()];
        for node in &self.nodes {
            let roots = node.channels.iter().map(|channel| self.root(*channel));
            match node.op {
                Op::Input | Op::Output | Op::Activation(false) => {
                    roots.for_each(|root| stays[root] = true);
                }
                Op::Linear { weight, bias, inputs, .. } => {
                    roots.enumerate().for_each(|(row, root)| {
                        members[root].extend(weight + row * inputs..weight + (row + 1) * inputs);
                        members[root].push(bias + row);
                    })
                }
                Op::Affine { gain, bias } => {
                    let roots = roots.enumerate();
                    roots.for_each(|(at, root)| members[root].extend([gain + at, bias + at]));
                }
                Op::Activation(true) | Op::Add | Op::Concat | Op::Repeat(_) => {}
            }
        }
        let groups = members.into_iter().enumerate();
        groups.filter(|(channel, members)| !stays[*channel] && !members.is_empty()).collect()
    }

    /// Up to `number` channels to remove: the least salient first, each only if every node keeps one. Ascending.
    ///
    /// # Errors
    /// `ShapeMismatch` for scores of other than [`Graph::channels`] groups; `Numerical`.
    pub fn redundant_channels(&self, scores: &[f64], number: usize) -> Result<Vec<usize>> {
        check_scores(scores, &self.channels()?)?;
        let roots: Vec<usize> = self.removable().into_iter().map(|(root, _)| root).collect();
        let mut left: Vec<usize> = self.nodes.iter().map(Node::width).collect();
        // The nodes that put a channel out, and how often.
        let mut places: Vec<Vec<(NodeId, usize)>> = vec![Vec::new(); self.same.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            for channel in &node.channels {
                let places = &mut places[self.root(*channel)];
                match places.last_mut().filter(|(node, _)| *node == at) {
                    Some((_, times)) => *times += 1,
                    None => places.push((at, 1)),
                }
            }
        }
        let mut redundant = Vec::new();
        for next in least_first(scores) {
            if redundant.len() == number {
                break;
            }
            let places = &places[roots[next]];
            if places.iter().all(|(node, times)| left[*node] > *times) {
                places.iter().for_each(|(node, times)| left[*node] -= times);
                redundant.push(next);
            }
        }
        redundant.sort_unstable();
        Ok(redundant)
    }
}

/// The least score first; of equal ones the one that comes first.
fn least_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order
}
