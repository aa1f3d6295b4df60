//! Integer planes: the codes inside nodes, behind a trait so that they can be packed, restricted to a support,
//! or entropy-coded without the node knowing.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::registry::field;
use super::{Json, Mask, NodeReader, PlaneMap, Rows, join};
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels;
use crate::storage::{Part, PartKind, PartSink};

/// Rows of unsigned integers below `alphabet()`.
pub trait Plane: Debug + Send + Sync {
    /// Codes lie in `0..alphabet()`.
    fn alphabet(&self) -> u32;
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Symbols in `rows` (rows may be ragged).
    fn len(&self, rows: Range<usize>) -> usize;
    /// Whether there are no symbols at all.
    fn is_empty(&self) -> bool {
        self.len(0..self.rows()) == 0
    }
    /// Reads the symbols of `rows`.
    ///
    /// # Errors
    /// `Corruption` if the stored form turns out to be invalid.
    ///
    /// # Panics
    /// If `rows` is out of bounds or `out` is not `len(rows)` long.
    fn read(&self, rows: Range<usize>, out: &mut [u16]) -> Result<()>;
    /// Wire id and parameters.
    fn describe(&self) -> Json;
    /// Hands over the stored parts.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()>;
    /// Replaces the innermost plane.
    ///
    /// # Errors
    /// Those of `f`.
    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>>;
    /// The packed form, where this is one: the fast path of kernels.
    fn as_packed(&self) -> Option<&PackedPlane> {
        None
    }
    /// The restricted form, where this is one.
    fn as_kept(&self) -> Option<&KeptPlane> {
        None
    }
    /// The support whose kept entries are the symbols, where rows are ragged.
    fn support(&self) -> Option<&Arc<Mask>> {
        None
    }
}

/// Codes packed at a fixed width, least significant bit first.
#[derive(Debug, Clone)]
pub struct PackedPlane {
    bits: u8,
    rows: Rows,
    bytes: Bytes,
}

impl PackedPlane {
    /// Packs `codes` (row-major, `rows x cols`) at `bits` bits each.
    ///
    /// # Errors
    /// `InvalidArgument` if `bits` is not 1 to 8 or a code does not fit.
    pub fn pack(codes: &[u8], rows: usize, cols: usize, bits: u8) -> Result<Self> {
        check_bits(bits)?;
        if codes.len() != rows * cols {
            return Err(Error::shape(format!("{} codes for {rows} x {cols}", codes.len())));
        }
        check_codes(codes, bits)?;
        let stride = kernels::packed_len(cols, u32::from(bits));
        let mut bytes = vec![0u8; rows * stride];
        for row in 0..rows {
            let target = &mut bytes[row * stride..(row + 1) * stride];
            kernels::pack_bits(&codes[row * cols..(row + 1) * cols], u32::from(bits), target);
        }
        Ok(Self { bits, rows: Rows::Even { rows, cols }, bytes: bytes.into() })
    }

    /// Packs the codes of the kept entries (compact order) in one stream.
    ///
    /// # Errors
    /// As [`PackedPlane::pack`].
    pub fn pack_kept(codes: &[u8], mask: &Arc<Mask>, bits: u8) -> Result<Self> {
        check_bits(bits)?;
        let kept = mask.kept_before(mask.shape()[0]);
        if codes.len() != kept {
            return Err(Error::shape(format!("{} codes for {kept} kept entries", codes.len())));
        }
        check_codes(codes, bits)?;
        let mut bytes = vec![0u8; kernels::packed_len(kept, u32::from(bits))];
        kernels::pack_bits(codes, u32::from(bits), &mut bytes);
        Ok(Self { bits, rows: Rows::Ragged(mask.clone()), bytes: bytes.into() })
    }

    /// Some rows of a plane of at most 256 symbols and even rows, packed: what kernels can work on.
    ///
    /// # Errors
    /// As [`Plane::read`]; `Unsupported` for wider alphabets and for ragged rows.
    pub fn repack(plane: &dyn Plane, rows: Range<usize>) -> Result<Self> {
        let (count, len) = (rows.len(), plane.len(rows.clone()));
        if plane.alphabet() > 256 || plane.support().is_some() || len % count.max(1) != 0 {
            return Err(Error::unsupported("packing wide or ragged planes"));
        }
        let mut symbols = vec![0u16; len];
        plane.read(rows, &mut symbols)?;
        let codes: Vec<u8> = symbols.into_iter().map(|s| s as u8).collect();
        let bits = (plane.alphabet().max(2) - 1).ilog2() as u8 + 1;
        Self::pack(&codes, count, len / count.max(1), bits)
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The bytes of one row, where rows are even; codes start at the first bit.
    #[must_use]
    pub fn row_bytes(&self, row: usize) -> Option<&[u8]> {
        match self.rows {
            Rows::Even { cols, .. } => {
                let stride = kernels::packed_len(cols, u32::from(self.bits));
                Some(&self.bytes[row * stride..(row + 1) * stride])
            }
            Rows::Ragged(_) => None,
        }
    }

    /// All bytes, row after row, where rows are even.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        matches!(self.rows, Rows::Even { .. }).then_some(&self.bytes)
    }

    /// Reads symbols as bytes.
    ///
    /// # Panics
    /// As [`Plane::read`].
    pub fn read_u8(&self, rows: Range<usize>, out: &mut [u8]) {
        assert_eq!(out.len(), self.len(rows.clone()), "output length");
        match &self.rows {
            Rows::Even { cols, .. } => {
                for (row, out) in rows.zip(out.chunks_exact_mut((*cols).max(1))) {
                    let bytes = self.row_bytes(row).expect("even rows");
                    kernels::unpack_bits(bytes, u32::from(self.bits), 0, out);
                }
            }
            Rows::Ragged(mask) => {
                kernels::unpack_bits(
                    &self.bytes,
                    u32::from(self.bits),
                    mask.kept_before(rows.start),
                    out,
                );
            }
        }
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let bits = field::<u8>(json, "bits")?;
        check_bits(bits)?;
        let bytes = reader.bytes(prefix, DType::U8)?;
        let rows = Rows::read_from(reader, json)?;
        let packed = |symbols: usize| symbols.checked_mul(usize::from(bits)).map(|n| n.div_ceil(8));
        let len = match &rows {
            // Each row starts at a byte boundary.
            Rows::Even { rows, cols } => packed(*cols).and_then(|stride| stride.checked_mul(*rows)),
            Rows::Ragged(_) => packed(rows.len(0..rows.count())),
        };
        if len != Some(bytes.len()) {
            return Err(Error::corruption(format!(
                "packed plane has {} bytes, its description says {len:?}",
                bytes.len()
            )));
        }
        Ok(Box::new(Self { bits, rows, bytes }))
    }
}

fn check_bits(bits: u8) -> Result<()> {
    if (1..=8).contains(&bits) {
        return Ok(());
    }
    Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 8")))
}

fn check_codes(codes: &[u8], bits: u8) -> Result<()> {
    match codes.iter().copied().max() {
        Some(max) if u32::from(max) >> bits != 0 => {
            Err(Error::invalid(format!("code {max} does not fit {bits} bits")))
        }
        _ => Ok(()),
    }
}

impl Plane for PackedPlane {
    fn alphabet(&self) -> u32 {
        1 << self.bits
    }

    fn rows(&self) -> usize {
        self.rows.count()
    }

    fn len(&self, rows: Range<usize>) -> usize {
        self.rows.len(rows)
    }

    fn read(&self, rows: Range<usize>, out: &mut [u16]) -> Result<()> {
        // One row at a time through a byte buffer; nodes in a hurry use `as_packed`.
        let mut buffer = Vec::new();
        let mut at = 0;
        for row in rows {
            buffer.resize(self.len(row..row + 1), 0);
            self.read_u8(row..row + 1, &mut buffer);
            for (o, b) in out[at..at + buffer.len()].iter_mut().zip(&buffer) {
                *o = u16::from(*b);
            }
            at += buffer.len();
        }
        assert_eq!(at, out.len(), "output length");
        Ok(())
    }

    fn describe(&self) -> Json {
        let mut json = json!({"plane": "packed.v1", "bits": self.bits});
        self.rows.describe(&mut json);
        json
    }

    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()> {
        sink.part(Part {
            name: prefix.to_owned(),
            kind,
            dtype: DType::U8,
            shape: vec![self.bytes.len()],
            bytes: Cow::Borrowed(&self.bytes),
        })
    }

    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>> {
        f(self)
    }

    fn as_packed(&self) -> Option<&PackedPlane> {
        Some(self)
    }

    fn support(&self) -> Option<&Arc<Mask>> {
        self.rows.support()
    }
}

/// A dense plane of which only the entries of a mask are stored; the others read as 0.
#[derive(Debug)]
pub struct KeptPlane {
    mask: Arc<Mask>,
    inner: Box<dyn Plane>,
}

impl KeptPlane {
    /// Restricts `plane` (even rows, the mask's shape, at most 256 symbols) to `mask`.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Unsupported` for wider alphabets.
    pub fn restrict(plane: &dyn Plane, mask: &Arc<Mask>) -> Result<Self> {
        let [rows, cols] = mask.shape();
        if plane.rows() != rows || (0..rows).any(|r| plane.len(r..r + 1) != cols) {
            return Err(Error::shape(format!("plane and mask {rows} x {cols} differ in shape")));
        }
        if plane.alphabet() > 256 {
            return Err(Error::unsupported(format!(
                "masking a plane of {} symbols; at most 256",
                plane.alphabet()
            )));
        }
        let bits = (plane.alphabet().max(2) - 1).ilog2() as u8 + 1;
        let mut codes = Vec::with_capacity(mask.kept_before(rows));
        // Bands of rows: coded planes decode many at once.
        let band = ((1 << 17) / cols.max(1)).max(1);
        let mut band_codes = Vec::new();
        for first in (0..rows).step_by(band) {
            let range = first..(first + band).min(rows);
            band_codes.resize(range.len() * cols, 0u16);
            plane.read(range.clone(), &mut band_codes)?;
            for (row, row_codes) in range.zip(band_codes.chunks_exact(cols.max(1))) {
                mask.for_each_kept(row, |c| codes.push(row_codes[c] as u8));
            }
        }
        Ok(Self {
            mask: mask.clone(),
            inner: Box::new(PackedPlane::pack_kept(&codes, mask, bits)?),
        })
    }

    /// The support.
    #[must_use]
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The stream of packed codes of all kept entries, and their bits; `None` where they are coded.
    #[must_use]
    pub fn packed(&self) -> Option<(&[u8], u32)> {
        self.inner.as_packed().map(|packed| (&*packed.bytes, u32::from(packed.bits)))
    }

    pub(super) fn read_from(
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

    fn read(&self, rows: Range<usize>, out: &mut [u16]) -> Result<()> {
        assert_eq!(out.len(), self.len(rows.clone()), "output length");
        let mut compact = vec![0u16; self.mask.kept(rows.clone())];
        self.inner.read(rows.clone(), &mut compact)?;
        out.fill(0);
        let mut values = compact.iter();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.mask.shape()[1].max(1))) {
            self.mask.for_each_kept(row, |c| out[c] = *values.next().expect("as many as kept"));
        }
        Ok(())
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

pub(super) fn part_name(prefix: &str, name: &str) -> String {
    join(prefix, name)
}
