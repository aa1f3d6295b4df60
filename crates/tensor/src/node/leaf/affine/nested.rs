//! Integer codes on grids whose scales and zero points are nodes, and so may be quantised in turn.

use serde_json::json;

use crate::error::{Error, Result};
use crate::kernels::{self, AffinePanels, AffineRows, KeptAffine};
use crate::linalg::Par;
use crate::node::leaf::{Child, Encoding, Format, Fused, Leaf, Slot};
use crate::node::registry::field;
use crate::node::{Json, Node, PackedPlane, Scratch, Symbols};
use crate::storage::PartKind;

/// Integer codes with a scale and a zero point for each tile of `h` rows and `w` columns:
/// `w[r, c] = scale[r / h, c / w] * (code[r, c] - zero[r / h, c / w])`.
///
/// Scales and zero points are any nodes, `[rows, columns]` of the tiles, such as leaves of this format in turn; zero points
/// need not be whole. What is decoded of them is kept in f32 from the first use on: 64 bits a tile.
pub type NestedAffine = Leaf<NestedFormat>;

/// The format of a [`NestedAffine`].
///
/// ```
/// use tensorpress_tensor::node::{Dense, NestedAffine, NestedFormat, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let dense = |a: tensorpress_tensor::ndarray::Array2<f32>| Dense::from_f32(a.view(), DType::F16);
/// let scales = dense(array![[0.5, 2.0]])?.boxed();
/// let zeros = dense(array![[1.5, 0.0]])?.boxed();
/// let format = NestedFormat::new([2, 1])?;
/// let node = NestedAffine::nested(format, [2, 2], 2, &[0, 1, 3, 2], scales, zeros)?;
/// assert_eq!(decode(&node)?, array![[-0.75, 2.0], [0.75, 4.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NestedFormat {
    tile: [usize; 2],
}

/// Places of the slots.
const SCALES: usize = 0;
const ZEROS: usize = 1;

impl NestedFormat {
    /// Tiles of so many rows and columns; those at the edges may be smaller.
    ///
    /// # Errors
    /// `InvalidArgument` for tiles without entries.
    pub fn new(tile: [usize; 2]) -> Result<Self> {
        match tile {
            [0, _] | [_, 0] => {
                let [rows, cols] = tile;
                Err(Error::invalid(format!("tiles of {rows} x {cols}: allowed are 1 and more")))
            }
            _ => Ok(Self { tile }),
        }
    }

    /// Rows and columns that share a scale.
    #[must_use]
    pub fn tile(&self) -> [usize; 2] {
        self.tile
    }

    /// `[rows, columns]` of scales and zero points.
    #[must_use]
    pub fn grids(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        [rows.div_ceil(self.tile[0]), cols.div_ceil(self.tile[1])]
    }

    /// Scales and zeros of a row of `cols` columns, and the columns that share one.
    fn row<'a>(
        &self,
        row: usize,
        cols: usize,
        beside: &[&'a [f32]],
    ) -> (&'a [f32], &'a [f32], usize) {
        let groups = cols.div_ceil(self.tile[1]);
        let at = row / self.tile[0] * groups..(row / self.tile[0] + 1) * groups;
        (&beside[SCALES][at.clone()], &beside[ZEROS][at], self.tile[1].min(cols.max(1)))
    }
}

impl Format for NestedFormat {
    const ID: &'static str = "nested_affine.v1";

    fn read_from(json: &Json) -> Result<Self> {
        Self::new(field(json, "tile")?).map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["tile"] = json!(self.tile);
    }

    fn slots(&self, shape: [usize; 2]) -> Vec<Slot> {
        let node =
            |name, kind| Slot { name, kind, shape: self.grids(shape), encoding: Encoding::Node };
        vec![node("scales", PartKind::Scales), node("zeros", PartKind::Zeros)]
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        match alphabet {
            0..=256 => Ok(()),
            _ => Err(Error::invalid(format!("{alphabet} codes: allowed are up to 256"))),
        }
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let (scales, zeros, group) = self.row(row, out.len(), beside);
        match codes {
            Symbols::U8(codes) => {
                kernels::decode_affine(codes, 8, 0, scales, zeros, group, out, false);
            }
            Symbols::U16(codes) => {
                for (c, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                    *out = scales[c / group] * (f32::from(*code) - zeros[c / group]);
                }
            }
        }
    }

    fn decode_stored(
        leaf: &Leaf<Self>,
        row: usize,
        beside: &[&[f32]],
        out: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) -> bool {
        if let Some(kept) = leaf.kept_rows(beside) {
            kernels::kept_affine_decode(&kept, row, out, add, scratch.work());
            return true;
        }
        let packed = leaf.codes().as_packed().filter(|packed| packed.bits() <= 8);
        let Some((packed, bytes)) = packed.and_then(|p| Some((p, p.row_bytes(row)?))) else {
            return false;
        };
        let (scales, zeros, group) = leaf.format().row(row, out.len(), beside);
        kernels::decode_affine(bytes, packed.bits().into(), 0, scales, zeros, group, out, add);
        true
    }

    fn fused(leaf: &Leaf<Self>, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        let packed = leaf.codes().as_packed();
        if packed.is_none() && leaf.codes().as_kept().is_none() {
            return Ok(());
        }
        let beside = leaf.beside()?;
        if let Some(rows) = packed.and_then(|packed| leaf.packed_rows(packed, &beside)) {
            f(&rows);
        } else if let Some(kept) = leaf.kept_rows(&beside) {
            f(&kept);
        }
        Ok(())
    }

    fn prepacked(leaf: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        let codes = leaf.codes();
        if codes.as_kept().is_some() {
            return Ok(None);
        }
        let repacked = match codes.as_packed() {
            Some(_) => None,
            None => Some(PackedPlane::repack(codes, 0..leaf.shape()[0])?),
        };
        let beside = leaf.beside()?;
        let packed = codes.as_packed().or(repacked.as_ref());
        let rows = packed.and_then(|packed| leaf.packed_rows(packed, &beside));
        Ok(match rows.and_then(|rows| AffinePanels::new(&rows, Par::Seq)) {
            Some(panels) => Some(Box::new(panels)),
            None => None,
        })
    }
}

impl NestedAffine {
    /// A node from unpacked codes (row-major) of 1 to 8 `bits`, and the nodes of its scales and zero points.
    ///
    /// # Errors
    /// `ShapeMismatch` if something does not fit the shape, `InvalidArgument` for codes that do not fit `bits`.
    pub fn nested(
        format: NestedFormat,
        shape: [usize; 2],
        bits: u8,
        codes: &[u8],
        scales: Box<dyn Node>,
        zeros: Box<dyn Node>,
    ) -> Result<Self> {
        let codes = PackedPlane::pack(codes, shape[0], shape[1], bits)?;
        let beside = vec![Child::Node(scales), Child::Node(zeros)];
        Self::new(format, shape, Box::new(codes), beside)
    }

    /// The matrix as the fused kernels take it, its codes in `packed`; none unless each row has scales of its own.
    fn packed_rows<'a>(
        &self,
        packed: &'a PackedPlane,
        beside: &[&'a [f32]],
    ) -> Option<AffineRows<'a>> {
        let ([rows, cols], [height, group]) = (self.shape(), self.format().tile);
        let bytes = packed.bytes().filter(|_| height == 1 && packed.bits() <= 8)?;
        let (bits, scales, zeros) = (packed.bits().into(), beside[SCALES], beside[ZEROS]);
        Some(AffineRows { packed: bytes, bits, rows, cols, group, scales, zeros })
    }

    /// The same where its codes are those of a support.
    fn kept_rows<'a>(&'a self, beside: &[&'a [f32]]) -> Option<KeptAffine<'a>> {
        let ([_, cols], [height, group]) = (self.shape(), self.format().tile);
        let fits = height == 1 && KeptAffine::fits(group, cols);
        let kept = self.codes().as_kept().filter(|_| fits)?;
        let (packed, bits) = kept.packed().filter(|(_, bits)| *bits <= 8)?;
        let (support, scales, zeros) = (kept.mask().support(), beside[SCALES], beside[ZEROS]);
        Some(KeptAffine { support, packed, bits, group, scales, zeros })
    }
}
