use tensorpress_tensor::grid::{Affine, IntGrid};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::obs::{ExactRow, Inverse};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Result, Target, Usable,
    kernels,
};

use crate::{GridSpec, GroupedAffine, Rtn};

/// OBQ (Optimal Brain Compression; Frantar & Alistarh, 2022): each row rounds the weight that costs least first, spreads its
/// error over all that are not rounded yet, and so on, with the exact inverse for what is left.
///
/// Grids are fitted before, as for [`Rtn`]. Takes about rows x inputs³ / 6 products in f64, where [`crate::Gptq`] takes rows x
/// inputs² / 2 in f32: for small layers, and to measure others by. Each thread holds inputs² numbers. Never fails on
/// singular or missing statistics: a layer that saw no token falls back to [`Rtn`] and says so.
///
/// ```
/// use tensorpress_quant::{GridSpec, Obq};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Obq::new(GridSpec::new(3, 32)).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Obq {
    /// Bits, granularity and grid.
    pub grid: GridSpec,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
}

impl Default for Obq {
    fn default() -> Self {
        Self { grid: GridSpec::default(), damp: 0.01 }
    }
}

impl Obq {
    /// OBQ on the given grid.
    #[must_use]
    pub fn new(grid: GridSpec) -> Self {
        Self { grid, ..Self::default() }
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    fn quantize(&self, target: &Target<'_>, inverse: &Inverse, par: Par) -> Result<GroupedAffine> {
        let mut weight = target.kept_weight().into_owned();
        for &dead in &inverse.dead {
            weight.column_mut(dead).fill(0.0);
        }
        let (rows, cols) = weight.dim();
        let all = weight.as_slice().expect("standard layout");
        let family = self.grid.family(kernels::abs_max(all))?;
        let group = self.grid.group_of(cols);
        let groups = cols.div_ceil(group);
        let whole = self.grid.per_tensor().then(|| family.fit(all));
        let mut codes = vec![0u8; rows * cols];
        let mut grids = vec![Affine { scale: 1.0, zero: 0.0 }; rows * groups];
        if rows * cols > 0 {
            let each = all.chunks(cols).zip(codes.chunks_mut(cols)).zip(grids.chunks_mut(groups));
            par.for_each(each.enumerate(), |(row, ((weight, codes), grids))| {
                for (grid, weight) in grids.iter_mut().zip(weight.chunks(group)) {
                    *grid = whole.unwrap_or_else(|| family.fit(weight));
                }
                let drops = |column: &usize| target.mask.is_some_and(|m| !m.keeps(row, *column));
                let weight = weight.iter().map(|w| f64::from(*w)).collect();
                let mut open = ExactRow::new(inverse.matrix.view(), weight);
                for column in (0..cols).filter(drops) {
                    open.settle(column, 0.0);
                    codes[column] = grids[column / group].zero as u8;
                }
                round_row(open, &family, group, grids, codes);
            });
        }
        if let Some(whole) = whole {
            grids = vec![whole];
        }
        GroupedAffine::on_grids(&family, [rows, cols], group, &codes, &grids)
    }
}

/// Rounds all that is open of a row.
fn round_row(
    mut row: ExactRow<'_>,
    family: &IntGrid,
    group: usize,
    grids: &[Affine],
    codes: &mut [u8],
) {
    while !row.columns().is_empty() {
        let mut next = Best::default();
        let mut farthest = Best::default();
        let mut outside = false;
        let places = row.columns().iter().zip(row.weight().iter().zip(row.diagonal()));
        for (column, (weight, diagonal)) in places {
            let grid = grids[column / group];
            let error = (weight - round(grid, *weight, family).1).powi(2);
            // More than half a step: it lies outside of the grid, farther and farther if it must wait.
            outside |= error > 0.25 * f64::from(grid.scale).powi(2);
            next.offer(-error / diagonal, *column);
            farthest.offer(error, *column);
        }
        let chosen = if outside { farthest.column } else { next.column };
        let place = row.place(chosen).expect("open");
        let (code, value) = round(grids[chosen / group], row.weight()[place], family);
        codes[chosen] = code;
        row.settle(chosen, value);
    }
}

/// The column that is best by a number; of equal ones the first.
struct Best {
    by: f64,
    column: usize,
}

impl Default for Best {
    fn default() -> Self {
        Self { by: f64::NEG_INFINITY, column: usize::MAX }
    }
}

impl Best {
    fn offer(&mut self, by: f64, column: usize) {
        if by > self.by || (by == self.by && column < self.column) {
            *self = Self { by, column };
        }
    }
}

/// Nearest code and its level, in f64.
fn round(grid: Affine, weight: f64, family: &IntGrid) -> (u8, f64) {
    let (scale, zero) = (f64::from(grid.scale), f64::from(grid.zero));
    let code = ((weight / scale).round_ties_even() + zero).clamp(0.0, family.max_code().into());
    (code as u8, scale * (code - zero))
}

impl Knobs for Obq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.grid.knobs(keys)?;
        let about = "added to the diagonal, as a fraction of its mean";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "obq",
        "rounds each row weight by weight, the cheapest first, with exact inverses; slow",
        Obq::default,
    )
}

impl Method for Obq {
    fn id(&self) -> &'static str {
        "obq"
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.grid)
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }
}

impl Compress for Obq {
    type Node = GroupedAffine;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        if !self.damp.is_finite() || self.damp < 0.0 {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let inverse = Inverse::new(&mut group, f64::from(self.damp))?;
        let layers = group.targets.iter().map(|target| {
            let (node, note) = match &inverse {
                Usable::Yes(inverse) => {
                    (self.quantize(target, inverse, group.par), inverse.note.clone())
                }
                Usable::No(reason) => {
                    let node = Rtn::new(self.grid).round(target, group.par);
                    (node, Some(format!("{reason}: rounded to nearest instead")))
                }
            };
            Ok(Compressed::new(node.in_tensor(target.name)?).with_fallback(note))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
