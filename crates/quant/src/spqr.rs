mod fit;
mod rule;

use std::sync::Arc;

use tensorpress_tensor::grid::{Clip, IntGrid, Span};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::form::Gaps;
use tensorpress_tensor::node::{
    Dense, Index, Mask, Masked, NestedAffine, NestedFormat, Side, Sum, Transformed,
};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Node, Result,
    Target, Usable, kernels,
};

use crate::GridSpec;
use fit::{Quantised, Statistics};
use rule::SpqrRule;

/// SpQR (Dettmers et al., 2023): GPTQ's sweep with tiny groups, whose scales and zero points are quantised in turn, and
/// outliers kept as floats: weights whose rounding would cost more than a threshold, and weights without which their
/// group would be rounded that much better.
///
/// Returns a [`NestedAffine`], under a permutation where columns were reordered, and in a sum with the outliers where there
/// are any. Never fails on singular or missing statistics: a layer that saw no token is rounded to nearest, and says so.
///
/// ```
/// use tensorpress_quant::Spqr;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Spqr::new(3).with_threshold(0.5).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Spqr {
    /// Bits of a code, 2 to 8. Default 3.
    pub bits: u8,
    /// Consecutive inputs that share a scale and a zero point, 1 and more. Default 16.
    pub group: usize,
    /// Bits of a code of a scale; 0: scales are not quantised. Default 3.
    pub scale_bits: u8,
    /// Bits of a code of a zero point; 0: zero points are not quantised. Default 3.
    pub zero_bits: u8,
    /// Consecutive outputs whose scales and zero points are quantised together, 1 and more. Default 16.
    pub outputs: usize,
    /// A weight is an outlier if its error, as the sweep weighs it, exceeds this many times the mean that the weights would
    /// have if they were rounded to their column's mean; 0: there are no outliers. Default 0.2.
    pub threshold: f32,
    /// Grids are fitted without the weights whose absence takes more than the threshold off their group's error.
    /// Default true.
    pub leave_one_out: bool,
    /// Decide columns in the order of falling input energy; costs a stored permutation. Default true.
    pub act_order: bool,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
    /// Stored type of outliers, and of what scales and zero points are quantised with. Default f16.
    pub floats: DType,
}

impl Default for Spqr {
    fn default() -> Self {
        Self {
            bits: 3,
            group: 16,
            scale_bits: 3,
            zero_bits: 3,
            outputs: 16,
            threshold: 0.2,
            leave_one_out: true,
            act_order: true,
            damp: 0.01,
            floats: DType::F16,
        }
    }
}

impl Spqr {
    /// SpQR with codes of `bits` bits.
    #[must_use]
    pub fn new(bits: u8) -> Self {
        Self { bits, ..Self::default() }
    }

    /// Sets how many consecutive inputs share a scale.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets the bits of scales and of zero points; 0: not quantised.
    #[must_use]
    pub fn with_statistics_bits(mut self, scales: u8, zeros: u8) -> Self {
        (self.scale_bits, self.zero_bits) = (scales, zeros);
        self
    }

    /// Sets how many consecutive outputs have their scales quantised together.
    #[must_use]
    pub fn with_outputs(mut self, outputs: usize) -> Self {
        self.outputs = outputs;
        self
    }

    /// Sets the threshold of outliers; 0: there are none.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f32) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets whether grids are fitted without likely outliers.
    #[must_use]
    pub fn with_leave_one_out(mut self, leave_one_out: bool) -> Self {
        self.leave_one_out = leave_one_out;
        self
    }

    /// Sets whether columns are decided in the order of falling input energy.
    #[must_use]
    pub fn with_act_order(mut self, act_order: bool) -> Self {
        self.act_order = act_order;
        self
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets the stored type of floats.
    #[must_use]
    pub fn with_floats(mut self, floats: DType) -> Self {
        self.floats = floats;
        self
    }

    fn check(&self) -> Result<()> {
        let bits = |name: &str, bits: u8, allowed: std::ops::RangeInclusive<u8>| match allowed
            .contains(&bits)
        {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "{name} = {bits}: allowed are {} to {}",
                allowed.start(),
                allowed.end()
            ))),
        };
        bits("bits", self.bits, 2..=8)?;
        bits("scale_bits", self.scale_bits, 0..=8)?;
        bits("zero_bits", self.zero_bits, 0..=8)?;
        for (name, value) in [("group", self.group), ("outputs", self.outputs)] {
            if value == 0 {
                return Err(Error::invalid(format!("{name} = 0: allowed are 1 and more")));
            }
        }
        for (name, value) in [("threshold", self.threshold), ("damp", self.damp)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 0 and more")));
            }
        }
        Ok(())
    }

    /// Sweeps one target with the shared inverse factor.
    fn quantize(
        &self,
        target: &Target<'_>,
        prepared: &Prepared,
        par: Par,
    ) -> Result<Box<dyn Node>> {
        target.check_finite()?;
        let dense = target.kept_weight();
        let abs_max = kernels::abs_max(dense.as_slice().expect("standard layout"));
        let family = IntGrid::new(self.bits, false, Clip::MinMax, self.floats)?;
        let floats = match family.widened_for(abs_max).scale_dtype {
            // Outliers are weights, and others' errors may double them.
            DType::F16 if abs_max > LARGE => DType::F32,
            floats => floats,
        };
        let order = prepared.order.as_deref();
        let mut weight = match order {
            Some(order) => dense.select(Axis(1), order),
            None => dense.into_owned(),
        };
        for &dead in &prepared.dead {
            weight.column_mut(dead).fill(0.0);
        }
        let shape = [weight.nrows(), weight.ncols()];
        let diagonal = prepared.factor.diag().to_vec();
        let cutoff = match self.threshold {
            0.0 => f64::INFINITY,
            threshold => f64::from(threshold) * cost_of_means(weight.view(), &diagonal),
        };
        let group = self.group.min(shape[1].max(1));
        let statistics = Statistics::of(self, floats);
        let mut rule = SpqrRule::new(self.bits, group, shape, statistics, cutoff, target.mask);
        (rule.leave_one_out, rule.order) = (self.leave_one_out, order);
        let swept = prepared.sweep(target, weight, group, &mut rule, par)?;
        let codes = swept.codes.as_slice().expect("standard layout");
        let outliers = rule.outliers(&swept.weight, codes);
        let [scales, zeros] = rule.into_statistics();
        let outputs = self.outputs.min(shape[0].max(1));
        let format = NestedFormat::new([1, group])?;
        let [scales, zeros] =
            [self.node(scales, outputs, floats)?, self.node(zeros, outputs, floats)?];
        let codes = NestedAffine::nested(format, shape, self.bits, codes, scales, zeros)?;
        let codes: Box<dyn Node> = match order {
            Some(order) => {
                let index = order.iter().map(|c| *c as u32).collect();
                let permutation = Arc::new(Index::new(index, shape[1])?);
                Box::new(Transformed::new(Side::In, permutation, Box::new(codes))?)
            }
            None => Box::new(codes),
        };
        if outliers.iter().all(|value| *value == 0.0) {
            return Ok(codes);
        }
        let mask = Mask::from_bools(outliers.mapv(|value| value != 0.0).view());
        let form = Arc::new(Gaps::of(&mask));
        let values = Dense::from_f32(outliers.view(), floats)?.boxed();
        Ok(Box::new(Sum::new(vec![codes, Masked::in_form(mask, form, values)?.boxed()])?))
    }

    /// Scales or zero points as they are stored.
    fn node(&self, made: Quantised, outputs: usize, floats: DType) -> Result<Box<dyn Node>> {
        let dense = |values: &Array2<f32>| Dense::from_f32(values.view(), floats);
        let Some((bits, codes)) = made.codes else { return Ok(dense(&made.values)?.boxed()) };
        let (rows, groups) = codes.dim();
        let format = NestedFormat::new([outputs, 1])?;
        let codes = codes.as_slice().expect("standard layout");
        let scales = dense(&made.scales)?.boxed();
        let zeros = dense(&made.zeros)?.boxed();
        Ok(NestedAffine::nested(format, [rows, groups], bits, codes, scales, zeros)?.boxed())
    }
}

/// Larger weights are not kept in f16.
const LARGE: f32 = 16384.0;

/// The mean over columns of their variance over U_jj²: what a weight would cost on average if it were rounded to the mean of
/// its column. Rows that are all alike have no variance; then 0 stands in for the mean.
fn cost_of_means(weight: ArrayView2<'_, f32>, diagonal: &[f32]) -> f64 {
    let (rows, cols) = weight.dim();
    let mean_cost = |cost: &dyn Fn(&[f64]) -> f64| {
        let columns = weight.columns().into_iter().zip(diagonal).map(|(column, diagonal)| {
            let column: Vec<f64> = column.iter().map(|w| f64::from(*w)).collect();
            cost(&column) / f64::from(*diagonal).powi(2)
        });
        columns.sum::<f64>() / cols.max(1) as f64
    };
    let squares =
        |column: &[f64], about: f64| column.iter().map(|w| (w - about).powi(2)).sum::<f64>();
    let variance = mean_cost(&|column| {
        let mean = column.iter().sum::<f64>() / rows as f64;
        squares(column, mean) / (rows as f64 - 1.0).max(1.0)
    });
    match variance > 0.0 {
        true => variance,
        false => mean_cost(&|column| squares(column, 0.0) / rows.max(1) as f64),
    }
}

impl Knobs for Spqr {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=8, "bits of a code")?;
        let about = "consecutive inputs that share a scale and a zero point";
        keys.int("group", &mut self.group, 1..=1 << 20, about)?;
        let about = "bits of a code of a scale; 0: not quantised";
        keys.int("scale_bits", &mut self.scale_bits, 0..=8, about)?;
        let about = "bits of a code of a zero point; 0: not quantised";
        keys.int("zero_bits", &mut self.zero_bits, 0..=8, about)?;
        let about = "consecutive outputs whose scales and zero points are quantised together";
        keys.int("outputs", &mut self.outputs, 1..=1 << 20, about)?;
        let about = "weights that would cost more than this share of an average variance are kept as floats; 0: none are";
        keys.float("threshold", &mut self.threshold, 0.0..=1e6, about)?;
        let about =
            "grids are fitted without weights whose absence takes so much off their group's error";
        keys.flag("leave_one_out", &mut self.leave_one_out, about)?;
        let about = "columns in the order of falling input energy";
        keys.flag("act_order", &mut self.act_order, about)?;
        let about = "added to the diagonal, as a fraction of its mean";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        let about = "stored type of outliers and of the scales of scales";
        keys.choice("floats", &mut self.floats, &types, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "spqr",
        "tiny groups whose scales are quantised in turn, and outliers kept as floats, in one sweep",
        Spqr::default,
    )
}

impl Method for Spqr {
    fn id(&self) -> &'static str {
        "spqr"
    }

    fn grid(&self) -> Option<GridSpec> {
        let grid = GridSpec::new(self.bits, self.group).with_range(Span::Tight);
        Some(grid.with_scale(self.floats))
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }
}

impl Compress for Spqr {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        let cols = group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let prepared = Prepared::new(&mut group, f64::from(self.damp), self.act_order)?;
        let prepared = match prepared {
            Usable::Yes(prepared) => prepared,
            // With the identity nothing is spread: each weight is rounded to nearest.
            Usable::No(reason) => {
                Prepared::identity(cols, format!("{reason}: rounded to nearest instead"))
            }
        };
        let layers = group.targets.iter().map(|target| {
            let node = self.quantize(target, &prepared, group.par).in_tensor(target.name)?;
            Ok(Compressed { bias: None, fallback: prepared.note.clone(), node })
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
