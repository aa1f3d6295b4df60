//! From values to blocks: the reference quantisers, to the bit.
//!
//! All arithmetic is f32 in ggml's order, sums from the first element to the last.

mod fit;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod k;
mod k_coded;
mod lattice;
mod legacy;
mod nearby;
mod small;
mod ternary;
mod write;

use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::{Error, Result};

use super::Type;
pub(super) use write::{Scales, write};

/// Which of ggml's quantisers is followed, where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Flavour {
    /// What writes files (`ggml_quantize_chunk`).
    #[default]
    File,
    /// What converts rows one by one (`from_float_ref`): IQ4_NL without its search for a scale.
    Plain,
    /// The x86 kernels for activations: Q8_0 and Q8_1 multiply by `127 / max` and round ties to even.
    Simd,
}

/// Quantises `values` to whole blocks of type `ty`, as ggml writes files: [`encode_as`] with [`Flavour::File`].
///
/// # Errors
/// As [`encode_as`].
pub fn encode(ty: Type, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
    encode_as(Flavour::File, ty, values, importance, out)
}

/// Quantises `values` to whole blocks of type `ty`.
///
/// `importance` weighs the columns of a row, not less than 0 each; then `values` are whole rows of its length, and the
/// algorithm is another one, not the same with weights of 1. Types that have one algorithm alone ignore it.
///
/// What ggml does is done, its oddities included: in IQ3_S a group of 32 zeros takes no room, so the groups behind it
/// are read in the wrong place; such rows are better kept in another type.
///
/// # Errors
/// `ShapeMismatch` if `values` or rows are not whole blocks, or `out` is not as long as the blocks;
/// `Numerical` if a value or weight is not finite or a weight negative (F16 and BF16 hold any value);
/// `MissingCalibration` if the type is not made without importance (IQ2_XXS, IQ2_XS, IQ1_S).
pub fn encode_as(
    flavour: Flavour,
    ty: Type,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    check(ty, values, importance, out)?;
    let job = Job { values, importance };
    match ty {
        Type::F16 => job.each(out, |x: Block<'_, 1>, b| *b = f16::from_f32(x.x[0]).to_le_bytes()),
        Type::BF16 => job.each(out, |x: Block<'_, 1>, b| *b = bf16::from_f32(x.x[0]).to_le_bytes()),
        Type::Q4_0 => job.each(out, legacy::q4_0),
        Type::Q4_1 => job.each(out, legacy::q4_1),
        Type::Q5_0 => job.each(out, legacy::q5_0),
        Type::Q5_1 => job.each(out, legacy::q5_1),
        Type::Q8_0 if flavour == Flavour::Simd => job.each(out, legacy::q8_0::<true>),
        Type::Q8_0 => job.each(out, legacy::q8_0::<false>),
        Type::Q8_1 if flavour == Flavour::Simd => job.each(out, legacy::q8_1::<true>),
        Type::Q8_1 => job.each(out, legacy::q8_1::<false>),
        Type::Q1_0 => job.each(out, small::q1_0),
        Type::Q2_0 => job.each(out, small::q2_0),
        Type::MXFP4 => job.each(out, small::mxfp4),
        Type::NVFP4 => job.each(out, small::nvfp4),
        Type::TQ1_0 => job.each(out, ternary::tq1),
        Type::TQ2_0 => job.each(out, ternary::tq2),
        Type::Q2_K => job.each(out, k::q2),
        Type::Q3_K => job.each(out, k::q3),
        Type::Q4_K => job.each(out, k_coded::q4),
        Type::Q5_K => job.each(out, k_coded::q5),
        Type::Q6_K => job.each(out, k::q6),
        Type::Q8_K => job.each(out, k::q8),
        Type::IQ4_NL if flavour == Flavour::Plain => job.each(out, iq4::iq4_nl_plain),
        Type::IQ4_NL => job.each(out, iq4::iq4_nl),
        Type::IQ4_XS => job.each(out, iq4::iq4_xs),
        Type::IQ2_XXS => job.each(out, iq2::iq2_xxs),
        Type::IQ2_XS => job.each(out, iq2::iq2_xs),
        Type::IQ2_S => job.each(out, iq2::iq2_s),
        Type::IQ3_XXS => job.each(out, iq3::iq3_xxs),
        Type::IQ3_S => job.each(out, iq3::iq3_s),
        Type::IQ1_S => job.each(out, iq1::iq1_s),
        Type::IQ1_M => job.each(out, iq1::iq1_m),
    }
    Ok(())
}

fn check(ty: Type, values: &[f32], importance: Option<&[f32]>, out: &[u8]) -> Result<()> {
    let (name, len) = (ty.name(), ty.block_len());
    let row = importance.map_or(len, <[f32]>::len);
    if row == 0 || !row.is_multiple_of(len) || !values.len().is_multiple_of(row) {
        let n = values.len();
        return Err(Error::shape(format!(
            "{n} values in rows of {row} are not whole blocks of {name} ({len} values)"
        )));
    }
    if !out.len().is_multiple_of(ty.block_bytes())
        || out.len() / ty.block_bytes() != values.len() / len
    {
        let (blocks, bytes) = (values.len() / len, ty.block_bytes());
        let n = out.len();
        return Err(Error::shape(format!(
            "{blocks} blocks of {name} are {bytes} bytes each, not {n} together"
        )));
    }
    let any = matches!(ty, Type::F16 | Type::BF16);
    if !any && let Some(place) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::numerical(format!(
            "value {place} is {}, which {name} does not hold",
            values[place]
        )));
    }
    let weights = importance.unwrap_or_default();
    if let Some(place) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
        return Err(Error::numerical(format!("importance {place} is {}", weights[place])));
    }
    if importance.is_none() && matches!(ty, Type::IQ2_XXS | Type::IQ2_XS | Type::IQ1_S) {
        return Err(Error::missing_calibration(format!("{name} is made by importance alone")));
    }
    Ok(())
}

struct Job<'a> {
    values: &'a [f32],
    importance: Option<&'a [f32]>,
}

/// A block to be quantised.
#[derive(Clone, Copy)]
struct Block<'a, const N: usize> {
    x: &'a [f32; N],
    importance: Option<&'a [f32; N]>,
    /// Mean square of the row, where there is importance.
    row_square: f32,
}

impl<const N: usize> Block<'_, N> {
    /// The importance of the block's values times √(s + x²), if there is importance.
    fn weights(&self, s: f32) -> Option<[f32; N]> {
        let importance = self.importance?;
        Some(std::array::from_fn(|i| importance[i] * (s + self.x[i] * self.x[i]).sqrt()))
    }
}

impl Job<'_> {
    fn each<const N: usize, const B: usize>(
        &self,
        out: &mut [u8],
        one: impl Fn(Block<'_, N>, &mut [u8; B]),
    ) {
        let row = self.importance.map_or(N, <[f32]>::len);
        let rows = self.values.chunks_exact(row).zip(out.chunks_exact_mut(row / N * B));
        for (values, out) in rows {
            let row_square = self.importance.map_or(0.0, |_| square(values) / row as f32);
            for (i, (x, b)) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
                let importance = self.importance.map(|w| &w.as_chunks().0[i]);
                b.fill(0);
                one(Block { x, importance, row_square }, b);
            }
        }
    }
}

/// Σx², in order.
fn square(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The value of the largest magnitude, the first of equals, with its sign.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, &x| if x.abs() > max.abs() { x } else { max })
}

/// 1 / d, but 0 for 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The nearest integer, ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// Stores `d` as f16 at byte `at`; returns what it is then.
fn put_half(b: &mut [u8], at: usize, d: f32) -> f32 {
    let d = f16::from_f32(d);
    b[at..at + 2].copy_from_slice(&d.to_le_bytes());
    d.to_f32()
}

/// The index of the nearest of ascending levels, the higher one of two as near.
fn nearest_level(levels: &[i8], x: f32) -> usize {
    let last = levels.len() - 1;
    let level = |i: usize| f32::from(levels[i]);
    if x <= level(0) {
        return 0;
    }
    if x >= level(last) || x.is_nan() {
        return last;
    }
    let above = levels.partition_point(|&l| f32::from(l) <= x);
    if x - level(above - 1) < level(above) - x { above - 1 } else { above }
}
