use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::kernels::attention::{self, Work};
use tensorpress_tensor::kernels::{Isa, LANES, Line};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, PartSink, Result, ndarray};

use super::float::{float_type, pages, read_dtype};
use super::rows::{bytes_part, count, product, read_bytes};
use super::windowed::PackedRows;

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Axis {
    /// A run of tokens, for each channel: what KIVI does to keys, whose channels differ in size.
    #[default]
    Channel,
    /// A run of channels, for each token.
    Token,
}

/// What rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Keys: attention takes their products with queries.
    Keys,
    /// Values: attention adds them up by weights.
    Values,
}

impl Role {
    /// What the channels are called in a shape.
    #[must_use]
    pub fn width(self) -> &'static str {
        match self {
            Self::Keys => "head_dim",
            Self::Values => "value_dim",
        }
    }
}

/// The shape of integer rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct IntShape {
    pub(crate) role: Role,
    pub(crate) axis: Axis,
    pub(crate) bits: u32,
    /// Tokens (by channel) or channels (by token) of a group.
    pub(crate) group: usize,
    pub(crate) dim: usize,
    /// Type of scales and minima.
    pub(crate) dtype: DType,
    /// By channel: the window is always full.
    pub(crate) sliding: bool,
}

/// Codes of 2, 4 or 8 bits: value = minimum + scale x code.
#[derive(Debug, Clone)]
pub(crate) struct IntRows {
    shape: IntShape,
    len: usize,
    pages: Vec<Arc<Page>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Page {
    lines: Vec<Line>,
    scales: Vec<u8>,
    mins: Vec<u8>,
}

/// About how many tokens a page has.
const PAGE: usize = 256;

impl IntShape {
    /// Tokens of a page: whole groups.
    fn page(&self) -> usize {
        match self.axis {
            Axis::Channel => self.group * (PAGE / self.group).max(1),
            Axis::Token => PAGE,
        }
    }

    /// Channels (keys) or tokens (values) of a line: two to this power.
    fn per_log2(&self) -> u32 {
        5 - self.bits.trailing_zeros()
    }

    /// Channels (keys) or tokens (values) of a line.
    fn per(&self) -> usize {
        1 << self.per_log2()
    }

    /// Where the code of a token of a page lies: line, byte, shift.
    fn place(&self, token: usize, channel: usize) -> (usize, usize, u32) {
        let (line, lane, k) = match self.role {
            Role::Keys => {
                let lines_of_panel = self.dim.div_ceil(self.per());
                let line = token / LANES * lines_of_panel + (channel >> self.per_log2());
                (line, token % LANES, channel & (self.per() - 1))
            }
            Role::Values => {
                let panels = self.dim.div_ceil(LANES);
                let line = (token >> self.per_log2()) * panels + channel / LANES;
                (line, channel % LANES, token & (self.per() - 1))
            }
        };
        (line, 4 * lane + k % 4, (k / 4) as u32 * self.bits)
    }

    /// Lines of a page's first `tokens`.
    fn lines(&self, tokens: usize) -> usize {
        match self.role {
            Role::Keys => tokens.div_ceil(LANES) * self.dim.div_ceil(self.per()),
            Role::Values => tokens.div_ceil(self.per()) * self.dim.div_ceil(LANES),
        }
    }

    /// Scales of a page's first `tokens`.
    fn grids(&self, tokens: usize) -> usize {
        match self.axis {
            Axis::Channel => tokens / self.group * self.dim,
            Axis::Token => tokens.div_ceil(LANES) * LANES * (self.dim / self.group),
        }
    }

    /// Which scale is that of an entry.
    fn grid(&self, token: usize, channel: usize) -> usize {
        match self.axis {
            Axis::Channel => token / self.group * self.dim + channel,
            Axis::Token => {
                let groups = self.dim / self.group;
                (token / LANES * groups + channel / self.group) * LANES + token % LANES
            }
        }
    }

    #[cfg(test)]
    fn read_f32(&self, bytes: &[u8], at: usize) -> f32 {
        let (size, mut value) = (self.dtype.size(), [0.0]);
        self.dtype.read_f32(&bytes[at * size..][..size], &mut value).expect("a float type");
        value[0]
    }
}

/// The codes of a group, KIVI's way: `round((x - min) / scale)`, both rounded to their stored type first.
fn quantise(x: &[f32], bits: u32, dtype: DType, codes: &mut [u8]) -> (f32, f32) {
    let (low, high) = tensorpress_tensor::kernels::minmax(x);
    let most = ((1u32 << bits) - 1) as f32;
    let scale = dtype.round((high - low) / most);
    let min = dtype.round(low);
    for (code, x) in codes.iter_mut().zip(x) {
        // A scale of 0 is a constant group: every code is 0.
        let q = if scale > 0.0 { ((x - min) / scale).clamp(0.0, most) } else { 0.0 };
        *code = q.round_ties_even() as u8;
    }
    (scale, min)
}

impl Page {
    /// Makes room for the first `tokens`, or cuts to them.
    fn resize(&mut self, shape: &IntShape, tokens: usize) {
        self.lines.resize(shape.lines(tokens), Line::ZERO);
        let bytes = shape.grids(tokens) * shape.dtype.size();
        self.scales.resize(bytes, 0);
        self.mins.resize(bytes, 0);
    }

    fn put(&mut self, shape: &IntShape, token: usize, channel: usize, code: u8) {
        let (line, byte, shift) = shape.place(token, channel);
        let field = ((1u32 << shape.bits) - 1) as u8;
        let byte = &mut self.lines[line].0[byte];
        *byte = *byte & !(field << shift) | code << shift;
    }

    fn put_grid(&mut self, shape: &IntShape, at: usize, (scale, min): (f32, f32)) {
        let (size, mut bytes) = (shape.dtype.size(), Vec::with_capacity(8));
        shape.dtype.write_f32(&[scale, min], &mut bytes).expect("a float type");
        self.scales[at * size..][..size].copy_from_slice(&bytes[..size]);
        self.mins[at * size..][..size].copy_from_slice(&bytes[size..]);
    }

    /// Quantises rows from token `first` of the page on: whole groups of tokens where those share a scale.
    fn push(&mut self, shape: &IntShape, first: usize, rows: ArrayView2<'_, f32>) {
        self.resize(shape, first + rows.nrows());
        if first + rows.nrows() == shape.page() {
            // It will not grow any more: a cache takes the bytes that it says, and the pages' own headers.
            self.lines.shrink_to_fit();
            self.scales.shrink_to_fit();
            self.mins.shrink_to_fit();
        }
        let mut codes = vec![0; shape.group];
        match shape.axis {
            Axis::Channel => {
                for start in (0..rows.nrows()).step_by(shape.group) {
                    for c in 0..shape.dim {
                        let x = rows.slice(s![start..start + shape.group, c]).to_vec();
                        let grid = quantise(&x, shape.bits, shape.dtype, &mut codes);
                        self.put_grid(shape, shape.grid(first + start, c), grid);
                        for (t, code) in codes.iter().enumerate() {
                            self.put(shape, first + start + t, c, *code);
                        }
                    }
                }
            }
            Axis::Token => {
                for (t, row) in rows.rows().into_iter().enumerate() {
                    let row = row.to_vec();
                    for (g, x) in row.chunks_exact(shape.group).enumerate() {
                        let grid = quantise(x, shape.bits, shape.dtype, &mut codes);
                        self.put_grid(shape, shape.grid(first + t, g * shape.group), grid);
                        for (c, code) in codes.iter().enumerate() {
                            self.put(shape, first + t, g * shape.group + c, *code);
                        }
                    }
                }
            }
        }
    }

    /// Cuts to the first `tokens`; nothing of later ones is left in shared lines.
    fn truncate(&mut self, shape: &IntShape, tokens: usize, before: usize) {
        self.resize(shape, tokens);
        for t in tokens..before {
            for c in 0..shape.dim {
                if shape.place(t, c).0 < self.lines.len() {
                    self.put(shape, t, c, 0);
                }
                let at = shape.grid(t, c);
                if (at + 1) * shape.dtype.size() <= self.scales.len() {
                    self.put_grid(shape, at, (0.0, 0.0));
                }
            }
        }
    }

    fn view(&self, shape: &IntShape) -> attention::Page<'_> {
        let IntShape { bits, dim, dtype, group, .. } = *shape;
        let (lines, scales, mins) = (&self.lines, &self.scales, &self.mins);
        let dtype = float_type(dtype);
        attention::Page { bits, dim, lines, dtype, group, scales, mins }
    }
}

impl IntRows {
    pub(crate) fn new(shape: IntShape) -> Self {
        Self { shape, len: 0, pages: Vec::new() }
    }

    /// Tokens of page `page`.
    fn tokens(&self, page: usize) -> usize {
        (self.len - page * self.shape.page()).min(self.shape.page())
    }

    pub(crate) fn read(
        json: &Json,
        dim: usize,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        let bad = |why: &str| Error::corruption(format!("KV cache description: {why}"));
        let field = |key: &str| json[key].clone();
        let shape = IntShape {
            role: serde_json::from_value(field("role")).map_err(|_| bad("`role` of integers"))?,
            axis: serde_json::from_value(field("axis")).map_err(|_| bad("`axis` of integers"))?,
            bits: count(json, "bits")? as u32,
            group: count(json, "group")?,
            dim,
            dtype: read_dtype(json)?,
            sliding: json["sliding"].as_bool().ok_or_else(|| bad("`sliding` of integers"))?,
        };
        super::form::check_int(&shape).map_err(|e| bad(e.message()))?;
        super::form::check_window(&shape, count(json, "window")?).map_err(|e| bad(e.message()))?;
        let len = count(json, "len")?;
        if shape.axis == Axis::Channel && !len.is_multiple_of(shape.group) {
            return Err(bad("`len` of integers is no whole number of groups"));
        }
        let (page, size) = (shape.page(), shape.dtype.size());
        let (full, rest) = (len / page, len % page);
        let lines = product(&[full, shape.lines(page)])?.saturating_add(shape.lines(rest));
        let grids = product(&[full, shape.grids(page)])?.saturating_add(shape.grids(rest));
        let codes = read_bytes(source, prefix, "codes", product(&[lines, 64])?)?;
        let scales = read_bytes(source, prefix, "scales", product(&[grids, size])?)?;
        let mins = read_bytes(source, prefix, "mins", product(&[grids, size])?)?;
        let page_of = |n: usize| {
            let tokens = (len - n * page).min(page);
            let lines = codes.as_chunks::<64>().0[n * shape.lines(page)..][..shape.lines(tokens)]
                .iter()
                .map(|l| Line(*l))
                .collect();
            let grids = n * shape.grids(page) * size..;
            let bytes = shape.grids(tokens) * size;
            let scales = scales[grids.clone()][..bytes].to_vec();
            Arc::new(Page { lines, scales, mins: mins[grids][..bytes].to_vec() })
        };
        let pages = (0..len.div_ceil(page)).map(page_of).collect();
        Ok(Self { shape, len, pages })
    }

    /// Code, scale and minimum of every entry of a row.
    #[cfg(test)]
    pub(crate) fn entry(&self, token: usize, channel: usize) -> (u8, f32, f32) {
        let (page, t) = (&self.pages[token / self.shape.page()], token % self.shape.page());
        let (line, byte, shift) = self.shape.place(t, channel);
        let code = page.lines[line].0[byte] >> shift & ((1u32 << self.shape.bits) - 1) as u8;
        let grid = self.shape.grid(t, channel);
        (code, self.shape.read_f32(&page.scales, grid), self.shape.read_f32(&page.mins, grid))
    }

    /// Bytes that are set aside for codes, scales and minima, used or not.
    #[cfg(test)]
    pub(crate) fn reserved(&self) -> usize {
        let page =
            |p: &Arc<Page>| 64 * p.lines.capacity() + p.scales.capacity() + p.mins.capacity();
        self.pages.iter().map(page).sum()
    }

    /// A page, and the one that will be read after it, for the kernels.
    fn views(&self, page: usize) -> [attention::Page<'_>; 2] {
        let next = (page + 1).min(self.pages.len() - 1);
        [page, next].map(|page| self.pages[page].view(&self.shape))
    }

    pub(crate) fn dots_on(
        &self,
        isa: Isa,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let dots = match self.shape.axis {
            Axis::Channel => attention::by_channel_dots,
            Axis::Token => attention::by_token_dots,
        };
        let queries = queries.as_standard_layout();
        let (count, queries) = (queries.nrows(), queries.as_slice().expect("standard layout"));
        let mut work = Work::default();
        // Panels are whole; what lies behind the last token is cut off.
        let mut scores = vec![0.0; count * self.shape.page().next_multiple_of(LANES)];
        for (n, _) in pages(tokens, self.shape.page()) {
            let ([page, next], tokens) = (self.views(n), self.tokens(n));
            let wide = tokens.next_multiple_of(LANES);
            let scores = &mut scores[..count * wide];
            dots(isa, page, next, queries, count, scores, &mut work);
            for (i, scores) in scores.chunks_exact(wide).enumerate() {
                let at = i * stride + n * self.shape.page();
                out[at..at + tokens].copy_from_slice(&scores[..tokens]);
            }
        }
    }

    pub(crate) fn mix_on(
        &self,
        isa: Isa,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let count = out.nrows();
        let out = out.as_slice_mut().expect("contiguous");
        let mut work = Work::default();
        let mut all = vec![0.0; count * self.shape.page().next_multiple_of(LANES)];
        for (n, within) in pages(tokens, self.shape.page()) {
            let [page, next] = self.views(n);
            let wide = self.tokens(n).next_multiple_of(LANES);
            let all = &mut all[..count * wide];
            for (i, all) in all.chunks_exact_mut(wide).enumerate() {
                let weights = &weights[i * stride + n * self.shape.page()..];
                all[..within.start].fill(0.0);
                all[within.clone()].copy_from_slice(&weights[within.clone()]);
                all[within.end..].fill(0.0);
            }
            attention::by_token_mix(isa, page, next, all, count, out, &mut work);
        }
    }
}

impl PackedRows for IntRows {
    fn len(&self) -> usize {
        self.len
    }

    fn dim(&self) -> usize {
        self.shape.dim
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        match self.shape.axis {
            Axis::Channel if self.shape.sliding => {
                let packed = total.saturating_sub(window);
                packed - packed % self.shape.group
            }
            // The window fills up, and is packed when it is full.
            Axis::Channel => total - total % window,
            Axis::Token => total.saturating_sub(window),
        }
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        let (page, mut done) = (self.shape.page(), 0);
        while done < rows.nrows() {
            let first = self.len % page;
            if first == 0 {
                self.pages.push(Arc::default());
            }
            let now = (page - first).min(rows.nrows() - done);
            let last = Arc::make_mut(self.pages.last_mut().expect("just made"));
            last.push(&self.shape, first, rows.slice(s![done..done + now, ..]));
            done += now;
            self.len += now;
        }
    }

    fn truncate(&mut self, len: usize) {
        let page = self.shape.page();
        let keep = len.div_ceil(page);
        if keep > 0 {
            let before = self.tokens(keep - 1);
            let after = len - (keep - 1) * page;
            if after < before {
                Arc::make_mut(&mut self.pages[keep - 1]).truncate(&self.shape, after, before);
            }
        }
        self.pages.truncate(keep);
        self.len = len;
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (shape, mut rows) = (&self.shape, out.rows_mut().into_iter());
        let field = ((1u32 << shape.bits) - 1) as u8;
        for (n, within) in pages(tokens, shape.page()) {
            let page = &self.pages[n];
            let [scales, mins] = [&page.scales, &page.mins].map(|bytes| {
                let mut values = vec![0.0; bytes.len() / shape.dtype.size()];
                shape.dtype.read_f32(bytes, &mut values).expect("a float type");
                values
            });
            for (t, mut row) in within.zip(&mut rows) {
                for (c, out) in row.iter_mut().enumerate() {
                    let ((line, byte, shift), grid) = (shape.place(t, c), shape.grid(t, c));
                    let code = page.lines[line].0[byte] >> shift & field;
                    *out = f32::from(code) * scales[grid] + mins[grid];
                }
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
        self.dots_on(Isa::detect(), queries, tokens, out, stride);
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) {
        self.mix_on(Isa::detect(), weights, stride, tokens, out);
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let pages = || self.pages.iter();
        let codes: Vec<u8> = pages().flat_map(|p| p.lines.iter().flat_map(|l| l.0)).collect();
        let scales: Vec<u8> = pages().flat_map(|p| p.scales.iter().copied()).collect();
        let mins: Vec<u8> = pages().flat_map(|p| p.mins.iter().copied()).collect();
        bytes_part(sink, prefix, "codes", PartKind::Codes, &codes)?;
        bytes_part(sink, prefix, "scales", PartKind::Scales, &scales)?;
        bytes_part(sink, prefix, "mins", PartKind::Zeros, &mins)
    }

    fn bytes(&self) -> u64 {
        let page = |p: &Arc<Page>| 64 * p.lines.len() + p.scales.len() + p.mins.len();
        self.pages.iter().map(|p| page(p) as u64).sum()
    }

    fn describe(&self) -> Json {
        let IntShape { role, axis, bits, group, dtype, sliding, .. } = self.shape;
        json!({
            "form": "int", "role": role, "axis": axis, "bits": bits, "group": group, "dtype": dtype,
            "sliding": sliding, "len": self.len
        })
    }
}
