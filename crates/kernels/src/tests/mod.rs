//! One suite for all instruction sets: every kernel against a naive oracle on each set that this
//! CPU has, and bit for bit against the portable code where the kernel promises that.

use super::{FloatType, Isa};

mod blocks;
mod codebooks;
mod codes;
mod exponential;
mod floats;
mod grids;
mod hadamard;
mod ints;
mod levels;
mod panels;
mod picked;
mod sparse;
mod trellis;

/// Lengths on both sides of every vector, unit and block boundary.
const SIZES: &[usize] = &[
    0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1100,
];

/// Runs a check on every instruction set of this CPU and prints which those are.
fn on_every_isa(check: impl Fn(Isa)) {
    for isa in Isa::available() {
        println!("on {isa}");
        check(isa);
    }
}

/// A small deterministic generator (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn byte(&mut self) -> u8 {
        (self.word() >> 56) as u8
    }

    /// Roughly normal, of unit variance.
    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.word() >> 40) as f32 / (1u64 << 24) as f32).sum();
        sum - 6.0
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    fn codes(&mut self, n: usize, bits: u32) -> Vec<u8> {
        (0..n).map(|_| self.byte() >> (8 - bits)).collect()
    }
}

/// Every type of stored numbers.
pub(crate) const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

/// Numbers in a stored type, and what they were rounded to.
pub(crate) fn store(format: FloatType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let one = |v: &f32| match format {
        FloatType::F32 => (v.to_le_bytes().to_vec(), *v),
        FloatType::F16 => {
            (half::f16::from_f32(*v).to_le_bytes().to_vec(), half::f16::from_f32(*v).to_f32())
        }
        FloatType::Bf16 => {
            (half::bf16::from_f32(*v).to_le_bytes().to_vec(), half::bf16::from_f32(*v).to_f32())
        }
    };
    let (bytes, rounded): (Vec<_>, Vec<_>) = values.iter().map(one).unzip();
    (bytes.concat(), rounded)
}

#[test]
fn the_portable_set_is_always_there() {
    let available = Isa::available();
    assert_eq!(available[0], Isa::Generic);
    assert!(Isa::detect().is_available());
    println!("available: {available:?}, chosen: {}", Isa::detect());
}

/// Equal bits, where any NaN equals any other with the same bits only.
fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: entry {i}: {a} against {b}");
    }
}

/// Rows in pieces, added to zeros, give the bits of the `whole [t, rows]`.
fn in_pieces(
    rows: usize,
    t: usize,
    whole: &[f32],
    what: &str,
    mut product: impl FnMut(std::ops::Range<usize>, &mut [f32]),
) {
    for some in [0..rows / 3, rows / 3..rows / 2 + 1, rows / 2 + 1..rows] {
        let some = some.start.min(rows)..some.end.min(rows);
        let mut y = vec![0.0; t * some.len()];
        product(some.clone(), &mut y);
        for token in 0..t {
            let expected = &whole[token * rows..(token + 1) * rows][some.clone()];
            let y = &y[token * some.len()..(token + 1) * some.len()];
            assert_same_bits(y, expected, &format!("{what}: {some:?} of {rows}"));
        }
    }
}

/// `|a - b| <= tolerance * |b|` in the Euclidean norm.
fn assert_close(a: &[f32], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let error: f64 = a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    let relative = (error / size.max(1e-30)).sqrt();
    assert!(relative <= tolerance, "{what}: relative error {relative:e}");
}

/// `|a - b| <= tolerance` in each entry.
fn assert_near(a: &[f32], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (&a, b)) in a.iter().zip(b).enumerate() {
        assert!((f64::from(a) - b).abs() <= tolerance, "{what}: entry {i}: {a} against {b}");
    }
}
