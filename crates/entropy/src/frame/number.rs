//! Numbers as little-endian bytes and back.

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
}

/// An integer or a float of 1, 2, 4 or 8 bytes: what [`compress`](super::compress()) takes and
/// [`decompress`](super::decompress) gives. Nobody else implements it.
pub trait Number: Copy + Default + Send + Sync + sealed::Sealed {
    /// Bytes of one.
    const BYTES: usize;

    /// Appends the numbers, little-endian.
    fn write_le(numbers: &[Self], out: &mut Vec<u8>);

    /// Reads `out.len()` numbers from as many times [`Number::BYTES`] bytes.
    fn read_le(bytes: &[u8], out: &mut [Self]);
}

macro_rules! numbers {
    ($($number:ty),*) => { $(
        impl sealed::Sealed for $number {}
        impl Number for $number {
            const BYTES: usize = size_of::<$number>();

            fn write_le(numbers: &[Self], out: &mut Vec<u8>) {
                out.reserve(numbers.len() * Self::BYTES);
                numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
            }

            fn read_le(bytes: &[u8], out: &mut [Self]) {
                for (number, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *number = Self::from_le_bytes(*bytes);
                }
            }
        }
    )* };
}

numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64);
