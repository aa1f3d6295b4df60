use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Additive, AdditiveFormat, KnownVectors, Node};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Group, Method, Result, Target};

use super::check_whole;
use crate::levels::check_float;
use crate::levels::scaled::{dense, stored, type_for};
use crate::rounding::{Codes, Filler, Grouped, Rule};

/// E8P of QuIP# (Tseng et al., 2024): every eight consecutive weights of a row become the nearest of 65536 points of the
/// lattice E8 + 1/4, under a scale of the row: 2 bits a weight. Made for rotated weights; twice, the second time in
/// `residual(e8)`, for 4 bits. Refuses a mask.
///
/// ```
/// use tensorpress_quant::E8;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = E8::default().compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct E8 {
    /// Stored type of scales; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

impl Default for E8 {
    fn default() -> Self {
        Self { scale: DType::F16, codes: Codes::default() }
    }
}

/// Numbers of a point.
const SIZE: usize = 8;
/// Vectors of a row that its scale is sought on, at most.
const SAMPLE: usize = 64;
/// Scales that are tried, as parts of the root of the mean square over 1.03, the best for a normal distribution.
const TRIED: [f32; 5] = [0.8, 0.9, 1.0, 1.12, 1.25];

impl E8 {
    /// Sets the stored type of scales.
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

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<Additive> {
        check_whole(target)?;
        let shape @ [rows, cols] = target.weight.dim().into();
        let groups = cols.div_ceil(SIZE);
        let dtype = type_for(target, self.scale);
        let codes = (0..rows * groups).map(|_| AtomicU16::new(0)).collect();
        let mut rule = Points { groups, scales: Grouped::new(shape, 0, 0.0), dtype, codes };
        filler.fill(target, &mut rule)?;
        let codes: Vec<u16> = rule.codes.into_iter().map(AtomicU16::into_inner).collect();
        let mut scales = rule.scales.by_rows();
        // Rows without columns have a scale all the same.
        scales.resize(rows, 0.0);
        let scales = dense(&scales, [rows, 1], Some(dtype))?;
        let format = AdditiveFormat::new(SIZE, 1, 1 << 16)?;
        Additive::sums(format, shape, 16, &codes, KnownVectors::E8p.boxed(), scales)
    }
}

/// The code of the nearest point of E8P to up to eight numbers, the first of equals.
///
/// Of each vector of magnitudes the nearest point has the signs of x (less 1/4, or with it added), but for the one that costs
/// least where their number must be odd and is even, or the reverse.
fn nearest(x: &[f32]) -> u16 {
    let mut best = (f32::INFINITY, 0u16);
    for (bit, shift) in [(0u16, -0.25f32), (1, 0.25)] {
        let mut sizes = [0.0; SIZE];
        let mut signs = 0u32;
        for (i, x) in x.iter().enumerate() {
            let from = x - shift;
            sizes[i] = from.abs();
            signs |= u32::from(from < 0.0) << i;
        }
        let odd = signs.count_ones() % 2 == 1;
        for (at, magnitudes) in KnownVectors::e8p_magnitudes().iter().enumerate() {
            let (mut loss, mut turn) = (0.0f32, f32::INFINITY);
            for i in 0..SIZE {
                let product = sizes[i] * magnitudes[i];
                // What is not there costs nothing.
                let square = if i < x.len() { magnitudes[i] * magnitudes[i] } else { 0.0 };
                loss += square - 2.0 * product;
                turn = turn.min(product);
            }
            let wrong = odd != KnownVectors::e8p_is_odd(magnitudes);
            // |x - shift|² differs between the shifts.
            let offset: f32 = sizes.iter().map(|size| size * size).sum();
            let loss = offset + loss + if wrong { 4.0 * turn } else { 0.0 };
            if loss < best.0 {
                let mut signs = signs;
                if wrong {
                    let cost = |i: &usize| sizes[*i] * magnitudes[*i];
                    let least = (0..SIZE).min_by(|a, b| cost(a).total_cmp(&cost(b)));
                    signs ^= 1 << least.expect("eight numbers");
                }
                // The first sign is the highest of seven bits.
                let seven = (0..7).fold(0, |bits, i| bits << 1 | (signs >> i & 1) as u16);
                best = (loss, (at as u16) << 8 | seven << 1 | bit);
            }
        }
    }
    best.1
}

struct Points {
    groups: usize,
    scales: Grouped<f32>,
    dtype: DType,
    codes: Vec<AtomicU16>,
}

/// The scale that loses least among some, each made better by least squares.
fn scale_of(w: &[f32], costs: &[f32]) -> f32 {
    let vectors = w.len().div_ceil(SIZE);
    let step = vectors.div_ceil(SAMPLE).max(1);
    let mean: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / w.len().max(1) as f64;
    let start = (mean.sqrt() / 1.03) as f32;
    let mut best = (0.0, 0.0);
    for part in TRIED {
        let scale = start * part;
        if !(scale > 0.0 && scale.is_finite()) {
            continue;
        }
        let (mut along, mut square) = (0.0, 0.0);
        let vectors = w.chunks(SIZE).zip(costs.chunks(SIZE)).step_by(step);
        for (w, costs) in vectors {
            let mut x = [0.0; SIZE];
            x.iter_mut().zip(w).for_each(|(x, w)| *x = w / scale);
            let point = KnownVectors::e8p_point(nearest(&x[..w.len()]));
            for ((w, cost), point) in w.iter().zip(costs).zip(point) {
                let (w, cost, point) = (f64::from(*w), f64::from(*cost), f64::from(point));
                along += cost * w * point;
                square += cost * point * point;
            }
        }
        // What least squares leaves is less by this than there was.
        let gain = along * along / square;
        if along > 0.0 && square > 0.0 && gain > best.0 {
            best = (gain, (along / square) as f32);
        }
    }
    best.1
}

impl Rule for Points {
    fn width(&self) -> usize {
        SIZE
    }

    fn group(&self) -> usize {
        self.scales.size().next_multiple_of(SIZE)
    }

    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()> {
        let dtype = self.dtype;
        let fit = |w: &[f32], costs: &[f32]| stored(dtype, scale_of(w, costs));
        self.scales.fit(weight, columns, (costs, None), par, fit);
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], _: &mut [u8]) {
        let scale = *self.scales.of(row, column);
        let mut x = [0.0; SIZE];
        if scale > 0.0 {
            x.iter_mut().zip(w).for_each(|(x, w)| *x = w / scale);
        }
        let code = nearest(&x[..w.len()]);
        self.codes[row * self.groups + column / SIZE].store(code, Ordering::Relaxed);
        let point = KnownVectors::e8p_point(code);
        values.iter_mut().zip(point).for_each(|(value, point)| *value = point * scale);
    }
}

impl Knobs for E8 {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")?;
        self.codes.knobs(keys)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "e8",
        "rounds vectors of eight to the nearest of 65536 points of the lattice E8: 2 bits a weight",
        E8::default,
    )
}

impl Method for E8 {
    fn id(&self) -> &'static str {
        "e8"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl Compress for E8 {
    type Node = Additive;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Additive>> {
        check_float("scale", self.scale)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
