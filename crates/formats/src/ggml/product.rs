//! Products over blocks as they are stored, and over panels made from them.

use std::ops::Range;

use tensorpress_tensor::half::f16;
use tensorpress_tensor::kernels::{
    self, Activations, AffinePanels, AffineRows, BlockRows, BlockType, Isa, Par, packed_len,
};
use tensorpress_tensor::node::{Fused, Input, Scratch};

use super::Type;
use super::decode::{decode, scale_min};

/// The kernels over the blocks of a matrix.
#[derive(Debug)]
pub(super) struct StoredBlocks<'a> {
    ty: Type,
    rows: BlockRows<'a>,
}

/// The product over blocks of type `ty`, rows of `cols` values without gaps; none where no kernel knows the type or the
/// bytes are not as many.
pub(super) fn fused(ty: Type, bytes: &[u8], rows: usize, cols: usize) -> Option<StoredBlocks<'_>> {
    let kind = match ty {
        Type::Q4_0 => BlockType::Q4_0,
        Type::Q4_1 => BlockType::Q4_1,
        Type::Q5_0 => BlockType::Q5_0,
        Type::Q5_1 => BlockType::Q5_1,
        Type::Q8_0 => BlockType::Q8_0,
        Type::Q2_K => BlockType::Q2_K,
        Type::Q3_K => BlockType::Q3_K,
        Type::Q4_K => BlockType::Q4_K,
        Type::Q5_K => BlockType::Q5_K,
        Type::Q6_K => BlockType::Q6_K,
        Type::IQ4_NL => BlockType::IQ4_NL,
        Type::IQ4_XS => BlockType::IQ4_XS,
        Type::MXFP4 => BlockType::MXFP4,
        _ => return None,
    };
    row_bytes(ty, bytes, rows, cols)?;
    Some(StoredBlocks { ty, rows: BlockRows { kind, bytes, rows, cols } })
}

/// Bytes of a row, if rows are whole blocks and `bytes` as many rows.
fn row_bytes(ty: Type, bytes: &[u8], rows: usize, cols: usize) -> Option<usize> {
    let row = cols / ty.block_len() * ty.block_bytes();
    let fits = cols.is_multiple_of(ty.block_len()) && row.checked_mul(rows) == Some(bytes.len());
    fits.then_some(row)
}

/// Up to so many tokens, unpacking blocks costs less than decoding tiles, where products are not made by panels of rows.
const FEW: usize = 8;

impl Fused for StoredBlocks<'_> {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (tokens, x) = (x.tokens(), x.as_slice());
        let (w, activations) = (&self.rows, Activations::default());
        kernels::block_rows_matmul(w, rows, x, tokens, y, add, activations, scratch.work());
    }

    fn most_tokens(&self) -> usize {
        if Isa::detect() == Isa::Avx512 { usize::MAX } else { FEW }
    }

    fn decode_part(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) -> bool {
        let len = self.ty.block_len();
        if !columns.start.is_multiple_of(len) || !columns.end.is_multiple_of(len) {
            return false;
        }
        let (row, block) = (self.rows.row_bytes(), self.ty.block_bytes());
        let (from, to) = (columns.start / len * block, columns.end / len * block);
        let parts = out.chunks_exact_mut(columns.len().max(1));
        rows.zip(parts).all(|(r, out)| {
            let bytes = &self.rows.bytes[r * row..(r + 1) * row];
            decode(self.ty, &bytes[from..to], out).is_ok()
        })
    }
}

/// The product over panels made for this machine, of types that are an integer grid: the values are those of the blocks but
/// for the rounding of zero points in f32. None for other types, for rows that are not whole blocks, and for scales that
/// are infinite or NaN.
pub(super) fn prepacked(
    ty: Type,
    bytes: &[u8],
    rows: usize,
    cols: usize,
) -> Option<Box<dyn Fused>> {
    const GROUP: usize = 32;
    let bits = match ty {
        Type::Q4_0 | Type::Q4_1 | Type::Q4_K => 4,
        Type::Q8_0 => 8,
        _ => return None,
    };
    let row = row_bytes(ty, bytes, rows, cols)?;
    if !AffinePanels::supports(bits, cols, GROUP) || row == 0 {
        return None;
    }
    let stride = packed_len(cols, bits);
    let (mut packed, mut codes) = (vec![0; rows * stride], Vec::with_capacity(cols));
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    for (bytes, packed) in bytes.chunks_exact(row).zip(packed.chunks_exact_mut(stride)) {
        codes.clear();
        for block in bytes.chunks_exact(ty.block_bytes()) {
            groups(ty, block, |scale, minimum, group| {
                codes.extend_from_slice(group);
                if scale == 0.0 && minimum != 0.0 {
                    // Nothing but the minimum.
                    let from = codes.len() - GROUP;
                    codes[from..].fill(0);
                    scales.push(1.0);
                    zeros.push(minimum);
                } else {
                    scales.push(scale);
                    zeros.push(if scale == 0.0 { 0.0 } else { minimum / scale });
                }
            });
        }
        kernels::pack_bits(&codes, bits, packed);
    }
    if !scales.iter().chain(&zeros).all(|v: &f32| v.is_finite()) {
        return None;
    }
    let (scales, zeros) = (&scales[..], &zeros[..]);
    let grid = AffineRows { packed: &packed, bits, rows, cols, group: GROUP, scales, zeros };
    Some(Box::new(AffinePanels::new(&grid, Par::Seq)?))
}

/// Calls `f` with the scale, the minimum and the 32 unsigned codes of each group of a block: `scale code - minimum`.
fn groups(ty: Type, block: &[u8], mut f: impl FnMut(f32, f32, &[u8; 32])) {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let split = |qs: &[u8], low: usize, high: usize| {
        let mut codes = [[0; 32]; 2];
        for (i, q) in qs.iter().enumerate() {
            codes.as_flattened_mut()[low + i] = q & 15;
            codes.as_flattened_mut()[high + i] = q >> 4;
        }
        codes
    };
    match ty {
        Type::Q4_0 => f(half(0), 8.0 * half(0), &split(&block[2..18], 0, 16)[0]),
        Type::Q4_1 => f(half(0), -half(2), &split(&block[4..20], 0, 16)[0]),
        Type::Q8_0 => {
            let mut codes = [0; 32];
            codes.iter_mut().zip(&block[2..]).for_each(|(code, q)| *code = q ^ 128);
            f(half(0), 128.0 * half(0), &codes);
        }
        Type::Q4_K => {
            let (d, dmin) = (half(0), half(2));
            for (pair, qs) in block[16..].as_chunks::<32>().0.iter().enumerate() {
                for (i, codes) in split(qs, 0, 32).iter().enumerate() {
                    let (scale, minimum) = scale_min(&block[4..16], 2 * pair + i);
                    f(d * f32::from(scale), dmin * f32::from(minimum), codes);
                }
            }
        }
        _ => {}
    }
}
