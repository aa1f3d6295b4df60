//! Values of the states of a path through a trellis.

use super::{Child, Encoding, Format, Fused, Leaf, Slot};
use crate::error::{Error, Result};
use crate::kernels::{self, TRELLIS_TILE, TRELLIS_UNIT, TrellisRows};
use crate::node::registry::field;
use crate::node::{Input, Json, Node, PackedPlane, Scratch, Symbols};
use crate::storage::PartKind;
use std::ops::Range;

/// Weights that are a path through the bitshift trellis of 2^16 states: 1 to 8 bits each, for values that are computed from 16
/// (Tseng et al., *QTIP*, 2024; the code is that which EXL3 calls `mul1`).
///
/// The codes of a tile of 16 x 16 weights, row by row, go around in a circle: code `i` is the lowest bits of a state, the next
/// codes those above. The value of a state s is the sum of the four bytes of `s * 0x83DCD12D` modulo 2^32, less 510, and a
/// weight is `(scale / 147.7) * value`, both products rounded to f32. Scales are a node: one a row, or one for all.
///
/// ```
/// use tensorpress_tensor::node::{BitshiftFormat, BitshiftTrellis, Dense, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let scale = Dense::from_f32(array![[1.0]].view(), DType::F16)?.boxed();
/// // All states of this circle are 0, whose value is -510.
/// let node = BitshiftTrellis::path(BitshiftFormat::new(2)?, [1, 3], &[0; 256], scale)?;
/// assert_eq!(decode(&node)?, array![[-510.0 / 147.7; 3]]);
/// # Ok(())
/// # }
/// ```
pub type BitshiftTrellis = Leaf<BitshiftFormat>;

/// The format of a [`BitshiftTrellis`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitshiftFormat {
    bits: u8,
    by_row: bool,
}

/// Rows, and columns, of a tile.
const SIDE: usize = 16;

impl BitshiftFormat {
    /// Paths of so many bits a weight, with one scale.
    ///
    /// # Errors
    /// `InvalidArgument` unless `bits` is 1 to 8.
    pub fn new(bits: u8) -> Result<Self> {
        if !(1..=8).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 8")));
        }
        Ok(Self { bits, by_row: false })
    }

    /// With a scale a row.
    #[must_use]
    pub fn by_row(mut self) -> Self {
        self.by_row = true;
        self
    }

    /// Bits a weight.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl Format for BitshiftFormat {
    const ID: &'static str = "trellis.v1";
    const BAND: usize = SIDE;

    fn read_from(json: &Json) -> Result<Self> {
        let format = Self::new(field(json, "bits")?).map_err(|e| Error::corruption(e.message()))?;
        Ok(Self { by_row: field(json, "by_row")?, ..format })
    }

    fn describe(&self, json: &mut Json) {
        json["bits"] = self.bits.into();
        json["by_row"] = self.by_row.into();
    }

    fn slots(&self, [rows, _]: [usize; 2]) -> Vec<Slot> {
        let shape = [if self.by_row { rows } else { 1 }, 1];
        vec![Slot { name: "scales", kind: PartKind::Scales, shape, encoding: Encoding::Node }]
    }

    fn codes(&self, cols: usize) -> usize {
        cols.div_ceil(SIDE).saturating_mul(TRELLIS_TILE)
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        let bits = self.bits;
        match alphabet <= 1 << bits {
            true => Ok(()),
            false => Err(Error::invalid(format!("{alphabet} codes for a path of {bits} bits"))),
        }
    }

    fn decode_row(&self, band: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        // Alphabets of up to 8 bits come as bytes.
        let Symbols::U8(codes) = codes else { return };
        let (scales, cols) = (beside[0], out.len() / SIDE);
        let mut values = [0; TRELLIS_TILE];
        for (tile, codes) in codes.as_chunks::<TRELLIS_TILE>().0.iter().enumerate() {
            kernels::trellis_values(codes, self.bits.into(), &mut values);
            let from = tile * SIDE;
            let width = SIDE.min(cols - from);
            for (r, values) in values.as_chunks::<SIDE>().0.iter().enumerate() {
                // Rows that fill up the last band have no scale.
                let row = if self.by_row { band * SIDE + r } else { 0 };
                let step = scales.get(row).copied().unwrap_or(0.0) * TRELLIS_UNIT;
                let out = &mut out[r * cols + from..][..width];
                out.iter_mut().zip(values).for_each(|(w, v)| *w = step * f32::from(*v));
            }
        }
    }

    fn fused(leaf: &Leaf<Self>, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        let format = leaf.format();
        let packed = leaf.codes().as_packed().filter(|packed| packed.bits() == format.bits);
        if let Some(tiles) = packed.and_then(PackedPlane::bytes) {
            let ([rows, cols], bits) = (leaf.shape(), format.bits.into());
            f(&TrellisRows { tiles, bits, rows, cols, scales: leaf.beside()?[0] });
        }
        Ok(())
    }
}

impl BitshiftTrellis {
    /// A node from the codes of its tiles, 256 each, those of 16 rows one after another; and `[1, 1]` or `[rows, 1]` scales.
    ///
    /// # Errors
    /// `ShapeMismatch` if something does not fit the shape, `InvalidArgument` for codes that do not fit the bits.
    pub fn path(
        format: BitshiftFormat,
        shape: [usize; 2],
        codes: &[u8],
        scales: Box<dyn Node>,
    ) -> Result<Self> {
        let bands = shape[0].div_ceil(SIDE);
        let codes = PackedPlane::pack(codes, bands, format.codes(shape[1]), format.bits)?;
        Self::new(format, shape, Box::new(codes), vec![Child::Node(scales)])
    }
}

impl Fused for TrellisRows<'_> {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (tokens, x) = (x.tokens(), x.as_slice());
        kernels::trellis_matmul(self, rows, x, tokens, y, add, scratch.work());
    }

    fn decode_part(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) -> bool {
        kernels::trellis_part(self, rows, columns, out);
        true
    }
}
