use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::{Plane, Symbol, SymbolBuf, SymbolsMut};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Mask, NodeReader, PlaneMap, join};
use crate::storage::{PartKind, PartSink};

/// Codes whose highest bits and whose lowest lie apart, each in a plane: `high << bits | low`. Who reads the high ones alone
/// has codes of fewer bits; they may be such a plane in turn.
///
/// ```
/// use tensorpress_tensor::node::{PackedPlane, Plane, PrefixedPlane, SymbolBuf};
///
/// let high = PackedPlane::pack(&[1u8, 3], 1, 2, 2)?;
/// let low = PackedPlane::pack(&[0u8, 1], 1, 2, 1)?;
/// let plane = PrefixedPlane::new(Box::new(high), Box::new(low), 1)?;
/// let mut buffer = SymbolBuf::of(&plane);
/// assert_eq!(buffer.read(&plane, 0..1)?.iter().collect::<Vec<_>>(), [2, 7]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct PrefixedPlane {
    high: Box<dyn Plane>,
    low: Box<dyn Plane>,
    /// Of the low plane.
    bits: u32,
}

impl PrefixedPlane {
    /// Joins two planes of as many symbols in each row, the low one's below 2^`bits`.
    ///
    /// # Errors
    /// `ShapeMismatch` if rows differ, `InvalidArgument` for low symbols that may be larger, and for alphabets that reach
    /// beyond 65536 together.
    pub fn new(high: Box<dyn Plane>, low: Box<dyn Plane>, bits: u8) -> Result<Self> {
        let rows = high.rows();
        let all = high.len(0..rows);
        // Rows without symbols may be declared without end.
        let differs = |r: usize| high.len(r..r + 1) != low.len(r..r + 1);
        if low.rows() != rows || low.len(0..rows) != all || (all > 0 && (0..rows).any(differs)) {
            return Err(Error::shape("high and low bits of codes differ in shape"));
        }
        let (above, below, bits) = (high.alphabet(), low.alphabet(), u32::from(bits));
        if bits > 15 || below > 1 << bits || u64::from(above) << bits > 1 << 16 {
            return Err(Error::invalid(format!(
                "codes below {above}, then codes below {below} in {bits} bits: allowed are 16 bits together"
            )));
        }
        Ok(Self { high, low, bits })
    }

    /// The highest bits: codes of their own.
    #[must_use]
    pub fn high(&self) -> &dyn Plane {
        &*self.high
    }

    /// The lowest bits.
    #[must_use]
    pub fn low(&self) -> &dyn Plane {
        &*self.low
    }

    /// The highest bits alone.
    #[must_use]
    pub fn into_high(self) -> Box<dyn Plane> {
        self.high
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let high = reader.plane(json, "high", &join(prefix, "high"))?;
        let low = reader.plane(json, "low", &join(prefix, "low"))?;
        let made = Self::new(high, low, field(json, "bits")?);
        Ok(Box::new(made.map_err(|e| Error::corruption(e.message()))?))
    }

    fn join<S: Symbol + TryFrom<u16>>(&self, rows: Range<usize>, out: &mut [S]) -> Result<()> {
        let (mut high, mut low) = (SymbolBuf::of(&*self.high), SymbolBuf::of(&*self.low));
        let high = high.read(&*self.high, rows.clone())?;
        let low = low.read(&*self.low, rows)?;
        for ((out, high), low) in out.iter_mut().zip(high.iter()).zip(low.iter()) {
            *out = S::try_from(high << self.bits | low).unwrap_or_default();
        }
        Ok(())
    }
}

impl Plane for PrefixedPlane {
    fn alphabet(&self) -> u32 {
        self.high.alphabet() << self.bits
    }

    fn rows(&self) -> usize {
        self.high.rows()
    }

    fn len(&self, rows: Range<usize>) -> usize {
        self.high.len(rows)
    }

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        out.check(self.alphabet(), self.len(rows.clone()));
        match out {
            SymbolsMut::U8(out) => self.join(rows, out),
            SymbolsMut::U16(out) => self.join(rows, out),
        }
    }

    fn describe(&self) -> Json {
        let (high, low) = (self.high.describe(), self.low.describe());
        json!({"plane": "prefixed.v1", "bits": self.bits, "high": high, "low": low})
    }

    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()> {
        self.high.parts(&join(prefix, "high"), kind, sink)?;
        self.low.parts(&join(prefix, "low"), kind, sink)
    }

    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>> {
        let (high, low) = (self.high.map_inner(f)?, self.low.map_inner(f)?);
        Ok(Box::new(Self { high, low, bits: self.bits }))
    }

    fn support(&self) -> Option<&Arc<Mask>> {
        self.high.support()
    }
}
