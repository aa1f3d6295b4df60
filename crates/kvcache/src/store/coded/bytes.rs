//! Numbers, codes and sparse entries as bytes.

use tensorpress_tensor::DType;
use tensorpress_tensor::kernels::{minmax, pack_bits, packed_len, unpack_bits};

/// Appends numbers in a float type.
pub(crate) fn put_floats(dtype: DType, values: &[f32], to: &mut Vec<u8>) {
    dtype.write_f32(values, to).expect("a float type");
}

/// All numbers of an array.
pub(crate) fn floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    dtype.read_f32(bytes, &mut values).expect("a float type");
    values
}

/// Appends codes, the first in the lowest bits.
pub(crate) fn put_codes(codes: &[u8], bits: u32, to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + packed_len(codes.len(), bits), 0);
    pack_bits(codes, bits, &mut to[start..]);
}

/// So many codes.
pub(crate) fn take_codes(bytes: &[u8], bits: u32, count: usize) -> Vec<u8> {
    let mut codes = vec![0; count];
    unpack_bits(bytes, bits, 0, &mut codes);
    codes
}

/// Appends entries: places of two bytes each to one array, values to another.
pub(crate) fn put_sparse(
    entries: &[(usize, f32)],
    dtype: DType,
    places: &mut Vec<u8>,
    values: &mut Vec<u8>,
) {
    for (at, value) in entries {
        places.extend((*at as u16).to_le_bytes());
        put_floats(dtype, &[*value], values);
    }
}

/// Entries of [`put_sparse`].
pub(crate) fn sparse(places: &[u8], values: &[u8], dtype: DType) -> Vec<(usize, f32)> {
    let places = places.as_chunks().0.iter().map(|b| usize::from(u16::from_le_bytes(*b)));
    places.zip(floats(dtype, values)).collect()
}

/// Whether all places are below a length.
pub(crate) fn sparse_fits(places: &[u8], len: usize) -> bool {
    places.as_chunks().0.iter().all(|b| usize::from(u16::from_le_bytes(*b)) < len)
}

/// value = minimum + scale x code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grid {
    pub(crate) scale: f32,
    pub(crate) min: f32,
    /// The largest code.
    pub(crate) most: f32,
}

impl Grid {
    /// The range of some numbers in steps from 0 to `most`; both ends are rounded to their stored type first.
    pub(crate) fn of(x: &[f32], most: f32, dtype: DType) -> Self {
        let (low, high) = minmax(x);
        Self { scale: dtype.round((high - low) / most), min: dtype.round(low), most }
    }

    pub(crate) fn code(&self, x: f32) -> u8 {
        // A scale of 0 is a constant group: every code is 0.
        let q = if self.scale > 0.0 {
            ((x - self.min) / self.scale).clamp(0.0, self.most)
        } else {
            0.0
        };
        q.round_ties_even() as u8
    }

    pub(crate) fn value(&self, code: u8) -> f32 {
        f32::from(code) * self.scale + self.min
    }
}
