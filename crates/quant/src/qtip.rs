mod sweep;

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{BitshiftFormat, BitshiftTrellis, Dense};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Node, Result,
    Target,
};

use sweep::{BAND, Sweep};

use crate::hadamard::{Hadamard, Sides};
use tensorpress_tensor::obs::{Damping, Factor, RowFactor};

/// Trellis-coded weights at fixed bits (Tseng et al., *QTIP*, 2024; the code that EXL3 calls `mul1`): random rotations on both
/// sides make weights look normal, a path through a trellis of 2^16 states stands for each 16 x 16 of them, and values are
/// computed from states, so that products need no table ([`BitshiftTrellis`]).
///
/// Blocks of 16 columns are coded one after another by Viterbi's algorithm, each on the target that makes good for the errors
/// before (BlockLDLQ, section 2.2 of *QuIP#*): with A = U D Uᵀ of the rotated inputs, U unit upper triangular by blocks, the
/// target of block k is W_k - sum over i < k of E_i U_ik.
///
/// Never fails on singular or missing statistics: damping grows until there is a factor, a layer without statistics is coded
/// without feedback, and says so. Rotations are drawn by the group's seed.
///
/// ```
/// use tensorpress_quant::Qtip;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 32), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 32), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Qtip::bits(4).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Qtip {
    /// Bits a weight, 1 to 8. Default 3.
    pub bits: u8,
    /// Damping of A in proportion to each diagonal entry. Default 0.01.
    pub damp: f32,
    /// The sides that are rotated. Default both.
    pub rotate: Option<Sides>,
    /// Channels rotated together, a divisor of their number; 0 for all. Default 0.
    pub block: usize,
}

impl Default for Qtip {
    fn default() -> Self {
        Self { bits: 3, damp: 0.01, rotate: Some(Sides::Both), block: 0 }
    }
}

impl Qtip {
    /// So many bits a weight.
    #[must_use]
    pub fn bits(bits: u8) -> Self {
        Self { bits, ..Self::default() }
    }

    /// Sets the damping of A.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets the sides that are rotated.
    #[must_use]
    pub fn with_rotate(mut self, sides: Option<Sides>) -> Self {
        self.rotate = sides;
        self
    }

    /// Sets how many channels are rotated together; 0 for all.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// What codes the weights as they are.
    fn paths(&self) -> Paths {
        // Rotated outputs all have the same size.
        let by_row = !matches!(self.rotate, Some(Sides::Both | Sides::Out));
        Paths { bits: self.bits, damp: self.damp, by_row }
    }
}

impl Knobs for Qtip {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=8, "bits a weight")?;
        let about = "added to the diagonal of the Gram matrix, in proportion to each entry";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        let sides = [
            ("both", Some(Sides::Both)),
            ("in", Some(Sides::In)),
            ("out", Some(Sides::Out)),
            ("none", None),
        ];
        keys.choice("rotate", &mut self.rotate, &sides, "what is rotated: inputs, outputs")?;
        let about = "channels rotated together, a divisor of their number; 0: all";
        keys.int("block", &mut self.block, 0..=1 << 20, about)
    }

    fn check(&self) -> Result<()> {
        BitshiftFormat::new(self.bits)?;
        match self.damp.is_finite() && self.damp >= 0.0 {
            true => Ok(()),
            false => Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp))),
        }
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "qtip",
        "paths through a trellis at fixed bits, with rotations and feedback; values need no table",
        Qtip::default,
    )
}

impl Method for Qtip {
    fn id(&self) -> &'static str {
        "qtip"
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        self.paths().needs()
    }
}

impl Compress for Qtip {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        Knobs::check(self)?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
            if target.mask.is_some() {
                return Err(Error::unsupported("a mask over a path")).in_tensor(target.name);
            }
        }
        let paths = self.paths();
        if let Some(sides) = self.rotate {
            let rotated = Hadamard::new(paths).with_sides(sides).with_block(self.block);
            return rotated.compress_group(group);
        }
        let CompressedGroup { layers, folded } = paths.compress_group(group)?;
        let layers = layers.into_iter().map(Compressed::boxed).collect();
        Ok(CompressedGroup { layers, folded })
    }
}

/// [`Qtip`] without the rotations.
#[derive(Debug, Clone, Copy)]
struct Paths {
    bits: u8,
    damp: f32,
    /// A scale a row.
    by_row: bool,
}

impl Method for Paths {
    fn id(&self) -> &'static str {
        "qtip"
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }
}

impl Compress for Paths {
    type Node = BitshiftTrellis;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<BitshiftTrellis>> {
        // Rotated weights may pass the end of f32.
        group.targets.iter().try_for_each(Target::check_finite)?;
        let (inputs, reason) = Factor::of_inputs(&mut group, self.damp, Damping::Each)?;
        let reason = reason.map(|reason| format!("{reason}: coded without feedback"));
        let layers = group.targets.iter().map(|target| {
            let node = self.code(target, &inputs, &group).in_tensor(target.name)?;
            let fallback = reason.clone().or_else(|| inputs.note.clone());
            Ok(Compressed::new(node).with_fallback(fallback))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

impl Paths {
    fn code(
        &self,
        target: &Target<'_>,
        inputs: &Factor,
        group: &Group<'_>,
    ) -> Result<BitshiftTrellis> {
        let weight = target.kept_weight();
        let rows = RowFactor::of(target, &group.calibration, BAND, group.par)?;
        let sweep = Sweep::new(weight.view(), inputs, rows, self.bits.into(), group.par);
        let scales = sweep.scales(self.by_row);
        // Half precision where it holds them all at full length.
        let halves = |s: &f32| *s == 0.0 || (6.2e-5..=6e4).contains(s);
        let dtype = if scales.iter().all(halves) { DType::F16 } else { DType::F32 };
        let scales: Vec<f32> = scales.into_iter().map(|s| dtype.round(s)).collect();
        let codes = sweep.codes(&scales);
        let mut format = BitshiftFormat::new(self.bits)?;
        if self.by_row {
            format = format.by_row();
        }
        let scales = Array2::from_shape_vec((scales.len(), 1), scales).expect("one a row, or one");
        let scales = Dense::from_f32(scales.view(), dtype)?.boxed();
        let shape = [weight.nrows(), weight.ncols()];
        BitshiftTrellis::path(format, shape, &codes, scales)
    }
}
