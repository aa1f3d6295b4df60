//! Channels inside experts, and the edit that removes some of them.

use std::collections::BTreeMap;

use super::{BlockLayout, Change, Edit, Expert, Experts, LinearSpec, Role};
use crate::error::{Error, Result};

impl BlockLayout {
    /// The layers of one of the experts that a router chooses from.
    pub fn of_expert(&self, index: usize) -> impl Iterator<Item = &LinearSpec> {
        self.linears.iter().filter(move |spec| spec.expert == Some(Expert::Routed(index)))
    }

    /// Channels inside each of the experts that a router chooses from.
    #[must_use]
    pub fn expert_widths(&self) -> Vec<usize> {
        let experts = self.experts.as_ref().map_or(0, |experts| experts.count);
        let down = |index| self.of_expert(index).find(|spec| spec.role == Role::Down);
        (0..experts).map(|index| down(index).map_or(0, |spec| spec.shape[1])).collect()
    }

    /// Its experts lie in stacks, so that all of them have one width.
    #[must_use]
    pub fn has_stacks(&self) -> bool {
        self.of_expert(0).any(|spec| spec.place.is_some())
    }
}

impl Experts {
    /// What channels are in a matrix of an expert: columns of `Down`, rows of any other.
    #[must_use]
    pub fn places(&self, spec: &LinearSpec, channels: &[usize]) -> Vec<usize> {
        let half = spec.shape[0] / 2;
        match spec.role {
            Role::GateUp if self.alternating => {
                channels.iter().flat_map(|c| [2 * c, 2 * c + 1]).collect()
            }
            Role::GateUp => {
                channels.iter().copied().chain(channels.iter().map(|c| half + c)).collect()
            }
            _ => channels.to_vec(),
        }
    }
}

/// What stays along an axis of each part of a stack.
type Parts = (usize, Vec<Vec<usize>>);

impl Edit {
    /// These channels of each expert stay: rows of gate and up, entries of their biases, columns of down.
    ///
    /// # Errors
    /// `Unsupported` for a block without experts, or with matrices in an expert of which channels are not known;
    /// `InvalidArgument`, naming the block, for another number of experts, for channels out of range or order, for none of
    /// an expert, and for different numbers of experts in one stack.
    pub fn expert_channels(layout: &BlockLayout, kept: &[Vec<usize>]) -> Result<Self> {
        let block = layout.block;
        let Some(experts) = &layout.experts else {
            return Err(Error::unsupported(format!("block {block} has no experts")));
        };
        let wide = layout.expert_widths();
        let fits = |(kept, all): (&Vec<usize>, &usize)| {
            kept.windows(2).all(|pair| pair[0] < pair[1])
                && kept.last().is_some_and(|last| last < all)
        };
        if kept.len() != wide.len() || !kept.iter().zip(&wide).all(fits) {
            return Err(Error::invalid(format!(
                "block {block}: channels that stay: allowed are ascending numbers below its width, at least one, for each of {} experts",
                wide.len()
            )));
        }
        if layout.has_stacks() && kept.iter().any(|of| of.len() != kept[0].len()) {
            let message = "allowed are as many channels of each expert of a stack";
            return Err(Error::invalid(format!("block {block}: {message}")));
        }
        let widths = kept.iter().map(Vec::len).collect();
        let mut edit = Self::new().with_shape(layout.shape.clone().with_expert_widths(widths));
        let mut stacks: BTreeMap<&str, Parts> = BTreeMap::new();
        for (index, kept) in kept.iter().enumerate() {
            for spec in layout.of_expert(index) {
                let down = match spec.role {
                    Role::Down => true,
                    Role::Gate | Role::Up | Role::GateUp => false,
                    _ => {
                        let what = "what remains of a channel is not known in this matrix";
                        return Err(Error::unsupported(what).in_tensor(&spec.name));
                    }
                };
                let places = experts.places(spec, kept);
                if let Some(place) = &spec.place {
                    let axis = if down == place.transposed { 1 } else { 2 };
                    let mut add = |stack, axis| {
                        let parts = stacks.entry(stack).or_insert((axis, Vec::new()));
                        parts.1.push(places.clone());
                    };
                    add(&place.tensor, axis);
                    if let Some(bias) = place.bias.as_ref().filter(|_| !down) {
                        add(bias, 1);
                    }
                    continue;
                }
                if kept.len() == wide[index] {
                    continue;
                }
                if down {
                    edit = edit.with_change(&spec.name, Change::Columns(places));
                } else {
                    edit = edit.with_change(&spec.bias, Change::Columns(places.clone()));
                    edit = edit.with_change(&spec.name, Change::Rows(places));
                }
            }
        }
        let whole = kept.iter().zip(&wide).all(|(kept, all)| kept.len() == *all);
        for (stack, (axis, kept)) in stacks.into_iter().filter(|_| !whole) {
            edit = edit.with_change(stack, Change::Within { axis, kept });
        }
        Ok(edit)
    }
}
