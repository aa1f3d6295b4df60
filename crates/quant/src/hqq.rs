use std::borrow::Cow;

use tensorpress_tensor::grid::Affine;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, Context, DType, Error, Group, Method, Result, Target, kernels,
};

use crate::{Clip, GridSpec, GroupedAffine, IntGrid, Span};

/// Half-quadratic quantisation (HQQ; Badri and Shaji, 2023): scales span each group, and zero points, real numbers, are
/// moved to where a norm of the rounding errors that forgives large ones is least. Needs no calibration.
///
/// ```
/// use tensorpress_quant::Hqq;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Hqq::new(3, 32).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Hqq {
    /// Bits of a code, 2 to 8. Default 4.
    pub bits: u8,
    /// Consecutive inputs of a row that share a scale; 0 stands for whole rows. Default 64.
    pub group: usize,
    /// Stored type of scales and zero points; f32 in its place for those that it cannot hold well. Default f16.
    pub scale: DType,
    /// Steps at most; 0 leaves the zero points where ranges put them. Default 20.
    pub iterations: usize,
    /// Exponent of the norm, above 0 and at most 1. Default 0.7.
    pub norm: f32,
    /// Weight of the quadratic half in the first step, positive. Default 10.
    pub beta: f32,
    /// What `beta` is multiplied by after each step, 1 and more. Default 1.01.
    pub kappa: f32,
    /// Start from zero points that are integers. Default false.
    pub round_zero: bool,
}

impl Default for Hqq {
    fn default() -> Self {
        Self {
            bits: 4,
            group: 64,
            scale: DType::F16,
            iterations: 20,
            norm: 0.7,
            beta: 10.0,
            kappa: 1.01,
            round_zero: false,
        }
    }
}

impl Hqq {
    /// `bits` bits in groups of `group` inputs (0: whole rows).
    #[must_use]
    pub fn new(bits: u8, group: usize) -> Self {
        Self { bits, group, ..Self::default() }
    }

    /// Sets the stored type of scales and zero points.
    #[must_use]
    pub fn with_scale(mut self, scale: DType) -> Self {
        self.scale = scale;
        self
    }

    /// Sets the most steps.
    #[must_use]
    pub fn with_iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// Sets the exponent of the norm.
    #[must_use]
    pub fn with_norm(mut self, norm: f32) -> Self {
        self.norm = norm;
        self
    }

    /// Sets the weight of the quadratic half, and what it is multiplied by after each step.
    #[must_use]
    pub fn with_beta(mut self, beta: f32, kappa: f32) -> Self {
        (self.beta, self.kappa) = (beta, kappa);
        self
    }

    /// Sets whether the start is rounded.
    #[must_use]
    pub fn with_round_zero(mut self, round_zero: bool) -> Self {
        self.round_zero = round_zero;
        self
    }

    /// Scales and real zero points for groups of finite weights, of any layout; not rounded to a stored type. The error
    /// that ends the search is that of all groups together. An empty group gets scale 1 and zero point 0.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters out of their range.
    pub fn fit(&self, groups: &[&[f32]], par: Par) -> Result<Vec<Affine>> {
        self.check()?;
        let max_code = self.max_code();
        let mut fits: Vec<Fit> = groups.iter().map(|group| self.start(group)).collect();
        let count: usize = groups.iter().map(|group| group.len()).sum();
        let (mut beta, mut best) = (self.beta, f32::INFINITY);
        for _ in 0..self.iterations {
            let shrink = Shrink::new(beta, self.norm);
            let pieces = groups.chunks(MANY).zip(fits.chunks_mut(MANY));
            par.for_each(pieces, |(groups, fits)| {
                groups.iter().zip(fits).for_each(|(group, fit)| fit.step(group, max_code, &shrink));
            });
            beta *= self.kappa;
            // In the order of the groups: the sum is the same for any number of threads.
            let error = fits.iter().map(|fit| fit.error).sum::<f64>() / count.max(1) as f64;
            if error as f32 >= best {
                break;
            }
            best = error as f32;
        }
        let grid = |fit: &Fit| Affine { scale: 1.0 / fit.inverse, zero: fit.zero };
        Ok(fits.iter().map(grid).collect())
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid(what));
        if !(2..=8).contains(&self.bits) {
            return wrong(format!("bits = {}: allowed are 2 to 8", self.bits));
        }
        if !(self.norm > 0.0 && self.norm <= 1.0) {
            return wrong(format!("norm = {}: allowed are above 0 to 1", self.norm));
        }
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return wrong(format!("beta = {}: allowed are positive numbers", self.beta));
        }
        if !(self.kappa.is_finite() && self.kappa >= 1.0) {
            return wrong(format!("kappa = {}: allowed are 1 and more", self.kappa));
        }
        Ok(())
    }

    fn max_code(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The grid that spans a group.
    fn start(&self, group: &[f32]) -> Fit {
        if group.is_empty() {
            return Fit { inverse: 1.0, zero: 0.0, error: 0.0 };
        }
        let (low, high) = kernels::minmax(group);
        let width = high - low;
        // Its ends keep scale and levels finite; no group of weights comes near.
        let inverse = (self.max_code() / width.min(f32::MAX)).clamp(3e-39, 1e37);
        let inverse = if width == 0.0 { 1.0 } else { inverse };
        let zero = -low * inverse;
        let zero = if self.round_zero { zero.round_ties_even() } else { zero };
        Fit { inverse, zero, error: 0.0 }
    }

    /// Rounds one matrix.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument` for parameters out of their range.
    pub fn round(&self, target: &Target<'_>, par: Par) -> Result<GroupedAffine> {
        self.check()?;
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let weight = weight.as_slice().expect("standard layout");
        let size = if self.group == 0 { cols.max(1) } else { self.group.min(cols.max(1)) };
        let (values, lengths) = kept_of_groups(target, weight, cols, size);
        let mut rest = &values[..];
        let groups: Vec<&[f32]> = lengths
            .iter()
            .map(|length| {
                let group;
                (group, rest) = rest.split_at(*length);
                group
            })
            .collect();
        let (grids, zero_dtype, family) =
            self.stored(self.fit(&groups, par)?, kernels::abs_max(weight))?;
        let mut codes = vec![0u8; rows * cols];
        let per_row = cols.div_ceil(size);
        let round_row = |((w, codes), grids): ((&[f32], &mut [u8]), &[Affine])| {
            for ((w, codes), grid) in w.chunks(size).zip(codes.chunks_mut(size)).zip(grids) {
                for (w, code) in w.iter().zip(codes) {
                    *code = code_of(*w, *grid, self.max_code());
                }
            }
        };
        if rows * cols > 0 {
            let rows = weight.chunks(cols).zip(codes.chunks_mut(cols)).zip(grids.chunks(per_row));
            par.for_each(rows, round_row);
        }
        let (scales, zeros): (Vec<f32>, Vec<f32>) = grids.iter().map(|g| (g.scale, g.zero)).unzip();
        let scales = (scales, family.scale_dtype);
        let (shape, zeros) = ([rows, cols], (&zeros[..], zero_dtype));
        GroupedAffine::with_real_zeros(shape, self.bits, size, &codes, scales, zeros)
            .in_tensor(target.name)
    }

    /// Grids as they are stored, and the types of zero points and scales.
    fn stored(
        &self,
        mut grids: Vec<Affine>,
        abs_max: f32,
    ) -> Result<(Vec<Affine>, DType, IntGrid)> {
        let family = IntGrid::new(self.bits, false, Clip::MinMax, self.scale)?.widened_for(abs_max);
        for grid in &mut grids {
            let scale = family.round_scale(grid.scale);
            if scale != grid.scale {
                // The level of code 0 stays: far from 0 it is the zero point that holds the group in its place.
                grid.zero *= grid.scale / scale;
                grid.scale = scale;
            }
        }
        let dtype = family.scale_dtype;
        let moved = |grid: &Affine| (dtype.round(grid.zero) - grid.zero).abs();
        // NaN, where the type has no such number, is not within it either.
        let fits = grids.iter().all(|grid| moved(grid) <= MOST_MOVED);
        let dtype = if fits { dtype } else { DType::F32 };
        grids.iter_mut().for_each(|grid| grid.zero = dtype.round(grid.zero));
        Ok((grids, dtype, family))
    }
}

/// The nearest code.
fn code_of(w: f32, grid: Affine, max_code: f32) -> u8 {
    (w / grid.scale + grid.zero).round_ties_even().clamp(0.0, max_code) as u8
}

/// Groups that a thread takes at once.
const MANY: usize = 64;

/// Steps by which its stored type may move a zero point.
const MOST_MOVED: f32 = 0.125;

/// The weights of all groups that may be kept, one group after another, and how many each has.
fn kept_of_groups<'a>(
    target: &Target<'_>,
    weight: &'a [f32],
    cols: usize,
    size: usize,
) -> (Cow<'a, [f32]>, Vec<usize>) {
    let rows = weight.chunks(cols.max(1));
    let Some(mask) = target.mask else {
        return (weight.into(), rows.flat_map(|row| row.chunks(size).map(<[f32]>::len)).collect());
    };
    let (mut values, mut lengths) = (Vec::new(), Vec::new());
    for (r, row) in rows.enumerate() {
        for (g, group) in row.chunks(size).enumerate() {
            let before = values.len();
            let kept = group.iter().enumerate().filter(|(c, _)| mask.keeps(r, g * size + c));
            values.extend(kept.map(|(_, w)| *w));
            lengths.push(values.len() - before);
        }
    }
    (values.into(), lengths)
}

/// The grid of a group while it is sought.
#[derive(Debug, Clone, Copy)]
struct Fit {
    /// One over the scale.
    inverse: f32,
    zero: f32,
    /// Sum of |w - level| with the zero point before the last step.
    error: f64,
}

impl Fit {
    /// Rounds, takes the large errors for what is not to be fitted, and moves the zero point to the mean of the rest.
    fn step(&mut self, group: &[f32], max_code: f32, shrink: &Shrink) {
        let Self { inverse, zero, .. } = *self;
        let (mut error, mut sum) = (0.0, 0.0);
        for w in group {
            let code = (w * inverse + zero).round_ties_even().clamp(0.0, max_code);
            let left = w - (code - zero) / inverse;
            error += f64::from(left.abs());
            sum += f64::from(code - (w - shrink.of(left)) * inverse);
        }
        if !group.is_empty() {
            self.zero = (sum / group.len() as f64) as f32;
        }
        self.error = error;
    }
}

/// The proximal step of |x|^p: sign(x) max(0, |x| - |x|^(p - 1) / beta).
struct Shrink {
    beta: f32,
    power: f32,
    /// Up to here nothing is left.
    until: f32,
}

impl Shrink {
    fn new(beta: f32, norm: f32) -> Self {
        Self { beta, power: norm - 1.0, until: beta.powf(-1.0 / (2.0 - norm)) }
    }

    fn of(&self, x: f32) -> f32 {
        let size = x.abs();
        if size <= self.until {
            return 0.0;
        }
        (size - size.powf(self.power) / self.beta).max(0.0).copysign(x)
    }
}

impl Knobs for Hqq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=8, "bits of a code")?;
        let about = "consecutive inputs that share a scale; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales and zero points")?;
        let about = "steps at most; 0: zero points as ranges put them";
        keys.int("iterations", &mut self.iterations, 0..=1 << 16, about)?;
        let about = "exponent of the norm of errors: the lower, the more large ones are forgiven";
        keys.float("norm", &mut self.norm, 0.01..=1.0, about)?;
        let about = "weight of the quadratic half in the first step";
        keys.float("beta", &mut self.beta, 1e-6..=1e6, about)?;
        let about = "what beta is multiplied by after each step";
        keys.float("kappa", &mut self.kappa, 1.0..=100.0, about)?;
        let about = "start from zero points that are integers";
        keys.flag("round_zero", &mut self.round_zero, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "hqq",
        "moves real zero points to where most weights lie near a level; needs no calibration",
        Hqq::default,
    )
}

impl Method for Hqq {
    fn id(&self) -> &'static str {
        "hqq"
    }

    fn grid(&self) -> Option<GridSpec> {
        let grid = GridSpec::new(self.bits, self.group);
        Some(grid.with_range(Span::Tight).with_scale(self.scale))
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for Hqq {
    type Node = GroupedAffine;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        group.each(|t| self.round(t, group.par))
    }
}
