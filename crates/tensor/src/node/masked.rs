use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::form::{self, Bitmap, MaskForm};
use super::plane::part_name;
use super::registry::{field, shape_field};
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, Plane, PlaneMap, Scratch,
    check_same_shape, join, matmul_by_tiles,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::{PartKind, PartSink, Storage};

/// W = S * A: only the entries in the support S are stored; all others are exactly 0.
///
/// The support is stored in the smallest form that holds it exactly: a bitmap, the rank of each group of n of m, or a
/// bit for each block.
#[derive(Debug)]
pub struct Masked {
    mask: Arc<Mask>,
    form: Arc<dyn MaskForm>,
    /// The symbols of the form; `None` for a bitmap that is not coded.
    plane: Option<Box<dyn Plane>>,
    inner: Box<dyn Node>,
}

/// Bytes of a mask in memory for each that is stored, at most: readers allocate no more.
const MOST_PER_BYTE: usize = 4096;

impl Masked {
    /// Restricts `inner` to `mask`, dropping what lies outside.
    ///
    /// # Errors
    /// `ShapeMismatch`, or `Unsupported` as [`Node::keep`].
    pub fn new(mask: Mask, inner: Box<dyn Node>) -> Result<Self> {
        let form = form::smallest(&mask);
        Self::in_form(mask, form, inner)
    }

    /// The same, with the support stored in a form of one's choice.
    ///
    /// # Errors
    /// As [`Masked::new`]; `InvalidArgument` if the form does not hold this mask.
    pub fn in_form(mask: Mask, form: Arc<dyn MaskForm>, inner: Box<dyn Node>) -> Result<Self> {
        check_same_shape(inner.shape(), mask.shape(), "mask")?;
        let plane = if form.is_bitmap() { None } else { Some(form::plane(&*form, &mask)?) };
        let mask = Arc::new(mask);
        Ok(Self { inner: inner.keep(&mask)?, form, plane, mask })
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
        let mask = Mask::new(rows, cols, bits)?;
        Self::read_inner(reader, json, prefix, mask, Arc::new(Bitmap), None)
    }

    /// Supports in other forms, and coded ones.
    pub(super) fn read_v2(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let shape @ [rows, cols] = shape_field(json)?;
        let described = field::<Json>(json, "mask")?;
        let form = reader.mask_form(&described)?;
        let name = part_name(prefix, "mask");
        let stored = reader.part(&name)?.bytes().len();
        if rows.saturating_mul(cols.div_ceil(8)) > stored.saturating_mul(MOST_PER_BYTE) {
            return Err(Error::corruption(format!("{stored} bytes for a {rows} x {cols} mask")));
        }
        let plane = reader.plane(&described, "plane", &name)?;
        let mask = form::mask(&*form, shape, &*plane)?;
        Self::read_inner(reader, json, prefix, mask, form, Some(plane))
    }

    fn read_inner(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
        mask: Mask,
        form: Arc<dyn MaskForm>,
        plane: Option<Box<dyn Plane>>,
    ) -> Result<Box<dyn Node>> {
        if reader.mask().is_some_and(|outer| !within(&mask, outer)) {
            return Err(Error::corruption("a mask under one that does not contain it"));
        }
        let mask = Arc::new(mask);
        let inner = reader.under(mask.clone()).child(json, "inner", prefix)?;
        if inner.shape() != mask.shape() {
            let [rows, cols] = mask.shape();
            return Err(Error::corruption(format!(
                "{:?} under a {rows} x {cols} mask",
                inner.shape()
            )));
        }
        Ok(Box::new(Self { mask, form, plane, inner }))
    }
}

/// Whether all that one mask keeps is kept by another.
fn within(mask: &Mask, other: &Mask) -> bool {
    let outside = |(own, kept): (&u8, &u8)| own & !kept != 0;
    mask.shape() == other.shape() && !mask.bits().iter().zip(other.bits().iter()).any(outside)
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
        if self.inner.zero_outside() {
            return self.inner.decode_rows(rows, out, accum, scratch);
        }
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

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if self.inner.zero_outside() {
            return self.inner.matmul_rows(rows, x, y, accum, scratch);
        }
        matmul_by_tiles(self, rows, x, y, accum, scratch)
    }

    fn multiply(&self) -> Multiply {
        if self.inner.zero_outside() { self.inner.multiply() } else { Multiply::Decode }
    }

    fn is_linear(&self) -> bool {
        self.inner.is_linear()
    }

    fn describe(&self) -> Json {
        let (shape, inner) = (self.shape(), self.inner.describe());
        match &self.plane {
            None => json!({"node": "masked.v1", "shape": shape, "inner": inner}),
            Some(plane) => {
                let mut mask = self.form.describe();
                mask["plane"] = plane.describe();
                json!({"node": "masked.v2", "shape": shape, "mask": mask, "inner": inner})
            }
        }
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let name = part_name(prefix, "mask");
        match &self.plane {
            None => sink.part(self.mask.part(name))?,
            Some(plane) => plane.parts(&name, PartKind::Masks, sink)?,
        }
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(mut self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        let plane = match self.plane.take() {
            Some(plane) => plane,
            None => form::plane(&*self.form, &self.mask)?,
        };
        let mut plane = plane.map_inner(f)?;
        let mut stored = Storage::default();
        plane.parts("", PartKind::Masks, &mut stored)?;
        let [rows, cols] = self.mask.shape();
        if (rows * cols.div_ceil(8)) as u64 > stored.bytes() * MOST_PER_BYTE as u64 {
            // Readers would refuse what is smaller still.
            plane = form::plane(&*self.form, &self.mask)?;
        }
        if !self.form.is_bitmap() || plane.as_packed().is_none() {
            self.plane = Some(plane);
        }
        self.inner = self.inner.map_planes(f)?;
        Ok(self)
    }

    /// Only a mask that keeps all of this support, which changes nothing.
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        check_same_shape(self.shape(), mask.shape(), "mask")?;
        match within(&self.mask, mask) {
            true => Ok(self),
            false => Err(Error::unsupported(
                "a mask over a masked node that it does not contain: intersect the masks instead",
            )),
        }
    }

    fn zero_outside(&self) -> bool {
        true
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { inner: self.inner.prepack()?, ..*self }))
    }
}
