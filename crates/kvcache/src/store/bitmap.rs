use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use serde_json::json;
use tensorpress_tensor::kernels::attention::{self, Bitmaps, SLACK, Scores, Weights};
use tensorpress_tensor::kernels::{Isa, LANES};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, PartSink, Result, ndarray};

use super::float::{float_type, pages, read_dtype};
use super::rows::{bytes_part, count, product, read_bytes};
use super::windowed::PackedRows;

/// The largest entries of each row: a bitmap and the values.
#[derive(Debug, Clone)]
pub(crate) struct BitmapRows {
    dtype: DType,
    dim: usize,
    /// Entries that are kept at least: of a row, or of each channel in a group. Ties of the last are kept as well.
    keep: usize,
    /// Rows within which the entries of each channel compete; without it, those of a row do.
    group: Option<usize>,
    len: usize,
    pages: Vec<Arc<Page>>,
}

/// Tokens of a page.
const PAGE: usize = 256;

#[derive(Debug, Clone)]
struct Page {
    /// 16 entries a mask, the rows' tails padded.
    masks: Vec<u16>,
    /// Where the values of a row begin, counted in values.
    starts: Vec<u32>,
    /// Values, and [`SLACK`] zeros.
    values: Vec<u8>,
}

impl Page {
    fn new(dtype: DType) -> Self {
        Self { masks: Vec::new(), starts: Vec::new(), values: vec![0; SLACK * dtype.size()] }
    }

    /// Values but the slack, in bytes.
    fn used(&self, dtype: DType) -> usize {
        self.values.len() - SLACK * dtype.size()
    }
}

/// How many of `dim` competing entries Mustafar keeps at a sparsity: the k-th smallest magnitude, k = `dim * sparsity` rounded
/// down, is the first that stays.
pub(crate) fn kept(dim: usize, sparsity: f64) -> usize {
    let dropped = (dim as f64 * sparsity) as usize;
    if dropped == 0 { dim } else { dim - dropped + 1 }
}

impl BitmapRows {
    pub(crate) fn new(dtype: DType, dim: usize, keep: usize, group: Option<usize>) -> Self {
        Self { dtype, dim, keep, group, len: 0, pages: Vec::new() }
    }

    fn chunks(&self) -> usize {
        self.dim.div_ceil(LANES)
    }

    /// Rows of a page for the kernels.
    fn view(&self, page: usize, within: Range<usize>) -> Bitmaps<'_> {
        let (page, chunks) = (&self.pages[page], self.chunks());
        let masks = &page.masks[within.start * chunks..within.end * chunks];
        let (starts, values) = (&page.starts[within], &page.values);
        Bitmaps { dtype: float_type(self.dtype), chunks, masks, starts, values }
    }

    /// What will be read after a page.
    fn after(&self, page: usize) -> Option<Bitmaps<'_>> {
        self.pages.get(page + 1).map(|next| self.view(page + 1, 0..next.starts.len()))
    }

    /// The least magnitude that is kept of entries that compete.
    fn least(&self, magnitudes: &mut [f32]) -> f32 {
        let at = magnitudes.len() - self.keep;
        *magnitudes.select_nth_unstable_by(at, f32::total_cmp).1
    }

    /// Takes a row, of each channel what is at least so large.
    fn push_row(&mut self, row: &[f32], least: &[f32]) {
        if self.len.is_multiple_of(PAGE) {
            self.pages.push(Arc::new(Page::new(self.dtype)));
        }
        let page = Arc::make_mut(self.pages.last_mut().expect("just made"));
        let used = page.used(self.dtype);
        page.starts.push((used / self.dtype.size()) as u32);
        page.values.truncate(used);
        let mut values = Vec::with_capacity(self.keep);
        for (chunk, least) in row.chunks(LANES).zip(least.chunks(LANES)) {
            let mut mask = 0;
            for (i, (v, least)) in chunk.iter().zip(least).enumerate() {
                if v.abs() >= *least {
                    mask |= 1 << i;
                    values.push(*v);
                }
            }
            page.masks.push(mask);
        }
        values.extend([0.0; SLACK]);
        self.dtype.write_f32(&values, &mut page.values).expect("a float type");
        self.len += 1;
    }

    pub(crate) fn read(
        json: &Json,
        dim: usize,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        let bad = |why: &str| Error::corruption(format!("KV cache description: {why}"));
        let (dtype, keep, len) = (read_dtype(json)?, count(json, "keep")?, count(json, "len")?);
        let group = if json["group"].is_null() { None } else { Some(count(json, "group")?) };
        let most = group.unwrap_or(dim);
        if keep == 0 || keep > most {
            return Err(bad(&format!("`keep` = {keep} of {most}")));
        }
        let chunks = dim.div_ceil(LANES);
        let masks = read_bytes(source, prefix, "masks", product(&[len, chunks, 2])?)?;
        let masks: Vec<u16> = masks.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        let padding = chunks * LANES - dim;
        if masks.chunks(chunks).any(|row| padding > 0 && row[chunks - 1] >> (LANES - padding) != 0)
        {
            return Err(bad("a bitmap with bits behind the row"));
        }
        let total: usize = masks.iter().map(|m| m.count_ones() as usize).sum();
        let bytes = read_bytes(source, prefix, "values", product(&[total, dtype.size()])?)?;
        let (mut rows, mut done) = (Self::new(dtype, dim, keep, group), 0);
        for masks in masks.chunks(PAGE * chunks) {
            let mut page = Page { masks: masks.to_vec(), starts: Vec::new(), values: Vec::new() };
            let mut count = 0;
            for row in masks.chunks(chunks) {
                page.starts.push(count);
                count += row.iter().map(|m| m.count_ones()).sum::<u32>();
            }
            let length = count as usize * dtype.size();
            page.values.extend_from_slice(&bytes[done..done + length]);
            page.values.resize(length + SLACK * dtype.size(), 0);
            done += length;
            rows.pages.push(Arc::new(page));
        }
        rows.len = len;
        Ok(rows)
    }
}

impl PackedRows for BitmapRows {
    fn len(&self) -> usize {
        self.len
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        let packed = total.saturating_sub(window);
        packed - packed % self.group.unwrap_or(1)
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        for group in rows.axis_chunks_iter(Axis(0), self.group.unwrap_or(1)) {
            let magnitudes = group.mapv(f32::abs);
            let least: Vec<f32> = match self.group {
                None => vec![self.least(&mut magnitudes.into_raw_vec_and_offset().0); self.dim],
                Some(_) => {
                    magnitudes.columns().into_iter().map(|c| self.least(&mut c.to_vec())).collect()
                }
            };
            group.rows().into_iter().for_each(|row| self.push_row(&row.to_vec(), &least));
        }
    }

    fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE));
        let (chunks, size) = (self.chunks(), self.dtype.size());
        if let Some(last) = self.pages.last_mut() {
            let tokens = len - (len - 1) / PAGE * PAGE;
            if tokens < last.starts.len() {
                let last = Arc::make_mut(last);
                let values = last.starts[tokens] as usize;
                last.starts.truncate(tokens);
                last.masks.truncate(tokens * chunks);
                last.values.truncate(values * size);
                last.values.resize((values + SLACK) * size, 0);
            }
        }
        self.len = len;
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (chunks, size) = (self.chunks(), self.dtype.size());
        for (mut row, t) in out.rows_mut().into_iter().zip(tokens) {
            let (page, t) = (&self.pages[t / PAGE], t % PAGE);
            let mut at = page.starts[t] as usize * size;
            for (c, out) in row.iter_mut().enumerate() {
                let mut value = [0.0];
                if page.masks[t * chunks + c / LANES] >> (c % LANES) & 1 == 1 {
                    self.dtype
                        .read_f32(&page.values[at..at + size], &mut value)
                        .expect("a float type");
                    at += size;
                }
                *out = value[0];
            }
        }
    }

    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let (isa, width) = (Isa::detect(), self.chunks() * LANES);
        let mut padded = vec![0.0; queries.nrows() * width];
        for (q, to) in queries.rows().into_iter().zip(padded.chunks_mut(width)) {
            to[..self.dim].copy_from_slice(q.to_slice().expect("contiguous"));
            attention::arrange(float_type(self.dtype), to);
        }
        for (n, within) in pages(tokens, PAGE) {
            let (first, len) = (n * PAGE + within.start, within.len());
            let out = Scores { data: out, stride, first, len };
            attention::bitmap_dots(isa, self.view(n, within), &padded, out, self.after(n));
        }
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let (isa, width) = (Isa::detect(), self.chunks() * LANES);
        let mut padded = vec![0.0; out.nrows() * width];
        for (n, within) in pages(tokens, PAGE) {
            let (first, len) = (n * PAGE + within.start, within.len());
            let weights = Weights { data: weights, stride, first, len };
            attention::bitmap_mix(isa, self.view(n, within), weights, &mut padded, self.after(n));
        }
        for (mut out, sums) in out.rows_mut().into_iter().zip(padded.chunks_mut(width)) {
            attention::restore(float_type(self.dtype), sums);
            out.iter_mut().zip(sums).for_each(|(o, v)| *o += *v);
        }
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let pages = || self.pages.iter();
        let masks: Vec<u8> =
            pages().flat_map(|p| p.masks.iter().flat_map(|m| m.to_le_bytes())).collect();
        let values: Vec<u8> =
            pages().flat_map(|p| p.values[..p.used(self.dtype)].iter().copied()).collect();
        bytes_part(sink, prefix, "masks", PartKind::Masks, &masks)?;
        bytes_part(sink, prefix, "values", PartKind::Values, &values)
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().map(|p| (2 * p.masks.len() + p.used(self.dtype)) as u64).sum()
    }

    fn describe(&self) -> Json {
        let mut json =
            json!({ "form": "bitmap", "dtype": self.dtype, "keep": self.keep, "len": self.len });
        if let Some(group) = self.group {
            json["group"] = json!(group);
        }
        json
    }
}
