use std::sync::Arc;

use tensorpress_tensor::carry::{Keep, carry, carry_out};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{Map, Rotation};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Moments, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, Group, Method, Node, Result,
};

use crate::GridSpec;
use crate::rtn::Rtn;

/// Random rotations before a method: weights are compressed behind a Hadamard matrix with random signs, W = A T, which
/// spreads outliers over all channels (Tseng et al., *QuIP#*, 2024, section 3; Ashkboos et al., *QuaRot*, 2024).
///
/// The rotation is stored with the matrix: a bit a channel, and where no Hadamard matrix of the size is known a small
/// orthogonal factor ([`Rotation`]). Statistics are carried through it, so any solver works behind it; one that asks for moments
/// gets those of a sample. Not usable with a mask: what is 0 outside is not behind a rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Hadamard<S = Rtn> {
    /// The sides that are rotated. Default the inputs.
    pub sides: Sides,
    /// Channels rotated together, a divisor of their number; 0 for all. Default 0.
    pub block: usize,
    /// Compresses what is rotated.
    pub solver: S,
}

/// Sides of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Sides {
    /// Columns: W = A T. Products rotate each token's input.
    #[default]
    In,
    /// Rows: W = Tᵀ A. Products rotate each token's output.
    Out,
    /// Both.
    Both,
}

/// Rows sampled for a solver that asks for moments, which do not go through a rotation.
const SAMPLES: usize = 1024;

impl<S: Default> Default for Hadamard<S> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S> Hadamard<S> {
    /// Rotated inputs before this solver.
    #[must_use]
    pub fn new(solver: S) -> Self {
        Self { sides: Sides::In, block: 0, solver }
    }

    /// Sets the sides that are rotated.
    #[must_use]
    pub fn with_sides(mut self, sides: Sides) -> Self {
        self.sides = sides;
        self
    }

    /// Sets how many channels are rotated together; 0 for all.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// The rotation of so many channels.
    fn rotation(&self, channels: usize, seed: u64) -> Result<Arc<dyn Map>> {
        let block = match self.block {
            0 => Rotation::largest_block(channels).max(1),
            block if channels.is_multiple_of(block) => block,
            block => {
                let message = format!("block = {block}: allowed are divisors of {channels}, and 0");
                return Err(Error::invalid(message));
            }
        };
        Ok(Arc::new(Rotation::new(channels, block, seed)?))
    }
}

impl<S> Knobs for Hadamard<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let sides = [("in", Sides::In), ("out", Sides::Out), ("both", Sides::Both)];
        keys.choice("sides", &mut self.sides, &sides, "what is rotated: inputs, outputs")?;
        let about = "channels rotated together, a divisor of their number; 0: all";
        keys.int("block", &mut self.block, 0..=1 << 20, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "rotates channels by a Hadamard matrix with random signs, before a quantiser";
    Row::transform("hadamard", about, Hadamard::<Rtn>::default, |knobs, solver| {
        let Some(solver) = solver else { return Ok(None) };
        let Hadamard { sides, block, .. } = knobs;
        let rotated: Box<dyn DynCompress> = Box::new(Hadamard { sides, block, solver });
        Ok(Some(rotated))
    })
}

impl<S: Compress> Hadamard<S> {
    fn solve_in(&self, group: Group<'_>) -> Result<CompressedGroup> {
        if self.sides == Sides::Out {
            let CompressedGroup { layers, folded } = self.solver.compress_group(group)?;
            let layers = layers.into_iter().map(Compressed::boxed).collect();
            return Ok(CompressedGroup { layers, folded });
        }
        let map = self.rotation(group.channels()?, group.seed)?;
        carry(group, &map, Keep::Stored, |group| self.solver.compress_group(group))
    }
}

impl<S: Method> Method for Hadamard<S> {
    fn id(&self) -> &'static str {
        "hadamard"
    }

    fn grid(&self) -> Option<GridSpec> {
        self.solver.grid()
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn corrects_bias(&self) -> bool {
        self.solver.corrects_bias()
    }

    fn needs(&self) -> Needs {
        let needs = self.solver.needs();
        let sampled = needs.has::<Moments>() && self.sides != Sides::Out;
        needs | Needs::samples(if sampled { SAMPLES } else { 0 })
    }
}

impl<S: Compress> Compress for Hadamard<S> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        if self.sides == Sides::In {
            return self.solve_in(group);
        }
        let seeds = SplitMix::new(group.seed);
        let turn = |(i, target): (usize, &tensorpress_tensor::Target<'_>)| {
            self.rotation(target.weight.nrows(), seeds.at(i as u64)).in_tensor(target.name)
        };
        let maps = group.targets.iter().enumerate().map(turn).collect::<Result<Vec<_>>>()?;
        carry_out(group, &maps, |group| self.solve_in(group))
    }
}
