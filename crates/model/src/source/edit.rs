//! Models as rewrites leave them: views whose tensors are cut, changed or made when they are asked for.

use std::collections::BTreeMap;

use tensorpress_tensor::bytes::Bytes;
use tensorpress_tensor::rewrite::{BlockShape, Change, Edit, LinearSpec, Role};
use tensorpress_tensor::{Checkpoint, Context as _, DType, Error, RawTensor, Result, Tensor};

use super::Source;
use super::said::{Said, with_blocks, with_scans, with_shapes};
use super::view::{Content, Piece, view};
use crate::config::Architecture;

impl Architecture {
    /// A `config.json` can say that the attention's output matrix has a bias, or it always has one.
    #[must_use]
    pub fn has_output_bias(&self) -> bool {
        matches!(self.name(), "llama" | "qwen3" | "bert")
    }

    /// A `config.json` can say that the feed-forward network has biases, or it always has them.
    #[must_use]
    pub fn has_mlp_bias(&self) -> bool {
        matches!(self.name(), "llama" | "bert")
    }

    /// A `config.json` can say how wide a head is, so that there may be any number of heads.
    #[must_use]
    pub fn has_head_dim(&self) -> bool {
        self.is_decoder()
    }

    /// A `config.json` can say how wide the experts are that a router chooses from, and nothing else by the same key.
    #[must_use]
    pub fn has_expert_width(&self) -> bool {
        matches!(self.name(), "mixtral" | "olmoe" | "qwen2_moe" | "qwen3_moe" | "gpt_oss")
    }
}

impl Source {
    /// This model with an edit to each of its blocks: a view, whose tensors are cut out of this one's when they are asked
    /// for, in their stored types. Blocks that stay are numbered anew; everything outside the blocks stays.
    ///
    /// `plain`: the config says it all in the keys every reader knows, so that the model can be written as a folder that
    /// others load; blocks have one shape then, and all biases that such a config implies are there. Else, where an edit
    /// names a shape, the shape of each block stands in `quantization_config.blocks`, and biases are where they were
    /// added.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of edits, for edits that leave no block, for changes of tensors of other
    /// blocks, and for indices out of range or out of order; `ShapeMismatch` for added values of another length, and
    /// where tensors do not have the shape that their block is said to have; `Unsupported` for a compressed model, and if
    /// `plain` for what the architecture's config cannot say.
    pub fn edited(&self, edits: &[Edit], plain: bool) -> Result<Self> {
        let config = &self.config;
        if !edits.iter().zip(0..).all(|(edit, block)| self.stays_editable(edit, block)) {
            self.layout(plain).check_editable("edits")?;
        }
        if let Some(name) = self.trees.keys().next() {
            let message = "is compressed: blocks, heads and channels are changed before that";
            return Err(Error::unsupported(message).in_tensor(name));
        }
        if edits.len() != config.blocks {
            let message = format!("edits of {} blocks for {}", edits.len(), config.blocks);
            return Err(Error::invalid(message));
        }
        for (block, _) in edits.iter().enumerate().filter(|(_, edit)| edit.shape().is_some()) {
            let apart = |spec: &LinearSpec| spec.expert.is_some() && self.is_moved(spec);
            if let Some(spec) = self.linears(block).into_iter().find(apart) {
                let message =
                    "is no longer in the stack of its experts: they are changed before that";
                return Err(Error::unsupported(message).in_tensor(spec.name));
            }
        }
        let left: Vec<usize> = (0..edits.len()).filter(|b| !edits[*b].is_dropped()).collect();
        if left.is_empty() {
            let message = format!("all {} blocks would go: at least one must stay", edits.len());
            return Err(Error::invalid(message));
        }
        let shape = |b: &usize| edits[*b].shape().cloned().unwrap_or_else(|| config.shape(*b));
        let shapes: Vec<BlockShape> = left.iter().map(shape).collect();
        let mut edited =
            left.iter().zip(&shapes).filter(|(block, _)| edits[**block].shape().is_some());
        edited.try_for_each(|(block, shape)| check(*block, shape))?;
        let said = if plain { Some(Said::by_config(self, edits, &shapes)?) } else { None };
        let mut tensors = self.moved(&left);
        for ((new, old), shape) in left.iter().enumerate().zip(&shapes) {
            self.edit_block(*old, new, &edits[*old], &mut tensors)?;
            if let Some(said) = &said {
                self.imply(said, *old, new, shape, &mut tensors)?;
            }
        }
        let path = self.folder.clone().unwrap_or_else(|| "model".into());
        let checkpoint = view(&self.checkpoint, tensors, path)?;
        let mut raw = with_blocks(self.raw.clone(), config, &left);
        let any = |which: fn(&BlockShape) -> bool| {
            config.shapes.is_some() || edits.iter().filter_map(Edit::shape).any(which)
        };
        let shaped = any(|shape| shape.scan_heads == 0);
        raw = match &said {
            Some(said) => {
                let of_heads = |s: &BlockShape| s.scan_heads == 0 && *s == s.without_experts();
                said.write(raw, any(of_heads))
            }
            None if shaped => with_shapes(raw, &shapes),
            None => raw,
        };
        if shapes.iter().any(|shape| shape.scan_heads > 0) {
            raw = with_scans(raw, config, &shapes)?;
        }
        let source = self.rebuilt(raw, checkpoint)?;
        source.check_linears()?;
        Ok(source)
    }

    /// The same model of another config and checkpoint.
    pub(super) fn rebuilt(&self, raw: serde_json::Value, checkpoint: Checkpoint) -> Result<Self> {
        let (files, tokenizer) = (self.files.clone(), self.tokenizer.clone());
        let mut source = Self::new(raw, checkpoint, files, tokenizer, &self.registry)?;
        source.folder = self.folder.clone();
        Ok(source)
    }

    /// Nothing goes from a block but what any model can spare: experts, and heads of a state-space layer.
    fn stays_editable(&self, edit: &Edit, block: usize) -> bool {
        if edit.is_dropped() || block >= self.config.blocks {
            return false;
        }
        let of = self.config.shape(block);
        match edit.shape() {
            Some(shape) if shape.scan_heads > 0 => true,
            Some(shape) => {
                let own = shape.without_experts();
                *shape != own && own == of.without_experts()
            }
            None => edit.changes().is_empty(),
        }
    }

    /// All tensors, those of blocks under their new numbers.
    pub(super) fn moved(&self, left: &[usize]) -> BTreeMap<String, Piece> {
        let mut tensors = BTreeMap::new();
        for name in self.checkpoint.names() {
            let new = match self.place_of(name) {
                Some((block, rest)) if block < self.config.blocks => {
                    let Ok(new) = left.binary_search(&block) else { continue };
                    format!("{}{rest}", self.block_prefix(new))
                }
                _ => name.to_owned(),
            };
            tensors.insert(new, Piece { from: name.to_owned(), content: Content::Whole });
        }
        tensors
    }

    /// The number of the block a name belongs to, and the rest of the name.
    fn place_of<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        let (number, rest) = name.strip_prefix(&self.plan.layers)?.split_once('.')?;
        Some((number.parse().ok()?, rest))
    }

    fn edit_block(
        &self,
        old: usize,
        new: usize,
        edit: &Edit,
        tensors: &mut BTreeMap<String, Piece>,
    ) -> Result<()> {
        let linears = self.linears(old);
        // What takes the name of another comes after all that goes.
        for (name, change) in edit.changes() {
            if let (Change::Gone | Change::Moved(_), Some(rest)) =
                (change, name.strip_prefix(&self.block_prefix(old)))
            {
                tensors.remove(&format!("{}{rest}", self.block_prefix(new)));
            }
        }
        for (name, change) in edit.changes() {
            let Some(rest) = name.strip_prefix(&self.block_prefix(old)) else {
                let message = format!("no tensor of block {old}, whose edit changes it");
                return Err(Error::invalid(message).in_tensor(name));
            };
            let mut to = format!("{}{rest}", self.block_prefix(new));
            let shape = self.checkpoint.shape(name);
            let content = match (change, shape) {
                (
                    Change::Rows(_) | Change::Columns(_) | Change::Within { .. } | Change::Moved(_),
                    None,
                ) => continue,
                (Change::Gone, _) => continue,
                (Change::Moved(name), Some(_)) => {
                    let Some(rest) = name.strip_prefix(&self.block_prefix(old)) else {
                        let message = format!("no name of block {old}, to which its edit moves it");
                        return Err(Error::invalid(message).in_tensor(name));
                    };
                    to = format!("{}{rest}", self.block_prefix(new));
                    Content::Whole
                }
                (Change::Rows(kept), Some(shape)) => {
                    ascending(kept, shape.first().copied().unwrap_or(0)).in_tensor(name)?;
                    Content::Rows(kept.clone())
                }
                (Change::Columns(kept), Some(shape)) => {
                    ascending(kept, shape.last().copied().unwrap_or(0)).in_tensor(name)?;
                    Content::Columns(kept.clone())
                }
                (Change::Within { axis, kept }, Some(shape)) => {
                    within(*axis, kept, shape).in_tensor(name)?;
                    Content::Within { axis: *axis, kept: kept.clone() }
                }
                (Change::Added(values), _) => {
                    let spec = linears.iter().find(|spec| spec.bias == *name);
                    self.plus(name, spec, values).in_tensor(name)?
                }
                (Change::New(tensor), _) => values(tensor),
            };
            tensors.insert(to, Piece { from: name.clone(), content });
        }
        Ok(())
    }

    /// A vector plus these values, in its stored type; a bias that is not there is zeros of its weight's.
    fn plus(&self, name: &str, spec: Option<&LinearSpec>, added: &[f32]) -> Result<Content> {
        let checkpoint = &self.checkpoint;
        let (dtype, mut values): (DType, Vec<f32>) = match (checkpoint.contains(name), spec) {
            (true, _) => {
                let stored = checkpoint.tensor(name)?;
                (stored.dtype(), stored.to_matrix()?.into_raw_vec_and_offset().0)
            }
            (false, Some(spec)) => (checkpoint.dtype(&spec.name)?, vec![0.0; spec.shape[0]]),
            (false, None) => return Err(Error::insufficient("no such tensor to add to")),
        };
        if values.len() != added.len() {
            let message = format!("{} values added to {}", added.len(), values.len());
            return Err(Error::shape(message));
        }
        values.iter_mut().zip(added).for_each(|(value, added)| *value += added);
        stored(dtype, &values)
    }

    /// Biases of zeros, where the config implies some.
    fn imply(
        &self,
        said: &Said,
        old: usize,
        new: usize,
        shape: &BlockShape,
        tensors: &mut BTreeMap<String, Piece>,
    ) -> Result<()> {
        let dim = self.config.head_dim;
        for spec in self.linears(old).into_iter().filter(|spec| said.implies(spec.role)) {
            let outputs = match spec.role {
                Role::Q => shape.heads * dim,
                Role::K | Role::V => shape.kv_heads * dim,
                Role::Gate | Role::Up => shape.intermediate,
                _ => self.config.hidden,
            };
            let name =
                format!("{}{}", self.block_prefix(new), &spec.bias[self.block_prefix(old).len()..]);
            if let std::collections::btree_map::Entry::Vacant(free) = tensors.entry(name) {
                let content = stored(self.checkpoint.dtype(&spec.name)?, &vec![0.0; outputs])?;
                free.insert(Piece { from: spec.bias, content });
            }
        }
        Ok(())
    }

    /// Every matrix has the shape that the config implies.
    fn check_linears(&self) -> Result<()> {
        for spec in (0..self.config.blocks).flat_map(|block| self.linears(block)) {
            let stored = self.checkpoint.shape(&spec.name);
            if let Some(stored) = stored.filter(|stored| **stored != spec.shape) {
                let message =
                    format!("edited to {stored:?}, but its block's shape implies {:?}", spec.shape);
                return Err(Error::shape(message).in_tensor(spec.name));
            }
        }
        Ok(())
    }
}

pub(super) fn values(tensor: &RawTensor) -> Content {
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    Content::Values { dtype, shape, bytes: tensor.bytes().clone() }
}

fn stored(dtype: DType, values: &[f32]) -> Result<Content> {
    let mut bytes = Vec::new();
    dtype.write_f32(values, &mut bytes)?;
    Ok(Content::Values { dtype, shape: vec![values.len()], bytes: Bytes::from(bytes) })
}

fn check(block: usize, shape: &BlockShape) -> Result<()> {
    let BlockShape { heads, kv_heads, intermediate, scan_heads, .. } = *shape;
    if scan_heads > 0 && intermediate > 0 && intermediate % scan_heads == 0 {
        return Ok(());
    }
    if heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && intermediate > 0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "block {block}: {heads} heads, {kv_heads} for keys and values, {intermediate} channels: allowed are 1 and more, \
         the second a divisor of the first"
    )))
}

fn within(axis: usize, kept: &[Vec<usize>], shape: &[usize]) -> Result<()> {
    let (parts, count) = (shape.first().copied(), kept.first().map(Vec::len));
    if axis == 0 || axis >= shape.len() || parts != Some(kept.len()) {
        let (lists, all) = (kept.len(), shape.len());
        return Err(Error::invalid(format!(
            "{lists} lists along axis {axis} of {shape:?}: allowed are one for each part, along 1 to below {all}"
        )));
    }
    kept.iter().try_for_each(|kept| ascending(kept, shape[axis]))?;
    if kept.iter().any(|kept| Some(kept.len()) != count) {
        return Err(Error::invalid("what stays of a stack: allowed are as many of each part"));
    }
    Ok(())
}

fn ascending(kept: &[usize], all: usize) -> Result<()> {
    match kept.last() {
        Some(last) if *last < all && kept.windows(2).all(|pair| pair[0] < pair[1]) => Ok(()),
        _ => Err(Error::invalid(format!(
            "what stays: allowed are ascending numbers below {all}, at least one"
        ))),
    }
}
