use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::symbols::{bits_of, check_symbols};
use super::{Plane, Symbol, SymbolBuf, Symbols, SymbolsMut};
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels;
use crate::node::registry::field;
use crate::node::{Json, Mask, NodeReader, PlaneMap, Rows};
use crate::storage::{Part, PartKind, PartSink};

/// Codes packed at a fixed width, least significant bit first.
#[derive(Debug, Clone)]
pub struct PackedPlane {
    bits: u8,
    rows: Rows,
    bytes: Bytes,
}

impl PackedPlane {
    /// Packs `codes` (row-major, `rows x cols`) at `bits` bits each: 1 to 8 for bytes, 9 to 16 for wider codes.
    ///
    /// # Errors
    /// `InvalidArgument` for other `bits` or a code that does not fit; `ShapeMismatch`.
    pub fn pack<S: Symbol>(codes: &[S], rows: usize, cols: usize, bits: u8) -> Result<Self> {
        check_symbols(codes, bits)?;
        if codes.len() != rows * cols {
            return Err(Error::shape(format!("{} codes for {rows} x {cols}", codes.len())));
        }
        let stride = kernels::packed_len(cols, u32::from(bits));
        let mut bytes = vec![0u8; rows * stride];
        for row in 0..rows {
            let target = &mut bytes[row * stride..(row + 1) * stride];
            S::pack(&codes[row * cols..(row + 1) * cols], u32::from(bits), target);
        }
        Ok(Self { bits, rows: Rows::Even { rows, cols }, bytes: bytes.into() })
    }

    /// Codes that are packed already, each row begun at a byte; nothing is copied.
    ///
    /// # Errors
    /// `InvalidArgument` for other `bits` than 1 to 16; `ShapeMismatch` for another number of bytes.
    pub fn from_bytes(bytes: Bytes, rows: usize, cols: usize, bits: u8) -> Result<Self> {
        if !(1..=16).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 16")));
        }
        let stride = cols.checked_mul(bits.into()).map(|bits| bits.div_ceil(8));
        if stride.and_then(|stride| stride.checked_mul(rows)) != Some(bytes.len()) {
            let len = bytes.len();
            return Err(Error::shape(format!("{len} bytes for {rows} x {cols} of {bits} bits")));
        }
        Ok(Self { bits, rows: Rows::Even { rows, cols }, bytes })
    }

    /// Packs the codes of the kept entries (compact order) in one stream.
    ///
    /// # Errors
    /// As [`PackedPlane::pack`].
    pub fn pack_kept<S: Symbol>(codes: &[S], mask: &Arc<Mask>, bits: u8) -> Result<Self> {
        check_symbols(codes, bits)?;
        let kept = mask.kept_before(mask.shape()[0]);
        if codes.len() != kept {
            return Err(Error::shape(format!("{} codes for {kept} kept entries", codes.len())));
        }
        let mut bytes = vec![0u8; kernels::packed_len(kept, u32::from(bits))];
        S::pack(codes, u32::from(bits), &mut bytes);
        Ok(Self { bits, rows: Rows::Ragged(mask.clone()), bytes: bytes.into() })
    }

    /// Some rows of a plane of even rows, packed at the fewest bits: what kernels can work on.
    ///
    /// # Errors
    /// As [`Plane::read`]; `Unsupported` for ragged rows.
    pub fn repack(plane: &dyn Plane, rows: Range<usize>) -> Result<Self> {
        let (count, len) = (rows.len(), plane.len(rows.clone()));
        if plane.support().is_some() || len % count.max(1) != 0 {
            return Err(Error::unsupported("packing ragged planes"));
        }
        let (cols, bits) = (len / count.max(1), bits_of(plane.alphabet()));
        let mut symbols = SymbolBuf::of(plane);
        match symbols.read(plane, rows)? {
            Symbols::U8(codes) => Self::pack(codes, count, cols, bits),
            Symbols::U16(codes) => Self::pack(codes, count, cols, bits),
        }
    }

    /// Bits of a code, 1 to 16.
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

    /// All bytes, however long the rows are.
    pub(super) fn stream(&self) -> &[u8] {
        &self.bytes
    }

    fn unpack<S: Symbol>(&self, rows: Range<usize>, out: &mut [S]) {
        let bits = u32::from(self.bits);
        match &self.rows {
            Rows::Even { cols, .. } => {
                for (row, out) in rows.zip(out.chunks_exact_mut((*cols).max(1))) {
                    S::unpack(self.row_bytes(row).expect("even rows"), bits, 0, out);
                }
            }
            Rows::Ragged(mask) => {
                S::unpack(&self.bytes, bits, mask.kept_before(rows.start), out);
            }
        }
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let bits = field::<u8>(json, "bits")?;
        if !(1..=16).contains(&bits) {
            return Err(Error::corruption(format!("bits = {bits}: allowed are 1 to 16")));
        }
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

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        out.check(self.alphabet(), self.len(rows.clone()));
        match out {
            SymbolsMut::U8(out) => self.unpack(rows, out),
            SymbolsMut::U16(out) => self.unpack(rows, out),
        }
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
