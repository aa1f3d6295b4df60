use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::plane::part_name;
use super::registry::shape_field;
use super::{Accum, Json, Mask, Node, NodeReader, PlaneMap, Scratch, check_same_shape, join};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = S * A: only the entries in the support S are stored; all others are exactly 0.
#[derive(Debug)]
pub struct Masked {
    mask: Arc<Mask>,
    inner: Box<dyn Node>,
}

impl Masked {
    /// Restricts `inner` to `mask`, dropping what lies outside.
    ///
    /// # Errors
    /// `ShapeMismatch`, or `Unsupported` as [`Node::keep`].
    pub fn new(mask: Mask, inner: Box<dyn Node>) -> Result<Self> {
        check_same_shape(inner.shape(), mask.shape(), "mask")?;
        let mask = Arc::new(mask);
        Ok(Self { inner: inner.keep(&mask)?, mask })
    }

    /// The support.
    #[must_use]
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let [rows, cols] = shape_field(json)?;
        let bits = reader.bytes(&part_name(prefix, "mask"), DType::U8)?;
        let mask = Arc::new(Mask::new(rows, cols, bits)?);
        let inner = reader.under(mask.clone()).child(json, "inner", prefix)?;
        if inner.shape() != [rows, cols] {
            return Err(Error::corruption(format!(
                "{:?} under a {rows} x {cols} mask",
                inner.shape()
            )));
        }
        Ok(Box::new(Self { mask, inner }))
    }
}

impl Node for Masked {
    fn shape(&self) -> [usize; 2] {
        self.inner.shape()
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
        scratch.with_matrix((rows.len(), inp), |mut dense, scratch| {
            self.inner.decode_rows(rows.clone(), dense.view_mut(), Accum::Replace, scratch)?;
            if accum == Accum::Replace {
                out.fill(0.0);
            }
            for (i, row) in rows.enumerate() {
                self.mask.for_each_kept(row, |c| out[[i, c]] += dense[[i, c]]);
            }
            Ok(())
        })
    }

    fn describe(&self) -> Json {
        json!({"node": "masked.v1", "shape": self.shape(), "inner": self.inner.describe()})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        sink.part(self.mask.part(part_name(prefix, "mask")))?;
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { mask: self.mask, inner: self.inner.map_planes(f)? }))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a masked node: intersect the masks instead"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { mask: self.mask, inner: self.inner.prepack()? }))
    }
}
