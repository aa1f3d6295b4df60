//! Tables of levels: named ones, each block of the flattened matrix scaled by its largest magnitude, which the formats of
//! bitsandbytes have in common; and those that are fitted to the weights.

mod bitmod;
mod dkm;
mod kmeans;
mod known;
mod nested;
mod post;
mod scale;
pub(crate) mod scaled;
mod sketch;
mod spec;
mod squeezellm;

pub use bitmod::BitMod;
pub use dkm::Dkm;
pub use kmeans::KMeans;
pub use known::{Dynamic8, Fp4, Nf4};
pub use nested::Nested;
pub use post::Post;
pub use scale::optimal_scale;
pub use sketch::Sketch;
pub use spec::LevelSpec;
pub(crate) use spec::wide_enough;
pub use squeezellm::SqueezeLlm;
pub use tensorpress_tensor::cluster::optimal_levels;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{
    Blocks, Child, Dense, KnownLevels, LevelFormat, LevelTable, Node, PackedPlane, decode,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::{CompressedGroup, DType, Error, Group, Result, Target, kernels};

use crate::rounding::{Codes, Filler, Rounding};
use scaled::{Scaled, dense};

/// The stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 3] {
    [Nf4::stage(), Fp4::stage(), Dynamic8::stage()]
}

/// The stages of tables that are fitted.
pub(crate) fn fitted_stages() -> [Row<WeightPart>; 7] {
    [
        kmeans::stage(),
        squeezellm::stage(),
        bitmod::stage(),
        post::stage(),
        dkm::stage(),
        sketch::stage(),
        nested::stage(),
    ]
}

/// Checks that floats can be stored in a type.
pub(crate) fn check_float(name: &str, dtype: DType) -> Result<()> {
    match dtype.is_float() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{name} = {dtype:?}: allowed are f16, bf16 and f32"))),
    }
}

/// Blocks of scales that are quantised in turn.
const SCALES_A_BLOCK: usize = 256;

/// A table and its blocks, how their scales are found and whether they are quantised in turn, and how codes are.
#[derive(Debug, Clone, Copy)]
struct Blockwise {
    levels: KnownLevels,
    block: usize,
    double_quant: bool,
    search: bool,
    codes: Codes,
}

impl Knobs for Blockwise {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "consecutive weights of the flattened matrix that share a scale";
        keys.int("block", &mut self.block, 1..=1 << 20, about)?;
        let about = "scales are quantised in turn, to 8 bits in blocks of 256";
        keys.flag("double_quant", &mut self.double_quant, about)?;
        let about =
            "scales of least squared error, in place of the largest magnitude; by feedback always";
        keys.flag("search", &mut self.search, about)?;
        self.codes.knobs(keys)
    }
}

impl Blockwise {
    fn compress_group(self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        if self.block == 0 {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        match self.search || self.codes.rounding == Rounding::Feedback {
            true => self.codes.each(group, |target, filler| self.fill(target, filler)),
            false => group.each(|target| self.round(target, group.par)),
        }
    }

    /// Scales that lose least. Where blocks do not divide rows, the last of a row is shorter.
    fn fill(self, target: &Target<'_>, filler: Filler<'_>) -> Result<LevelTable> {
        let shape @ [rows, cols] = target.weight.dim().into();
        let (blocks, grid) = match cols.is_multiple_of(self.block) {
            true => (Blocks::Flat(self.block), [1, rows * cols / self.block]),
            false => (Blocks::Rows(self.block), [rows, cols.div_ceil(self.block)]),
        };
        let nearest = Nearest::of(self.levels.levels());
        let table = (&nearest.levels[..], &nearest);
        let mut rule = Scaled::new(table, target, self.block, DType::F32);
        let mut filled = filler.fill(target, &mut rule)?;
        let mut scales = dense(&rule.scales(), grid, None)?;
        if self.double_quant {
            // Codes are found anew under the scales as they are stored.
            scales = quantised(&rule.scales(), grid)?.boxed();
            let stored = decode(&*scales)?;
            let stored = stored.as_slice().expect("standard layout");
            let mut rule = Scaled::fixed(table, target, self.block, stored);
            filled = filler.fill(target, &mut rule)?;
        }
        let format = LevelFormat::new(nearest.levels.len(), blocks)?;
        let codes = filled.as_slice().expect("standard layout");
        leaf(format, self.levels, shape.into(), codes, vec![Child::Node(scales)])
    }

    fn round(self, target: &Target<'_>, par: Par) -> Result<LevelTable> {
        target.check_finite()?;
        let weight = target.kept_weight();
        let shape = weight.dim();
        let weight = weight.as_slice().expect("standard layout");
        let (codes, scales) = codes(self.levels, weight, self.block, par);
        let scales = if self.double_quant {
            quantised(&scales, [1, scales.len()])?.boxed()
        } else {
            row(&scales)?.boxed()
        };
        let format = LevelFormat::new(self.levels.levels().len(), Blocks::Flat(self.block))?;
        leaf(format, self.levels, shape, &codes, vec![Child::Node(scales)])
    }
}

/// Scales as a leaf: their mean as an offset, and what is left in blocks of levels of the dynamic map.
fn quantised(scales: &[f32], shape: [usize; 2]) -> Result<LevelTable> {
    let offset = mean(scales);
    let rest: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
    let levels = KnownLevels::Dynamic8;
    let (codes, scales) = codes(levels, &rest, SCALES_A_BLOCK, Par::Seq);
    let format = LevelFormat::new(256, Blocks::Flat(SCALES_A_BLOCK))?.with_offset();
    let beside = [row(&scales)?, row(&[offset])?].map(|node| Child::Node(node.boxed()));
    leaf(format, levels, shape.into(), &codes, beside.into())
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

/// The nearest level of numbers; the lower one in the middle of two.
pub(crate) struct Nearest {
    /// Codes and levels by ascending level.
    codes: Vec<u8>,
    levels: Vec<f32>,
    /// Middles of neighbouring levels, in f32.
    middles: Vec<f32>,
    /// Numbers are rounded to so many steps for a unit first, as the official code does for its map of 256 levels.
    steps: Option<f64>,
}

impl Nearest {
    fn new(known: KnownLevels) -> Self {
        let steps = (known == KnownLevels::Dynamic8).then_some(32767.5);
        Self { steps, ..Self::of(known.levels()) }
    }

    /// Of up to 256 levels, by their codes.
    pub(crate) fn of(levels: &[f32]) -> Self {
        let mut codes: Vec<u8> = (0..=u8::MAX).take(levels.len()).collect();
        let level = |code: u8| levels[usize::from(code)];
        codes.sort_by(|a, b| level(*a).total_cmp(&level(*b)));
        let levels: Vec<f32> = codes.iter().map(|code| level(*code)).collect();
        let middles = levels.windows(2).map(|two| (two[0] + two[1]) * 0.5).collect();
        Self { codes, levels, middles, steps: None }
    }

    /// Code and level.
    #[inline(always)]
    pub(crate) fn level(&self, value: f32) -> (u8, f32) {
        let at = self.middles.partition_point(|middle| *middle < value);
        (self.codes[at], self.levels[at])
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
