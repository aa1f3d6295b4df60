use std::sync::Arc;

use tensorpress_tensor::ndarray::Axis;
use tensorpress_tensor::node::{Dense, Scale, Side, Signed, Sum, Transformed, decode};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Moments, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, ErrorKind, Group, Method, Node,
    Result, Target, Usable,
};

use crate::factors::{Around, Factors};
use crate::metric::Root;
use crate::project::{Solver, project};
use crate::rank::Rank;

/// BitStack (Wang et al., 2025): block after block, the signs of what is left and factors of its magnitudes: R ~ S ∘ (U V).
/// Before that inputs are scaled by how active they are.
///
/// The result is a sum of blocks: its first terms are what fewer blocks would have given, so that as many are loaded as
/// memory allows. Refuses a mask.
///
/// ```
/// use tensorpress_lowrank::BitStack;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = BitStack::new(2, 1).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BitStack {
    /// Blocks, 1 to 16. Default 3.
    pub blocks: usize,
    /// Inner size of the factors of a block. Default 16.
    pub rank: usize,
    /// Scale inputs by their norms over the calibration. Default true.
    pub scaled: bool,
    /// Stored type of the factors and of the scales. Default f16.
    pub factors: DType,
    /// How singular vectors are found. Default [`Solver::Auto`].
    pub solver: Solver,
}

impl Default for BitStack {
    fn default() -> Self {
        let solver = Solver::default();
        Self { blocks: 3, rank: 16, scaled: true, factors: DType::F16, solver }
    }
}

/// What is added to the norm of an input, as in the official code.
const LEAST: f64 = 1e-3;

impl BitStack {
    /// So many blocks with factors of this rank.
    #[must_use]
    pub fn new(blocks: usize, rank: usize) -> Self {
        Self { blocks, rank, ..Self::default() }
    }

    /// Sets whether inputs are scaled.
    #[must_use]
    pub fn with_scaled(mut self, scaled: bool) -> Self {
        self.scaled = scaled;
        self
    }

    /// Sets the stored type of factors and scales.
    #[must_use]
    pub fn with_factors(mut self, factors: DType) -> Self {
        self.factors = factors;
        self
    }

    /// Sets how singular vectors are found.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    fn check_all(&self) -> Result<()> {
        if !(1..=16).contains(&self.blocks) {
            return Err(Error::invalid(format!("blocks = {}: allowed are 1 to 16", self.blocks)));
        }
        Rank::Number(self.rank).check()?;
        match self.factors.is_float() {
            true => Ok(()),
            false => {
                let factors = self.factors;
                Err(Error::invalid(format!("factors = {factors:?}: allowed are f16, bf16 and f32")))
            }
        }
    }

    /// What inputs are multiplied by before the blocks: 1 over their norms, in the range of the stored type.
    fn scales(&self, group: &Group<'_>) -> Result<Usable<Vec<f32>>> {
        let moments = match group.calibration.usable::<Moments>() {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            moments => moments?,
        };
        Ok(moments.and_then(|moments| {
            let norms: Vec<f64> =
                moments.sum_of_squares().iter().map(|sum| sum.max(0.0).sqrt() + LEAST).collect();
            // A common factor changes nothing but the range.
            let mean = norms.iter().map(|norm| norm.ln()).sum::<f64>() / norms.len().max(1) as f64;
            let unit = mean.exp();
            let scale = |norm: &f64| self.factors.round((unit / norm) as f32);
            let scales: Vec<f32> = norms.iter().map(scale).collect();
            match scales.iter().all(|scale| scale.is_normal()) {
                true => Usable::Yes(scales),
                false => Usable::no("its inputs' norms are too far apart"),
            }
        }))
    }

    fn stack(
        &self,
        target: &Target<'_>,
        scales: Option<&[f32]>,
        group: &Group<'_>,
    ) -> Result<Compressed> {
        if target.weight.is_empty() {
            return Ok(Compressed::new(Dense::from_f32(target.weight, target.dtype)?).boxed());
        }
        let mut left = target.weight.as_standard_layout().into_owned();
        if let Some(scales) = scales {
            for (mut column, scale) in left.axis_iter_mut(Axis(1)).zip(scales) {
                column.mapv_inplace(|w| w / scale);
            }
            if left.iter().any(|w| !w.is_finite()) {
                let plain = self.stack(target, None, group)?;
                let note = "scaled weights are beyond f32: not scaled".to_owned();
                return Ok(plain.with_note(Some(note)));
            }
        }
        let around = Around {
            name: target.name,
            dtype: target.dtype,
            root: &Root::Identity,
            calibration: &group.calibration,
            seed: group.seed,
            par: group.par,
        };
        let (mut terms, mut notes) = (Vec::new(), Vec::new());
        let rank = Rank::Number(self.rank);
        for block in 0..self.blocks {
            let sizes = left.mapv(f32::abs);
            let seed = group.seed.wrapping_add(block as u64);
            let (solver, par) = (self.solver, group.par);
            let made = project(sizes.view(), &Root::Identity, rank, solver, seed, par)?;
            let (product, note) = Factors::Float(self.factors).store(&sizes, made, &around)?;
            notes.extend(note);
            let signs: Vec<u8> = left.iter().map(|w| u8::from(*w >= 0.0)).collect();
            let term = Signed::pack(&signs, product.boxed())?;
            // What the next block is for is what this one leaves as it is stored.
            left -= &decode(&term)?;
            terms.push(term.boxed());
            if left.iter().any(|w| !w.is_finite()) {
                return Err(Error::numerical("what is left is beyond f32"));
            }
        }
        notes.dedup();
        let sum = Sum::new(terms)?.boxed();
        let node = match scales {
            None => sum,
            Some(scales) => {
                let scale = Arc::new(Scale::new(scales.to_vec(), self.factors)?);
                Transformed::new(Side::In, scale, sum)?.boxed()
            }
        };
        let made = Compressed::new(node);
        Ok(notes.into_iter().fold(made, |made, note| made.with_note(Some(note))))
    }
}

impl Knobs for BitStack {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("blocks", &mut self.blocks, 1..=16, "blocks that are stacked")?;
        keys.int("rank", &mut self.rank, 1..=1 << 20, "inner size of the factors of a block")?;
        let about = "inputs are scaled by their norms first";
        keys.flag("scaled", &mut self.scaled, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("factors", &mut self.factors, &types, "stored type of factors and scales")
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "bitstack",
        "stacks blocks of signs and factors of magnitudes, of which any first ones can be loaded",
        BitStack::default,
    )
}

impl Method for BitStack {
    fn id(&self) -> &'static str {
        "bitstack"
    }

    fn needs(&self) -> Needs {
        if self.scaled { Needs::MOMENTS } else { Needs::default() }
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl Compress for BitStack {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check_all()?;
        let cols = group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
            if target.mask.is_some() {
                let message = "signs of a matrix of which only a support is kept";
                return Err(Error::unsupported(message)).in_tensor(target.name);
            }
        }
        let (mut scales, mut note) = (None, None);
        if self.scaled {
            match self.scales(&group)? {
                Usable::Yes(found) if found.len() == cols => scales = Some(found),
                Usable::Yes(found) => {
                    let message = format!("statistics of {} inputs for {cols}", found.len());
                    return Err(Error::shape(message));
                }
                Usable::No(reason) => note = Some(format!("{reason}: not scaled")),
            }
        }
        let one = |target: &Target<'_>| {
            let made = self.stack(target, scales.as_deref(), &group).in_tensor(target.name)?;
            Ok(made.with_note(note.clone()))
        };
        Ok(CompressedGroup::new(group.targets.iter().map(one).collect::<Result<_>>()?))
    }
}
