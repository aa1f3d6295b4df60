use tensorpress_tensor::{Error, Result};

use super::{Graph, NodeId, Op};

impl Graph {
    /// The network without these channels (groups of [`Graph::channels`]) and operators (of [`Graph::operators`]), and
    /// the values of its variables. Where all of their variables are 0, it computes what the whole one does.
    ///
    /// Rows that make the channels and columns that read them go; a sum of which one input is left is that input; what
    /// no output depends on any more is gone too.
    ///
    /// # Errors
    /// `ShapeMismatch` for values of other variables; `InvalidArgument` for a channel or an operator that does not
    /// exist, and if the graph is not connected without them.
    pub fn without(
        &self,
        variables: &[f32],
        channels: &[usize],
        operators: &[usize],
    ) -> Result<(Self, Vec<f32>)> {
        if variables.len() != self.variables {
            let (values, all) = (variables.len(), self.variables);
            return Err(Error::shape(format!("{values} values of {all} variables")));
        }
        if !self.is_connected(operators)? {
            return Err(Error::invalid(format!(
                "operators {operators:?}: without them no input reaches the output, allowed are those that leave a way"
            )));
        }
        let removable = self.removable();
        let mut gone = vec![false; self.same.len()];
        for channel in channels {
            let (root, _) = removable.get(*channel).ok_or_else(|| {
                Error::invalid(format!("channel {channel} of {} that may go", removable.len()))
            })?;
            gone[*root] = true;
        }
        let alive = self.alive(&self.nodes_of(operators)?);
        let mut work = Smaller {
            of: self,
            values: variables,
            kept: self.kept(&gone),
            graph: Self::new(),
            made: Vec::new(),
            numbers: vec![None; self.nodes.len()],
        };
        for (at, needed) in self.needed(&alive).into_iter().enumerate() {
            if needed {
                work.copy(at)?;
            }
        }
        let channels = work.numbers.iter().enumerate().filter_map(|(at, new)| Some((at, (*new)?)));
        let same: Vec<(usize, usize)> =
            channels.flat_map(|(at, new)| work.pairs(at, new)).collect();
        let mut graph = work.graph;
        // What was the same for a reason that is gone, such as heads or sums of which one input is left, stays the
        // same.
        let mut first = vec![None; self.same.len()];
        for (old, new) in same {
            match first[old] {
                None => first[old] = Some(new),
                Some(other) => graph.join(other, new),
            }
        }
        Ok((graph, work.made))
    }

    /// Nodes that are alive and that an output depends on.
    fn needed(&self, alive: &[bool]) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().rev() {
            needed[at] |= alive[at] && matches!(node.op, Op::Output | Op::Input);
            if needed[at] {
                node.inputs.iter().filter(|i| alive[**i]).for_each(|i| needed[*i] = true);
            }
        }
        needed
    }

    /// The places of the channels that stay, of each node.
    fn kept(&self, gone: &[bool]) -> Vec<Vec<usize>> {
        let of = |channels: &Vec<usize>| {
            (0..channels.len()).filter(|at| !gone[self.root(channels[*at])]).collect()
        };
        self.nodes.iter().map(|node| of(&node.channels)).collect()
    }
}

/// A smaller graph in the making.
struct Smaller<'a> {
    of: &'a Graph,
    values: &'a [f32],
    kept: Vec<Vec<usize>>,
    graph: Graph,
    made: Vec<f32>,
    numbers: Vec<Option<NodeId>>,
}

impl Smaller<'_> {
    fn copy(&mut self, at: NodeId) -> Result<()> {
        let node = &self.of.nodes[at];
        let inputs: Vec<NodeId> = node.inputs.iter().filter_map(|i| self.numbers[*i]).collect();
        let kept = &self.kept[at];
        let new = match node.op {
            Op::Input => self.graph.input(node.width()),
            Op::Output => self.graph.output(inputs[0]),
            Op::Activation(keeps) => self.graph.activation(inputs[0], keeps),
            Op::Repeat(times) => self.graph.repeat(inputs[0], times),
            Op::Concat => self.graph.concat(&inputs),
            Op::Add if inputs.len() == 1 => inputs[0],
            Op::Add => self.graph.add(&inputs)?,
            Op::Affine { gain, bias } => {
                let places = [gain, bias].into_iter().flat_map(|p| kept.iter().map(move |c| p + c));
                self.made.extend(places.map(|place| self.values[place]));
                self.graph.affine(inputs[0])
            }
            Op::Linear { weight, bias, inputs: width, .. } => {
                for row in kept {
                    let columns = self.kept[node.inputs[0]].iter();
                    self.made.extend(columns.map(|c| self.values[weight + row * width + c]));
                }
                self.made.extend(kept.iter().map(|row| self.values[bias + row]));
                self.graph.linear(inputs[0], kept.len())
            }
        };
        self.numbers[at] = Some(new);
        Ok(())
    }

    /// The channels of an old node, by the one that stands for each, and of the new one.
    fn pairs(&self, at: NodeId, new: NodeId) -> Vec<(usize, usize)> {
        let old = self.kept[at].iter().map(|c| self.of.root(self.of.nodes[at].channels[*c]));
        old.zip(self.graph.nodes[new].channels.iter().copied()).collect()
    }
}
