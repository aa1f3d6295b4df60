use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{ArrayView1, ArrayView2};
use tensorpress_tensor::node::{
    Blocks, Child, LevelFormat, LevelTable, Node, PackedPlane, Pyramid, PyramidFormat,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::check_whole;
use crate::levels::scaled::dense;
use crate::levels::{Nearest, check_float, optimal_levels, wide_enough};
use crate::rounding::{Codes, Filler, Rule};

/// Pyramid vector quantisation (van der Ouderaa et al., 2024): every few consecutive weights of a row become the nearest
/// direction of a vector of integers whose magnitudes have a given sum, by its number among all of those, under a length
/// from a table, a share of the norm of the row. Made for rotated weights. Refuses a mask.
///
/// ```
/// use tensorpress_quant::Pvq;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Pvq::new(3, 16).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Pvq {
    /// Bits of a direction for each weight, 1 to 5: the sum of magnitudes is the largest whose vectors these can number.
    /// Default 3.
    pub bits: usize,
    /// Consecutive inputs of a vector, 2 to 32. Default 16.
    pub size: usize,
    /// Bits of a length, 1 to 8. Default 4.
    pub gain: u8,
    /// Stored type of the norms of rows; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

impl Default for Pvq {
    fn default() -> Self {
        Self { bits: 3, size: 16, gain: 4, scale: DType::F16, codes: Codes::default() }
    }
}

impl Pvq {
    /// `bits` bits a weight for the directions of vectors of `size` inputs.
    #[must_use]
    pub fn new(bits: usize, size: usize) -> Self {
        Self { bits, size, ..Self::default() }
    }

    /// Sets the bits of a length.
    #[must_use]
    pub fn with_gain(mut self, gain: u8) -> Self {
        self.gain = gain;
        self
    }

    /// Sets the stored type of the norms of rows.
    #[must_use]
    pub fn with_scale(mut self, scale: DType) -> Self {
        self.scale = scale;
        self
    }

    /// Sets how weights get their codes.
    #[must_use]
    pub fn with_codes(mut self, codes: Codes) -> Self {
        self.codes = codes;
        self
    }

    /// The vectors.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters out of their range.
    pub fn format(&self) -> Result<PyramidFormat> {
        let all = [("bits", self.bits, 1, 5), ("size", self.size, 2, 32)];
        let all = all.into_iter().chain([("gain", self.gain.into(), 1, 8)]);
        for (name, value, least, most) in all {
            if !(least..=most).contains(&value) {
                let message = format!("{name} = {value}: allowed are {least} to {most}");
                return Err(Error::invalid(message));
            }
        }
        check_float("scale", self.scale)?;
        let format = PyramidFormat::within(self.size, self.bits * self.size)?;
        format.ok_or_else(|| {
            let (bits, size) = (self.bits, self.size);
            Error::invalid(format!("bits = {bits} of size = {size}: no vector takes so few"))
        })
    }

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<Pyramid> {
        check_whole(target)?;
        let format = self.format()?;
        let shape @ [rows, cols] = target.weight.dim().into();
        let groups = cols.div_ceil(self.size);
        let weight = target.kept_weight();
        let norm = |row: ArrayView1<'_, f32>| -> f32 {
            let square: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
            square.sqrt().min(f64::from(f32::MAX)) as f32
        };
        let norms: Vec<f32> = weight.rows().into_iter().map(norm).collect();
        let dtype = wide_enough(self.scale, norms.iter().fold(0.0, |a, b| a.max(*b)));
        let norms: Vec<f32> = norms.iter().map(|norm| dtype.round(*norm)).collect();
        let levels = self.lengths(weight.view(), &norms, &format, filler.par)?;
        let nearest = Nearest::of(&levels);
        let chosen = (0..rows * groups).map(|_| AtomicU8::new(0)).collect();
        let mut rule =
            Directions { format: &format, cols, groups, norms: &norms, nearest: &nearest, chosen };
        let filled = filler.fill(target, &mut rule)?;
        let chosen: Vec<u8> = rule.chosen.into_iter().map(AtomicU8::into_inner).collect();
        let vectors: Vec<i8> = filled.iter().map(|code| *code as i8).collect();
        let chosen = PackedPlane::pack(&chosen, rows, groups, self.gain)?;
        let table = LevelFormat::new(1 << self.gain, Blocks::Rows(groups.max(1)))?;
        let norms = dense(&norms[..rows * groups.min(1)], [rows, groups.min(1)], Some(dtype))?;
        let levels = dense(&levels, [1, levels.len()], Some(DType::F16))?;
        let beside = vec![Child::Node(levels), Child::Node(norms)];
        let lengths = LevelTable::new(table, [rows, groups], Box::new(chosen), beside)?;
        Pyramid::vectors(format, shape, &vectors, lengths.boxed())
    }

    /// The best table for the lengths of the projections of all vectors on their directions, as shares of their rows' norms.
    fn lengths(
        &self,
        weight: ArrayView2<'_, f32>,
        norms: &[f32],
        format: &PyramidFormat,
        par: Par,
    ) -> Result<Vec<f32>> {
        let groups = weight.ncols().div_ceil(self.size);
        let mut shares = vec![0f32; weight.nrows() * groups];
        if !shares.is_empty() {
            let pieces = weight.rows().into_iter().zip(norms).zip(shares.chunks_mut(groups));
            par.for_each(pieces, |((row, norm), shares)| {
                let row = row.to_slice().expect("standard layout");
                let mut vector = vec![0i8; self.size];
                for (w, share) in row.chunks(self.size).zip(shares) {
                    let vector = &mut vector[..w.len()];
                    let length = project(format.pulses(), w, vector);
                    *share = share_of(length, *norm);
                }
            });
        }
        let levels = optimal_levels(&shares, None, 1 << self.gain)?;
        Ok(levels.into_iter().map(|level| DType::F16.round(level)).collect())
    }
}

/// Pulses of a vector that are moved, at most.
const MOVES: usize = 16;

/// At most 1: lengths stay finite where norms end.
fn share_of(length: f64, norm: f32) -> f32 {
    if norm > 0.0 { (length / f64::from(norm)).min(1.0) as f32 } else { 0.0 }
}

/// Sets the vector to one of integers, magnitudes summing to `pulses`, that is near in direction, and returns the length of
/// the projection on it: the weights brought to that sum and rounded down, then pulse after pulse where the cosine gains
/// most, then pulses moved from number to number for as long as that gains.
fn project(pulses: usize, w: &[f32], vector: &mut [i8]) -> f64 {
    let sum: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    vector.fill(0);
    if sum == 0.0 {
        vector[0] = pulses as i8;
        return 0.0;
    }
    let size = |w: &f32| f64::from(w.abs());
    let (mut left, mut along, mut square) = (pulses, 0.0, 0.0);
    for (w, z) in w.iter().zip(&mut *vector) {
        let whole = ((pulses as f64 * size(w) / sum) as usize).min(left);
        *z = whole as i8;
        left -= whole;
        along += size(w) * whole as f64;
        square += (whole * whole) as f64;
    }
    for _ in 0..left {
        let mut best = (f64::NEG_INFINITY, 0);
        for (i, (w, z)) in w.iter().zip(&*vector).enumerate() {
            let gain = (along + size(w)).powi(2) / (square + 2.0 * f64::from(*z) + 1.0);
            if gain > best.0 {
                best = (gain, i);
            }
        }
        let at = best.1;
        along += size(&w[at]);
        square += 2.0 * f64::from(vector[at]) + 1.0;
        vector[at] += 1;
    }
    for _ in 0..MOVES {
        let mut best = (along * along / square * (1.0 + 1e-12), None);
        for from in (0..w.len()).filter(|from| vector[*from] > 0) {
            let along = along - size(&w[from]);
            let square = square - 2.0 * f64::from(vector[from]) + 1.0;
            for to in (0..w.len()).filter(|to| *to != from) {
                let more = square + 2.0 * f64::from(vector[to]) + 1.0;
                let gain = (along + size(&w[to])).powi(2) / more;
                if gain > best.0 {
                    best = (gain, Some((from, to)));
                }
            }
        }
        let Some((from, to)) = best.1 else { break };
        along += size(&w[to]) - size(&w[from]);
        square += 2.0 * (f64::from(vector[to]) - f64::from(vector[from])) + 2.0;
        vector[from] -= 1;
        vector[to] += 1;
    }
    for (w, z) in w.iter().zip(&mut *vector) {
        *z = if *w < 0.0 { -*z } else { *z };
    }
    along / square.sqrt()
}

struct Directions<'a> {
    format: &'a PyramidFormat,
    cols: usize,
    groups: usize,
    norms: &'a [f32],
    nearest: &'a Nearest,
    /// Codes of lengths.
    chosen: Vec<AtomicU8>,
}

impl Rule for Directions<'_> {
    fn width(&self) -> usize {
        self.format.size()
    }

    /// Nothing is fitted: as many as make a block of a sweep.
    fn group(&self) -> usize {
        self.format.size() * 8
    }

    fn begin(&mut self, _: ArrayView2<'_, f32>, _: Range<usize>, _: &[f32], _: Par) -> Result<()> {
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        debug_assert!(column + w.len() <= self.cols, "within a row");
        let mut vector = [0i8; 64];
        let vector = &mut vector[..w.len()];
        let length = project(self.format.pulses(), w, vector);
        let norm = self.norms[row];
        let (code, level) = self.nearest.level(share_of(length, norm));
        self.chosen[row * self.groups + column / self.format.size()].store(code, Ordering::Relaxed);
        let step = level * norm / PyramidFormat::length(vector);
        for ((value, code), z) in values.iter_mut().zip(codes).zip(&*vector) {
            (*value, *code) = (step * f32::from(*z), *z as u8);
        }
    }
}

impl Knobs for Pvq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=5, "bits of a direction for each weight")?;
        keys.int("size", &mut self.size, 2..=32, "consecutive inputs of a vector")?;
        keys.int("gain", &mut self.gain, 1..=8, "bits of a vector's length")?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of the norms of rows")?;
        self.codes.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        self.format().map(drop)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "pvq",
        "rounds vectors to directions of whole numbers, by number, and their lengths to a table",
        Pvq::default,
    )
}

impl Method for Pvq {
    fn id(&self) -> &'static str {
        "pvq"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl Compress for Pvq {
    type Node = Pyramid;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Pyramid>> {
        self.format()?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
