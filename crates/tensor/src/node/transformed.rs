use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Channels, Input, Json, Map, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, Side,
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
        let corrupt = |e: Error| Error::corruption(e.message());
        let map = reader.map(&field(json, "transform")?, prefix)?;
        let side = field(json, "side")?;
        let reader = match reader.mask() {
            Some(mask) => reader.under(inner_mask(&*map, side, mask).map_err(corrupt)?),
            None => reader.clone(),
        };
        let inner = reader.child(json, "inner", prefix)?;
        Ok(Box::new(Self::new(side, map, inner).map_err(corrupt)?))
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
        let in_parts = self.inner.decode_part(0..0, 0..0, &mut [])?;
        let mut at = rows.start;
        while at < rows.end {
            let first = at / band * band;
            let until = rows.end.min(first + band);
            let mut whole = Vec::new();
            if !in_parts {
                whole = scratch.take(band * cols);
                let view = ArrayViewMut2::from_shape((band, cols), &mut whole).expect("taken");
                self.inner.decode_rows(first..first + band, view, Accum::Replace, scratch)?;
            }
            for from in (0..cols).step_by(width) {
                let columns = from..cols.min(from + width);
                let strip = out.slice_mut(s![at - rows.start..until - rows.start, columns.clone()]);
                let mut decode =
                    |rows: Range<usize>, mut out: ArrayViewMut2<'_, f32>, scratch: &mut Scratch| {
                        if !in_parts {
                            let rows = rows.start - first..rows.end - first;
                            let whole = ArrayView2::from_shape((band, cols), &whole);
                            out.assign(&whole.expect("taken").slice(s![rows, columns.clone()]));
                            return Ok(());
                        }
                        if let Some(out) = out.as_slice_mut() {
                            return self.inner.decode_part(rows, columns.clone(), out).map(drop);
                        }
                        scratch.with_matrix(out.dim(), |mut part, _| {
                            let values = part.as_slice_mut().expect("standard layout");
                            self.inner.decode_part(rows, columns.clone(), values)?;
                            out.assign(&part);
                            Ok(())
                        })
                    };
                self.map.decode_out(at..until, strip, scratch, &mut decode)?;
            }
            if !in_parts {
                scratch.put(whole);
            }
            at = until;
        }
        Ok(())
    }
}

/// Values of a strip: 768 KiB, for the second-level cache. Three times a power of two, so that rows which are combined lie
/// at different places of it.
const STRIP: usize = 192 * 1024;
/// Columns of a strip, at least: shorter pieces of rows cost more in pages and lines than a band outside of the cache.
const NARROWEST: usize = 384;

/// Columns that are decoded at a time, where that is not all: a multiple of 16, whatever the rows asked for.
fn strip(band: usize, cols: usize) -> Option<usize> {
    let width = (STRIP.checked_div(band)? / 16 * 16).max(NARROWEST);
    (width < cols).then_some(width)
}

/// The support of A where that of W is `mask`.
fn inner_mask(map: &dyn Map, side: Side, mask: &Arc<Mask>) -> Result<Arc<Mask>> {
    let [rows, cols] = mask.shape();
    let channels = if side == Side::In { cols } else { rows };
    if channels != map.outer() {
        let message = format!("a map of {} channels under a {rows} x {cols} mask", map.outer());
        return Err(Error::shape(message));
    }
    match map.channels() {
        // The same support, in the same memory.
        Channels::Scaled(_) => Ok(mask.clone()),
        _ => map.mask(mask, side).map(Arc::new),
    }
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

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &rows, x, &y);
        let tokens = x.tokens();
        match self.side {
            Side::In => scratch.with_matrix((tokens, self.map.inner()), |mut inner, scratch| {
                self.map.apply_transposed(x.view(), inner.view_mut());
                Input::with(inner.view(), scratch, |inner, scratch| {
                    self.inner.matmul_rows(rows, inner, y, accum, scratch)
                })
            }),
            Side::Out => {
                let reach = self.map.reach(rows.clone());
                scratch.with_matrix((tokens, reach.len()), |mut inner, scratch| {
                    let part = inner.view_mut();
                    self.inner.matmul_rows(reach, x, part, Accum::Replace, scratch)?;
                    if accum == Accum::Replace {
                        self.map.apply_part(inner.view(), rows, y, scratch);
                        return Ok(());
                    }
                    scratch.with_matrix(y.dim(), |mut outer, scratch| {
                        self.map.apply_part(inner.view(), rows, outer.view_mut(), scratch);
                        y += &outer;
                        Ok(())
                    })
                })
            }
        }
    }

    fn multiply(&self) -> Multiply {
        self.inner.multiply()
    }

    fn is_linear(&self) -> bool {
        self.inner.is_linear()
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

    /// A mask passes through scales and index maps.
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        let mask = inner_mask(&*self.map, self.side, mask)?;
        self.try_map(|inner| inner.keep(&mask))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.prepack())
    }
}
