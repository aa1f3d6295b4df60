//! Kernels over the stored forms: packed codes, packed codes of a support, and panels made for the machine.

use std::ops::Range;

use super::{Fused, GroupedAffine, SCALES};
use crate::error::Result;
use crate::kernels::{self, AffinePanels, AffineRows, KeptAffine};
use crate::linalg::Par;
use crate::node::plane::{bands, bits_of};
use crate::node::{Input, Node, PackedPlane, Scratch, SymbolsMut};

/// As [`super::Format::decode_stored`].
pub(super) fn decode_row(
    leaf: &GroupedAffine,
    row: usize,
    beside: &[&[f32]],
    out: &mut [f32],
    add: bool,
    scratch: &mut Scratch,
) -> bool {
    if let Some(kept) = kept_affine(leaf, beside) {
        kernels::kept_affine_decode(&kept, row, out, add, scratch.work());
        return true;
    }
    let packed = leaf.codes().as_packed().filter(|packed| packed.bits() <= 8);
    let Some((packed, bytes)) = packed.and_then(|p| Some((p, p.row_bytes(row)?))) else {
        return false;
    };
    let (scales, zeros, group) = leaf.format().row(row, out.len(), beside);
    let bits = u32::from(packed.bits());
    kernels::decode_affine(bytes, bits, 0, scales, zeros, group, out, add);
    true
}

/// As [`super::Format::fused`].
pub(super) fn fused(leaf: &GroupedAffine, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
    if let Some(packed) = leaf.codes().as_packed()
        && let Some(rows) = affine_rows(leaf, packed, leaf.scales())?
    {
        f(&rows);
    } else if let Some(kept) = kept_affine(leaf, &leaf.beside()?) {
        f(&kept);
    }
    Ok(())
}

/// As [`super::Format::prepacked`]: codes in panels of 16 rows, where the kernels support it.
pub(super) fn prepacked(leaf: &GroupedAffine) -> Result<Option<Box<dyn Fused>>> {
    // Dropped codes are put back as zeros: integer products of whole panels outrun those of kept codes.
    let filled = filled(leaf)?;
    let repacked = match leaf.codes() {
        codes if codes.as_packed().is_some() || codes.as_kept().is_some() => None,
        codes => Some(PackedPlane::repack(codes, 0..leaf.shape()[0])?),
    };
    let (packed, scales) = match (&filled, &repacked, leaf.codes().as_packed()) {
        (Some((packed, scales)), ..) => (packed, &scales[..]),
        (None, Some(packed), _) | (None, None, Some(packed)) => (packed, leaf.scales()),
        (None, None, None) => return Ok(None),
    };
    let rows = affine_rows(leaf, packed, scales)?;
    Ok(match rows.and_then(|rows| AffinePanels::new(&rows, Par::Seq)) {
        Some(panels) => Some(Box::new(panels)),
        None => None,
    })
}

/// The matrix as the fused kernels take it, its codes in `packed`, with these scales; none where codes are wider than
/// bytes, rows ragged, or grids do not lie along rows.
fn affine_rows<'a>(
    leaf: &'a GroupedAffine,
    packed: &'a PackedPlane,
    scales: &'a [f32],
) -> Result<Option<AffineRows<'a>>> {
    let fits = !leaf.format().per_tensor && packed.bits() <= 8;
    let Some(bytes) = packed.bytes().filter(|_| fits) else { return Ok(None) };
    let ([rows, cols], bits) = (leaf.shape(), u32::from(packed.bits()));
    let (group, zeros) = (leaf.group(), leaf.format().zeros(&leaf.beside()?));
    Ok(Some(AffineRows { packed: bytes, bits, rows, cols, group, scales, zeros }))
}

/// The matrix as the fused kernels take it, where its codes are those of a support, packed.
fn kept_affine<'a>(leaf: &'a GroupedAffine, beside: &[&'a [f32]]) -> Option<KeptAffine<'a>> {
    let kept = leaf.codes().as_kept().filter(|_| !leaf.format().per_tensor)?;
    let fits = KeptAffine::fits(leaf.group(), leaf.shape()[1]);
    let (packed, bits) = kept.packed().filter(|(_, bits)| fits && *bits <= 8)?;
    let (support, group) = (kept.mask().support(), leaf.group());
    let (scales, zeros) = (beside[SCALES], leaf.format().zeros(beside));
    Some(KeptAffine { support, packed, bits, group, scales, zeros })
}

/// The codes of kept entries among all, where those of the others are the zero point of their group; and scales, 0
/// for groups that are all 0, so that their products are too.
fn filled(leaf: &GroupedAffine) -> Result<Option<(PackedPlane, Vec<f32>)>> {
    let (plane, format) = (leaf.codes(), leaf.format());
    // No code decodes to 0 where zero points lie between codes.
    let fits = !format.per_tensor && !format.real && plane.alphabet() <= 256;
    let Some(kept) = plane.as_kept().filter(|_| fits) else { return Ok(None) };
    let bits = bits_of(plane.alphabet());
    let zeros = format.zeros(&leaf.beside()?);
    if zeros.iter().any(|zero| *zero >= f32::from(1u16 << bits)) {
        return Ok(None);
    }
    let [rows, cols] = leaf.shape();
    let groups = cols.div_ceil(leaf.group());
    let mut codes = vec![0u8; rows * cols];
    let mut scales = leaf.scales().to_vec();
    let mut read = Vec::new();
    for range in bands(rows, cols) {
        read.resize(range.len() * cols, 0u8);
        plane.read(range.clone(), SymbolsMut::U8(&mut read))?;
        for (row, read) in range.zip(read.chunks_exact(cols.max(1))) {
            let codes = &mut codes[row * cols..(row + 1) * cols];
            let grids = row * groups..(row + 1) * groups;
            for (codes, zero) in codes.chunks_mut(leaf.group()).zip(&zeros[grids.clone()]) {
                codes.fill(*zero as u8);
            }
            kept.mask().for_each_kept(row, |c| codes[c] = read[c]);
            for (codes, grid) in codes.chunks(leaf.group()).zip(grids) {
                if codes.iter().all(|code| f32::from(*code) == zeros[grid]) {
                    scales[grid] = 0.0;
                }
            }
        }
    }
    Ok(Some((PackedPlane::pack(&codes, rows, cols, bits)?, scales)))
}

/// Up to so many tokens, unpacking codes anew for each eight of them costs less than decoding tiles; twice as many where each
/// row is unpacked once for all.
const FEW: usize = 8;

impl Fused for AffineRows<'_> {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (tokens, x) = (x.tokens(), x.as_slice());
        kernels::affine_matmul(self, rows, x, tokens, y, add, scratch.work());
    }

    fn most_tokens(&self) -> usize {
        FEW
    }

    fn decode_part(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) -> bool {
        kernels::decode_part(self, rows, columns, out);
        true
    }
}

impl Fused for KeptAffine<'_> {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (tokens, x) = (x.tokens(), x.as_slice());
        kernels::kept_affine_matmul(self, rows, x, tokens, y, add, scratch.work());
    }

    fn most_tokens(&self) -> usize {
        2 * FEW
    }
}

impl Fused for AffinePanels {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        x.with_panels(self.input_form(), scratch, |input, scratch| {
            self.matmul_input(rows, input, y, add, scratch.work());
        });
    }
}
