use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{Bytes, DType, Error, PartKind, PartSink, Result, kernels, ndarray};

use super::{Code, write_model};
use crate::store::rows::{bytes_part, count, product, read_bytes};
use crate::store::windowed::PackedRows;

/// Rows in units of a code: the first [`Code::sinks`] exact, then pages of units.
#[derive(Debug, Clone)]
pub(crate) struct Coded<C> {
    pub(crate) code: C,
    len: usize,
    sinks: Vec<f32>,
    pages: Vec<Arc<Page>>,
}

/// About how many rows a page has.
const PAGE: usize = 256;

/// Units, stream after stream.
#[derive(Debug, Clone, Default)]
struct Page {
    units: usize,
    streams: Vec<(Vec<u8>, Starts)>,
}

/// Where each unit begins in a stream.
#[derive(Debug, Clone)]
enum Starts {
    /// All have so many bytes.
    Even(usize),
    Uneven(Vec<u32>),
}

impl Starts {
    fn of(&self, unit: usize) -> usize {
        match self {
            Self::Even(bytes) => unit * bytes,
            Self::Uneven(starts) => starts[unit] as usize,
        }
    }

    /// The next unit has `bytes`, behind `units` of `held` bytes.
    fn push(&mut self, bytes: usize, units: usize, held: usize) {
        match self {
            Self::Even(each) if units == 0 => *each = bytes,
            Self::Even(each) if *each == bytes => {}
            Self::Even(each) => {
                let starts = (0..units).map(|unit| (unit * *each) as u32);
                *self = Self::Uneven(starts.chain([held as u32]).collect());
            }
            Self::Uneven(starts) => starts.push(held as u32),
        }
    }
}

impl Page {
    fn of(streams: usize) -> Self {
        Self { units: 0, streams: vec![(Vec::new(), Starts::Even(0)); streams] }
    }

    fn unit(&self, unit: usize) -> Vec<&[u8]> {
        let slice = |(bytes, starts): &'_ (Vec<u8>, Starts)| {
            let end = if unit + 1 < self.units { starts.of(unit + 1) } else { bytes.len() };
            starts.of(unit)..end
        };
        self.streams.iter().map(|stream| &stream.0[slice(stream)]).collect()
    }

    /// Takes the bytes of a unit.
    fn push<'a>(&mut self, unit: impl Iterator<Item = &'a [u8]>) {
        for ((bytes, starts), more) in self.streams.iter_mut().zip(unit) {
            starts.push(more.len(), self.units, bytes.len());
            bytes.extend_from_slice(more);
        }
        self.units += 1;
    }

    fn truncate(&mut self, units: usize) {
        if units >= self.units {
            return;
        }
        for (bytes, starts) in &mut self.streams {
            bytes.truncate(starts.of(units));
            if let Starts::Uneven(starts) = starts {
                starts.truncate(units);
            }
        }
        self.units = units;
    }
}

impl<C: Code> Coded<C> {
    pub(crate) fn new(code: C) -> Self {
        Self { code, len: 0, sinks: Vec::new(), pages: Vec::new() }
    }

    fn units_of_page(&self) -> usize {
        (PAGE / self.code.unit()).max(1)
    }

    /// Reads rows of an empty code like the one that was written.
    pub(crate) fn read(
        json: &Json,
        mut code: C,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        let bad =
            |why: &str| Error::corruption(format!("KV cache description: {why}")).in_tensor(prefix);
        let len = count(json, "len")?;
        if len > 0 {
            code.read_model(prefix, source)?;
        } else if code.given() {
            // A form whose reader knows no model of this head wrote none.
            let _ = code.read_model(prefix, source);
        }
        let mut rows = Self::new(code);
        if len == 0 {
            return Ok(rows);
        }
        let (sinks, unit) = (rows.code.sinks(), rows.code.unit());
        if len < rows.code.fit() || len < sinks + unit || !(len - sinks).is_multiple_of(unit) {
            return Err(bad(&format!("`len` = {len} is no number of rows that are packed")));
        }
        if sinks > 0 {
            let bytes = product(&[sinks, rows.code.dim(), 4])?;
            rows.sinks = super::floats(DType::F32, &read_bytes(source, prefix, "sinks", bytes)?);
        }
        let names = rows.code.streams();
        let part = |(name, _): &super::Stream| {
            source.part(&format!("{prefix}.{name}")).map(|part| part.bytes().clone())
        };
        let streams = names.iter().map(part).collect::<Result<Vec<Bytes>>>()?;
        let mut at = vec![0usize; streams.len()];
        for _ in 0..(len - sinks) / unit {
            let mut slices: Vec<&[u8]> = Vec::with_capacity(streams.len());
            for (stream, at) in streams.iter().zip(&mut at) {
                let bytes = rows.code.bytes(&slices);
                let slice = at.checked_add(bytes).and_then(|end| stream.get(*at..end));
                slices.push(slice.ok_or_else(|| bad("an array is too short"))?);
                *at += bytes;
            }
            if !rows.code.fits(&slices) {
                return Err(bad("codes that no encoder writes"));
            }
            rows.last_page().push(slices.into_iter());
        }
        if streams.iter().zip(&at).any(|(stream, at)| stream.len() != *at) {
            return Err(bad("an array is too long"));
        }
        rows.len = len;
        Ok(rows)
    }

    /// The page that the next unit goes to.
    fn last_page(&mut self) -> &mut Page {
        let (full, streams) = (self.units_of_page(), self.code.streams().len());
        if self.pages.last().is_none_or(|page| page.units == full) {
            self.pages.push(Arc::new(Page::of(streams)));
        }
        Arc::make_mut(self.pages.last_mut().expect("just made"))
    }

    /// Calls with every unit that has some of these rows: where its first row stands, and its bytes.
    pub(crate) fn each_unit(&self, tokens: Range<usize>, mut f: impl FnMut(usize, &[&[u8]])) {
        let (first, unit) = (self.code.sinks(), self.code.unit());
        let from = tokens.start.max(first);
        if from >= tokens.end {
            return;
        }
        for n in (from - first) / unit..(tokens.end - first).div_ceil(unit) {
            let full = self.units_of_page();
            f(first + n * unit, &self.pages[n / full].unit(n % full));
        }
    }

    /// Calls with runs of exact or decoded rows among these: the first one's place and the rows.
    fn each_run(&self, tokens: Range<usize>, mut f: impl FnMut(usize, &[f32])) {
        let dim = self.code.dim();
        let exact = tokens.start..tokens.end.min(self.code.sinks());
        if exact.start < exact.end {
            f(exact.start, &self.sinks[exact.start * dim..exact.end * dim]);
        }
        let mut unit = vec![0.0; self.code.unit() * dim];
        self.each_unit(tokens.clone(), |first, bytes| {
            self.code.decode(bytes, &mut unit);
            let from = tokens.start.max(first);
            let end = tokens.end.min(first + self.code.unit());
            f(from, &unit[(from - first) * dim..(end - first) * dim]);
        });
    }

    pub(crate) fn plain_dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let dim = self.code.dim();
        self.each_run(tokens, |first, rows| {
            for (i, q) in queries.rows().into_iter().enumerate() {
                let q = q.to_slice().expect("contiguous");
                let out = &mut out[i * stride + first..];
                for (row, out) in rows.chunks_exact(dim).zip(out) {
                    *out = kernels::dot(row, q);
                }
            }
        });
    }

    pub(crate) fn plain_mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let dim = self.code.dim();
        self.each_run(tokens, |first, rows| {
            for (i, mut out) in out.rows_mut().into_iter().enumerate() {
                let out = out.as_slice_mut().expect("contiguous");
                let weights = &weights[i * stride + first..];
                for (row, w) in rows.chunks_exact(dim).zip(weights) {
                    kernels::axpy(*w, row, out);
                }
            }
        });
    }
}

impl<C: Code> PackedRows for Coded<C> {
    fn len(&self) -> usize {
        self.len
    }

    fn dim(&self) -> usize {
        self.code.dim()
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        let (out, sinks, unit) =
            (total.saturating_sub(window), self.code.sinks(), self.code.unit());
        let packed = sinks + out.saturating_sub(sinks) / unit * unit;
        if packed < self.code.fit() || packed == sinks { 0 } else { packed }
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        let mut rows = rows;
        if self.len == 0 && rows.nrows() > 0 {
            let (sinks, fit) = (self.code.sinks(), self.code.fit());
            if fit > 0 && !self.code.given() {
                self.code.learn(rows.slice(s![sinks..fit, ..]));
            }
            self.sinks = rows.slice(s![..sinks, ..]).iter().copied().collect();
            self.len = sinks;
            rows = rows.slice_move(s![sinks.., ..]);
        }
        let mut streams = vec![Vec::new(); self.code.streams().len()];
        for unit in rows.axis_chunks_iter(ndarray::Axis(0), self.code.unit()) {
            self.code.encode(unit, &mut streams);
            self.last_page().push(streams.iter().map(Vec::as_slice));
            streams.iter_mut().for_each(Vec::clear);
            self.len += unit.nrows();
        }
    }

    fn truncate(&mut self, len: usize) {
        if len == 0 {
            self.sinks.clear();
            self.pages.clear();
            if !self.code.given() {
                self.code.forget();
            }
        } else {
            let (units, full) =
                ((len - self.code.sinks()) / self.code.unit(), self.units_of_page());
            self.pages.truncate(units.div_ceil(full));
            let last = units - (units - 1) / full * full;
            Arc::make_mut(self.pages.last_mut().expect("a unit stays")).truncate(last);
        }
        self.len = len;
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (dim, start) = (self.code.dim(), tokens.start);
        self.each_run(tokens, |first, rows| {
            let run = ArrayView2::from_shape((rows.len() / dim, dim), rows).expect("whole rows");
            out.slice_mut(s![first - start..first - start + run.nrows(), ..]).assign(&run);
        });
    }

    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        C::dots(self, queries, tokens, out, stride);
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) {
        C::mix(self, weights, stride, tokens, out);
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        write_model(&self.code.model(), prefix, sink)?;
        if self.len == 0 {
            return Ok(());
        }
        if !self.sinks.is_empty() {
            let mut bytes = Vec::new();
            super::put_floats(DType::F32, &self.sinks, &mut bytes);
            bytes_part(sink, prefix, "sinks", PartKind::Values, &bytes)?;
        }
        for (i, (name, kind)) in self.code.streams().iter().enumerate() {
            let bytes: Vec<u8> =
                self.pages.iter().flat_map(|page| page.streams[i].0.iter().copied()).collect();
            bytes_part(sink, prefix, name, *kind, &bytes)?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let model: usize = self.code.model().iter().map(|(_, bytes)| bytes.len()).sum();
        let page =
            |page: &Arc<Page>| page.streams.iter().map(|(bytes, _)| bytes.len()).sum::<usize>();
        let units: usize = self.pages.iter().map(page).sum();
        (model + units + 4 * self.sinks.len()) as u64
    }

    fn describe(&self) -> Json {
        let mut json = self.code.describe();
        json["len"] = json!(self.len);
        json
    }
}
