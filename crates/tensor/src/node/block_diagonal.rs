use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayViewMut2, Axis, Slice};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_matmul, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = diag(A, B, ...): each node reads inputs of its own and makes outputs of its own, and between them all is 0.
///
/// The channels of a node stand side by side, or *interleaved*: node d of b has every b-th one from d on. A product of
/// both kinds is a block-diagonal matrix, a shuffle, and another one.
///
/// ```
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::{BlockDiagonal, Dense, decode};
/// use tensorpress_tensor::{DType, Node};
///
/// let row = |values: [f32; 2]| Dense::from_f32(array![values].view(), DType::F32).map(Node::boxed);
/// let blocks = || Ok::<_, tensorpress_tensor::Error>(vec![row([1.0, 2.0])?, row([3.0, 4.0])?]);
/// let [a, b] = [BlockDiagonal::new(blocks()?)?, BlockDiagonal::interleaved(blocks()?)?];
/// assert_eq!(decode(&a)?, array![[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]);
/// assert_eq!(decode(&b)?, array![[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct BlockDiagonal {
    blocks: Vec<Box<dyn Node>>,
    /// Where the channels of each begin, side by side; the last entry is their number.
    starts: [Vec<usize>; 2],
    interleaved: bool,
}

impl BlockDiagonal {
    /// At least one node, with their channels side by side.
    ///
    /// # Errors
    /// `InvalidArgument` without blocks, `ShapeMismatch` if their channels cannot be counted.
    pub fn new(blocks: Vec<Box<dyn Node>>) -> Result<Self> {
        Self::of(blocks, false)
    }

    /// At least one node, node d of b with every b-th channel from d on: the first ones have one more than the last ones
    /// where b does not divide the number of channels.
    ///
    /// # Errors
    /// As [`BlockDiagonal::new`]; `ShapeMismatch` also if nodes have other numbers of channels than that.
    pub fn interleaved(blocks: Vec<Box<dyn Node>>) -> Result<Self> {
        Self::of(blocks, true)
    }

    fn of(blocks: Vec<Box<dyn Node>>, interleaved: bool) -> Result<Self> {
        if blocks.is_empty() {
            return Err(Error::invalid("a block-diagonal matrix of no blocks"));
        }
        let mut starts = [vec![0usize], vec![0usize]];
        for block in &blocks {
            for (starts, own) in starts.iter_mut().zip(block.shape()) {
                let next = starts[starts.len() - 1].checked_add(own);
                let many = || Error::shape("blocks of more channels than can be counted");
                starts.push(next.ok_or_else(many)?);
            }
        }
        let node = Self { blocks, starts, interleaved };
        let shape = node.shape();
        for (d, block) in node.blocks.iter().enumerate().filter(|_| interleaved) {
            let own = shape.map(|channels| channels.saturating_sub(d).div_ceil(node.blocks.len()));
            super::check_same_shape(own, block.shape(), "interleaved block")?;
        }
        Ok(node)
    }

    /// The nodes, from the first channels on.
    #[must_use]
    pub fn blocks(&self) -> &[Box<dyn Node>] {
        &self.blocks
    }

    /// Whether the channels of the nodes are interleaved.
    #[must_use]
    pub fn is_interleaved(&self) -> bool {
        self.interleaved
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let (described, interleaved) =
            (field::<Vec<Json>>(json, "blocks")?, field(json, "interleaved")?);
        let reader = reader.unmasked();
        let read = |(i, json): (usize, &Json)| reader.node(json, &join(prefix, &i.to_string()));
        let blocks = described.iter().enumerate().map(read).collect::<Result<_>>()?;
        let corrupt = |e: Error| Error::corruption(e.message());
        Ok(Box::new(Self::of(blocks, interleaved).map_err(corrupt)?))
    }

    /// The channels of block `d` on a side (0: outputs, 1: inputs).
    fn channels(&self, d: usize, side: usize) -> Channels {
        let starts = &self.starts[side];
        match self.interleaved {
            false => Channels { first: starts[d], step: 1, count: starts[d + 1] - starts[d] },
            true => {
                Channels { first: d, step: self.blocks.len(), count: starts[d + 1] - starts[d] }
            }
        }
    }

    /// Each block that has some of `rows`: its number, which of its own, and where those stand among those asked for.
    fn within(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, Channels)> {
        (0..self.blocks.len()).filter_map(move |d| {
            let all = self.channels(d, 0);
            let own = all.before(rows.start)..all.before(rows.end);
            let first = (all.first + own.start * all.step).saturating_sub(rows.start);
            let at = Channels { first, count: own.len(), ..all };
            (!own.is_empty()).then_some((d, own, at))
        })
    }

    fn try_map(
        self,
        f: impl FnMut(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        let blocks = self.blocks.into_iter().map(f).collect::<Result<_>>()?;
        Ok(Box::new(Self { blocks, ..self }))
    }
}

/// Every `step`-th channel from `first` on.
#[derive(Debug, Clone, Copy)]
struct Channels {
    first: usize,
    step: usize,
    count: usize,
}

impl Channels {
    /// How many of them come before this one.
    fn before(self, channel: usize) -> usize {
        channel.saturating_sub(self.first).div_ceil(self.step).min(self.count)
    }

    fn slice(self) -> Slice {
        match self.count {
            0 => Slice::from(0..0),
            count => {
                let end = self.first + (count - 1) * self.step + 1;
                Slice::from(self.first..end).step_by(self.step as isize)
            }
        }
    }
}

impl Node for BlockDiagonal {
    fn shape(&self) -> [usize; 2] {
        [0, 1].map(|side| self.starts[side][self.blocks.len()])
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let [all, inp] = self.shape();
        assert!(rows.start <= rows.end && rows.end <= all, "rows {rows:?} of {all}");
        assert_eq!(out.dim(), (rows.len(), inp), "output shape");
        if accum == Accum::Replace {
            out.fill(0.0);
        }
        for (d, own, at) in self.within(rows) {
            let columns = self.channels(d, 1);
            scratch.with_matrix((own.len(), columns.count), |mut block, scratch| {
                self.blocks[d].decode_rows(own, block.view_mut(), Accum::Replace, scratch)?;
                let mut place = out.slice_each_axis_mut(|axis| match axis.axis.index() {
                    0 => at.slice(),
                    _ => columns.slice(),
                });
                match accum {
                    // Not added to 0, which would lose the sign of -0.
                    Accum::Replace => place.assign(&block),
                    Accum::Add => place += &block,
                }
                Ok::<(), Error>(())
            })?;
        }
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &rows, x, &y);
        for (d, own, at) in self.within(rows) {
            let inputs = self.channels(d, 1).slice();
            let x = x.view().slice_axis_move(Axis(1), inputs);
            let mut place = y.slice_axis_mut(Axis(1), at.slice());
            Input::with(x, scratch, |x, scratch| {
                if !self.interleaved {
                    return self.blocks[d].matmul_rows(own, x, place, accum, scratch);
                }
                scratch.with_matrix(place.dim(), |mut part, scratch| {
                    let to = part.view_mut();
                    self.blocks[d].matmul_rows(own, x, to, Accum::Replace, scratch)?;
                    match accum {
                        Accum::Replace => place.assign(&part),
                        Accum::Add => place += &part,
                    }
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        let fused = self.blocks.iter().all(|block| block.multiply() == Multiply::Fused);
        if fused { Multiply::Fused } else { Multiply::Decode }
    }

    fn is_linear(&self) -> bool {
        self.blocks.iter().all(|block| block.is_linear())
    }

    fn describe(&self) -> Json {
        let blocks: Vec<Json> = self.blocks.iter().map(|block| block.describe()).collect();
        json!({"node": "block_diagonal.v1", "interleaved": self.interleaved, "blocks": blocks})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (i, block) in self.blocks.iter().enumerate() {
            block.parts(&join(prefix, &i.to_string()), sink)?;
        }
        Ok(())
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|block| block.map_planes(f))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a block-diagonal matrix: mask its blocks instead"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|block| block.prepack())
    }
}
