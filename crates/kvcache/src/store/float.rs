use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use serde_json::json;
use tensorpress_tensor::kernels::attention::{self, Scores, Weights};
use tensorpress_tensor::kernels::{FloatType, Isa};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, PartKind, PartSink, Result, ndarray};

use super::rows::{Rows, bytes_part, count, product, read_bytes};

/// Rows of f32, f16 or bf16, in pages that forks share.
#[derive(Debug, Clone)]
pub(crate) struct FloatRows {
    dtype: DType,
    dim: usize,
    len: usize,
    /// [`PAGE`] tokens each but the last.
    pages: Vec<Arc<Vec<u8>>>,
}

/// Tokens of a page.
pub(crate) const PAGE: usize = 256;

/// The pages of `per` tokens that overlap a range, each with the tokens of it: (page, first and end within the page).
pub(crate) fn pages(
    tokens: Range<usize>,
    per: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let end = if tokens.is_empty() { 0 } else { tokens.end.div_ceil(per) };
    (tokens.start / per..end).map(move |page| {
        let start = page * per;
        (page, tokens.start.max(start) - start..tokens.end.min(start + per) - start)
    })
}

impl FloatRows {
    pub(crate) fn new(dtype: DType, dim: usize) -> Self {
        Self { dtype, dim, len: 0, pages: Vec::new() }
    }

    fn stride(&self) -> usize {
        self.dim * self.dtype.size()
    }

    pub(crate) fn read(
        json: &Json,
        dim: usize,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        let dtype = read_dtype(json)?;
        let len = count(json, "len")?;
        let stride = dim * dtype.size();
        let bytes = read_bytes(source, prefix, "values", product(&[len, stride])?)?;
        let pages = bytes.chunks(PAGE * stride).map(|page| Arc::new(page.to_vec())).collect();
        Ok(Self { dtype, dim, len, pages })
    }
}

/// A float type, as the kernels know it.
pub(crate) fn float_type(dtype: DType) -> FloatType {
    dtype.float_type().expect("a cache is of f32, f16 or bf16")
}

/// The float type `dtype` of a description.
pub(crate) fn read_dtype(json: &Json) -> Result<DType> {
    let dtype: Option<DType> = serde_json::from_value(json["dtype"].clone()).ok();
    dtype.filter(|d| matches!(d, DType::F32 | DType::F16 | DType::BF16)).ok_or_else(|| {
        tensorpress_tensor::Error::corruption(format!(
            "KV cache description: `dtype` = {}: allowed are F32, F16 and BF16",
            json["dtype"]
        ))
    })
}

impl Rows for FloatRows {
    fn len(&self) -> usize {
        self.len
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        for row in rows.axis_iter(Axis(0)) {
            if self.len.is_multiple_of(PAGE) {
                self.pages.push(Arc::default());
            }
            let page = Arc::make_mut(self.pages.last_mut().expect("just made"));
            let row = row.as_standard_layout();
            let values = row.as_slice().expect("standard layout");
            self.dtype.write_f32(values, page).expect("a float type");
            self.len += 1;
        }
    }

    fn truncate(&mut self, len: usize) {
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE));
        let stride = self.stride();
        if let Some(last) = self.pages.last_mut() {
            let bytes = (len - (len - 1) / PAGE * PAGE) * stride;
            if last.len() != bytes {
                Arc::make_mut(last).truncate(bytes);
            }
        }
    }

    fn retain(&mut self, keep: &[usize]) {
        let stride = self.stride();
        // Full pages in front of the first row that goes stay as they are, shared or not.
        let same = keep.iter().zip(0..).take_while(|(row, i)| **row == *i).count() / PAGE;
        let mut pages: Vec<_> = self.pages[..same].to_vec();
        let mut page = Vec::new();
        // Rows that stay neighbours move together, as far as both pages reach.
        for run in keep[same * PAGE..].chunk_by(|a, b| a + 1 == *b) {
            let (mut row, end) = (run[0], run[0] + run.len());
            while row < end {
                if page.is_empty() {
                    page.reserve_exact(PAGE * stride);
                }
                let from = row % PAGE;
                let rows = (end - row).min(PAGE - from).min(PAGE - page.len() / stride);
                let bytes = from * stride..(from + rows) * stride;
                page.extend_from_slice(&self.pages[row / PAGE][bytes]);
                row += rows;
                if page.len() == PAGE * stride {
                    pages.push(Arc::new(std::mem::take(&mut page)));
                }
            }
        }
        if !page.is_empty() {
            pages.push(Arc::new(page));
        }
        (self.pages, self.len) = (pages, keep.len());
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (stride, mut done) = (self.stride(), 0);
        for (page, within) in pages(tokens, PAGE) {
            let bytes = &self.pages[page][within.start * stride..within.end * stride];
            let mut rows = out.slice_mut(s![done..done + within.len(), ..]);
            let to = rows.as_slice_mut().expect("contiguous");
            self.dtype.read_f32(bytes, to).expect("a float type");
            done += within.len();
        }
    }

    fn dots(&self, queries: ArrayView2<'_, f32>, tokens: Range<usize>, out: &mut [f32]) {
        let (isa, stride) = (Isa::detect(), self.stride());
        let queries = queries.to_slice().expect("contiguous");
        for (page, within) in pages(tokens, PAGE) {
            let rows = &self.pages[page][within.start * stride..within.end * stride];
            let (first, len) = (page * PAGE + within.start, within.len());
            let out = Scores { data: out, stride: self.len, first, len };
            attention::float_dots(isa, float_type(self.dtype), rows, self.dim, queries, out);
        }
    }

    fn mix(&self, weights: &[f32], tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (isa, stride) = (Isa::detect(), self.stride());
        let out = out.as_slice_mut().expect("contiguous");
        for (page, within) in pages(tokens, PAGE) {
            let rows = &self.pages[page][within.start * stride..within.end * stride];
            let (first, len) = (page * PAGE + within.start, within.len());
            let weights = Weights { data: weights, stride: self.len, first, len };
            attention::float_mix(isa, float_type(self.dtype), rows, self.dim, weights, out);
        }
    }

    fn fork(&self) -> Box<dyn Rows> {
        Box::new(self.clone())
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let bytes: Vec<u8> = self.pages.iter().flat_map(|p| p.iter().copied()).collect();
        bytes_part(sink, prefix, "values", PartKind::Values, &bytes)
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().map(|p| p.len() as u64).sum()
    }

    fn describe(&self) -> Json {
        json!({ "form": "float", "dtype": self.dtype, "len": self.len })
    }
}
