use std::fmt::Debug;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, PartSink, Result, ndarray};

use super::rows::{Rows, bytes_part, count, product, read_bytes};

/// Rows in a packed form: what [`Windowed`] puts before its exact rows.
pub trait PackedRows: Debug + Clone + Send + Sync + 'static {
    /// Rows packed.
    fn len(&self) -> usize;
    /// Nothing is packed.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Channels.
    fn dim(&self) -> usize;
    /// How many of `total` rows are packed where the last `window` shall stay exact. A function of these
    /// two that never falls as `total` grows.
    fn prefix(&self, total: usize, window: usize) -> usize;
    /// Takes rows up to the next length that [`PackedRows::prefix`] may give.
    fn push(&mut self, rows: ArrayView2<'_, f32>);
    /// Goes back to 0, or to a length that [`PackedRows::prefix`] gave: as if later rows had never been.
    fn truncate(&mut self, len: usize);
    /// Values of some rows.
    fn decode(&self, tokens: Range<usize>, out: ArrayViewMut2<'_, f32>);
    /// As [`Rows::dots`]; `out` has `stride` entries for each query.
    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    );
    /// As [`Rows::mix`]; `weights` has `stride` entries for each query.
    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    );
    /// Arrays as they go into a file.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;
    /// Bytes of the parts.
    fn bytes(&self) -> u64;
    /// What a reader must know to read the parts.
    fn describe(&self) -> Json;
}

/// A packed prefix and an exact window behind it. What was packed within the last `margin` tokens is held exactly as well,
/// so that it can be undone.
#[derive(Debug, Clone)]
pub struct Windowed<P> {
    packed: P,
    window: usize,
    margin: usize,
    /// Rows from `first` on, exact.
    exact: Vec<f32>,
    first: usize,
}

impl<P: PackedRows> Windowed<P> {
    /// No rows: behind what is packed, the newest `window` stay exact, and `margin` tokens can be taken back exactly.
    #[must_use]
    pub fn new(packed: P, window: usize, margin: usize) -> Self {
        Self { packed, window, margin, exact: Vec::new(), first: 0 }
    }

    fn tail(&self, from: usize) -> &[f32] {
        &self.exact[(from - self.first) * self.packed.dim()..]
    }

    /// Packs what has left the window, and forgets what has left the margin.
    fn settle(&mut self) {
        let dim = self.packed.dim();
        let (old, new) = (self.packed.len(), self.packed.prefix(self.len(), self.window));
        if new > old {
            let rows = &self.exact[(old - self.first) * dim..(new - self.first) * dim];
            let rows = ArrayView2::from_shape((new - old, dim), rows).expect("whole rows");
            self.packed.push(rows);
        }
        let first = self.first_kept();
        self.exact.drain(..(first - self.first) * dim);
        self.first = first;
    }

    /// The first row that stays exact: the first one packed since the length to which these rows can go back.
    fn first_kept(&self) -> usize {
        self.packed.prefix(self.len().saturating_sub(self.margin), self.window).max(self.first)
    }

    /// Puts the exact rows of a description and its parts behind packed ones.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`: rows that do not follow each other, or not as the window has it.
    pub fn read(json: &Json, packed: P, prefix: &str, source: &dyn PartSource) -> Result<Self> {
        let (window, margin) = (count(json, "window")?, count(json, "margin")?);
        let (first, exact) = (count(json, "first")?, count(json, "exact")?);
        if first > packed.len() || first + exact < packed.len() {
            return Err(Error::corruption(format!(
                "KV cache description: exact rows {first}..{} do not continue {} packed ones",
                first + exact,
                packed.len()
            )));
        }
        let bytes = product(&[exact, packed.dim(), 4])?;
        let bytes = read_bytes(source, prefix, "exact", bytes)?;
        let mut values = vec![0.0; bytes.len() / 4];
        DType::F32.read_f32(&bytes, &mut values)?;
        let rows = Self { packed, window, margin, exact: values, first };
        if rows.packed.prefix(rows.len(), window) != rows.packed.len() {
            return Err(Error::corruption("KV cache description: rows packed against the window"));
        }
        Ok(rows)
    }
}

impl<P: PackedRows> Rows for Windowed<P> {
    fn len(&self) -> usize {
        self.first + self.exact.len() / self.packed.dim()
    }

    fn dim(&self) -> usize {
        self.packed.dim()
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        self.exact.extend(rows.iter());
        self.settle();
    }

    fn earliest(&self) -> usize {
        // The prefix grows with the length: the first length whose prefix starts the exact rows, or lies behind.
        let (mut low, mut high) = (self.first, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.packed.prefix(middle, self.window) >= self.first {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    fn truncate(&mut self, len: usize) {
        let dim = self.packed.dim();
        if len == 0 {
            self.packed.truncate(0);
            self.exact.clear();
            self.first = 0;
            return;
        }
        self.exact.truncate((len - self.first) * dim);
        let prefix = self.packed.prefix(len, self.window);
        if prefix < self.packed.len() {
            self.packed.truncate(prefix);
        }
    }

    /// Packs what stays anew; what comes before the first row that goes is left alone where it can be.
    fn retain(&mut self, keep: &[usize]) {
        let mut all = Array2::zeros((self.len(), self.packed.dim()));
        self.decode(0..self.len(), all.view_mut());
        let same = keep.iter().zip(0..).take_while(|(row, i)| **row == *i).count();
        let same = if same >= self.earliest() { same } else { 0 };
        self.truncate(same);
        self.push(all.select(Axis(0), &keep[same..]).view());
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let split = self.packed.len().clamp(tokens.start, tokens.end);
        let packed = split - tokens.start;
        self.packed.decode(tokens.start..split, out.slice_mut(s![..packed, ..]));
        if split < tokens.end {
            let (rows, dim) = (tokens.end - split, self.packed.dim());
            let exact = ArrayView2::from_shape((rows, dim), &self.tail(split)[..rows * dim]);
            out.slice_mut(s![packed.., ..]).assign(&exact.expect("whole rows"));
        }
    }

    fn dots(&self, queries: ArrayView2<'_, f32>, tokens: Range<usize>, out: &mut [f32]) {
        let (len, dim) = (self.len(), self.packed.dim());
        let split = self.packed.len().clamp(tokens.start, tokens.end);
        self.packed.dots(queries, tokens.start..split, out, len);
        for (i, q) in queries.rows().into_iter().enumerate() {
            let out = &mut out[i * len..][split..tokens.end];
            for (row, out) in self.tail(split.max(self.first)).chunks_exact(dim).zip(out) {
                *out = tensorpress_tensor::kernels::dot(row, q.to_slice().expect("contiguous"));
            }
        }
    }

    fn mix(&self, weights: &[f32], tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (len, dim) = (self.len(), self.packed.dim());
        let split = self.packed.len().clamp(tokens.start, tokens.end);
        self.packed.mix(weights, len, tokens.start..split, out.view_mut());
        if split == tokens.end {
            return;
        }
        for (i, mut out) in out.rows_mut().into_iter().enumerate() {
            let out = out.as_slice_mut().expect("contiguous");
            let weights = &weights[i * len..][split..tokens.end];
            for (row, w) in self.tail(split).chunks_exact(dim).zip(weights) {
                tensorpress_tensor::kernels::axpy(*w, row, out);
            }
        }
    }

    fn fork(&self) -> Box<dyn Rows> {
        Box::new(self.clone())
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.packed.parts(prefix, sink)?;
        let mut bytes = Vec::new();
        DType::F32.write_f32(&self.exact, &mut bytes)?;
        bytes_part(sink, prefix, "exact", PartKind::Values, &bytes)
    }

    fn bytes(&self) -> u64 {
        self.packed.bytes() + 4 * self.exact.len() as u64
    }

    fn describe(&self) -> Json {
        let mut json = self.packed.describe();
        json["window"] = json!(self.window);
        json["margin"] = json!(self.margin);
        json["first"] = json!(self.first);
        json["exact"] = json!(self.exact.len() / self.packed.dim());
        json
    }
}
