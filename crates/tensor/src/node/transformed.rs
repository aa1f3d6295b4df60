use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, Side, Transform,
    check_matmul, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = A T (inputs) or W = Tᵀ A (outputs) with a [`Transform`] T around a node A.
#[derive(Debug)]
pub struct Transformed {
    side: Side,
    transform: Transform,
    inner: Box<dyn Node>,
}

impl Transformed {
    /// `transform` on `side` of `inner`.
    ///
    /// # Errors
    /// `ShapeMismatch` if the channels differ.
    pub fn new(side: Side, transform: Transform, inner: Box<dyn Node>) -> Result<Self> {
        let [out, inp] = inner.shape();
        let channels = if side == Side::In { inp } else { out };
        if channels != transform.inner() {
            return Err(Error::shape(format!(
                "transform of {} channels on {channels}",
                transform.inner()
            )));
        }
        Ok(Self { side, transform, inner })
    }

    /// The transform.
    #[must_use]
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let transform = Transform::read_from(reader, &field(json, "transform")?, prefix)?;
        let inner = reader.child(json, "inner", prefix)?;
        let node = Self::new(field(json, "side")?, transform, inner);
        Ok(Box::new(node.map_err(|e| Error::corruption(e.message()))?))
    }

    fn try_map(
        self,
        f: impl FnOnce(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { inner: f(self.inner)?, ..self }))
    }

    /// Decodes inner rows into a scratch matrix and hands it to `then`.
    fn with_inner_rows(
        &self,
        rows: Range<usize>,
        scratch: &mut Scratch,
        then: impl FnOnce(ArrayView2<'_, f32>, &mut Scratch),
    ) -> Result<()> {
        scratch.with_matrix((rows.len(), self.inner.shape()[1]), |mut inner, scratch| {
            self.inner.decode_rows(rows, inner.view_mut(), Accum::Replace, scratch)?;
            then(inner.view(), scratch);
            Ok(())
        })
    }

    /// Rows of W for an output transform: each outer row is a combination of inner rows.
    fn decode_out_row(
        &self,
        row: usize,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match &self.transform {
            Transform::Scale { values, .. } => {
                self.inner.decode_rows(row..row + 1, out.view_mut(), Accum::Replace, scratch)?;
                out *= values[row];
            }
            Transform::Index { index, .. } => match index.iter().position(|i| *i as usize == row) {
                Some(i) => self.inner.decode_rows(i..i + 1, out, Accum::Replace, scratch)?,
                None => out.fill(0.0),
            },
            Transform::Hadamard { block, .. } => {
                // (Tᵀ A)[row] = sum_i T[i, row] A[i] over the row's block.
                let first = row / block * block;
                let mut unit = vec![0.0; self.transform.inner()];
                unit[row] = 1.0;
                let mut weights = vec![0.0; unit.len()];
                self.transform.apply_transposed(
                    ArrayView2::from_shape((1, unit.len()), &unit).expect("length"),
                    ArrayViewMut2::from_shape((1, unit.len()), &mut weights).expect("length"),
                );
                out.fill(0.0);
                self.with_inner_rows(first..first + block, scratch, |inner, _| {
                    for (i, inner_row) in inner.rows().into_iter().enumerate() {
                        out.row_mut(0).scaled_add(weights[first + i], &inner_row);
                    }
                })?;
            }
        }
        Ok(())
    }
}

impl Node for Transformed {
    fn shape(&self) -> [usize; 2] {
        let [out, inp] = self.inner.shape();
        match self.side {
            Side::In => [out, self.transform.outer()],
            Side::Out => [self.transform.outer(), inp],
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
        scratch.with_matrix((rows.len(), inp), |mut decoded, scratch| {
            match self.side {
                Side::In => self.with_inner_rows(rows, scratch, |inner, _| {
                    self.transform.apply(inner, decoded.view_mut());
                })?,
                Side::Out => {
                    for (i, row) in rows.enumerate() {
                        let one = decoded.slice_mut(ndarray::s![i..=i, ..]);
                        self.decode_out_row(row, one, scratch)?;
                    }
                }
            }
            if accum == Accum::Add {
                out += &decoded;
            } else {
                out.assign(&decoded);
            }
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
        let shape = (x.nrows(), self.transform.inner());
        scratch.with_matrix(shape, |mut inner, scratch| match self.side {
            Side::In => {
                self.transform.apply_transposed(x, inner.view_mut());
                self.inner.matmul(inner.view(), y, accum, scratch)
            }
            Side::Out => {
                self.inner.matmul(x, inner.view_mut(), Accum::Replace, scratch)?;
                if accum == Accum::Replace {
                    self.transform.apply(inner.view(), y);
                } else {
                    let mut outer = ndarray::Array2::zeros(y.dim());
                    self.transform.apply(inner.view(), outer.view_mut());
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
            "transform": self.transform.describe(),
            "inner": self.inner.describe(),
        })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.transform.parts(prefix, sink)?;
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.map_planes(f))
    }

    /// A mask passes through scales and permutations (its columns or rows move along), not through rotations.
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        match &self.transform {
            Transform::Scale { .. } => self.try_map(|inner| inner.keep(mask)),
            _ => Err(Error::unsupported(
                "a mask over a permuted or rotated node: mask the inner node",
            )),
        }
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.prepack())
    }
}
