use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Channels, Json, Map, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, Side,
    check_matmul, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = A T (inputs) or W = Tᵀ A (outputs) with a [`Map`] T around a node A.
#[derive(Debug)]
pub struct Transformed {
    side: Side,
    map: Arc<dyn Map>,
    inner: Box<dyn Node>,
}

impl Transformed {
    /// `map` on `side` of `inner`.
    ///
    /// # Errors
    /// `ShapeMismatch` if the channels differ.
    pub fn new(side: Side, map: Arc<dyn Map>, inner: Box<dyn Node>) -> Result<Self> {
        let [out, inp] = inner.shape();
        let channels = if side == Side::In { inp } else { out };
        if channels != map.inner() {
            let message = format!("a map of {} channels on {channels}", map.inner());
            return Err(Error::shape(message));
        }
        Ok(Self { side, map, inner })
    }

    /// T.
    #[must_use]
    pub fn map(&self) -> &dyn Map {
        &*self.map
    }

    /// The side T stands on.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// A.
    #[must_use]
    pub fn inner(&self) -> &dyn Node {
        &*self.inner
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let map = reader.map(&field(json, "transform")?, prefix)?;
        let inner = reader.child(json, "inner", prefix)?;
        let node = Self::new(field(json, "side")?, map, inner);
        Ok(Box::new(node.map_err(|e| Error::corruption(e.message()))?))
    }

    fn try_map(
        self,
        f: impl FnOnce(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { inner: f(self.inner)?, ..self }))
    }

    /// Rows of W, in place of what is there.
    fn decode_into(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let decode = |rows: Range<usize>, out: ArrayViewMut2<'_, f32>, scratch: &mut Scratch| {
            self.inner.decode_rows(rows, out, Accum::Replace, scratch)
        };
        match self.side {
            Side::In => {
                let shape = (rows.len(), self.inner.shape()[1]);
                scratch.with_matrix(shape, |mut inner, scratch| {
                    decode(rows, inner.view_mut(), scratch)?;
                    self.map.apply(inner.view(), out.view_mut());
                    Ok(())
                })
            }
            Side::Out => match strip(self.map.band(), out.ncols()) {
                Some(width) => self.decode_strips(width, rows, out, scratch),
                None => self.map.decode_out(rows, out, scratch, &mut { decode }),
            },
        }
    }

    /// Band for band, in strips of `width` columns: from kernels that decode parts, or else out of the decoded band.
    fn decode_strips(
        &self,
        width: usize,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (band, cols) = (self.map.band(), out.ncols());
        let stored = self.inner.stored()?.filter(|stored| stored.decode_part(0..0, 0..0, &mut []));
        let mut at = rows.start;
        while at < rows.end {
            let first = at / band * band;
            let until = rows.end.min(first + band);
            let mut whole = Vec::new();
            if stored.is_none() {
                whole = scratch.take(band * cols);
                let view = ArrayViewMut2::from_shape((band, cols), &mut whole).expect("taken");
                self.inner.decode_rows(first..first + band, view, Accum::Replace, scratch)?;
            }
            for from in (0..cols).step_by(width) {
                let columns = from..cols.min(from + width);
                let strip = out.slice_mut(s![at - rows.start..until - rows.start, columns.clone()]);
                let mut decode = |rows: Range<usize>,
                                  mut out: ArrayViewMut2<'_, f32>,
                                  scratch: &mut Scratch| {
                    match (&stored, out.as_slice_mut()) {
                        (Some(stored), Some(out)) => {
                            stored.decode_part(rows, columns.clone(), out);
                        }
                        (Some(stored), None) => scratch.with_matrix(out.dim(), |mut part, _| {
                            let values = part.as_slice_mut().expect("standard layout");
                            stored.decode_part(rows, columns.clone(), values);
                            out.assign(&part);
                        }),
                        (None, _) => {
                            let rows = rows.start - first..rows.end - first;
                            let whole = ArrayView2::from_shape((band, cols), &whole);
                            out.assign(&whole.expect("taken").slice(s![rows, columns.clone()]));
                        }
                    }
                    Ok(())
                };
                self.map.decode_out(at..until, strip, scratch, &mut decode)?;
            }
            if stored.is_none() {
                scratch.put(whole);
            }
            at = until;
        }
        Ok(())
    }
}

/// Values of a strip: 768 KiB, for the second-level cache. Three times a power of two, so that rows which are
/// combined lie at different places of it: with a power of two they fall on one another (measured for 512 rows: 18 ms
/// in place of 16).
const STRIP: usize = 192 * 1024;
/// Columns of a strip, at least: shorter pieces of rows cost more in pages and lines than a band outside of the cache.
const NARROWEST: usize = 384;

/// Columns that are decoded at a time, where that is not all: a multiple of 16, whatever the rows asked for.
fn strip(band: usize, cols: usize) -> Option<usize> {
    let width = (STRIP.checked_div(band)? / 16 * 16).max(NARROWEST);
    (width < cols).then_some(width)
}

impl Node for Transformed {
    fn shape(&self) -> [usize; 2] {
        let [out, inp] = self.inner.shape();
        match self.side {
            Side::In => [out, self.map.outer()],
            Side::Out => [self.map.outer(), inp],
        }
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let inp = self.shape()[1];
        assert_eq!(out.dim(), (rows.len(), inp), "output shape");
        if accum == Accum::Replace {
            return self.decode_into(rows, out, scratch);
        }
        scratch.with_matrix((rows.len(), inp), |mut decoded, scratch| {
            self.decode_into(rows, decoded.view_mut(), scratch)?;
            out += &decoded;
            Ok(())
        })
    }

    fn matmul(
        &self,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &x, &y);
        let shape = (x.nrows(), self.map.inner());
        scratch.with_matrix(shape, |mut inner, scratch| match self.side {
            Side::In => {
                self.map.apply_transposed(x, inner.view_mut());
                self.inner.matmul(inner.view(), y, accum, scratch)
            }
            Side::Out => {
                self.inner.matmul(x, inner.view_mut(), Accum::Replace, scratch)?;
                if accum == Accum::Replace {
                    self.map.apply(inner.view(), y);
                } else {
                    let mut outer = Array2::zeros(y.dim());
                    self.map.apply(inner.view(), outer.view_mut());
                    y += &outer;
                }
                Ok(())
            }
        })
    }

    fn multiply(&self) -> Multiply {
        self.inner.multiply()
    }

    fn describe(&self) -> Json {
        json!({
            "node": "transformed.v1",
            "side": self.side,
            "transform": self.map.describe(),
            "inner": self.inner.describe(),
        })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.map.parts(prefix, sink)?;
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.map_planes(f))
    }

    /// A mask passes through scales alone.
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        match self.map.channels() {
            Channels::Scaled(_) => self.try_map(|inner| inner.keep(mask)),
            _ => Err(Error::unsupported(
                "a mask over a permuted or rotated node: mask the inner node",
            )),
        }
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.prepack())
    }
}
