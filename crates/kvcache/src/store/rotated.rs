use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{PartSink, Result, ndarray};

use super::int::Role;
use super::windowed::PackedRows;
use crate::page::Rotation;

/// Rows packed after signs and a Hadamard matrix, so that no channel stands out. Products are those of the query turned alike,
/// and sums are turned back as a whole: nothing is decoded for it.
#[derive(Debug, Clone)]
pub(crate) struct Rotated<P> {
    packed: P,
    seed: u64,
    rotation: Arc<Rotation>,
}

impl<P: PackedRows> Rotated<P> {
    /// Keys and values have signs of their own.
    pub(crate) fn new(packed: P, role: Role, seed: u64) -> Self {
        let dim = packed.dim();
        let word = if role == Role::Keys { 0 } else { 1 << 32 };
        let rotation = Arc::new(Rotation::new(1, dim, seed, word));
        Self { packed, seed, rotation }
    }

    fn turned(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut rows = rows.as_standard_layout().into_owned();
        for mut row in rows.rows_mut() {
            self.rotation.apply(row.as_slice_mut().expect("standard layout"));
        }
        rows
    }
}

impl<P: PackedRows> PackedRows for Rotated<P> {
    fn len(&self) -> usize {
        self.packed.len()
    }

    fn dim(&self) -> usize {
        self.packed.dim()
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        self.packed.prefix(total, window)
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        let rows = self.turned(rows);
        self.packed.push(rows.view());
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let mut rows = Array2::zeros(out.dim());
        self.packed.decode(tokens, rows.view_mut());
        for mut row in rows.rows_mut() {
            self.rotation.invert(row.as_slice_mut().expect("standard layout"));
        }
        out.assign(&rows);
    }

    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        self.packed.dots(self.turned(queries).view(), tokens, out, stride);
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let mut sums = Array2::zeros(out.dim());
        self.packed.mix(weights, stride, tokens, sums.view_mut());
        for mut row in sums.rows_mut() {
            self.rotation.invert(row.as_slice_mut().expect("standard layout"));
        }
        out += &sums;
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.packed.parts(prefix, sink)
    }

    fn bytes(&self) -> u64 {
        self.packed.bytes()
    }

    fn describe(&self) -> Json {
        let mut json = self.packed.describe();
        json["seed"] = json!(self.seed);
        json
    }
}
