use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tensorpress_tensor::Result;
use tensorpress_tensor::half::f16;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes};

use super::super::encode::{Scales, write};
use super::fit::{self, Best, Head};
use super::plan::{Grid, Levels, MOST_GROUPS, Plan, Scaling};

/// Rounds each column on the levels of its group. The scales that a block's groups share are chosen when the block
/// begins, a group's own when the group begins, each on the weights as they stand then, weighted by what their rounding
/// costs. Blocks are written as they are complete.
pub(super) struct FillRule<'a> {
    plan: Plan,
    /// What rounding a column costs, the largest being 1; 0 where its input was always 0.
    costs: Vec<f32>,
    mask: Option<&'a Mask>,
    rows: usize,
    row_bytes: usize,
    /// Blocks of the rows of each tile, which one thread at a time decides.
    tiles: Vec<Mutex<Vec<u8>>>,
}

/// What is decided of a block so far.
#[derive(Debug)]
pub(super) struct Tile {
    head: Head,
    group: Best,
    /// Numbers of the groups' scales and minima.
    stored: [[Lanes; 2]; MOST_GROUPS],
    codes: Vec<[u8; LANES]>,
    /// Weights of the columns of a group or a block.
    weights: Vec<Lanes>,
}

impl Default for Tile {
    fn default() -> Self {
        Self {
            head: Head::default(),
            group: Best::default(),
            stored: [[[0.0; LANES]; 2]; MOST_GROUPS],
            codes: Vec::new(),
            weights: Vec::new(),
        }
    }
}

impl<'a> FillRule<'a> {
    /// For a matrix of this shape, of which `diagonal` is that of the factor U of the inverse Gram matrix.
    pub(super) fn new(
        plan: Plan,
        (rows, cols): (usize, usize),
        diagonal: impl Iterator<Item = f32>,
        dead: &[usize],
        mask: Option<&'a Mask>,
    ) -> Self {
        let mut costs: Vec<f64> = diagonal.map(|u| f64::from(u).powi(-2)).collect();
        dead.iter().for_each(|column| costs[*column] = 0.0);
        let most = costs.iter().fold(0.0, |most: f64, cost| most.max(*cost));
        let costs = costs.iter().map(|cost| (cost / most) as f32).collect();
        let row_bytes = cols / plan.len() * plan.ty.block_bytes();
        let tile = |tile: usize| {
            let rows = (rows - tile * LANES).min(LANES);
            Mutex::new(vec![0; rows * row_bytes])
        };
        let tiles = (0..rows.div_ceil(LANES)).map(tile).collect();
        Self { plan, costs, mask, rows, row_bytes, tiles }
    }

    /// The blocks, row after row.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows * self.row_bytes);
        for tile in self.tiles {
            bytes.extend(tile.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        bytes
    }

    /// Puts what the columns from `column` on weigh into the tile.
    #[inline(always)]
    fn weigh(&self, tile: &mut Tile, row: usize, column: usize, count: usize) {
        tile.weights.clear();
        tile.weights.extend(self.costs[column..column + count].iter().map(|cost| [*cost; LANES]));
        if let Some(mask) = self.mask {
            for (column, weights) in (column..).zip(&mut tile.weights) {
                for lane in 0..LANES.min(self.rows - row) {
                    if !mask.keeps(row + lane, column) {
                        weights[lane] = 0.0;
                    }
                }
            }
        }
    }

    /// Fits what begins with this column.
    #[inline(always)]
    fn begin<G: Grid>(&self, grid: G, tile: &mut Tile, row: usize, column: usize, ahead: &[Lanes]) {
        let (len, group) = (self.plan.len(), self.plan.group);
        let at = column % len;
        if at == 0 {
            tile.codes.clear();
            if matches!(self.plan.scaling, Scaling::Steps(_) | Scaling::StepsAndMins(_)) {
                self.weigh(tile, row, column, len);
                tile.head = fit::head(&self.plan, grid, &ahead[..len], &tile.weights);
            }
        }
        if at.is_multiple_of(group) {
            self.weigh(tile, row, column, group);
            tile.group = fit::group(&self.plan, grid, &tile.head, &ahead[..group], &tile.weights);
            tile.stored[at / group] = tile.group.stored;
            if matches!(self.plan.scaling, Scaling::Half | Scaling::HalfAndMin) {
                tile.head = Head { d: tile.group.scale, dmin: tile.group.offset };
            }
        }
    }

    #[inline(always)]
    fn round<G: Grid>(
        &self,
        grid: G,
        tile: &mut Tile,
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        if column.is_multiple_of(self.plan.group) {
            self.begin(grid, tile, row, column, ahead);
        }
        let Best { scale, offset, .. } = tile.group;
        for lane in 0..LANES {
            let above = ahead[0][lane] - offset[lane];
            let level = grid.level(if scale[lane] == 0.0 { 0.0 } else { above / scale[lane] });
            decision.value[lane] = level * scale[lane] + offset[lane];
            decision.code[lane] = grid.code(level);
        }
        if let Some(mask) = self.mask {
            for lane in 0..LANES.min(self.rows - row) {
                if !mask.keeps(row + lane, column) {
                    let level = -offset[lane] / scale[lane];
                    decision.code[lane] = grid.code(grid.level(level));
                    decision.value[lane] = 0.0;
                }
            }
        }
        tile.codes.push(decision.code);
    }

    /// Writes a block of each row.
    #[inline(never)]
    fn write(&self, tile: &Tile, row: usize, block: usize) {
        let (len, size) = (self.plan.len(), self.plan.ty.block_bytes());
        let steps = match self.plan.scaling {
            Scaling::Steps(steps) | Scaling::StepsAndMins(steps) => steps,
            _ => BYTES,
        };
        let mut bytes = self.tiles[row / LANES].lock().unwrap_or_else(PoisonError::into_inner);
        let mut codes = [0; 256];
        for (lane, bytes) in bytes.chunks_exact_mut(self.row_bytes).enumerate() {
            for (code, column) in codes.iter_mut().zip(&tile.codes) {
                *code = column[lane];
            }
            let stored = |group: usize, which: usize| steps.code(tile.stored[group][which][lane]);
            let scales = Scales {
                halves: [tile.head.d[lane], tile.head.dmin[lane]].map(f16::from_f32),
                groups: std::array::from_fn(|group| [stored(group, 0), stored(group, 1)]),
            };
            let at = block * size;
            write(self.plan.ty, &scales, &codes[..len], &mut bytes[at..at + size]);
        }
    }
}

/// Numbers of a byte as they are.
const BYTES: super::plan::Even = super::plan::Even { lo: 0.0, hi: 255.0, zero: 0.0 };

impl ColumnRule for FillRule<'_> {
    type Tile = Tile;

    /// All is fitted tile by tile, where the errors of the columns before are already spread.
    fn begin_block(
        &mut self,
        _: ArrayView2<'_, f32>,
        _: Range<usize>,
        _: &[f32],
        _: Par,
    ) -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    fn decide(
        &self,
        tile: &mut Tile,
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        match self.plan.levels {
            Levels::Even(grid) => self.round(grid, tile, row, column, ahead, decision),
            Levels::Uneven(grid) => self.round(grid, tile, row, column, ahead, decision),
        }
        if (column + 1).is_multiple_of(self.plan.len()) {
            self.write(tile, row, column / self.plan.len());
        }
    }
}
