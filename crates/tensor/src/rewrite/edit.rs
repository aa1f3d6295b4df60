//! What a rewrite does to a block: named tensors and shapes.

use std::collections::BTreeMap;

use super::{BlockLayout, BlockShape, Expert, LinearSpec, ModelLayout, Role};
use crate::error::{Error, Result};
use crate::source::RawTensor;

/// What becomes of one tensor.
#[derive(Debug, Clone)]
pub enum Change {
    /// These rows of a matrix stay; indices ascend.
    Rows(Vec<usize>),
    /// These columns of a matrix, or entries of a vector, stay; indices ascend.
    Columns(Vec<usize>),
    /// These values are added to a vector, in its stored type. A bias that is not there counts as zeros of its weight's
    /// type.
    Added(Vec<f32>),
    /// A new tensor, whether there was one or not.
    New(RawTensor),
    /// The tensor goes.
    Gone,
    /// The tensor takes another name of its block, as it is.
    Moved(String),
    /// Of each part of a stack `[parts, ..]` these indices along an axis of the stack, not its first, stay: as many of
    /// each, ascending.
    Within {
        /// The axis, from 1.
        axis: usize,
        /// What stays of each part.
        kept: Vec<Vec<usize>>,
    },
}

/// What stays of the heads and channels of a block; indices ascend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BlockCut {
    /// Query heads: as many in the group of each key and value head that stays.
    pub heads: Vec<usize>,
    /// Key and value heads.
    pub kv_heads: Vec<usize>,
    /// Channels of the feed-forward network.
    pub channels: Vec<usize>,
}

impl BlockCut {
    /// What stays.
    #[must_use]
    pub fn new(heads: Vec<usize>, kv_heads: Vec<usize>, channels: Vec<usize>) -> Self {
        Self { heads, kv_heads, channels }
    }

    /// The shape that is left.
    #[must_use]
    pub fn shape(&self) -> BlockShape {
        BlockShape::new(self.heads.len(), self.kv_heads.len(), self.channels.len())
    }

    fn check(&self, layout: &BlockLayout) -> Result<()> {
        let (of, block) = (&layout.shape, layout.block);
        let within = |kept: &[usize], all: usize, what: &str| {
            let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
            match kept.last() {
                Some(last) if ascending && *last < all => Ok(()),
                _ => Err(Error::invalid(format!(
                    "block {block}: {what} that stay: allowed are ascending numbers below {all}, at least one"
                ))),
            }
        };
        within(&self.heads, of.heads, "heads")?;
        within(&self.kv_heads, of.kv_heads, "key and value heads")?;
        within(&self.channels, of.intermediate, "channels")?;
        let group = of.heads / of.kv_heads;
        let stays = |kv: &usize| self.heads.iter().filter(|head| *head / group == *kv).count();
        let each = self.heads.len() / self.kv_heads.len();
        let even = self.kv_heads.iter().all(|kv| stays(kv) == each);
        if each * self.kv_heads.len() != self.heads.len() || !even {
            let message =
                format!("block {block}: allowed are as many query heads in each group that stays");
            return Err(Error::invalid(message));
        }
        Ok(())
    }
}

/// What becomes of a block. The default changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Edit {
    dropped: bool,
    shape: Option<BlockShape>,
    changes: BTreeMap<String, Change>,
    notes: BTreeMap<String, String>,
}

impl Edit {
    /// Nothing changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The block goes as a whole, and those after it move up.
    #[must_use]
    pub fn dropped() -> Self {
        Self { dropped: true, ..Self::default() }
    }

    /// These heads and channels stay: matrices and biases are cut to them.
    ///
    /// # Errors
    /// `InvalidArgument` for numbers out of range or out of order, or uneven groups of heads; the message names the block;
    /// `Unsupported` for blocks of other matrices than Llama's and BERT's.
    pub fn cut(model: &ModelLayout, layout: &BlockLayout, cut: &BlockCut) -> Result<Self> {
        cut.check(layout)?;
        let (of, dim) = (&layout.shape, model.head_dim);
        let wide = |heads: &[usize]| -> Vec<usize> {
            heads.iter().flat_map(|head| head * dim..(head + 1) * dim).collect()
        };
        model.check_editable("edits")?;
        let (queries, keys) = (wide(&cut.heads), wide(&cut.kv_heads));
        let mut edit = Self::new().with_shape(cut.shape());
        for spec in &layout.linears {
            let (stay, all) = match spec.role {
                Role::Q | Role::O => (&queries, of.heads * dim),
                Role::K | Role::V => (&keys, of.kv_heads * dim),
                Role::Gate | Role::Up | Role::Down => (&cut.channels, of.intermediate),
                _ => {
                    let what = "what remains of a head is not known in this matrix";
                    return Err(Error::unsupported(what).in_tensor(&spec.name));
                }
            };
            if stay.len() == all {
                continue;
            }
            if matches!(spec.role, Role::O | Role::Down) {
                edit = edit.with_change(&spec.name, Change::Columns(stay.clone()));
            } else {
                edit = edit.with_change(&spec.name, Change::Rows(stay.clone()));
                edit = edit.with_change(&spec.bias, Change::Columns(stay.clone()));
            }
        }
        Ok(edit)
    }

    /// These experts stay, in their order: tensors that have a row, a matrix or a number an expert are cut to them, and those
    /// that belong to one are numbered anew.
    ///
    /// # Errors
    /// `Unsupported` for a block without experts; `InvalidArgument`, naming the block, for numbers out of range or order, for
    /// fewer than a token goes to, and for groups that lose unequally.
    pub fn experts(layout: &BlockLayout, kept: &[usize]) -> Result<Self> {
        let block = layout.block;
        let Some(experts) = &layout.experts else {
            return Err(Error::unsupported(format!("block {block} has no experts")));
        };
        let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
        let within = kept.last().is_some_and(|last| *last < experts.count);
        let least = experts.least() * experts.groups;
        if !ascending || !within || kept.len() < least {
            return Err(Error::invalid(format!(
                "block {block}: experts that stay: allowed are ascending numbers below {}, at least {least}",
                experts.count
            )));
        }
        let (size, each) = (experts.count / experts.groups, kept.len() / experts.groups);
        let even = |group: usize| kept.iter().filter(|at| *at / size == group).count() == each;
        if !(0..experts.groups).all(even) {
            let message = format!("block {block}: allowed are as many experts in each group");
            return Err(Error::invalid(message));
        }
        let mut shape = layout.shape.clone().with_experts(kept.len());
        if shape.expert_widths.len() == experts.count {
            shape.expert_widths = kept.iter().map(|index| shape.expert_widths[*index]).collect();
        }
        let mut edit = Self::new().with_shape(shape);
        if kept.len() == experts.count {
            return Ok(edit);
        }
        edit = edit.with_change(&experts.router, Change::Rows(kept.to_vec()));
        for vector in &experts.beside {
            edit = edit.with_change(vector, Change::Columns(kept.to_vec()));
        }
        let of = |index: usize| {
            let mine = move |spec: &&LinearSpec| spec.expert == Some(Expert::Routed(index));
            layout.linears.iter().filter(mine)
        };
        for index in 0..experts.count {
            let new = kept.binary_search(&index).ok();
            for (at, spec) in of(index).enumerate() {
                if let Some(place) = &spec.place {
                    for stack in std::iter::once(&place.tensor).chain(&place.bias) {
                        edit = edit.with_change(stack, Change::Rows(kept.to_vec()));
                    }
                    continue;
                }
                // The same matrix of the expert whose number it takes.
                let Some(new) = new.map(|new| of(new).nth(at)) else {
                    edit = edit.with_change(&spec.name, Change::Gone);
                    edit = edit.with_change(&spec.bias, Change::Gone);
                    continue;
                };
                let Some(new) = new.filter(|new| new.name != spec.name) else { continue };
                edit = edit.with_change(&spec.name, Change::Moved(new.name.clone()));
                edit = edit.with_change(&spec.bias, Change::Moved(new.bias.clone()));
            }
        }
        Ok(edit)
    }

    /// Sets the shape that is left. Without, it stays as it was.
    #[must_use]
    pub fn with_shape(mut self, shape: BlockShape) -> Self {
        self.shape = Some(shape);
        self
    }

    /// Changes a tensor of this block. Cuts and moves of a tensor that is not stored (a bias that the model does without)
    /// change nothing.
    #[must_use]
    pub fn with_change(mut self, name: &str, change: Change) -> Self {
        self.changes.insert(name.to_owned(), change);
        self
    }

    /// Says why less was done for a weight than asked.
    #[must_use]
    pub fn with_note(mut self, weight: &str, text: &str) -> Self {
        super::note(&mut self.notes, weight, text);
        self
    }

    /// The block goes as a whole.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.dropped
    }

    /// The shape that is left, if it is another.
    #[must_use]
    pub fn shape(&self) -> Option<&BlockShape> {
        self.shape.as_ref()
    }

    /// What becomes of each tensor that changes, by full name.
    #[must_use]
    pub fn changes(&self) -> &BTreeMap<String, Change> {
        &self.changes
    }

    /// Why less was done than asked, by weight.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }
}
