mod trace;

use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayViewMut1};
use tensorpress_tensor::node::{Mask, Masked};
use tensorpress_tensor::obs::{ExactRow, Inverse};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, Context, Error, Group, Method, Result, Select, Selection, Target,
    Usable,
};

use crate::pattern::{Pattern, Scope, count};
use crate::pruner::{magnitude, prune_group};
use trace::{Trace, Unit, fewest, trace};

/// ExactOBS (Optimal Brain Compression; Frantar & Alistarh, 2022): each row drops the weight, or the block of weights, that
/// costs least, makes good for it with all that are left, and so on, with the exact inverse for what is left.
///
/// Unstructured patterns and blocks of one output go by what they cost: over the whole matrix ([`Scope::Matrix`], the
/// default: rows that bear more lose more) or, unstructured, in each row. n of m are chosen as freely as the groups allow.
/// Takes up to rows x inputs³ / 6 products in f64, where [`crate::SparseGpt`] takes rows x inputs² / 2 in f32: for small
/// layers, and to measure others by. Each thread holds inputs² numbers. Never fails on singular or missing statistics: a
/// layer that saw no token is pruned by magnitude, and says so.
///
/// ```
/// use tensorpress_prune::{Obc, Pattern};
/// use tensorpress_tensor::node::decode;
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Obc::new(Pattern::nm(2, 4)).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert!(decode(&made.node)?.iter().filter(|w| **w == 0.0).count() >= 16 * 32);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Obc {
    /// The shape of what stays.
    pub pattern: Pattern,
    /// Damping as a fraction of the mean diagonal. Default 0.01.
    pub damp: f32,
}

/// Half of the entries, wherever they cost least.
impl Default for Obc {
    fn default() -> Self {
        Self::new(Pattern::Unstructured { sparsity: 0.5, scope: Scope::Matrix })
    }
}

impl Obc {
    /// ExactOBS to this pattern.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, damp: 0.01 }
    }

    /// Sets the damping, a fraction of the mean diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    fn check_patterns(&self) -> Result<()> {
        match self.pattern {
            Pattern::Block { rows: 2.., cols, .. } => Err(Error::invalid(format!(
                "blocks of several outputs: rows are pruned one by one, allowed are 1x{cols} and the like"
            ))),
            Pattern::Unstructured { scope: Scope::RowMass, .. } => Err(Error::invalid(
                "the scope of equal shares of a row's saliency: allowed are rows and the matrix",
            )),
            _ if !self.damp.is_finite() || self.damp < 0.0 => {
                Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)))
            }
            _ => Ok(()),
        }
    }

    /// Prunes one matrix with the inverse of its inputs' Gram matrix; entries outside its mask go first and for nothing.
    ///
    /// # Errors
    /// `InvalidArgument`, `Numerical` for weights that are not finite, `ShapeMismatch`.
    pub fn prune(
        &self,
        target: &Target<'_>,
        inverse: &Inverse,
        par: Par,
    ) -> Result<(Mask, Array2<f32>)> {
        self.check_patterns()?;
        target.check_finite()?;
        let mut weight = target.kept_weight().into_owned();
        let (rows, cols) = weight.dim();
        self.pattern.check(cols)?;
        if inverse.matrix.dim() != (cols, cols) {
            let message = format!("inverse {:?} for {cols} columns", inverse.matrix.dim());
            return Err(Error::shape(message));
        }
        for &dead in &inverse.dead {
            weight.column_mut(dead).fill(0.0);
        }
        let whole = inverse.matrix.view();
        let open = |row: usize, weight: ArrayView2<'_, f32>| {
            let weights = weight.row(row).iter().map(|w| f64::from(*w)).collect();
            let mut open = ExactRow::new(whole, weights);
            let drops = |column: &usize| target.mask.is_some_and(|m| !m.keeps(row, *column));
            for column in (0..cols).filter(drops) {
                open.settle(column, 0.0);
            }
            open
        };
        // What stays of each row, where that is known before; all traces are whole elsewhere.
        let (unit, stay) = match self.pattern {
            Pattern::NM { n, m } => (Unit::Grouped { most: m - n, size: m }, 0),
            Pattern::Unstructured { sparsity, scope: Scope::Row } => {
                (Unit::Single, cols - count(cols, sparsity))
            }
            Pattern::Block { cols: width, .. } => (Unit::Blocks(width), 0),
            Pattern::Unstructured { .. } => (Unit::Single, 0),
        };
        let mut traces: Vec<Trace> = vec![Trace::default(); rows];
        let before = weight.view();
        par.for_each(traces.iter_mut().enumerate(), |(row, made)| {
            let open = open(row, before);
            let steps = open.columns().len().saturating_sub(stay);
            *made = trace(open, unit, steps);
        });
        let units = match self.pattern {
            Pattern::Block { sparsity, .. } => Some((cols.div_ceil(unit.width()), sparsity)),
            Pattern::Unstructured { sparsity, scope: Scope::Matrix } => Some((cols, sparsity)),
            _ => None,
        };
        if let Some((across, sparsity)) = units {
            let lost: usize = traces.iter().map(|trace| across - trace.order.len()).sum();
            let goes = count(rows * across, sparsity).saturating_sub(lost);
            for (trace, steps) in fewest(&traces, goes).into_iter().enumerate() {
                traces[trace].order.truncate(steps);
            }
        }
        let mut kept = Array2::from_elem((rows, cols), true);
        let mut failed: Vec<Option<Error>> = (0..rows).map(|_| None).collect();
        let each = kept.rows_mut().into_iter().zip(weight.rows_mut()).zip(&traces).zip(&mut failed);
        par.for_each(each.enumerate(), |(row, (((mut kept, weight), trace), failed))| {
            for column in 0..cols {
                kept[column] = target.mask.is_none_or(|mask| mask.keeps(row, column));
            }
            trace.columns(unit, cols).for_each(|column| kept[column] = false);
            *failed = repair(whole, &kept.to_vec(), weight).err();
        });
        if let Some(error) = failed.into_iter().flatten().next() {
            return Err(error);
        }
        Ok((Mask::from_bools(kept.view()), weight))
    }
}

/// Sets what is not kept to 0, and the rest to what makes good for it best: w -= H⁻¹_P (H⁻¹_PP)⁻¹ w_P, P all that goes. What
/// settling its columns one by one gives, in any order.
pub(crate) fn repair(
    inverse: ArrayView2<'_, f64>,
    kept: &[bool],
    mut weight: ArrayViewMut1<'_, f32>,
) -> Result<()> {
    let gone: Vec<usize> = (0..kept.len()).filter(|column| !kept[*column]).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let part =
        Array2::from_shape_fn((gone.len(), gone.len()), |(a, b)| inverse[[gone[a], gone[b]]]);
    let factor = linalg::cholesky(part, Par::Seq)?;
    let mut shares = Array2::from_shape_fn((gone.len(), 1), |(at, _)| f64::from(weight[gone[at]]));
    linalg::solve_triangular(factor.view(), Triangle::Lower, shares.view_mut(), Par::Seq)?;
    linalg::solve_triangular(factor.t(), Triangle::Upper, shares.view_mut(), Par::Seq)?;
    let mut spread = vec![0.0f64; kept.len()];
    for (column, share) in gone.iter().zip(&shares) {
        spread.iter_mut().zip(inverse.row(*column)).for_each(|(to, h)| *to += share * h);
    }
    for ((weight, spread), kept) in weight.iter_mut().zip(spread).zip(kept) {
        *weight = if *kept { (f64::from(*weight) - spread) as f32 } else { 0.0 };
    }
    Ok(())
}

impl Knobs for Obc {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.pattern.knobs(keys)?;
        let about = "added to the diagonal, as a fraction of its mean";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }

    fn check(&self) -> Result<()> {
        self.check_patterns()
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::select(
        "obc",
        "prunes each row weight by weight, the cheapest first, with exact inverses; slow",
        Obc::default,
    )
}

impl Method for Obc {
    fn id(&self) -> &'static str {
        "obc"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }
}

impl Select for Obc {
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
        self.check_patterns()?;
        self.pattern.check(group.channels()?)?;
        for target in &group.targets {
            target.check_finite()?;
        }
        match Inverse::new(group, f64::from(self.damp))? {
            Usable::Yes(inverse) => {
                let select = |target: &Target<'_>| {
                    let pruned = self.prune(target, &inverse, group.par);
                    let (mask, weight) = pruned.in_tensor(target.name)?;
                    Ok(Selection { mask, weight: Some(weight), fallback: inverse.note.clone() })
                };
                group.targets.iter().map(select).collect()
            }
            Usable::No(reason) => {
                let mut selections = magnitude(self.pattern).select_group(group)?;
                for selection in &mut selections {
                    selection.fallback = Some(format!("{reason}: pruned by magnitude instead"));
                }
                Ok(selections)
            }
        }
    }
}

impl Compress for Obc {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(self, group)
    }
}
