//! Pages that layers share: what is packed of several layers at once.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};
use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, PartSink, Result, ndarray};

use super::KvShape;
use super::form::Form;
use super::int::Role;
use super::rows::{Rows, bytes_part, count, product, read_bytes};

/// A way to hold the tokens of neighbouring layers together. Whole chunks of tokens are packed when they have left the exact
/// window in all layers of a group.
pub trait JointForm: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// `id` and all parameters: what a reader makes this form from.
    fn describe(&self) -> Json;

    /// Whether a model of so many layers can be held.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` name the parameter and what is allowed.
    fn check(&self, shape: KvShape, layers: usize) -> Result<()>;

    /// Keys shall be held before rotary embedding, where the model's is known.
    fn plain_keys(&self) -> bool {
        false
    }

    /// Layers that share pages, ascending and apart; those in no group hold floats.
    fn groups(&self, layers: usize) -> Vec<Range<usize>>;

    /// How tokens become pages.
    fn paging(&self) -> Paging;

    /// Packs a chunk: keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of each layer of
    /// `group`. `first` is the first page of the group, absent for that itself: what was fitted there may be used on.
    ///
    /// # Errors
    /// Those of the arithmetic.
    fn pack(
        &self,
        group: Range<usize>,
        first: Option<&dyn JointPage>,
        keys: &[Array3<f32>],
        values: &[Array3<f32>],
    ) -> Result<Arc<dyn JointPage>>;

    /// A page from what [`JointPage::describe`] and [`JointPage::parts`] gave.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    fn read_page(
        &self,
        group: Range<usize>,
        first: Option<&dyn JointPage>,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Arc<dyn JointPage>>;
}

/// A chunk of tokens of a group of layers.
pub trait JointPage: Debug + Send + Sync {
    /// Tokens held.
    fn tokens(&self) -> usize;

    /// All keys or values `[tokens, channels]` of one head of a layer, counted within the group.
    fn decode(&self, member: usize, role: Role, head: usize, out: ArrayViewMut2<'_, f32>);

    /// Bytes of the parts.
    fn bytes(&self) -> u64;

    /// What a reader must know to read the parts.
    fn describe(&self) -> Json;

    /// Hands over every array.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;

    /// For [`JointForm::pack`], to know its first page again.
    fn as_any(&self) -> &dyn Any;
}

/// How tokens become pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paging {
    /// Newest tokens that are exact.
    pub window: usize,
    /// Tokens of a page, at least 1.
    pub chunk: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Paging {
    /// Pages of so many tokens; a window and a margin of 32.
    #[must_use]
    pub fn new(chunk: usize) -> Self {
        Self { window: 32, chunk, margin: 32 }
    }

    /// Sets how many of the newest tokens stay exact.
    #[must_use]
    pub fn with_window(mut self, tokens: usize) -> Self {
        self.window = tokens;
        self
    }

    /// Sets how many tokens can be taken back.
    #[must_use]
    pub fn with_margin(mut self, tokens: usize) -> Self {
        self.margin = tokens;
        self
    }

    /// How many of `total` tokens are packed.
    #[must_use]
    pub fn prefix(self, total: usize) -> usize {
        let chunk = self.chunk.max(1);
        total.saturating_sub(self.window) / chunk * chunk
    }
}

/// Rows of one head of a layer whose older tokens lie in shared pages.
#[derive(Debug, Clone)]
#[doc(hidden)]
pub struct Joined {
    paging: Paging,
    member: usize,
    role: Role,
    head: usize,
    dim: usize,
    pub(crate) pages: Vec<Arc<dyn JointPage>>,
    packed: usize,
    /// Rows from `first` on, exact.
    exact: Vec<f32>,
    first: usize,
}

impl Joined {
    /// The next chunk, if it has left the window: `[chunk, dim]`.
    pub(crate) fn next(&self) -> Option<ArrayView2<'_, f32>> {
        if self.paging.prefix(self.len()) <= self.packed {
            return None;
        }
        let chunk = self.paging.chunk.max(1);
        let rows = &self.exact[(self.packed - self.first) * self.dim..][..chunk * self.dim];
        Some(ArrayView2::from_shape((chunk, self.dim), rows).expect("whole rows"))
    }

    /// Takes the page that holds the next chunk.
    pub(crate) fn take(&mut self, page: Arc<dyn JointPage>) {
        self.packed += page.tokens();
        self.pages.push(page);
        let kept = self.paging.prefix(self.len().saturating_sub(self.paging.margin));
        let kept = kept.min(self.packed).max(self.first);
        self.exact.drain(..(kept - self.first) * self.dim);
        self.first = kept;
    }

    /// Pages and the packed rows among `tokens`, as values.
    fn each_page(&self, tokens: &Range<usize>, mut f: impl FnMut(usize, ArrayView2<'_, f32>)) {
        let (mut at, end) = (0, self.packed.min(tokens.end));
        for page in &self.pages {
            let (start, stop) = (at.max(tokens.start), (at + page.tokens()).min(end));
            if start < stop {
                let mut all = Array2::zeros((page.tokens(), self.dim));
                page.decode(self.member, self.role, self.head, all.view_mut());
                f(start, all.slice(s![start - at..stop - at, ..]));
            }
            at += page.tokens();
        }
    }

    /// Exact rows among `tokens`.
    fn tail(&self, tokens: &Range<usize>) -> (usize, ArrayView2<'_, f32>) {
        let start = self.packed.clamp(tokens.start, tokens.end);
        let rows = tokens.end - start;
        let from = if rows == 0 { 0 } else { (start - self.first) * self.dim };
        let rows = ArrayView2::from_shape((rows, self.dim), &self.exact[from..][..rows * self.dim]);
        (start, rows.expect("whole rows"))
    }
}

impl Rows for Joined {
    fn len(&self) -> usize {
        self.first + self.exact.len() / self.dim
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        self.exact.extend(rows.iter());
    }

    fn earliest(&self) -> usize {
        // Lengths whose packed prefix begins the exact rows, or lies behind; while a chunk waits for other layers, fewer
        // rows are packed than the prefix has.
        if self.first == 0 { 0 } else { self.first + self.paging.window }
    }

    fn truncate(&mut self, len: usize) {
        if len == 0 {
            self.pages.clear();
            self.exact.clear();
            (self.packed, self.first) = (0, 0);
            return;
        }
        self.exact.truncate((len - self.first) * self.dim);
        while self.packed > self.paging.prefix(len) {
            let page = self.pages.pop().expect("as many pages as are packed");
            self.packed -= page.tokens();
        }
    }

    /// What stays is exact from now on.
    fn retain(&mut self, keep: &[usize]) {
        let mut all = Array2::zeros((self.len(), self.dim));
        self.decode(0..self.len(), all.view_mut());
        self.truncate(0);
        self.push(all.select(Axis(0), keep).view());
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let from = tokens.start;
        self.each_page(&tokens, |at, rows| {
            out.slice_mut(s![at - from..at - from + rows.nrows(), ..]).assign(&rows);
        });
        let (at, rows) = self.tail(&tokens);
        out.slice_mut(s![at - from..tokens.end - from, ..]).assign(&rows);
    }

    fn dots(&self, queries: ArrayView2<'_, f32>, tokens: Range<usize>, out: &mut [f32]) {
        let len = self.len();
        let mut put = |at: usize, rows: ArrayView2<'_, f32>| {
            for (q, out) in queries.rows().into_iter().zip(out.chunks_exact_mut(len)) {
                let q = q.to_slice().expect("contiguous");
                for (row, out) in rows.rows().into_iter().zip(&mut out[at..]) {
                    let row = row.to_slice().expect("contiguous");
                    *out = tensorpress_tensor::kernels::dot(row, q);
                }
            }
        };
        self.each_page(&tokens, &mut put);
        let (at, rows) = self.tail(&tokens);
        put(at, rows);
    }

    fn mix(&self, weights: &[f32], tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let len = self.len();
        let mut add = |at: usize, rows: ArrayView2<'_, f32>| {
            for (mut out, weights) in out.rows_mut().into_iter().zip(weights.chunks_exact(len)) {
                let out = out.as_slice_mut().expect("contiguous");
                for (row, w) in rows.rows().into_iter().zip(&weights[at..]) {
                    let row = row.to_slice().expect("contiguous");
                    tensorpress_tensor::kernels::axpy(*w, row, out);
                }
            }
        };
        self.each_page(&tokens, &mut add);
        let (at, rows) = self.tail(&tokens);
        add(at, rows);
    }

    fn fork(&self) -> Box<dyn Rows> {
        Box::new(self.clone())
    }

    fn joined(&mut self) -> Option<&mut Joined> {
        Some(self)
    }

    /// The exact rows; pages are written once, by the caches.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let mut bytes = Vec::new();
        DType::F32.write_f32(&self.exact, &mut bytes)?;
        bytes_part(sink, prefix, "exact", PartKind::Values, &bytes)
    }

    fn bytes(&self) -> u64 {
        4 * self.exact.len() as u64
    }

    fn describe(&self) -> Json {
        let exact = self.exact.len() / self.dim;
        json!({ "first": self.first, "exact": exact, "pages": self.pages.len() })
    }
}

/// The form of one layer of a group; knows the pages only while it reads.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) paging: Paging,
    pub(crate) member: usize,
    pub(crate) pages: Vec<Arc<dyn JointPage>>,
}

pub(crate) const MEMBER: &str = "joint";

impl Form for Member {
    fn id(&self) -> &'static str {
        MEMBER
    }

    fn describe(&self) -> Json {
        json!({ "id": MEMBER })
    }

    fn check(&self, _: usize, _: usize) -> Result<()> {
        if self.paging.chunk == 0 {
            return Err(Error::invalid("chunk = 0: at least 1"));
        }
        Ok(())
    }

    fn rows(&self, role: Role, head: usize, dim: usize) -> Box<dyn Rows> {
        let (paging, member) = (self.paging, self.member);
        let (pages, exact) = (Vec::new(), Vec::new());
        Box::new(Joined { paging, member, role, head, dim, pages, packed: 0, exact, first: 0 })
    }

    fn read_rows(
        &self,
        (role, head, dim): (Role, usize, usize),
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>> {
        let bad = |why: String| Error::corruption(format!("KV cache description: {why}"));
        let [first, exact, pages] = ["first", "exact", "pages"].map(|key| count(json, key));
        let (first, exact, pages) = (first?, exact?, pages?);
        let pages = self
            .pages
            .get(..pages)
            .ok_or_else(|| bad(format!("{pages} pages, the group has {}", self.pages.len())))?;
        let packed: usize = pages.iter().map(|page| page.tokens()).sum();
        let len = first.checked_add(exact).filter(|len| (first..=*len).contains(&packed));
        let Some(len) = len else {
            return Err(bad(format!("{exact} exact rows from {first} on behind {packed} packed")));
        };
        let whole = packed <= self.paging.prefix(len) && packed.is_multiple_of(self.paging.chunk);
        if !whole || !first.is_multiple_of(self.paging.chunk) {
            return Err(bad("rows packed against the window".into()));
        }
        let bytes = read_bytes(source, prefix, "exact", product(&[exact, dim, 4])?)?;
        let mut values = vec![0.0; bytes.len() / 4];
        DType::F32.read_f32(&bytes, &mut values)?;
        let (paging, member, pages) = (self.paging, self.member, pages.to_vec());
        let exact = values;
        Ok(Box::new(Joined { paging, member, role, head, dim, pages, packed, exact, first }))
    }
}
