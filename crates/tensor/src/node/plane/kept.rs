use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::symbols::{bits_of, read_kept};
use super::{PackedPlane, Plane, Symbol, SymbolsMut, is_even};
use crate::error::{Error, Result};
use crate::node::{Json, Mask, NodeReader, PlaneMap};
use crate::storage::{PartKind, PartSink};

/// A dense plane of which only the entries of a mask are stored; the others read as 0.
#[derive(Debug)]
pub struct KeptPlane {
    mask: Arc<Mask>,
    inner: Box<dyn Plane>,
}

impl KeptPlane {
    /// Restricts `plane` (even rows, the mask's shape) to `mask`.
    ///
    /// # Errors
    /// `ShapeMismatch`; as [`Plane::read`].
    pub fn restrict(plane: &dyn Plane, mask: &Arc<Mask>) -> Result<Self> {
        let [rows, cols] = mask.shape();
        if !is_even(plane, rows, cols) {
            return Err(Error::shape(format!("plane and mask {rows} x {cols} differ in shape")));
        }
        let bits = bits_of(plane.alphabet());
        let inner = if plane.alphabet() > 256 {
            PackedPlane::pack_kept(&read_kept::<u16>(plane, mask)?, mask, bits)
        } else {
            PackedPlane::pack_kept(&read_kept::<u8>(plane, mask)?, mask, bits)
        };
        Ok(Self { mask: mask.clone(), inner: Box::new(inner?) })
    }

    /// The support.
    #[must_use]
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The stream of packed codes of all kept entries, and their bits; `None` where they are coded.
    #[must_use]
    pub fn packed(&self) -> Option<(&[u8], u32)> {
        self.inner.as_packed().map(|packed| (packed.stream(), u32::from(packed.bits())))
    }

    fn spread<S: Symbol>(&self, rows: Range<usize>, out: &mut [S]) -> Result<()> {
        let mut compact = vec![S::default(); self.mask.kept(rows.clone())];
        self.inner.read(rows.clone(), S::lend_mut(&mut compact))?;
        out.fill(S::default());
        let mut values = compact.iter();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.mask.shape()[1].max(1))) {
            self.mask.for_each_kept(row, |c| out[c] = *values.next().expect("as many as kept"));
        }
        Ok(())
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let mask = reader
            .mask()
            .ok_or_else(|| Error::corruption("a kept plane outside a masked node"))?
            .clone();
        let inner = reader.plane(json, "inner", prefix)?;
        let rows = mask.shape()[0];
        if inner.rows() != rows || (0..rows).any(|r| inner.len(r..r + 1) != mask.kept(r..r + 1)) {
            return Err(Error::corruption("kept plane and mask disagree"));
        }
        Ok(Box::new(Self { mask, inner }))
    }
}

impl Plane for KeptPlane {
    fn alphabet(&self) -> u32 {
        self.inner.alphabet()
    }

    fn rows(&self) -> usize {
        self.mask.shape()[0]
    }

    fn len(&self, rows: Range<usize>) -> usize {
        rows.len() * self.mask.shape()[1]
    }

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        out.check(self.alphabet(), self.len(rows.clone()));
        match out {
            SymbolsMut::U8(out) => self.spread(rows, out),
            SymbolsMut::U16(out) => self.spread(rows, out),
        }
    }

    fn describe(&self) -> Json {
        json!({"plane": "kept.v1", "inner": self.inner.describe()})
    }

    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()> {
        self.inner.parts(prefix, kind, sink)
    }

    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>> {
        Ok(Box::new(Self { mask: self.mask, inner: self.inner.map_inner(f)? }))
    }

    fn as_kept(&self) -> Option<&KeptPlane> {
        Some(self)
    }
}
