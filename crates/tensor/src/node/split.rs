use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::plane::part_name;
use super::registry::{field, shape_field};
use super::{
    Accum, Dense, Input, Json, Mask, Multiply, Node, NodeReader, PackedPlane, Plane, PlaneMap,
    Scratch, SymbolsMut, check_same_shape, join, matmul_by_tiles,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::{PartKind, PartSink};

/// A leaf of float values cut into planes of bytes, so that they can be entropy-coded: what a coded [`Dense`] becomes.
///
/// Each value is rotated left by one bit, so that the sign comes last and an 8-bit exponent fills the first byte; plane 0
/// holds the first (most significant) bytes.
#[derive(Debug)]
pub struct SplitFloats {
    dtype: DType,
    shape: [usize; 2],
    planes: Vec<Box<dyn Plane>>,
    /// If set, only the kept entries are there, in order.
    support: Option<Arc<Mask>>,
    /// All values, once they were decoded for fast products.
    decoded: Option<Box<dyn Node>>,
}

impl SplitFloats {
    /// The planes of a dense leaf.
    pub(super) fn of(dense: &Dense) -> Result<Self> {
        let (dtype, [rows, cols]) = (dense.dtype(), dense.shape());
        let size = dtype.size();
        let plane = |place: usize| -> Result<Box<dyn Plane>> {
            let values = dense.stored().chunks_exact(size);
            let bytes: Vec<u8> =
                values.map(|value| rotated(value).to_be_bytes()[8 - size + place]).collect();
            let packed = match dense.support() {
                Some(mask) => PackedPlane::pack_kept(&bytes, mask, 8)?,
                None => PackedPlane::pack(&bytes, rows, cols, 8)?,
            };
            Ok(Box::new(packed))
        };
        let planes = (0..size).map(plane).collect::<Result<_>>()?;
        let support = dense.support().cloned();
        Ok(Self { dtype, shape: [rows, cols], planes, support, decoded: None })
    }

    /// Replaces the innermost plane of each.
    pub(super) fn map(mut self, f: &mut PlaneMap<'_>) -> Result<Self> {
        let planes = std::mem::take(&mut self.planes);
        self.planes = planes.into_iter().map(|plane| plane.map_inner(f)).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Whether every plane is as it was cut: then there is nothing that a dense leaf does not do better.
    pub(super) fn is_plain(&self) -> bool {
        self.planes.iter().all(|plane| plane.as_packed().is_some())
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let (dtype, shape) = (field::<DType>(json, "dtype")?, shape_field(json)?);
        if !dtype.is_float() {
            return Err(Error::corruption(format!("split floats of {dtype:?}")));
        }
        let support = match json.get("kept").and_then(Json::as_bool) {
            Some(true) => {
                let outside = || Error::corruption("kept values outside a masked node");
                Some(reader.mask().ok_or_else(outside)?.clone())
            }
            _ => None,
        };
        if let Some(mask) = &support {
            check_same_shape(mask.shape(), shape, "split floats")?;
        }
        let described = field::<Json>(json, "planes")?;
        let mut planes = Vec::with_capacity(dtype.size());
        for place in 0..dtype.size() {
            let key = place.to_string();
            let plane = reader.plane(&described, &key, &part_of(prefix, place))?;
            let len = |row| support.as_ref().map_or(shape[1], |mask| mask.kept(row..row + 1));
            let fits = plane.rows() == shape[0]
                && plane.alphabet() <= 256
                && (0..shape[0]).all(|row| plane.len(row..row + 1) == len(row));
            if !fits {
                return Err(Error::corruption(format!("plane {place} does not fit {shape:?}")));
            }
            planes.push(plane);
        }
        Ok(Box::new(Self { dtype, shape, planes, support, decoded: None }))
    }

    /// The stored bytes of the values in some rows.
    fn bytes(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let (size, count) = (self.dtype.size(), self.planes[0].len(rows.clone()));
        let mut words = vec![0u64; count];
        let mut symbols = vec![0u8; count];
        for plane in &self.planes {
            plane.read(rows.clone(), SymbolsMut::U8(&mut symbols))?;
            words.iter_mut().zip(&symbols).for_each(|(word, s)| *word = *word << 8 | u64::from(*s));
        }
        let mut bytes = Vec::with_capacity(count * size);
        for word in words {
            let value = word >> 1 | (word & 1) << (8 * size - 1);
            bytes.extend_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok(bytes)
    }
}

/// A little-endian value rotated left by one bit, in the low bits of a word.
fn rotated(value: &[u8]) -> u64 {
    let bits = 8 * value.len();
    let word = value.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let mask = u64::MAX >> (64 - bits);
    (word << 1 | word >> (bits - 1)) & mask
}

fn part_of(prefix: &str, place: usize) -> String {
    join(&part_name(prefix, "values"), &place.to_string())
}

impl Node for SplitFloats {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        assert_eq!(out.dim(), (rows.len(), self.shape[1]), "output shape");
        let bytes = self.bytes(rows.clone())?;
        let mut values = scratch.take(bytes.len() / self.dtype.size());
        self.dtype.read_f32(&bytes, &mut values)?;
        let mut next = values.iter();
        for (row, mut out) in rows.zip(out.rows_mut()) {
            let mut place = |c: usize, out: &mut f32| {
                let value = next.next().unwrap_or_else(|| unreachable!("column {c} has a value"));
                // Not added to 0, which would lose the sign of -0.
                *out = if accum == Accum::Add { *out + value } else { *value };
            };
            match &self.support {
                None => out.iter_mut().enumerate().for_each(|(c, o)| place(c, o)),
                Some(mask) => {
                    if accum == Accum::Replace {
                        out.fill(0.0);
                    }
                    mask.for_each_kept(row, |c| place(c, &mut out[c]));
                }
            }
        }
        scratch.put(values);
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match &self.decoded {
            Some(dense) => dense.matmul_rows(rows, x, y, accum, scratch),
            None => matmul_by_tiles(self, rows, x, y, accum, scratch),
        }
    }

    fn multiply(&self) -> Multiply {
        self.decoded.as_ref().map_or(Multiply::Decode, |dense| dense.multiply())
    }

    fn zero_outside(&self) -> bool {
        self.support.is_some()
    }

    fn describe(&self) -> Json {
        let planes = self.planes.iter().enumerate();
        let planes: serde_json::Map<_, _> =
            planes.map(|(place, plane)| (place.to_string(), plane.describe())).collect();
        let mut json = json!({
            "node": "split_floats.v1",
            "dtype": self.dtype,
            "shape": self.shape,
            "planes": planes,
        });
        if self.support.is_some() {
            json["kept"] = true.into();
        }
        json
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (place, plane) in self.planes.iter().enumerate() {
            plane.parts(&part_of(prefix, place), PartKind::Values, sink)?;
        }
        Ok(())
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(Box::new(self.map(f)?))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over coded values: mask them before they are coded"))
    }

    fn prepack(mut self: Box<Self>) -> Result<Box<dyn Node>> {
        let values = self.bytes(0..self.shape[0])?.into();
        let dense = Dense::from_parts(self.dtype, self.shape, values, self.support.clone());
        self.decoded = Some(dense.boxed().prepack()?);
        Ok(self)
    }
}
