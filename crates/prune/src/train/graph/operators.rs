use tensorpress_tensor::{Error, Result};

use super::super::Groups;
use super::super::groups::check_scores;
use super::{Graph, NodeId, Op, least_first};

impl Graph {
    /// Operators that may be erased (OTOv3): each linear whose output goes into a sum of several, by way of nothing but
    /// affine operators and activations that make 0 of 0; with these. Where their variables are 0, they add nothing.
    #[must_use]
    pub fn operators(&self) -> Vec<Vec<NodeId>> {
        let linears =
            (0..self.nodes.len()).filter(|n| matches!(self.nodes[*n].op, Op::Linear { .. }));
        linears.filter_map(|linear| self.operator(linear)).collect()
    }

    fn operator(&self, linear: NodeId) -> Option<Vec<NodeId>> {
        let mut nodes = vec![linear];
        loop {
            let last = *nodes.last()?;
            let mut readers =
                (0..self.nodes.len()).filter(|n| self.nodes[*n].inputs.contains(&last));
            let reader = readers.next().filter(|_| readers.next().is_none())?;
            match self.nodes[reader].op {
                Op::Add => return (self.nodes[reader].inputs.len() > 1).then_some(nodes),
                Op::Affine { .. } | Op::Activation(true) => nodes.push(reader),
                _ => return None,
            }
        }
    }

    /// The variables of each operator that may be erased, a group each, in the order of [`Graph::operators`].
    ///
    /// # Errors
    /// None for a graph that was built by the methods here.
    pub fn erasable(&self) -> Result<Groups> {
        let variables = |nodes: Vec<NodeId>| {
            let of = |node: NodeId| match self.nodes[node].op {
                Op::Linear { weight, bias, out, .. } => weight..bias + out,
                Op::Affine { gain, bias } => gain..bias + self.nodes[node].width(),
                _ => 0..0,
            };
            nodes.into_iter().flat_map(of).collect()
        };
        Groups::new(self.variables, self.operators().into_iter().map(variables))
    }

    /// Without these operators an input still reaches every output (OTOv3's validity).
    ///
    /// # Errors
    /// `InvalidArgument` for an operator that does not exist.
    pub fn is_connected(&self, erased: &[usize]) -> Result<bool> {
        let alive = self.alive(&self.nodes_of(erased)?);
        let outputs = self.nodes.iter().zip(alive).filter(|(node, _)| node.op == Op::Output);
        Ok(outputs.fold((false, true), |(_, all), (_, alive)| (true, all && alive)) == (true, true))
    }

    /// Up to `number` operators to erase: the least salient first, each only if the graph stays connected without it
    /// (the hierarchy check of OTOv3's H2SPG). Ascending.
    ///
    /// # Errors
    /// `ShapeMismatch` for scores of other than [`Graph::erasable`] groups; `Numerical`.
    pub fn redundant_operators(&self, scores: &[f64], number: usize) -> Result<Vec<usize>> {
        check_scores(scores, &self.erasable()?)?;
        let mut erased: Vec<usize> = Vec::new();
        for next in least_first(scores) {
            if erased.len() == number {
                break;
            }
            erased.push(next);
            if !self.is_connected(&erased)? {
                erased.pop();
            }
        }
        erased.sort_unstable();
        Ok(erased)
    }

    /// The nodes of operators, as a mark on each.
    pub(super) fn nodes_of(&self, operators: &[usize]) -> Result<Vec<bool>> {
        let all = self.operators();
        let mut marked = vec![false; self.nodes.len()];
        for operator in operators {
            let nodes = all.get(*operator).ok_or_else(|| {
                Error::invalid(format!("operator {operator} of {} that may be erased", all.len()))
            })?;
            nodes.iter().for_each(|node| marked[*node] = true);
        }
        Ok(marked)
    }

    /// Nodes that an input reaches without those that are erased: sums by any of their inputs, all others by all.
    pub(super) fn alive(&self, erased: &[bool]) -> Vec<bool> {
        let mut alive = vec![false; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            let mut inputs = node.inputs.iter().map(|input| alive[*input]);
            let reached = match node.op {
                Op::Add => inputs.any(|alive| alive),
                _ => inputs.all(|alive| alive),
            };
            alive[at] = reached && !erased[at];
        }
        alive
    }
}
