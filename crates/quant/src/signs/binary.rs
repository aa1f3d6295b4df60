use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Mask, Node, Sum};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::signs;
use crate::levels::check_float;
use crate::levels::scaled::{stored, type_for};
use crate::rounding::{Codes, Filler, Grouped, Rule};

/// Binarisation with several bases (BinaryDM; Zheng et al., 2024): each weight is a sum of signs, each under a scale of its
/// group: w ~ a₁ sign(w) + a₂ sign(w - a₁ sign(w)) + ...
///
/// ```
/// use tensorpress_quant::Binary;
/// use tensorpress_tensor::{Compress, ndarray::array, node::decode, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = array![[3.0, -3.0, 1.0, -1.0]];
/// let made = Binary::new(2).compress(weight.view(), &Calibration::none(4))?;
/// assert_eq!(decode(&*made.node)?, weight);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Binary {
    /// Signs of a weight, 1 to 4. Default 1.
    pub bases: usize,
    /// Consecutive inputs of a row that share the scales; 0 stands for whole rows. Default 0.
    pub group: usize,
    /// How scales are found. Default one after another.
    pub fit: BinaryFit,
    /// Stored type of scales; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

/// How the scales of several bases are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BinaryFit {
    /// One after another: the mean magnitude of what the bases before left over.
    #[default]
    Mean,
    /// From there by turns: all at once by least squares for the signs, then each weight the nearest sum, until nothing
    /// is gained.
    Joint,
}

/// The most bases.
const MOST: usize = 4;
/// The most turns of a joint fit.
const TURNS: usize = 50;

/// A scale for each base, 0 for those there are not.
type Scales = [f32; MOST];

impl Default for Binary {
    fn default() -> Self {
        let (fit, codes) = (BinaryFit::default(), Codes::default());
        Self { bases: 1, group: 0, fit, scale: DType::F16, codes }
    }
}

impl Binary {
    /// So many bases, with scales for whole rows.
    #[must_use]
    pub fn new(bases: usize) -> Self {
        Self { bases, ..Self::default() }
    }

    /// Sets how many inputs share the scales; 0 stands for whole rows.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets how scales are found.
    #[must_use]
    pub fn with_fit(mut self, fit: BinaryFit) -> Self {
        self.fit = fit;
        self
    }

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

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<Box<dyn Node>> {
        let dtype = type_for(target, self.scale);
        let scales = Grouped::new(target.weight.dim().into(), self.group, [0.0; MOST]);
        let (bases, fit) = (self.bases, self.fit);
        let mut rule = Bases { bases, fit, scales, dtype, mask: target.mask };
        let filled = filler.fill(target, &mut rule)?;
        let all = rule.scales.by_rows();
        let term = |base: usize| {
            let plus = filled.mapv(|code| code >> base & 1);
            let scales: Vec<f32> = all.iter().map(|scales| scales[base]).collect();
            Ok(signs(&plus, rule.scales.size(), &scales, dtype)?.boxed())
        };
        match bases {
            1 => term(0),
            _ => Ok(Sum::new((0..bases).map(term).collect::<Result<_>>()?)?.boxed()),
        }
    }
}

struct Bases<'m> {
    bases: usize,
    fit: BinaryFit,
    scales: Grouped<Scales>,
    dtype: DType,
    mask: Option<&'m Mask>,
}

/// The sum of a code: bit i says that base i counts as plus.
fn level(scales: &[f32], code: u8) -> f32 {
    let sign = |i: usize| if code >> i & 1 == 1 { 1.0 } else { -1.0 };
    let mut terms = scales.iter().enumerate().map(|(i, scale)| sign(i) * scale);
    let first = terms.next().unwrap_or(0.0);
    terms.fold(first, |sum, term| sum + term)
}

/// The code whose sum is nearest, the first of equals.
fn nearest(scales: &[f32], w: f32) -> (u8, f32) {
    let mut best = (0, level(scales, 0));
    for code in 1..1u8 << scales.len() {
        let level = level(scales, code);
        if (level - w).abs() < (best.1 - w).abs() {
            best = (code, level);
        }
    }
    best
}

/// Mean magnitudes of what is left, base by base.
fn means(bases: usize, w: &[f32], costs: &[f32]) -> Scales {
    let total: f64 = costs.iter().map(|c| f64::from(*c)).sum();
    let mut rest: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
    let mut scales = [0.0; MOST];
    for scale in &mut scales[..bases] {
        let sum: f64 = rest.iter().zip(costs).map(|(r, c)| f64::from(*c) * r.abs()).sum();
        let mean = if total > 0.0 { sum / total } else { 0.0 };
        *scale = mean as f32;
        rest.iter_mut().for_each(|r| *r -= mean.copysign(*r));
    }
    scales
}

fn loss(scales: &[f32], w: &[f32], costs: &[f32]) -> f64 {
    let one = |(w, c): (&f32, &f32)| f64::from(*c) * f64::from(w - nearest(scales, *w).1).powi(2);
    w.iter().zip(costs).map(one).sum()
}

/// Least squares for the nearest codes, and again.
fn joint(bases: usize, w: &[f32], costs: &[f32]) -> Scales {
    let mut scales = means(bases, w, costs);
    let mut least = loss(&scales[..bases], w, costs);
    for _ in 0..TURNS {
        let mut system = [[0.0f64; MOST + 1]; MOST];
        for (w, c) in w.iter().zip(costs) {
            let code = nearest(&scales[..bases], *w).0;
            let sign = |i: usize| if code >> i & 1 == 1 { 1.0 } else { -1.0 };
            for (i, row) in system[..bases].iter_mut().enumerate() {
                (0..bases).for_each(|j| row[j] += f64::from(*c) * sign(i) * sign(j));
                row[MOST] += f64::from(*c) * sign(i) * f64::from(*w);
            }
        }
        let Some(next) = solved(system, bases) else { break };
        let loss = loss(&next[..bases], w, costs);
        if loss >= least {
            break;
        }
        (scales, least) = (next, loss);
    }
    scales
}

/// The solution of a symmetric positive definite system, its right side in the last column; none if it is singular. Signs
/// may turn with their scales, so these are magnitudes, largest first.
fn solved(mut system: [[f64; MOST + 1]; MOST], bases: usize) -> Option<Scales> {
    for i in 0..bases {
        let pivot = system[i];
        if pivot[i] <= 1e-9 * system[0][0] {
            return None;
        }
        for (_, row) in system[..bases].iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let by = row[i] / pivot[i];
            row.iter_mut().zip(pivot).for_each(|(v, p)| *v -= by * p);
        }
    }
    let mut scales = [0.0; MOST];
    for (i, scale) in scales[..bases].iter_mut().enumerate() {
        *scale = (system[i][MOST] / system[i][i]).abs() as f32;
    }
    scales[..bases].sort_by(|a, b| b.total_cmp(a));
    scales.iter().all(|scale| scale.is_finite()).then_some(scales)
}

impl Rule for Bases<'_> {
    fn group(&self) -> usize {
        self.scales.size()
    }

    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()> {
        let (bases, fit, dtype) = (self.bases, self.fit, self.dtype);
        self.scales.fit(weight, columns, (costs, self.mask), par, |w, costs| {
            let scales = match fit {
                BinaryFit::Mean => means(bases, w, costs),
                BinaryFit::Joint => joint(bases, w, costs),
            };
            scales.map(|scale| stored(dtype, scale))
        });
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        for (i, w) in w.iter().enumerate() {
            let scales = &self.scales.of(row, column + i)[..self.bases];
            (codes[i], values[i]) = nearest(scales, *w);
        }
    }
}

impl Knobs for Binary {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bases", &mut self.bases, 1..=4, "signs of a weight, each under its scale")?;
        let about = "consecutive inputs that share the scales; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let fits = [("mean", BinaryFit::Mean), ("joint", BinaryFit::Joint)];
        let about = "scales: mean magnitudes base by base, or all at once by least squares";
        keys.choice("fit", &mut self.fit, &fits, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")?;
        self.codes.knobs(keys)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method("binary", "sums signs, each under a scale of its row or group", Binary::default)
}

impl Method for Binary {
    fn id(&self) -> &'static str {
        "binary"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Binary {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        if !(1..=MOST).contains(&self.bases) {
            return Err(Error::invalid(format!("bases = {}: allowed are 1 to 4", self.bases)));
        }
        check_float("scale", self.scale)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
