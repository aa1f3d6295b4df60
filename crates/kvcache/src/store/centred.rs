use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use serde_json::json;
use tensorpress_tensor::kernels::{axpy, dot};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, PartSink, Result, ndarray};

use super::rows::{bytes_part, count, product, read_bytes};
use super::windowed::PackedRows;

/// Rows less a mean that moves with them, packed; the first few exact.
///
/// Channels of keys have means that are larger than what differs from token to token, and only the differences change what
/// a query looks at (SageAttention's smoothing of keys, Zhang et al., 2025). The first tokens are sinks: unlike all others, and
/// looked at by every query. A mean is that of the rows just before those it serves, as they were packed: whatever way
/// rows come, and wherever they are cut, it is the same.
#[derive(Debug, Clone)]
pub(crate) struct Centred<P> {
    packed: P,
    sinks: usize,
    /// Type of the means; none where rows are packed as they are.
    dtype: Option<DType>,
    first: Vec<f32>,
    /// One for each span of packed rows.
    means: Vec<f32>,
}

/// The first mean is that of so many rows, which wait for each other.
const START: usize = 32;

/// No more rows than that are behind a mean, or served by one.
const MOST: usize = 256;

/// Spans double until they have [`MOST`] rows: 0..32, 32..64, 64..128, 128..256, 256..512, 512..768 and so on.
fn span(row: usize) -> usize {
    match row / START {
        0 => 0,
        n if n < MOST / START => n.ilog2() as usize + 1,
        n => n / (MOST / START) + 3,
    }
}

/// The first row of a span.
fn start(span: usize) -> usize {
    match span {
        0 => 0,
        1..=3 => START << (span - 1),
        n => (n - 3) * MOST,
    }
}

impl<P: PackedRows> Centred<P> {
    pub(crate) fn new(packed: P, sinks: usize, dtype: Option<DType>) -> Self {
        Self { packed, sinks, dtype, first: Vec::new(), means: Vec::new() }
    }

    /// What follows the sinks of these rows.
    fn behind(&self, tokens: &Range<usize>) -> Range<usize> {
        tokens.start.saturating_sub(self.sinks)..tokens.end.saturating_sub(self.sinks)
    }

    /// Sinks among these rows.
    fn exact(&self, tokens: &Range<usize>) -> Range<usize> {
        let sinks = self.first.len() / self.dim();
        tokens.start.min(sinks)..tokens.end.min(sinks)
    }

    fn mean(&self, span: usize) -> &[f32] {
        &self.means[span * self.dim()..][..self.dim()]
    }

    /// Spans of means that serve some packed rows, each with those rows.
    fn spans(&self, rows: Range<usize>) -> impl Iterator<Item = (&[f32], Range<usize>)> {
        let all = match self.dtype {
            Some(_) if !rows.is_empty() => span(rows.start)..span(rows.end - 1) + 1,
            _ => 0..0,
        };
        all.map(move |n| (self.mean(n), rows.start.max(start(n))..rows.end.min(start(n + 1))))
    }

    /// The next span's mean, from what is packed or from the first rows.
    fn push_mean(&mut self, dtype: DType, rows: ArrayView2<'_, f32>) {
        let len = self.packed.len();
        let mean = if len == 0 {
            rows.slice(s![..START.min(rows.nrows()), ..]).mean_axis(Axis(0))
        } else {
            let from = len.saturating_sub(MOST);
            let mut before = Array2::zeros((len - from, self.dim()));
            let all = from + self.sinks..len + self.sinks;
            self.decode(all, before.view_mut());
            before.mean_axis(Axis(0))
        };
        self.means.extend(mean.expect("some rows").iter().map(|x| dtype.round(*x)));
    }

    /// Reads what [`PackedRows::parts`] wrote beside the packed rows.
    pub(crate) fn read(
        json: &Json,
        mut packed: impl FnMut(&Json) -> Result<P>,
        (sinks, dtype): (usize, Option<DType>),
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        if sinks == 0 && dtype.is_none() {
            return Ok(Self::new(packed(json)?, sinks, dtype));
        }
        let len = count(json, "len")?;
        let mut inner = json.clone();
        inner["len"] = json!(len.saturating_sub(sinks));
        let mut rows = Self::new(packed(&inner)?, sinks, dtype);
        if len == 0 {
            return Ok(rows);
        }
        if rows.shortest() > len {
            let why = format!("KV cache description: `len` = {len}, which is never packed");
            return Err(Error::corruption(why).in_tensor(prefix));
        }
        let dim = rows.dim();
        if sinks > 0 {
            let bytes = read_bytes(source, prefix, "sinks", product(&[sinks, dim, 4])?)?;
            rows.first = super::coded::floats(DType::F32, &bytes);
        }
        if let Some(dtype) = dtype {
            let spans = span(rows.packed.len() - 1) + 1;
            let bytes = product(&[spans, dim, dtype.size()])?;
            rows.means = super::coded::floats(dtype, &read_bytes(source, prefix, "means", bytes)?);
        }
        Ok(rows)
    }

    /// The fewest rows that are packed, but for none.
    fn shortest(&self) -> usize {
        self.sinks + if self.dtype.is_some() { START } else { 1 }
    }
}

impl<P: PackedRows> PackedRows for Centred<P> {
    fn len(&self) -> usize {
        self.first.len() / self.dim() + self.packed.len()
    }

    fn dim(&self) -> usize {
        self.packed.dim()
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        let behind = self.packed.prefix(total.saturating_sub(self.sinks), window);
        if self.sinks + behind >= self.shortest() { self.sinks + behind } else { 0 }
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        let sinks = if self.len() == 0 { self.sinks } else { 0 };
        self.first.extend(rows.slice(s![..sinks, ..]).iter());
        let rows = rows.slice(s![sinks.., ..]);
        let Some(dtype) = self.dtype else { return self.packed.push(rows) };
        let mut done = 0;
        while done < rows.nrows() {
            let at = self.packed.len();
            let n = span(at);
            let now = (start(n + 1) - at).min(rows.nrows() - done);
            if start(n) == at {
                self.push_mean(dtype, rows.slice(s![done.., ..]));
            }
            let mut part = rows.slice(s![done..done + now, ..]).to_owned();
            part -= &ndarray::aview1(self.mean(n));
            self.packed.push(part.view());
            done += now;
        }
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len.saturating_sub(self.sinks));
        if len == 0 {
            self.first.clear();
        }
        let spans = self.packed.len().checked_sub(1).map_or(0, |last| span(last) + 1);
        self.means.truncate(spans * self.dim());
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let (exact, dim) = (self.exact(&tokens), self.dim());
        let sinks = exact.len();
        let first = &self.first[exact.start * dim..exact.end * dim];
        let first = ArrayView2::from_shape((sinks, dim), first).expect("whole rows");
        out.slice_mut(s![..sinks, ..]).assign(&first);
        let (rows, mut out) = (self.behind(&tokens), out.slice_mut(s![sinks.., ..]));
        self.packed.decode(rows.clone(), out.view_mut());
        for (mean, served) in self.spans(rows.clone()) {
            let mut out = out.slice_mut(s![served.start - rows.start..served.end - rows.start, ..]);
            out += &ndarray::aview1(mean);
        }
    }

    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let (rows, exact) = (self.behind(&tokens), self.exact(&tokens));
        if !rows.is_empty() {
            self.packed.dots(queries, rows.clone(), &mut out[self.sinks..], stride);
        }
        for (i, q) in queries.rows().into_iter().enumerate() {
            let q = q.to_slice().expect("contiguous");
            let out = &mut out[i * stride..];
            for (mean, served) in self.spans(rows.clone()) {
                let more = dot(mean, q);
                let served = served.start + self.sinks..served.end + self.sinks;
                out[served].iter_mut().for_each(|out| *out += more);
            }
            for t in exact.clone() {
                out[t] = dot(&self.first[t * self.dim()..][..self.dim()], q);
            }
        }
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let (rows, exact) = (self.behind(&tokens), self.exact(&tokens));
        if !rows.is_empty() {
            self.packed.mix(&weights[self.sinks..], stride, rows.clone(), out.view_mut());
        }
        for (i, mut out) in out.rows_mut().into_iter().enumerate() {
            let (weights, out) = (&weights[i * stride..], out.as_slice_mut().expect("contiguous"));
            for (mean, served) in self.spans(rows.clone()) {
                let served = served.start + self.sinks..served.end + self.sinks;
                axpy(weights[served].iter().sum(), mean, out);
            }
            for t in exact.clone() {
                axpy(weights[t], &self.first[t * self.dim()..][..self.dim()], out);
            }
        }
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.packed.parts(prefix, sink)?;
        let mut write = |name, kind, dtype: DType, values: &[f32]| {
            let mut bytes = Vec::new();
            dtype.write_f32(values, &mut bytes)?;
            bytes_part(sink, prefix, name, kind, &bytes)
        };
        if !self.first.is_empty() {
            write("sinks", PartKind::Values, DType::F32, &self.first)?;
        }
        match self.dtype {
            Some(dtype) if !self.means.is_empty() => {
                write("means", PartKind::Scales, dtype, &self.means)
            }
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> u64 {
        let means = self.dtype.map_or(0, |dtype| dtype.size() * self.means.len());
        self.packed.bytes() + (4 * self.first.len() + means) as u64
    }

    fn describe(&self) -> Json {
        let mut json = self.packed.describe();
        if self.sinks > 0 {
            json["sinks"] = json!(self.sinks);
        }
        if let Some(dtype) = self.dtype {
            json["means"] = json!(dtype);
        }
        if self.sinks > 0 || self.dtype.is_some() {
            json["len"] = json!(self.len());
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::linalg::SplitMix;

    use super::*;
    use crate::store::int::{IntRows, IntShape, Role};
    use crate::store::{Axis as Shares, Rows, Windowed};

    const DIM: usize = 32;

    fn ints(role: Role) -> IntRows {
        let (axis, dtype) = (Shares::Token, DType::F16);
        IntRows::new(IntShape { role, axis, bits: 4, group: 32, dim: DIM, dtype, sliding: false })
    }

    /// Rows around a mean that drifts, the first ones unlike all others.
    fn rows(n: usize) -> Array2<f32> {
        let mut random = SplitMix::new(1);
        Array2::from_shape_fn((n, DIM), |(t, c)| {
            let mean = 9.0 * (c as f32 + t as f32 / 8000.0).sin();
            let sink = if t < 2 && c == 5 { 300.0 } else { 0.0 };
            random.next_f64() as f32 - 0.5 + mean + sink
        })
    }

    fn decoded(rows: &impl PackedRows) -> Array2<f32> {
        let mut out = Array2::zeros((rows.len(), rows.dim()));
        rows.decode(0..rows.len(), out.view_mut());
        out
    }

    #[test]
    fn spans_double_and_then_do_not() {
        let starts: Vec<usize> = (0..7).map(start).collect();
        assert_eq!(starts, [0, 32, 64, 128, 256, 512, 768]);
        for row in 0..2000 {
            assert!((start(span(row))..start(span(row) + 1)).contains(&row), "{row}");
        }
    }

    /// What the mean is taken off for: a row's range is that of its differences. And the exact ones are exact.
    #[test]
    fn means_and_sinks_cost_the_rest_nothing() {
        let x = rows(600);
        let error = |sinks: usize, means| {
            let mut packed = Centred::new(ints(Role::Keys), sinks, means);
            packed.push(x.view());
            let y = decoded(&packed);
            assert_eq!(y.slice(s![..sinks, ..]), x.slice(s![..sinks, ..]));
            (&y - &x).slice(s![2.., ..]).mapv(|e| f64::from(e).powi(2)).sum()
        };
        let [with, plain] = [error(2, Some(DType::F16)), error(2, None)];
        assert!(with < 0.02 * plain, "{with} against {plain}");
        // Sinks in the first mean would spoil the first span.
        assert!(with < 0.5 * error(0, Some(DType::F16)));
    }

    /// Products and sums are those with the decoded rows, in f64 by plain loops, over any range.
    #[test]
    fn products_and_sums_have_the_mean_in_them() {
        for (role, sinks, means) in [
            (Role::Keys, 3, Some(DType::F16)),
            (Role::Values, 1, Some(DType::F32)),
            (Role::Keys, 5, None),
        ] {
            let x = rows(700);
            let mut packed = Centred::new(ints(role), sinks, means);
            packed.push(x.view());
            let y = decoded(&packed);
            let q = rows(2);
            let len = x.nrows();
            for range in [0..len, 0..2, 2..40, 33..300, 256..700, 699..700] {
                let weights: Vec<f32> = (0..2 * len).map(|i| (i % 13) as f32 / 13.0).collect();
                if role == Role::Keys {
                    let mut out = vec![f32::NAN; 2 * len];
                    packed.dots(q.view(), range.clone(), &mut out, len);
                    for (i, t) in (0..2).flat_map(|i| range.clone().map(move |t| (i, t))) {
                        let exact: f64 =
                            (0..DIM).map(|c| f64::from(q[[i, c]]) * f64::from(y[[t, c]])).sum();
                        let mine = f64::from(out[i * len + t]);
                        assert!(
                            (mine - exact).abs() < 1e-3 * (3e3 + exact.abs()),
                            "{mine} {exact}"
                        );
                    }
                    continue;
                }
                let mut sums = Array2::ones((2, DIM));
                packed.mix(&weights, len, range.clone(), sums.view_mut());
                for ((i, c), mine) in sums.indexed_iter() {
                    let all = range
                        .clone()
                        .map(|t| f64::from(weights[i * len + t]) * f64::from(y[[t, c]]));
                    let exact = 1.0 + all.sum::<f64>();
                    assert!(
                        (f64::from(*mine) - exact).abs() < 2e-3 * (1e2 + exact.abs()),
                        "{mine} {exact}"
                    );
                }
            }
        }
    }

    /// However rows come and wherever they are cut, what is packed is the same.
    #[test]
    fn pieces_and_cuts_change_nothing() {
        let x = rows(900);
        let of = |n: usize, pieces: &[usize]| {
            let mut all = Windowed::new(Centred::new(ints(Role::Keys), 3, Some(DType::F16)), 8, 8);
            let mut at = 0;
            for piece in pieces.iter().cycle() {
                if at == n {
                    break;
                }
                let end = (at + piece).min(n);
                all.push(x.slice(s![at..end, ..]));
                at = end;
            }
            all
        };
        let of_all = |all: &Windowed<Centred<IntRows>>| {
            let mut out = Array2::zeros((all.len(), DIM));
            all.decode(0..all.len(), out.view_mut());
            (out, all.describe(), all.bytes())
        };
        let whole = of(900, &[900]);
        assert_eq!(of_all(&of(900, &[1])), of_all(&whole));
        assert_eq!(of_all(&of(900, &[7, 300, 45])), of_all(&whole));
        for n in [1, 42, 43, 44, 75, 77, 300, 523, 800] {
            let mut back = of(n + 8, &[n + 8]);
            back.truncate(n);
            assert_eq!(of_all(&back).0, of_all(&of(n, &[5])).0, "{n}");
            back.push(x.slice(s![n..900, ..]));
            assert_eq!(of_all(&back), of_all(&whole), "{n}");
        }
    }
}
