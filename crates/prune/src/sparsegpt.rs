use std::ops::Range;

use tensorpress_tensor::grid::{Affine, Granularity, GridSpec, IntGrid};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Mask, Masked};
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes, Prepared};
use tensorpress_tensor::stage::{Auto, Keys, Knobs, Row, WeightPart, WeightRole};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, Context, Error, Group, Method, Result, Select, Selection, Target,
    Usable,
};

use crate::joint::JointSparseGpt;
use crate::pattern::{Pattern, count};
use crate::pruner::{magnitude, prune_group};

/// SparseGPT (Frantar and Alistarh, 2023): columns are pruned one after another by w² / U_jj², and what each pruned
/// weight contributed is spread over the columns still to come.
///
/// Unstructured patterns are chosen for a block of columns over all rows at once, when the block begins; n of m for each
/// group of m columns when it begins. Never fails on singular or missing statistics, as GPTQ does not: a layer that
/// saw no token is pruned by magnitude, and says so.
///
/// ```
/// use tensorpress_prune::{Pattern, SparseGpt};
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = SparseGpt::new(Pattern::nm(2, 4)).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert!(decode(&made.node)?.iter().filter(|w| **w == 0.0).count() >= 16 * 32);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SparseGpt {
    /// The shape of what stays. The scope of an unstructured one is the block of columns.
    pub pattern: Pattern,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
    /// Columns between two updates of the rest of the matrix, rounded up to whole groups of m. By default 128, or a
    /// smaller group of a grid that is rounded to in the same sweep.
    pub block: Auto<usize>,
}

/// What a sweep made of one matrix.
#[derive(Debug)]
#[must_use]
pub struct Pruned {
    /// The repaired weights, 0 where they were pruned.
    pub weight: Array2<f32>,
    /// Codes of the weights where a grid was given; pruned ones have the code of 0.
    pub codes: Array2<u8>,
    /// Grids `[rows, groups]`, where one was given.
    pub grids: Vec<Affine>,
    /// The entries that stay.
    pub mask: Mask,
    /// Sum of the squared errors over all decisions.
    pub loss: f64,
}

impl SparseGpt {
    /// SparseGPT to this pattern.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, damp: 0.01, block: Auto::Auto }
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets the columns between two updates of the rest.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = Auto::Set(block);
        self
    }

    fn check(&self, cols: usize) -> Result<()> {
        self.pattern.check(cols)?;
        if !self.damp.is_finite() || self.damp < 0.0 {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        if self.block == Auto::Set(0) {
            return Err(Error::invalid("block = 0: allowed are 1 and more"));
        }
        Ok(())
    }

    /// Prunes one matrix with the prepared inverse factor of its inputs, in the order of its columns; with a grid, what
    /// stays is rounded in the same sweep, each group of a row on a grid fitted to its weights as they stand when the
    /// block with its first column begins.
    ///
    /// # Errors
    /// `InvalidArgument`, `Numerical` for weights that are not finite, `ShapeMismatch`.
    pub fn sweep(
        &self,
        target: &Target<'_>,
        prepared: &Prepared,
        grid: Option<Grid>,
        par: Par,
    ) -> Result<Pruned> {
        target.check_finite()?;
        let mut weight = target.kept_weight().into_owned();
        let (rows, cols) = weight.dim();
        self.check(cols)?;
        for &dead in &prepared.dead {
            weight.column_mut(dead).fill(0.0);
        }
        let block = self.block.or(own_block(grid.map(|grid| grid.group)));
        let block = match self.pattern {
            Pattern::NM { m, .. } => block.next_multiple_of(m),
            _ => block,
        };
        let mut rule = Rule {
            pattern: self.pattern,
            fits: grid.map(|grid| Fits::new(grid, rows, cols)),
            rows,
            padded: rows.next_multiple_of(LANES),
            columns: 0..0,
            diagonal: Vec::new(),
            pruned: Vec::new(),
        };
        let swept = prepared.sweep(target, weight, block, &mut rule, par)?;
        let (weight, mut codes) = (swept.weight, swept.codes);
        let mut kept = Array2::from_elem((rows, cols), true);
        for (((r, c), code), kept) in codes.indexed_iter_mut().zip(&mut kept) {
            let zero = rule.fits.as_ref().map_or(0, |fits| fits.at(r, c).zero as u8);
            *kept = weight[[r, c]] != 0.0 || *code != gone(zero);
            if !*kept {
                *code = zero;
            }
        }
        let grids = rule.fits.map_or_else(Vec::new, |fits| fits.grids);
        let mask = Mask::from_bools(kept.view());
        Ok(Pruned { weight, codes, grids, mask, loss: swept.loss })
    }
}

/// Groups are fitted when their block begins: no block is longer than a group, unless that would make it tiny.
fn own_block(group: Option<usize>) -> usize {
    const LONGEST: usize = 128;
    group.filter(|group| (16..LONGEST).contains(group)).unwrap_or(LONGEST)
}

/// SparseGPT as a recipe says it: with bits, weights that stay are rounded in the same sweep.
#[derive(Debug, Clone)]
struct Knobbed {
    prune: SparseGpt,
    bits: u8,
    grid: GridSpec,
}

impl Default for Knobbed {
    fn default() -> Self {
        let grid = GridSpec::default();
        Self { prune: SparseGpt::new(Pattern::default()), bits: 0, grid }
    }
}

impl Knobs for Knobbed {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let Self { prune, bits, grid } = self;
        prune.pattern.knobs(keys)?;
        keys.alone(|keys| {
            let about = "bits of a code, rounded to in the same sweep; 0: weights that stay are not rounded";
            keys.int("bits", bits, 0..=8, about)?;
            grid.all_but_bits(keys)
        })?;
        if *bits > 0 {
            grid.bits = *bits;
        }
        let about = "added to the diagonal, as a fraction of its mean";
        keys.float("damp", &mut prune.damp, 0.0..=1e6, about)?;
        let group = match grid.granularity {
            Granularity::Group(group) if *bits > 0 => Some(group),
            _ => None,
        };
        let about = "columns between two updates of the rest: 128, or the group where that is 16 to 127 and codes are chosen";
        keys.auto("block", &mut prune.block, own_block(group), 1..=1 << 16, about)
    }

    fn check(&self) -> Result<()> {
        match self.bits {
            1 => Err(Error::invalid("bits = 1: allowed are 0, and 2 to 8")),
            _ => Ok(()),
        }
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "prunes column by column and spreads each error over the columns still to come";
    Row::new("sparsegpt", WeightRole::Selector, about, Knobbed::default, |knobbed: Knobbed, _| {
        let Knobbed { prune, bits, grid } = knobbed;
        Ok(match bits {
            0 => WeightPart::Select(Box::new(prune)),
            _ => WeightPart::Method(Box::new(JointSparseGpt::new(prune, grid))),
        })
    })
}

/// Integer grids for groups of consecutive inputs of a row.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// The family they are fitted in.
    pub family: IntGrid,
    /// Inputs that share one.
    pub group: usize,
}

/// The grids of a matrix.
struct Fits {
    grid: Grid,
    groups: usize,
    cols: usize,
    grids: Vec<Affine>,
}

impl Fits {
    fn new(grid: Grid, rows: usize, cols: usize) -> Self {
        let groups = cols.div_ceil(grid.group);
        let neutral = Affine { scale: 1.0, zero: 0.0 };
        Self { grid, groups, cols, grids: vec![neutral; rows * groups] }
    }

    fn at(&self, row: usize, col: usize) -> Affine {
        self.grids[row * self.groups + col / self.grid.group]
    }

    /// Fits the groups that begin in these columns.
    fn fit(&mut self, weight: ArrayView2<'_, f32>, columns: &Range<usize>) {
        let size = self.grid.group;
        for group in columns.start.div_ceil(size)..columns.end.div_ceil(size) {
            let of_group = s![.., group * size..((group + 1) * size).min(self.cols)];
            for (r, row) in weight.slice(of_group).rows().into_iter().enumerate() {
                let fitted = self.grid.family.fit(row.as_slice().expect("standard layout"));
                self.grids[r * self.groups + group] = fitted;
            }
        }
    }
}

/// The code that, with the value 0, says that a weight was pruned: not that of 0 itself, which a weight that stays may
/// have.
fn gone(zero: u8) -> u8 {
    u8::from(zero == 0)
}

struct Rule {
    pattern: Pattern,
    /// None if nothing is rounded.
    fits: Option<Fits>,
    rows: usize,
    /// Rows, filled up to whole tiles.
    padded: usize,
    columns: Range<usize>,
    /// U_jj of the block's columns.
    diagonal: Vec<f32>,
    /// Of the block, column by column, where that is decided when it begins.
    pruned: Vec<bool>,
}

/// For n of m: what goes of the group that is being swept, by column.
#[derive(Default)]
struct Tile {
    group: Vec<[bool; LANES]>,
}

fn score(weight: f32, diagonal: f32) -> f32 {
    weight * weight / (diagonal * diagonal)
}

impl Rule {
    /// Marks everything up to the threshold of the official code: the value at that place in the sorted scores.
    fn mark(&mut self, weight: ArrayView2<'_, f32>, sparsity: f64) {
        let mut sorted: Vec<f32> = Vec::with_capacity(weight.len());
        for (column, diagonal) in weight.columns().into_iter().zip(&self.diagonal) {
            sorted.extend(column.iter().map(|w| score(*w, *diagonal)));
        }
        let place = count(sorted.len(), sparsity);
        if place == 0 {
            return;
        }
        let threshold = if place < sorted.len() {
            *sorted.select_nth_unstable_by(place, f32::total_cmp).1
        } else {
            f32::INFINITY
        };
        for (c, (column, diagonal)) in weight.columns().into_iter().zip(&self.diagonal).enumerate()
        {
            for (r, w) in column.iter().enumerate() {
                self.pruned[c * self.padded + r] = score(*w, *diagonal) <= threshold;
            }
        }
    }

    fn mark_blocks(&mut self, weight: ArrayView2<'_, f32>) -> Result<()> {
        let mut scores = weight.to_owned();
        for (mut column, diagonal) in scores.columns_mut().into_iter().zip(&self.diagonal) {
            column.mapv_inplace(|w| score(w, *diagonal));
        }
        let mask = self.pattern.select(scores.view())?;
        for row in 0..weight.nrows() {
            let padded = self.padded;
            for column in 0..weight.ncols() {
                self.pruned[column * padded + row] = true;
            }
            mask.for_each_kept(row, |column| self.pruned[column * padded + row] = false);
        }
        Ok(())
    }
}

impl ColumnRule for Rule {
    type Tile = Tile;

    fn begin_block(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        diagonal: &[f32],
        _: Par,
    ) -> Result<()> {
        self.diagonal = diagonal.to_vec();
        self.pruned.clear();
        self.pruned.resize(columns.len() * self.padded, false);
        if let Some(fits) = &mut self.fits {
            fits.fit(weight, &columns);
        }
        let block = weight.slice(s![.., columns.clone()]);
        self.columns = columns;
        match self.pattern {
            Pattern::Unstructured { sparsity, .. } => self.mark(block, sparsity),
            Pattern::Block { .. } => self.mark_blocks(block)?,
            Pattern::NM { .. } => {}
        }
        Ok(())
    }

    fn decide(
        &self,
        tile: &mut Tile,
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        let at = column - self.columns.start;
        let mut goes = [false; LANES];
        match self.pattern {
            Pattern::NM { n, m } => {
                if column.is_multiple_of(m) {
                    tile.group = group_of(ahead, &self.diagonal[at..], n, m);
                }
                goes = tile.group[column % m];
            }
            _ => goes.copy_from_slice(&self.pruned[at * self.padded + row..][..LANES]),
        }
        for lane in 0..LANES {
            let weight = ahead[0][lane];
            (decision.value[lane], decision.code[lane]) = match (&self.fits, goes[lane]) {
                // Lanes past the last row are ignored.
                (Some(_), _) if row + lane >= self.rows => (0.0, 0),
                (Some(fits), goes) => {
                    let grid = fits.at(row + lane, column);
                    let code = grid.code(weight, fits.grid.family.max_code());
                    if goes { (0.0, gone(grid.zero as u8)) } else { (grid.level(code), code as u8) }
                }
                (None, true) => (0.0, gone(0)),
                (None, false) => (weight, 0),
            };
        }
    }
}

/// Which of the next m columns go, in each lane: all but the n largest scores; of equal ones those that come first.
fn group_of(ahead: &[Lanes], diagonal: &[f32], n: usize, m: usize) -> Vec<[bool; LANES]> {
    let mut goes = vec![[false; LANES]; m];
    let mut order: Vec<usize> = Vec::with_capacity(m);
    for lane in 0..LANES {
        let scores = |c: usize| score(ahead[c][lane], diagonal[c]);
        order.clear();
        order.extend(0..m);
        order.sort_by(|a, b| scores(*a).total_cmp(&scores(*b)));
        order[..m - n].iter().for_each(|c| goes[*c][lane] = true);
    }
    goes
}

impl Method for SparseGpt {
    fn id(&self) -> &'static str {
        "sparsegpt"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }
}

impl Select for SparseGpt {
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
        self.check(group.channels()?)?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let prepared = match Prepared::new(group, f64::from(self.damp), false)? {
            Usable::Yes(prepared) => prepared,
            Usable::No(reason) => {
                let mut selections = magnitude(self.pattern).select_group(group)?;
                for selection in &mut selections {
                    selection.fallback = Some(format!("{reason}: pruned by magnitude instead"));
                }
                return Ok(selections);
            }
        };
        let select = |target: &Target<'_>| {
            let pruned = self.sweep(target, &prepared, None, group.par).in_tensor(target.name)?;
            let fallback = prepared.note.clone();
            Ok(Selection { mask: pruned.mask, weight: Some(pruned.weight), fallback })
        };
        group.targets.iter().map(select).collect()
    }
}

impl Compress for SparseGpt {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(self, group)
    }
}
