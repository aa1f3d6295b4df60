//! The optimal brain surgeon on whole units, and least squares on what stays.

use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, Usable};

use super::Track;

/// H + damp x mean(diag H) I in f64; nothing if H says nothing.
pub(super) fn damped(gram: ArrayView2<'_, f32>, damp: f64) -> Result<Usable<Array2<f64>>> {
    if !(damp.is_finite() && damp >= 0.0) {
        return Err(Error::invalid(format!("damp = {damp}: allowed are 0 and more")));
    }
    if gram.iter().any(|v| !v.is_finite()) {
        return Ok(Usable::no("its Gram matrix is not finite"));
    }
    let mut gram = gram.mapv(f64::from);
    let mean = gram.diag().sum() / gram.nrows().max(1) as f64;
    if mean <= 0.0 {
        return Ok(Usable::no("all its inputs were zero"));
    }
    gram.diag_mut().mapv_inplace(|v| v + damp * mean);
    Ok(Usable::Yes(gram))
}

/// The inverse of a symmetric positive matrix; more is added to its diagonal where it cannot be factored.
pub(super) fn inverse(matrix: Array2<f64>, par: Par) -> Result<Usable<Array2<f64>>> {
    Ok(Usable::of(linalg::damped_inverse_factor(matrix, 0.0, par))?.map(|found| {
        let mut inverse = Array2::zeros(found.factor.dim());
        linalg::gram_lower(found.factor.view(), inverse.view_mut(), false, par);
        linalg::mirror_lower(inverse.view_mut());
        inverse
    }))
}

/// Removes units of `width` columns of W `[out, in]` one after the other, always the one that costs least when all that
/// stay make good for it, and says what each costs: Optimal Brain Surgeon on column groups (Kurtic, Frantar, Alistarh:
/// "ZipLM", 2023).
///
/// With M = (H + damping)⁻¹ over what is left and S the columns of a unit, its cost is Σ_i W_iS (M_SS)⁻¹ W_iSᵀ, the rise of
/// tr(D H Dᵀ); W -= W_:S (M_SS)⁻¹ M_S: and M -= M_:S (M_SS)⁻¹ M_S:. Costs and weights of later steps are those after
/// the steps before. In f64; in² + out x in operations a column. The bytes do not depend on `par`.
///
/// ```
/// use tensorpress_prune::structured::surgeon;
/// use tensorpress_tensor::{Usable, linalg::Par, ndarray::array};
///
/// // The first two inputs are always equal, so that one goes for nothing; then the other's sum costs 5².
/// let (weight, gram) = (array![[2.0f32, 3.0, 9.0]], array![[1.0f32, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
/// let Usable::Yes(track) = surgeon(weight.view(), gram.view(), 1, 1e-9, Par::Seq)? else { panic!() };
/// assert!(track.steps[0] < 1e-6 && (track.steps[1] - 25.0).abs() < 1e-6 && track.order[2] == 2);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for the damping.
pub fn surgeon(
    weight: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f32>,
    width: usize,
    damp: f64,
    par: Par,
) -> Result<Usable<Track>> {
    let columns = weight.ncols();
    if width == 0 || !columns.is_multiple_of(width) || gram.dim() != (columns, columns) {
        let (rows, cols) = gram.dim();
        return Err(Error::shape(format!(
            "units of {width} columns and a Gram matrix {rows} x {cols} for {columns} inputs"
        )));
    }
    let inverse = match damped(gram, damp)? {
        Usable::Yes(damped) => inverse(damped, par)?,
        Usable::No(reason) => Usable::No(reason),
    };
    let inverse = match inverse {
        Usable::Yes(inverse) => inverse,
        Usable::No(reason) => return Ok(Usable::No(reason)),
    };
    let mut weight = weight.t().mapv(f64::from).as_standard_layout().into_owned();
    // What was always 0 is lost for nothing.
    for (column, mut row) in weight.rows_mut().into_iter().enumerate() {
        if gram[[column, column]] <= 0.0 {
            row.fill(0.0);
        }
    }
    let (units, costs) = ((0..columns / width).collect(), vec![0.0; columns / width]);
    let least = inverse.diag().iter().map(|m| (LEAST * m).max(f64::MIN_POSITIVE)).collect();
    let mut open = Open { units, costs, weight, inverse, width, least };
    let (mut order, mut steps) = (Vec::new(), Vec::new());
    while !open.units.is_empty() {
        open.judge(par);
        let cheaper =
            |a: &&usize, b: &&usize| open.costs[**a].total_cmp(&open.costs[**b]).then(a.cmp(b));
        let least = *open.units.iter().min_by(cheaper).expect("some are open");
        order.push(least);
        // Not `max`, which would hide what is no number.
        let cost = open.costs[least];
        steps.push(if cost < 0.0 { 0.0 } else { cost });
        open.remove(least, par);
    }
    if steps.iter().any(|step| !step.is_finite()) {
        return Ok(Usable::no("the inverse of its Gram matrix is beyond f64"));
    }
    Track::new(order, steps).map(Usable::Yes)
}

/// What is not removed yet. Rows of removed units are left as they are, and not read.
struct Open {
    /// Units, ascending.
    units: Vec<usize>,
    costs: Vec<f64>,
    /// `[in, out]`.
    weight: Array2<f64>,
    /// M `[in, in]`.
    inverse: Array2<f64>,
    width: usize,
    /// The least that is believed of each entry of its diagonal, of units of one channel.
    least: Vec<f64>,
}

/// Rounding leaves at least so much of an entry of the diagonal, of what it was.
const LEAST: f64 = 1e-14;

impl Open {
    fn rows(&self, unit: usize) -> std::ops::Range<usize> {
        unit * self.width..(unit + 1) * self.width
    }

    /// (M_SS)⁻¹ `[width, width]`.
    fn pivot(&self, unit: usize) -> Array2<f64> {
        let rows = self.rows(unit);
        let part =
            self.inverse.slice(tensorpress_tensor::ndarray::s![rows.clone(), rows]).to_owned();
        match part.nrows() {
            1 => part.mapv(|m| 1.0 / m.max(self.least[unit])),
            _ => match inverse(part, Par::Seq) {
                Ok(Usable::Yes(pivot)) => pivot,
                _ => Array2::from_elem((self.width, self.width), f64::NAN),
            },
        }
    }

    /// What each open unit costs.
    fn judge(&mut self, par: Par) {
        let mut costs = vec![0.0; self.units.len()];
        let this = &*self;
        par.for_each(costs.iter_mut().zip(&this.units), |(cost, unit)| {
            let pivot = this.pivot(*unit);
            let rows = this.rows(*unit);
            for (a, row) in rows.clone().enumerate() {
                for (b, other) in rows.clone().enumerate() {
                    *cost += pivot[[a, b]] * this.weight.row(row).dot(&this.weight.row(other));
                }
            }
        });
        self.units.iter().zip(costs).for_each(|(unit, cost)| self.costs[*unit] = cost);
    }

    /// Takes a unit out, and spreads what that costs over the open ones.
    fn remove(&mut self, unit: usize, par: Par) {
        let pivot = self.pivot(unit);
        let gone: Vec<usize> = self.rows(unit).collect();
        let weight = self.weight.select(Axis(0), &gone);
        let inverse = self.inverse.select(Axis(0), &gone);
        self.units.retain(|open| *open != unit);
        let mut open = vec![false; self.weight.nrows()];
        self.units.iter().for_each(|unit| open[self.rows(*unit)].fill(true));
        let rows = self.weight.rows_mut().into_iter().zip(self.inverse.rows_mut()).zip(&open);
        let work: Vec<_> = rows.filter(|(_, open)| **open).map(|(rows, _)| rows).collect();
        par.for_each(work.into_iter(), |(mut weight_row, mut inverse_row)| {
            // M_kS (M_SS)⁻¹, with M as it was.
            let before: Vec<f64> = gone.iter().map(|column| inverse_row[*column]).collect();
            for (at, _) in gone.iter().enumerate() {
                let share: f64 = before.iter().zip(pivot.column(at)).map(|(m, p)| m * p).sum();
                weight_row.scaled_add(-share, &weight.row(at));
                inverse_row.scaled_add(-share, &inverse.row(at));
            }
        });
    }
}

/// The weights `[out, kept]` on the columns that stay with which tr(D H Dᵀ) is least, D = W - Ŵ with 0 where a column has
/// gone and H the damped Gram matrix: W_K + W_P H_PK (H_KK)⁻¹, P all that goes. What [`surgeon`] leaves when exactly
/// these are gone; and, for H the inputs' second moments, Nyström's approximation. In f64.
///
/// Not usable where H says nothing or cannot be factored.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for the damping, and for columns out of range or out of order.
pub fn least_squares(
    weight: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f32>,
    kept: &[usize],
    damp: f64,
    par: Par,
) -> Result<Usable<Array2<f32>>> {
    let columns = weight.ncols();
    if gram.dim() != (columns, columns) {
        let (rows, cols) = gram.dim();
        return Err(Error::shape(format!("a Gram matrix {rows} x {cols} for {columns} inputs")));
    }
    let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || kept.last().is_none_or(|last| *last >= columns) {
        let message = format!(
            "columns that stay: allowed are ascending numbers below {columns}, at least one"
        );
        return Err(Error::invalid(message));
    }
    let damped = match damped(gram, damp)? {
        Usable::Yes(damped) => damped,
        Usable::No(reason) => return Ok(Usable::No(reason)),
    };
    let gone: Vec<usize> =
        (0..columns).filter(|column| kept.binary_search(column).is_err()).collect();
    let inner = damped.select(Axis(0), kept).select(Axis(1), kept);
    let factor = match Usable::of(factor(inner, par))? {
        Usable::Yes(factor) => factor,
        Usable::No(reason) => return Ok(Usable::No(reason)),
    };
    // H_KP `[kept, gone]` becomes (H_KK)⁻¹ H_KP.
    let mut shares = damped.select(Axis(0), kept).select(Axis(1), &gone);
    linalg::solve_triangular(factor.view(), Triangle::Lower, shares.view_mut(), par)?;
    linalg::solve_triangular(factor.t(), Triangle::Upper, shares.view_mut(), par)?;
    let wide = weight.mapv(f64::from);
    let mut repaired = wide.select(Axis(1), kept);
    let lost = wide.select(Axis(1), &gone);
    linalg::matmul_nt(lost.view(), shares.view(), repaired.view_mut(), true, par);
    let repaired = repaired.mapv(|w| w as f32);
    Ok(match repaired.iter().all(|w| w.is_finite()) {
        true => Usable::Yes(repaired),
        false => Usable::no("least squares lead beyond f32"),
    })
}

/// The Cholesky factor; where it is singular, of a diagonal raised by rounding errors' size.
fn factor(matrix: Array2<f64>, par: Par) -> Result<Array2<f64>> {
    let size = matrix.diag().iter().fold(0.0f64, |most, v| most.max(v.abs()));
    linalg::cholesky(matrix.clone(), par)
        .or_else(|_| linalg::cholesky_damped(matrix, size.max(f64::MIN_POSITIVE) * 1e-10, par))
}
