use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{
    Blocks, Child, LevelFormat, LevelTable, Mask, PackedPlane, Plane, PrefixedPlane, SymbolBuf,
    decode,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::scaled::{dense, stored, type_for};
use super::{check_float, optimal_scale};
use crate::rounding::{Codes, Filler, Grouped, Rule};

/// Nested codes (Wang et al., "D²MoE", 2025): codes of `high` bits whose first bits are codes of fewer, down to `low`, all
/// under the same scales. The lowest width is decided first, then bit after bit, each given those before.
///
/// Bits lie in planes of their own, so that a reader may leave the last ones out ([`Nested::narrow`]).
///
/// ```
/// use tensorpress_quant::Nested;
/// use tensorpress_tensor::{Compress, Node, Storage, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Nested::new(2, 4).compress(weight.view(), &Calibration::none(64))?;
/// let narrow = Nested::narrow(&made.node, 3)?;
/// assert!(Storage::of(&narrow)?.bits() < Storage::of(&made.node)?.bits());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Nested {
    /// Bits of the shortest codes, 1 to 8. Default 2.
    pub low: u8,
    /// Bits of the longest codes, `low` to 8. Default 4.
    pub high: u8,
    /// Bits that are kept of them, `low` to `high`; 0 stands for all. Default 0.
    pub keep: u8,
    /// Consecutive inputs of a row that share a scale; 0 stands for whole rows. Default 128.
    pub group: usize,
    /// Stored type of scales; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default by feedback.
    pub codes: Codes,
}

impl Default for Nested {
    fn default() -> Self {
        let (scale, codes) = (DType::F16, Codes::feedback());
        Self { low: 2, high: 4, keep: 0, group: 128, scale, codes }
    }
}

/// Scales that are tried between those of the lowest and the highest width.
const TRIED: i32 = 12;

/// The levels of codes of `bits` bits in steps of the codes of `high`: the middles of as many equal parts of a range about 0.
fn levels(bits: u8, high: u8) -> Vec<f32> {
    let (count, width) = (1i32 << bits, 2f32.powi(i32::from(high - bits)));
    (0..count).map(|code| (code as f32 + 0.5 - count as f32 / 2.0) * width).collect()
}

impl Nested {
    /// Codes of `low` to `high` bits.
    #[must_use]
    pub fn new(low: u8, high: u8) -> Self {
        Self { low, high, ..Self::default() }
    }

    /// Sets how many bits are kept; 0 stands for all.
    #[must_use]
    pub fn with_keep(mut self, keep: u8) -> Self {
        self.keep = keep;
        self
    }

    /// Sets how many inputs share a scale; 0 stands for whole rows.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
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

    fn check_bits(&self) -> Result<()> {
        let Self { low, high, keep, .. } = *self;
        if !(1..=8).contains(&high) || !(1..=high).contains(&low) {
            let message = format!("low = {low}, high = {high}: allowed are 1 to 8, low to high");
            return Err(Error::invalid(message));
        }
        if keep != 0 && !(low..=high).contains(&keep) {
            return Err(Error::invalid(format!(
                "keep = {keep}: allowed are 0, and {low} to {high}"
            )));
        }
        Ok(())
    }

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<LevelTable> {
        let shape @ [rows, cols] = target.weight.dim().into();
        let dtype = type_for(target, self.scale);
        let mut rule = Prefixes {
            widths: self.low..self.high + 1,
            levels: levels(self.low, self.high),
            before: None,
            scales: Grouped::new(shape, self.group, 0.0),
            dtype,
            mask: target.mask,
        };
        let first = filler.fill(target, &mut rule)?;
        let pack = |codes: &Array2<u8>, bits: u8| {
            let codes = codes.as_slice().expect("standard layout");
            PackedPlane::pack(codes, rows, cols, bits)
        };
        let mut plane: Box<dyn Plane> = Box::new(pack(&first, self.low)?);
        let mut codes = first;
        let bits = if self.keep == 0 { self.high } else { self.keep };
        for width in self.low + 1..=bits {
            rule.levels = levels(width, self.high);
            rule.before = Some(codes);
            codes = filler.fill(target, &mut rule)?;
            let last = pack(&codes.mapv(|code| code & 1), 1)?;
            plane = Box::new(PrefixedPlane::new(plane, Box::new(last), 1)?);
        }
        let (scales, size) = (rule.scales.by_rows(), rule.scales.size());
        let scales = dense(&scales, [rows, cols.div_ceil(size)], Some(dtype))?;
        node(shape, size, (bits, self.high), plane, scales)
    }

    /// What a node of this method has with `bits` bits a code, and no longer has the rest of: the first ones.
    ///
    /// # Errors
    /// `InvalidArgument` for a node of something else, and for more bits than it has; `Corruption` as reading it.
    pub fn narrow(node: &LevelTable, bits: u8) -> Result<LevelTable> {
        let (format, [rows, cols]) = (node.format(), tensorpress_tensor::Node::shape(node));
        let (Blocks::Rows(size), Child::Node(table), Child::Node(scales)) =
            (format.blocks(), node.child(0), node.child(1))
        else {
            return Err(Error::invalid(
                "levels without scales for groups of rows have no prefixes",
            ));
        };
        let have = node.codes().alphabet().ilog2() as u8;
        let step = decode(&**table)?;
        let high = (have..=8).find(|high| {
            step.dim() == (1, 1 << have) && step.iter().eq(levels(have, *high).iter())
        });
        let high = high.ok_or_else(|| Error::invalid("levels that are no nested codes'"))?;
        if !(1..=have).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to {have}")));
        }
        let mut symbols = SymbolBuf::of(node.codes());
        let symbols = symbols.read(node.codes(), 0..rows)?;
        let codes: Vec<u8> = symbols.iter().map(|code| (code >> (have - bits)) as u8).collect();
        let plane = PackedPlane::pack(&codes, rows, cols, bits)?;
        let scales = decode(&**scales)?;
        let dtype = [DType::F16, DType::BF16]
            .into_iter()
            .find(|dtype| scales.iter().all(|scale| dtype.round(*scale) == *scale));
        let values = scales.as_slice().expect("standard layout");
        let scales = dense(values, scales.dim().into(), dtype)?;
        self::node([rows, cols], size, (bits, high), Box::new(plane), scales)
    }
}

fn node(
    shape: [usize; 2],
    size: usize,
    (bits, high): (u8, u8),
    plane: Box<dyn Plane>,
    scales: Box<dyn tensorpress_tensor::Node>,
) -> Result<LevelTable> {
    let levels = levels(bits, high);
    let table = dense(&levels, [1, levels.len()], Some(DType::F16))?;
    let format = LevelFormat::new(levels.len(), Blocks::Rows(size))?;
    LevelTable::new(format, shape, plane, vec![Child::Node(table), Child::Node(scales)])
}

struct Prefixes<'m> {
    widths: Range<u8>,
    /// Of the width at hand.
    levels: Vec<f32>,
    /// Codes of one bit less: scales are found, then.
    before: Option<Array2<u8>>,
    scales: Grouped<f32>,
    dtype: DType,
    mask: Option<&'m Mask>,
}

/// The scale for which the errors of all widths, each over what is best for it alone, have the least product.
fn shared(tables: &[Vec<f32>], w: &[f32], costs: &[f32]) -> f32 {
    let best = |table: &Vec<f32>| optimal_scale(table, w, Some(costs));
    let (Some(first), Some(last)) = (tables.first(), tables.last()) else { return 0.0 };
    let (from, to) = (f64::from(best(first)), f64::from(best(last)));
    if !(from > 0.0 && to > 0.0) {
        return 0.0;
    }
    let loss = |scale: f64| -> f64 {
        let of = |table: &Vec<f32>| -> f64 {
            let one = |(w, cost): (&f32, &f32)| {
                let at = nearest(table.len(), f64::from(*w) / (scale * f64::from(step(table))));
                f64::from(*cost) * (f64::from(*w) - scale * f64::from(table[at])).powi(2)
            };
            (w.iter().zip(costs).map(one).sum::<f64>() + f64::MIN_POSITIVE).ln()
        };
        tables.iter().map(of).sum()
    };
    let at = |i: i32| from * (to / from).powf(f64::from(i) / f64::from(TRIED));
    let tried = (0..=TRIED).map(|i| (loss(at(i)), at(i)));
    let best = tried.min_by(|a, b| a.0.total_cmp(&b.0)).expect("some are tried");
    best.1 as f32
}

/// The distance of two levels.
fn step(table: &[f32]) -> f32 {
    2.0 * table[table.len() / 2]
}

/// The place of the nearest of so many levels about 0, one step apart.
fn nearest(count: usize, value: f64) -> usize {
    (value + count as f64 / 2.0).floor().clamp(0.0, (count - 1) as f64) as usize
}

impl Rule for Prefixes<'_> {
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
        if self.before.is_some() {
            return Ok(());
        }
        let (dtype, high) = (self.dtype, self.widths.end - 1);
        let tables: Vec<Vec<f32>> = self.widths.clone().map(|bits| levels(bits, high)).collect();
        self.scales.fit(weight, columns, (costs, self.mask), par, |w, costs| {
            stored(dtype, shared(&tables, w, costs))
        });
        Ok(())
    }

    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]) {
        for (i, w) in w.iter().enumerate() {
            let scale = *self.scales.of(row, column + i);
            let value = if scale > 0.0 { w / (scale * step(&self.levels)) } else { 0.0 };
            let mut at = nearest(self.levels.len(), f64::from(value));
            if let Some(before) = &self.before {
                let prefix = usize::from(before[[row, column + i]]);
                at = at.clamp(2 * prefix, 2 * prefix + 1);
            }
            (codes[i], values[i]) = (at as u8, self.levels[at] * scale);
        }
    }
}

impl Knobs for Nested {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("low", &mut self.low, 1..=8, "bits of the shortest codes")?;
        keys.int("high", &mut self.high, 1..=8, "bits of the longest codes")?;
        keys.int("keep", &mut self.keep, 0..=8, "bits that are kept; 0: all")?;
        let about = "consecutive inputs that share a scale; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")?;
        self.codes.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        self.check_bits()
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "nested",
        "rounds to codes whose first bits are codes of fewer bits, under the same scales",
        Nested::default,
    )
}

impl Method for Nested {
    fn id(&self) -> &'static str {
        "nested"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Nested {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        self.check_bits()?;
        check_float("scale", self.scale)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
