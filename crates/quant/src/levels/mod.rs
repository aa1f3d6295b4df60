//! Tables of levels: named ones, each block of the flattened matrix scaled by its largest magnitude, which the formats of
//! bitsandbytes have in common; and those that are fitted to the weights.

mod bitmod;
mod dynamic8;
mod fp4;
mod kmeans;
mod nf4;
mod optimal;
mod spec;
mod squeezellm;

pub use bitmod::BitMod;
pub use dynamic8::Dynamic8;
pub use fp4::Fp4;
pub use kmeans::KMeans;
pub use nf4::Nf4;
pub use optimal::optimal_levels;
pub use spec::LevelSpec;
pub use squeezellm::SqueezeLlm;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, KnownLevels, LevelFormat, LevelTable, Node, PackedPlane,
};
use tensorpress_tensor::stage::{Keys, Row, WeightPart};
use tensorpress_tensor::{
    Compressed, CompressedGroup, DType, Error, Group, Result, Target, kernels,
};

/// The stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 3] {
    [nf4::stage(), fp4::stage(), dynamic8::stage()]
}

/// The stages of tables that are fitted.
pub(crate) fn fitted_stages() -> [Row<WeightPart>; 3] {
    [kmeans::stage(), squeezellm::stage(), bitmod::stage()]
}

/// What all named tables can be told.
fn block_knobs(block: &mut usize, double_quant: &mut bool, keys: &mut Keys<'_>) -> Result<()> {
    let about = "consecutive weights of the flattened matrix that share a scale";
    keys.int("block", block, 1..=1 << 20, about)?;
    let about = "scales are quantised in turn, to 8 bits in blocks of 256";
    keys.flag("double_quant", double_quant, about)
}

/// Blocks of scales that are quantised in turn.
const SCALES_A_BLOCK: usize = 256;

/// A table, its blocks, and whether their scales are quantised in turn.
#[derive(Debug, Clone, Copy)]
struct Blockwise {
    levels: KnownLevels,
    block: usize,
    double_quant: bool,
}

impl Blockwise {
    fn compress_group(self, group: &Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        if self.block == 0 {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        let round = |t: &Target<'_>| Ok(Compressed::new(self.round(t, group.par)?));
        Ok(CompressedGroup::new(group.targets.iter().map(round).collect::<Result<_>>()?))
    }

    fn round(self, target: &Target<'_>, par: Par) -> Result<LevelTable> {
        target.check_finite()?;
        let weight = target.kept_weight();
        let shape = weight.dim();
        let weight = weight.as_slice().expect("standard layout");
        let (codes, scales) = codes(self.levels, weight, self.block, par);
        let scales =
            if self.double_quant { quantised(&scales)?.boxed() } else { row(&scales)?.boxed() };
        let format = LevelFormat::new(self.levels.levels().len(), Blocks::Flat(self.block))?;
        leaf(format, self.levels, shape, &codes, vec![Child::Node(scales)])
    }
}

/// Scales as a leaf: their mean as an offset, and what is left in blocks of levels of the dynamic map.
fn quantised(scales: &[f32]) -> Result<LevelTable> {
    let offset = mean(scales);
    let rest: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
    let levels = KnownLevels::Dynamic8;
    let (codes, scales) = codes(levels, &rest, SCALES_A_BLOCK, Par::Seq);
    let format = LevelFormat::new(256, Blocks::Flat(SCALES_A_BLOCK))?.with_offset();
    let beside = [row(&scales)?, row(&[offset])?].map(|node| Child::Node(node.boxed()));
    leaf(format, levels, (1, rest.len()), &codes, beside.into())
}

fn leaf(
    format: LevelFormat,
    levels: KnownLevels,
    (rows, cols): (usize, usize),
    codes: &[u8],
    beside: Vec<Child>,
) -> Result<LevelTable> {
    let bits = levels.levels().len().ilog2() as u8;
    let codes = PackedPlane::pack(codes, rows, cols, bits)?;
    let children = [Child::Node(levels.boxed())].into_iter().chain(beside).collect();
    LevelTable::new(format, [rows, cols], Box::new(codes), children)
}

/// Values as they are, in f32.
fn row(values: &[f32]) -> Result<Dense> {
    let values = ArrayView2::from_shape((1, values.len()), values).expect("one row");
    Dense::from_f32(values, DType::F32)
}

/// The nearest level of each value over the largest magnitude of its block, and those magnitudes.
fn codes(levels: KnownLevels, values: &[f32], block: usize, par: Par) -> (Vec<u8>, Vec<f32>) {
    let nearest = Nearest::new(levels);
    let mut codes = vec![0; values.len()];
    let mut scales = vec![0.0; values.len().div_ceil(block)];
    let round = |((values, codes), scale): ((&[f32], &mut [u8]), &mut f32)| {
        *scale = kernels::abs_max(values);
        for (value, code) in values.iter().zip(codes) {
            *code = nearest.code(if *scale > 0.0 { value / *scale } else { 0.0 });
        }
    };
    // Many blocks at a time: one alone is soon done.
    let many = 64 * block;
    let pieces = values.chunks(many).zip(codes.chunks_mut(many)).zip(scales.chunks_mut(64));
    par.for_each(pieces, |((values, codes), scales)| {
        values.chunks(block).zip(codes.chunks_mut(block)).zip(scales).for_each(&round);
    });
    (codes, scales)
}

/// The nearest level of numbers from -1 to 1; the lower one in the middle of two.
struct Nearest {
    /// Codes by ascending level.
    codes: Vec<u8>,
    /// Middles of neighbouring levels, in f32.
    middles: Vec<f32>,
    /// Numbers are rounded to so many steps for a unit first, as the official code does for its map of 256 levels.
    steps: Option<f64>,
}

impl Nearest {
    fn new(known: KnownLevels) -> Self {
        let levels = known.levels();
        let mut codes: Vec<u8> = (0..=u8::MAX).take(levels.len()).collect();
        let level = |code: u8| levels[usize::from(code)];
        codes.sort_by(|a, b| level(*a).total_cmp(&level(*b)));
        let middles = codes.windows(2).map(|two| (level(two[0]) + level(two[1])) * 0.5).collect();
        let steps = (known == KnownLevels::Dynamic8).then_some(32767.5);
        Self { codes, middles, steps }
    }

    fn code(&self, mut value: f32) -> u8 {
        if let Some(steps) = self.steps {
            value = (((f64::from(value) + 1.0) * steps).round_ties_even() / steps - 1.0) as f32;
        }
        self.codes[self.middles.partition_point(|middle| *middle < value)]
    }
}

/// The mean in f32, summed as PyTorch sums a row on machines with 8 lanes, so that offsets are those of the official
/// code: 4 x 8 partial sums in runs of 16, of which 16 are added up in turn, and so on.
fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const RUN: usize = 16;
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (quads, single) = vectors.as_chunks::<4>();
    let mut levels = [[[0f32; LANES]; 4]; 4];
    let add = |to: &mut [f32; LANES], from: &[f32; LANES]| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    };
    for (i, quad) in quads.iter().enumerate() {
        levels[0].iter_mut().zip(quad).for_each(|(to, from)| add(to, from));
        let mut runs = i + 1;
        for level in 1..levels.len() {
            if !runs.is_multiple_of(RUN) {
                break;
            }
            runs /= RUN;
            let done = std::mem::take(&mut levels[level - 1]);
            levels[level].iter_mut().zip(&done).for_each(|(to, from)| add(to, from));
        }
    }
    let [mut sums, higher @ ..] = levels;
    for level in &higher {
        sums.iter_mut().zip(level).for_each(|(to, from)| add(to, from));
    }
    let [mut sum, others @ ..] = sums;
    single.iter().chain(&others).for_each(|from| add(&mut sum, from));
    let total = rest.iter().chain(&sum).fold(0.0, |total, value| total + value);
    total / values.len().max(1) as f32
}
