//! Products over panels made for the machine.

use std::ops::Range;

use super::{Blocks, LevelFormat, LevelTable, Tables, Values};
use crate::error::Result;
use crate::kernels::{AffinePanels, AffineRows, LevelPanels, LevelRows, pack_bits, packed_len};
use crate::linalg::Par;
use crate::node::leaf::Fused;
use crate::node::plane::{bands, bits_of};
use crate::node::{Input, Node, Scratch, SymbolsMut};

/// Levels of a table, at most, that of dropped entries among them.
const MOST: usize = 16;

/// As [`super::Format::prepacked`]: in panels of a grid where there is one table of equal distances, else in panels of levels.
/// None for more than 16 levels, for an offset, and unless groups of whole 32 weights, or whole rows, share a scale.
pub(super) fn prepacked(leaf: &LevelTable) -> Result<Option<Box<dyn Fused>>> {
    let (format, shape @ [rows, cols]) = (leaf.format(), leaf.shape());
    let Some(group) = format.group(shape).filter(|_| !format.offset && rows * cols > 0) else {
        return Ok(None);
    };
    let (beside, groups) = (leaf.beside()?, cols.div_ceil(group));
    let values = format.values(&beside);
    let kept = leaf.codes().as_kept().is_some();
    let Some(coding) = Coding::of(format, values.levels, kept) else { return Ok(None) };
    let fits = match coding.grid {
        Some(_) => AffinePanels::supports(coding.bits, cols, group),
        None => LevelPanels::supports(coding.bits, cols, group),
    };
    if !fits {
        return Ok(None);
    }
    let block = |i: usize| format.blocks.start(i / groups, cols).0 + i % groups;
    let scale = |i: usize| values.scales.map_or(1.0, |scales| scales[block(i)]);
    let scales = (0..rows * groups).map(scale);
    let packed = coding.codes(leaf)?;
    let (packed, bits) = (&packed[..], coding.bits);
    if let Some(Grid { step, zero }) = coding.grid {
        let scales = &scales.map(|scale| scale * step).collect::<Vec<_>>()[..];
        let zeros = &vec![zero; rows * groups][..];
        let grid = AffineRows { packed, bits, rows, cols, group, scales, zeros };
        return Ok(boxed(AffinePanels::new(&grid, Par::Seq)));
    }
    let tables = &format.numbers(rows, rows * groups, block, &values)[..];
    let (levels, scales) = (&coding.levels(values.levels)[..], &scales.collect::<Vec<_>>()[..]);
    let w = LevelRows { packed, bits, rows, cols, group, scales, levels, tables };
    Ok(boxed(LevelPanels::new(&w, Par::Seq)))
}

fn boxed(panels: Option<impl Fused + 'static>) -> Option<Box<dyn Fused>> {
    Some(Box::new(panels?))
}

impl LevelFormat {
    /// Weights along a row that share a scale and a table.
    fn group(&self, [rows, cols]: [usize; 2]) -> Option<usize> {
        match self.blocks {
            Blocks::Rows(size) => Some(size),
            Blocks::Flat(size) if cols.is_multiple_of(size) => Some(size),
            // Blocks of whole rows.
            Blocks::Flat(size) => {
                (size.is_multiple_of(cols.max(1)) || size / cols.max(1) >= rows).then_some(cols)
            }
        }
    }

    /// The numbers of tables: of all, of each row, or of each group, whose `block` is given.
    fn numbers(
        &self,
        rows: usize,
        groups: usize,
        block: impl Fn(usize) -> usize,
        values: &Values<'_>,
    ) -> Vec<u32> {
        match (self.tables, values.chosen) {
            (Tables::One, _) => vec![0],
            (Tables::Rows(each), _) => (0..rows).map(|row| (row / each) as u32).collect(),
            (Tables::Chosen(tables), Some(chosen)) => {
                let table = |i| (chosen[block(i)] as u32).min(tables as u32 - 1);
                (0..groups).map(table).collect()
            }
            _ => (0..groups).map(|i| block(i) as u32).collect(),
        }
    }
}

/// Levels as an integer grid: `step * (code - zero)`.
struct Grid {
    step: f32,
    zero: f32,
}

/// Codes of panels.
struct Coding {
    bits: u32,
    /// By code of the leaf.
    codes: [u8; MOST],
    /// That of entries which a mask drops, if it does.
    dropped: Option<u8>,
    grid: Option<Grid>,
    /// Codes of the leaf.
    count: usize,
}

impl Coding {
    /// None where codes of 4 bits are too few.
    fn of(format: &LevelFormat, levels: &[f32], kept: bool) -> Option<Self> {
        let count = format.count;
        if count > MOST {
            return None;
        }
        if let (Tables::One, Some(coding)) = (format.tables, Self::on_grid(levels, kept)) {
            return Some(coding);
        }
        let is_zero = |code: &usize| levels.chunks(count).all(|table| table[*code] == 0.0);
        let dropped = match kept {
            true => Some((0..count).find(is_zero).unwrap_or(count)).filter(|code| *code < MOST),
            false => None,
        };
        if kept && dropped.is_none() {
            return None;
        }
        let most = dropped.map_or(count, |code| count.max(code + 1));
        Some(Self {
            bits: u32::from(bits_of(most as u32)).max(2),
            codes: std::array::from_fn(|code| code as u8),
            dropped: dropped.map(|code| code as u8),
            grid: None,
            count,
        })
    }

    /// Where the levels of one table, with 0 if entries were dropped, lie at equal distances.
    fn on_grid(levels: &[f32], kept: bool) -> Option<Self> {
        let mut sorted = levels.to_vec();
        sorted.extend(kept.then_some(0.0));
        sorted.sort_by(f32::total_cmp);
        let (first, last) = (*sorted.first()?, *sorted.last()?);
        let gaps = sorted.windows(2).map(|two| two[1] - two[0]).filter(|gap| *gap > 0.0);
        let step = gaps.reduce(f32::min).unwrap_or(1.0);
        let code = |level: f32| ((level - first) / step).round();
        let near = |level: &f32| {
            let off = f64::from(code(*level)) * f64::from(step) + f64::from(first - level);
            off.abs() <= 1e-6 * f64::from(last - first)
        };
        if code(last) >= MOST as f32 || !sorted.iter().all(near) {
            return None;
        }
        let mut codes = [0; MOST];
        codes.iter_mut().zip(levels).for_each(|(to, level)| *to = code(*level) as u8);
        Some(Self {
            bits: u32::from(bits_of(code(last) as u32 + 1)),
            codes,
            dropped: kept.then(|| code(0.0) as u8),
            grid: Some(Grid { step, zero: -first / step }),
            count: levels.len(),
        })
    }

    /// All codes of a leaf, packed.
    fn codes(&self, leaf: &LevelTable) -> Result<Vec<u8>> {
        let ([rows, cols], plane) = (leaf.shape(), leaf.codes());
        let stride = packed_len(cols, self.bits);
        let mut packed = vec![0; rows * stride];
        let (mut read, mut codes) = (Vec::new(), vec![0; cols]);
        for range in bands(rows, cols) {
            read.resize(range.len() * cols, 0u8);
            plane.read(range.clone(), SymbolsMut::U8(&mut read))?;
            for (row, read) in range.zip(read.chunks_exact(cols)) {
                let code = |c: usize| self.codes[usize::from(read[c]) % MOST];
                match (plane.as_kept(), self.dropped) {
                    (Some(kept), Some(dropped)) => {
                        codes.fill(dropped);
                        kept.mask().for_each_kept(row, |c| codes[c] = code(c));
                    }
                    _ => (0..cols).for_each(|c| codes[c] = code(c)),
                }
                pack_bits(&codes, self.bits, &mut packed[row * stride..(row + 1) * stride]);
            }
        }
        Ok(packed)
    }

    /// Tables by codes of panels; what no code of the leaf stands for is 0.
    fn levels(&self, levels: &[f32]) -> Vec<f32> {
        let mut padded = vec![0.0; (levels.len() / self.count) << self.bits];
        for (to, table) in padded.chunks_mut(1 << self.bits).zip(levels.chunks(self.count)) {
            to[..self.count].copy_from_slice(table);
        }
        padded
    }
}

impl Fused for LevelPanels {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        x.with_panels(self.input_form(), scratch, |input, scratch| {
            self.matmul_input(rows, input, y, add, scratch.work());
        });
    }
}
