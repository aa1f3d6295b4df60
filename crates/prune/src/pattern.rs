use std::fmt;
use std::str::FromStr;

use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayViewMut1};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::stage::{Keys, Knobs, Value};
use tensorpress_tensor::{Error, Result};

/// Where the least salient entries are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Scope {
    /// In each row: every output loses as many inputs.
    #[default]
    Row,
    /// In the whole matrix.
    Matrix,
    /// In each row, up to the same share of the row's total saliency; the share is found by bisection so that the
    /// matrix has the sparsity asked for (Wanda's variant, Sun et al., 2024).
    RowMass,
}

/// The shape of a support.
///
/// ```
/// use tensorpress_prune::Pattern;
/// use tensorpress_tensor::ndarray::array;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let saliency = array![[3.0f32, 1.0, 2.0, 4.0]];
/// let mask = Pattern::nm(2, 4).select(saliency.view())?;
/// assert!(mask.keeps(0, 0) && mask.keeps(0, 3) && !mask.keeps(0, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Pattern {
    /// Any entries; `sparsity` of them go (rounded down).
    Unstructured {
        /// Fraction that goes, 0 to 1.
        sparsity: f64,
        /// Where they are looked for.
        scope: Scope,
    },
    /// At most `n` of every `m` consecutive inputs stay.
    NM {
        /// Entries that stay.
        n: usize,
        /// Inputs of a group; divides the number of inputs.
        m: usize,
    },
    /// Blocks of `rows` x `cols` entries stay or go together; `sparsity` of the blocks go (rounded down). Blocks at the
    /// edges may be smaller.
    Block {
        /// Outputs of a block.
        rows: usize,
        /// Inputs of a block.
        cols: usize,
        /// Fraction of blocks that goes, 0 to 1.
        sparsity: f64,
    },
}

/// Half of the entries of each row.
impl Default for Pattern {
    fn default() -> Self {
        Self::unstructured(0.5)
    }
}

/// The shape of a support without its sparsity: `any`, `n:m` or `RxC`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Any,
    NM(usize, usize),
    Block(usize, usize),
}

impl FromStr for Shape {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let pair = |separator| {
            let (a, b) = text.split_once(separator)?;
            Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?))
        };
        match (text, pair(':'), pair('x')) {
            ("any", ..) => Ok(Self::Any),
            (_, Some((n, m)), _) if n <= m && m > 0 => Ok(Self::NM(n, m)),
            (_, _, Some((rows, cols))) if rows > 0 && cols > 0 => Ok(Self::Block(rows, cols)),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::NM(n, m) => write!(f, "{n}:{m}"),
            Self::Block(rows, cols) => write!(f, "{rows}x{cols}"),
        }
    }
}

/// A sparsity and a shape, of which n:m says both.
impl Knobs for Pattern {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let (mut shape, mut sparsity) = match *self {
            Self::Unstructured { sparsity, .. } => (Shape::Any, sparsity),
            Self::NM { n, m } => (Shape::NM(n, m), 1.0 - n as f64 / m as f64),
            Self::Block { rows, cols, sparsity } => (Shape::Block(rows, cols), sparsity),
        };
        // What n:m leaves no choice about.
        let said = match keys.peek("pattern") {
            Some(Value::Word(word)) => word.parse().ok(),
            _ => None,
        };
        if let Some(Shape::NM(n, m)) = said {
            sparsity = 1.0 - n as f64 / m as f64;
        }
        keys.float("sparsity", &mut sparsity, 0.0..=1.0, "fraction that goes")?;
        let allowed = "any, n:m with n <= m, and blocks like 16x1 or 4x4";
        let about = "n:m: n of every m inputs stay, in the place of a sparsity; RxC: blocks of outputs x inputs";
        keys.text("pattern", &mut shape, allowed, about)?;
        let scope = match *self {
            Self::Unstructured { scope, .. } => scope,
            _ => Scope::Row,
        };
        *self = match shape {
            Shape::Any => Self::Unstructured { sparsity, scope },
            Shape::Block(rows, cols) => Self::Block { rows, cols, sparsity },
            Shape::NM(n, m) if sparsity == 1.0 - n as f64 / m as f64 => Self::NM { n, m },
            Shape::NM(n, m) => {
                return Err(Error::invalid(format!(
                    "sparsity = {sparsity} with pattern = {n}:{m}: allowed is one of them"
                )));
            }
        };
        Ok(())
    }
}

impl Pattern {
    /// Any entries, row by row.
    #[must_use]
    pub fn unstructured(sparsity: f64) -> Self {
        Self::Unstructured { sparsity, scope: Scope::Row }
    }

    /// `n` of every `m`.
    #[must_use]
    pub fn nm(n: usize, m: usize) -> Self {
        Self::NM { n, m }
    }

    /// Checks the parameters for a matrix with `cols` inputs.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self, cols: usize) -> Result<()> {
        let fraction = |sparsity: f64| match (0.0..=1.0).contains(&sparsity) {
            true => Ok(()),
            false => Err(Error::invalid(format!("sparsity = {sparsity}: allowed are 0 to 1"))),
        };
        match *self {
            Self::Unstructured { sparsity, .. } => fraction(sparsity),
            Self::NM { n, m } if m == 0 || n > m => Err(Error::invalid(format!(
                "pattern {n}:{m}: allowed are n of m with n <= m, m >= 1"
            ))),
            Self::NM { n, m } if !cols.is_multiple_of(m) => {
                Err(Error::invalid(format!("pattern {n}:{m}: {m} does not divide {cols} inputs")))
            }
            Self::NM { .. } => Ok(()),
            Self::Block { rows, cols, .. } if rows == 0 || cols == 0 => {
                Err(Error::invalid(format!("blocks of {rows} x {cols}: allowed are 1 and more")))
            }
            Self::Block { sparsity, .. } => fraction(sparsity),
        }
    }

    /// The support of the most salient entries. Of equal ones those that come first go first.
    ///
    /// # Errors
    /// As [`Pattern::check`].
    pub fn select(&self, saliency: ArrayView2<'_, f32>) -> Result<Mask> {
        let (rows, cols) = saliency.dim();
        self.check(cols)?;
        let mut keep = Array2::from_elem((rows, cols), true);
        match *self {
            Self::Unstructured { sparsity, scope: Scope::Row } => {
                for (scores, keep) in saliency.rows().into_iter().zip(keep.rows_mut()) {
                    drop_least(&scores.to_vec(), count(cols, sparsity), keep);
                }
            }
            Self::Unstructured { sparsity, scope: Scope::Matrix } => {
                let scores: Vec<f32> = saliency.iter().copied().collect();
                let mut flat =
                    keep.view_mut().into_shape_with_order(rows * cols).expect("contiguous");
                drop_least(&scores, count(rows * cols, sparsity), flat.view_mut());
            }
            Self::Unstructured { sparsity, scope: Scope::RowMass } => {
                keep = by_mass(saliency, sparsity);
            }
            Self::NM { n, m } => {
                for (scores, mut keep) in saliency.rows().into_iter().zip(keep.rows_mut()) {
                    let groups = scores.exact_chunks(m).into_iter().zip(keep.exact_chunks_mut(m));
                    groups.for_each(|(scores, keep)| drop_least(&scores.to_vec(), m - n, keep));
                }
            }
            Self::Block { rows: height, cols: width, sparsity } => {
                let across = cols.div_ceil(width);
                let mut sums = vec![0f32; rows.div_ceil(height) * across];
                for ((r, c), score) in saliency.indexed_iter() {
                    sums[r / height * across + c / width] += score;
                }
                let mut stays = tensorpress_tensor::ndarray::Array1::from_elem(sums.len(), true);
                drop_least(&sums, count(sums.len(), sparsity), stays.view_mut());
                for ((r, c), keep) in keep.indexed_iter_mut() {
                    *keep = stays[r / height * across + c / width];
                }
            }
        }
        Ok(Mask::from_bools(keep.view()))
    }
}

/// A fraction of a number of entries, rounded down (but not below a whole number by an error of rounding).
pub(crate) fn count(entries: usize, fraction: f64) -> usize {
    ((entries as f64 * fraction + 1e-9) as usize).min(entries)
}

/// Clears `keep` for the `number` least scores.
fn drop_least(scores: &[f32], number: usize, mut keep: ArrayViewMut1<'_, bool>) {
    if number == 0 {
        return;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let least = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b));
    if number < order.len() {
        order.select_nth_unstable_by(number, least);
    }
    order[..number].iter().for_each(|i| keep[*i] = false);
}

/// Closer than this to the sparsity asked for is close enough, and a bisection ends at steps of this size.
const MASS_TOLERANCE: f64 = 1e-3;

/// Rows lose entries up to the same share of their total score.
fn by_mass(scores: ArrayView2<'_, f32>, sparsity: f64) -> Array2<bool> {
    let sorted: Vec<Vec<f32>> = scores
        .rows()
        .into_iter()
        .map(|row| {
            let mut row = row.to_vec();
            row.sort_unstable_by(f32::total_cmp);
            row
        })
        .collect();
    let totals: Vec<f32> = scores.rows().into_iter().map(|row| row.sum()).collect();
    let at = |share: f64| {
        let mut keep = Array2::from_elem(scores.dim(), true);
        for (r, (row, total)) in sorted.iter().zip(&totals).enumerate() {
            let mut sum = 0.0f32;
            let within = row.iter().take_while(|score| {
                sum += **score;
                sum <= share as f32 * total
            });
            if let Some(threshold) = within.last() {
                let row = scores.row(r);
                keep.row_mut(r).iter_mut().zip(row).for_each(|(k, score)| *k = score > threshold);
            }
        }
        keep
    };
    let (mut low, mut high, mut share) = (0.0, 0.8, 0.4);
    loop {
        let keep = at(share);
        let gone = keep.iter().filter(|k| !**k).count() as f64 / keep.len().max(1) as f64;
        if (gone - sparsity).abs() <= MASS_TOLERANCE || high - low < MASS_TOLERANCE {
            return keep;
        }
        if gone > sparsity {
            high = share;
        } else {
            low = share;
        }
        share = (low + high) / 2.0;
    }
}
