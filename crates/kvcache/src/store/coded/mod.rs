//! Rows whose method says how a few of them at a time become bytes: what the methods share, pages, files and attention, is here.

mod bytes;
mod rows;

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{PartKind, PartSink, Result, ndarray};

pub(crate) use bytes::{
    Grid, floats, put_codes, put_floats, put_sparse, sparse, sparse_fits, take_codes,
};
pub(crate) use rows::Coded;

/// Arrays that rows become: a name and what it holds.
pub(crate) type Stream = (&'static str, PartKind);

/// How units of rows become bytes, one array after another, and come back.
pub(crate) trait Code: std::fmt::Debug + Clone + Send + Sync + 'static {
    fn dim(&self) -> usize;

    /// Rows that are packed together.
    fn unit(&self) -> usize {
        1
    }

    /// Rows from which the code is learnt: until they have left the window, all are exact. 0 where nothing is learnt.
    fn fit(&self) -> usize {
        0
    }

    /// What would be learnt was given.
    fn given(&self) -> bool {
        false
    }

    /// First rows that stay exact.
    fn sinks(&self) -> usize {
        0
    }

    fn streams(&self) -> &'static [Stream];

    /// Bytes of the stream behind these of a unit.
    fn bytes(&self, before: &[&[u8]]) -> usize;

    /// Whether a unit from a file can be decoded.
    fn fits(&self, _unit: &[&[u8]]) -> bool {
        true
    }

    /// Appends a unit to the streams.
    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]);

    /// All rows of a unit, `[unit, dim]`.
    fn decode(&self, unit: &[&[u8]], out: &mut [f32]);

    /// Learns from the first [`Code::fit`] rows.
    fn learn(&mut self, _rows: ArrayView2<'_, f32>) {}

    /// Forgets what was learnt.
    fn forget(&mut self) {}

    /// What was learnt or given.
    fn model(&self) -> Vec<(Stream, Vec<u8>)> {
        Vec::new()
    }

    /// Takes what [`Code::model`] wrote.
    fn read_model(&mut self, _prefix: &str, _source: &dyn PartSource) -> Result<()> {
        Ok(())
    }

    /// What tells this code from others, but not how many rows there are.
    fn describe(&self) -> Json;

    /// As `PackedRows::dots` over decoded rows; a code may know a faster way.
    fn dots(
        rows: &Coded<Self>,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        rows.plain_dots(queries, tokens, out, stride);
    }

    /// As `PackedRows::mix` over decoded rows; a code may know a faster way.
    fn mix(
        rows: &Coded<Self>,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) {
        rows.plain_mix(weights, stride, tokens, out);
    }
}

/// Writes each array of a model.
pub(crate) fn write_model(
    model: &[(Stream, Vec<u8>)],
    prefix: &str,
    sink: &mut dyn PartSink,
) -> Result<()> {
    let write = |((name, kind), bytes): &(Stream, Vec<u8>)| {
        super::bytes_part(sink, prefix, name, *kind, bytes)
    };
    model.iter().try_for_each(write)
}
