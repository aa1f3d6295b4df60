use std::ops::Range;

use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, Slice, s};
use tensorpress_tensor::node::{BlockDiagonal, Product};
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{Error, Node, Result, Usable};

use super::form::{Effort, Fitted, Form, Operator};
use super::split::{Split, energy, least_keeping, spectrum};
use crate::rank::Rank;

/// W = L R, R block-diagonal and L dense or block-diagonal behind a shuffle.
///
/// Wei, Moalla, Pascanu, Gulcehre: *Building on Efficient Foundations: Effectively Training LLMs with Structured
/// Feedforward Layers*, 2024. Inputs are cut into `of_inputs` blocks side by side, outputs into `of_outputs` interleaved
/// groups, and each of the small matrices between a block and a group has a rank of its own: that is all that the product
/// of the two factors says, so that the truncated SVD of each of them is the closest matrix of the form (for Monarch
/// matrices: Dao et al., 2022, theorem 1). Low rank is one block and one group.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BlockLowRank {
    id: &'static str,
    /// Groups of outputs, 1 to 4096; as many as there are outputs, where there are fewer.
    pub of_outputs: usize,
    /// Blocks of inputs, 1 to 4096; as many as there are inputs, where there are fewer.
    pub of_inputs: usize,
    /// Rank of each small matrix: a number, the largest with which a ratio of the parameters goes, or the least that keeps
    /// an energy of all of them together. Default a fifth of the parameters goes.
    pub rank: Rank,
}

/// Two block-diagonal factors with a shuffle between them (BlockShuffle, a Monarch matrix): `blocks` blocks of inputs,
/// `blocks` groups of outputs.
///
/// ```
/// use tensorpress_lowrank::{Rank, operator::block_shuffle};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let method = block_shuffle(2, Rank::Number(3));
/// // A rank more costs each of the 2 x 2 small matrices 8 + 32 numbers.
/// assert_eq!(method.form.weights([16, 64], 3), 3 * 4 * (8 + 32));
/// let made = method.compress(weight.view(), &Calibration::none(64))?;
/// assert!(made.fallback.is_none() && made.node.shape() == [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn block_shuffle(blocks: usize, rank: Rank) -> Operator<BlockLowRank> {
    Operator::new(BlockLowRank { id: "block_shuffle", of_outputs: blocks, of_inputs: blocks, rank })
}

/// A block-diagonal factor of `blocks` blocks of inputs, then a dense one (BlockDense).
#[must_use]
pub fn block_dense(blocks: usize, rank: Rank) -> Operator<BlockLowRank> {
    Operator::new(BlockLowRank { id: "block_dense", of_outputs: 1, of_inputs: blocks, rank })
}

impl BlockLowRank {
    /// Groups of outputs and blocks of inputs of a matrix of this shape.
    fn grid(&self, [out, inp]: [usize; 2]) -> [usize; 2] {
        [self.of_outputs.min(out).max(1), self.of_inputs.min(inp).max(1)]
    }

    /// Numbers that are stored for a matrix of this shape with small matrices of this rank; as many as a product with one
    /// token multiplies.
    #[must_use]
    pub fn weights(&self, shape: [usize; 2], rank: usize) -> usize {
        let [groups, blocks] = self.grid(shape);
        rank * (blocks * shape[0] + groups * shape[1])
    }

    /// The rank of small matrices, from all of them.
    fn rank_of(&self, shape: [usize; 2], small: &[ArrayView2<'_, f64>]) -> Result<usize> {
        let full = small.iter().map(|m| m.nrows().min(m.ncols())).max().unwrap_or(1);
        let rank = match self.rank {
            Rank::Number(rank) => rank,
            Rank::Ratio(ratio) => {
                let allowed = (shape[0] * shape[1]) as f64 * (1.0 - ratio);
                (allowed / self.weights(shape, 1) as f64 + 1e-9) as usize
            }
            Rank::Energy(fraction) => {
                let mut pooled = vec![0.0; full];
                for own in small {
                    pooled.iter_mut().zip(spectrum(*own)?).for_each(|(sum, own)| *sum += own);
                }
                least_keeping(&pooled, fraction)
            }
        };
        Ok(rank.clamp(1, full))
    }
}

/// Block `number` of `blocks`, side by side, as equal as can be.
fn block(channels: usize, blocks: usize, number: usize) -> Range<usize> {
    number * channels / blocks..(number + 1) * channels / blocks
}

impl Form for BlockLowRank {
    fn id(&self) -> &'static str {
        self.id
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let (mut blocks, shuffled) = (self.of_inputs, self.of_outputs > 1);
        keys.int("blocks", &mut blocks, 2..=4096, "blocks of a block-diagonal factor")?;
        self.of_inputs = blocks;
        if shuffled {
            self.of_outputs = blocks;
        }
        self.rank.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("of_outputs", self.of_outputs), ("of_inputs", self.of_inputs)] {
            if !(1..=4096).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 1 to 4096")));
            }
        }
        self.rank.check()
    }

    fn fit(&self, weight: ArrayView2<'_, f64>, effort: Effort) -> Result<Usable<Fitted>> {
        let (out, inp) = weight.dim();
        let [groups, blocks] = self.grid([out, inp]);
        let small: Vec<ArrayView2<'_, f64>> = (0..groups * blocks)
            .map(|at| {
                let (d, a) = (at / blocks, at % blocks);
                let columns = weight.slice_move(s![.., block(inp, blocks, a)]);
                columns.slice_axis_move(Axis(0), Slice::from(d..).step_by(groups as isize))
            })
            .collect();
        let rank = self.rank_of([out, inp], &small)?;
        // Inner channel (a, c, d): block a, direction c, group d, which takes every `groups`-th one.
        let rows = |d: usize| (out - d).div_ceil(groups);
        let mut left: Vec<_> =
            (0..groups).map(|d| Array2::zeros((rows(d), blocks * rank))).collect();
        let mut right: Vec<Array2<f64>> = (0..blocks)
            .map(|a| Array2::zeros((rank * groups, block(inp, blocks, a).len())))
            .collect();
        let mut lost = 0.0;
        for (at, own) in small.iter().enumerate() {
            let (d, a) = (at / blocks, at % blocks);
            let split = Split::of(own.view(), rank, effort)?.balanced();
            lost += energy(&(own - &split.left.dot(&split.right)));
            // Smaller ones have fewer directions; the others stay 0.
            for c in 0..split.left.ncols() {
                left[d].column_mut(a * rank + c).assign(&split.left.column(c));
                right[a].row_mut(c * groups + d).assign(&split.right.row(c));
            }
        }
        left.append(&mut right);
        let tree = move |mut nodes: Vec<Box<dyn Node>>| {
            let right = nodes.split_off(groups.min(nodes.len()));
            let left = BlockDiagonal::interleaved(nodes)?.boxed();
            Ok(Product::new(left, BlockDiagonal::new(right)?.boxed())?.boxed())
        };
        Ok(Usable::Yes(Fitted { factors: left, tree: Box::new(tree), lost }))
    }
}
