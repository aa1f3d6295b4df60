use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder};

use super::prepare::{gram_of, raised};
use crate::error::Result;
use crate::linalg::{self, Par};
use crate::method::Group;
use crate::usable::Usable;

/// The inverse of a Gram matrix, in f64: what the exact solvers of all rows start from.
#[derive(Debug)]
pub struct Inverse {
    /// (H + damping)⁻¹.
    pub matrix: Array2<f64>,
    /// Columns whose input was always 0; their weights must be 0.
    pub dead: Vec<usize>,
    /// News about the statistics, for `fallback`.
    pub note: Option<String>,
}

impl Inverse {
    /// Takes the group's Gram matrix, damps it (a fraction of the mean diagonal, raised until the matrix can be factored)
    /// and inverts it. Not usable if there is nothing to calibrate on: the method falls back, and says so.
    ///
    /// # Errors
    /// `MissingCalibration` if no Gram matrix was collected, `ShapeMismatch`, `InvalidArgument` for the damping.
    pub fn new(group: &mut Group<'_>, damp: f64) -> Result<Usable<Self>> {
        Usable::of(Self::made(group, damp))
    }

    fn made(group: &mut Group<'_>, damp: f64) -> Result<Self> {
        let (gram, dead) = gram_of(group)?;
        let gram = gram.mapv(f64::from);
        let factor = linalg::damped_inverse_factor(gram, damp, group.par)?;
        let note = raised(&factor);
        let u = factor.factor;
        let mut matrix = Array2::zeros(u.dim());
        linalg::gram_lower(u.view(), matrix.view_mut(), false, group.par);
        linalg::mirror_lower(matrix.view_mut());
        Ok(Self { matrix, dead, note })
    }
}

/// One row of weights whose columns are settled one by one in any order, each at a value; what that costs is spread over
/// the columns not yet settled: Optimal Brain Surgeon without approximation (Hassibi & Stork, 1993; Frantar & Alistarh,
/// "Optimal Brain Compression", 2022, eq. 1-4).
///
/// For column j set to q: e = (w_j - q) / H⁻¹_jj, w -= e H⁻¹_j, and then H⁻¹ -= H⁻¹_jᵀ H⁻¹_j / H⁻¹_jj, all over the open
/// columns. That last matrix is never written: the one row of it that a step needs is put together from the first inverse,
/// which all rows of weights share, and the rows of earlier steps. That takes d³/6 products for all d columns, and d²
/// numbers of memory.
#[derive(Debug)]
pub struct ExactRow<'a> {
    inverse: ArrayView2<'a, f64>,
    /// Column of each open place.
    columns: Vec<usize>,
    /// Place of each column, where it is open.
    places: Vec<Option<usize>>,
    weight: Vec<f64>,
    /// Diagonal of the inverse of H over the open columns.
    diagonal: Vec<f64>,
    /// A row a step over the places: H⁻¹_j / sqrt(H⁻¹_jj) as it was then.
    steps: Vec<f64>,
    /// That of the step at hand, and the factors it is made with.
    row: Vec<f64>,
    factors: Vec<f64>,
}

/// Rounding leaves at least so much of an entry of the diagonal.
const LEAST: f64 = 1e-14;

impl<'a> ExactRow<'a> {
    /// A row of which no column is settled.
    ///
    /// # Panics
    /// If the inverse is not as wide as the row.
    #[must_use]
    pub fn new(inverse: ArrayView2<'a, f64>, weight: Vec<f64>) -> Self {
        assert_eq!(inverse.dim(), (weight.len(), weight.len()), "an inverse of another size");
        Self {
            columns: (0..weight.len()).collect(),
            places: (0..weight.len()).map(Some).collect(),
            diagonal: inverse.diag().to_vec(),
            row: vec![0.0; weight.len()],
            inverse,
            weight,
            steps: Vec::new(),
            factors: Vec::new(),
        }
    }

    /// The open columns, in no particular order; the slices of the other methods have theirs.
    #[must_use]
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Where a column stands among the open ones.
    #[must_use]
    pub fn place(&self, column: usize) -> Option<usize> {
        self.places[column]
    }

    /// Weights of the open columns, with all that was spread over them.
    #[must_use]
    pub fn weight(&self) -> &[f64] {
        &self.weight
    }

    /// The diagonal of the inverse of H over the open columns: settling one at q costs (w - q)² over its entry.
    #[must_use]
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// An entry of the inverse of H over the open columns; takes a product for each settled one.
    ///
    /// # Panics
    /// If a column is not open.
    #[must_use]
    pub fn entry(&self, a: usize, b: usize) -> f64 {
        let [at, to] = [a, b].map(|column| self.places[column].expect("an open column"));
        let steps = self.steps.chunks(self.places.len().max(1));
        self.inverse[[a, b]] - steps.map(|step| step[at] * step[to]).sum::<f64>()
    }

    /// Entry of an open column in H⁻¹_j / sqrt(H⁻¹_jj) of the last step: what the entries of the inverse have lost is the
    /// product of two of these. 0 before the first step.
    ///
    /// # Panics
    /// If the column is not open.
    #[must_use]
    pub fn last(&self, column: usize) -> f64 {
        let place = self.places[column].expect("an open column");
        let start = self.steps.len().checked_sub(self.places.len());
        start.map_or(0.0, |start| self.steps[start + place])
    }

    /// Settles an open column at a value, and spreads what that costs.
    ///
    /// # Panics
    /// If the column is not open.
    pub fn settle(&mut self, column: usize, value: f64) {
        let place = self.places[column].expect("an open column");
        let (width, open) = (self.places.len(), self.columns.len());
        let from = self.inverse.row(column);
        for (to, column) in self.row.iter_mut().zip(&self.columns) {
            *to = from[*column];
        }
        let count = self.factors.len();
        for (factor, step) in self.factors.iter_mut().zip(self.steps.chunks(width)) {
            *factor = -step[place];
        }
        let shape = (count, open).strides((width, 1));
        if count > 0 {
            let steps = ArrayView2::from_shape(shape, &self.steps).expect("whole rows");
            let factors = ArrayView2::from_shape((1, count), &self.factors).expect("one row");
            let row = ArrayViewMut2::from_shape((1, open), &mut self.row[..open]);
            linalg::matmul(factors, steps, row.expect("one row"), true, Par::Seq);
        }
        let pivot = self.row[place].max(from[column] * LEAST).max(f64::MIN_POSITIVE);
        let error = (self.weight[place] - value) / pivot;
        let scale = pivot.sqrt().recip();
        for (at, row) in self.row[..open].iter_mut().enumerate() {
            self.weight[at] -= error * *row;
            *row *= scale;
            let least = self.inverse[[self.columns[at], self.columns[at]]] * LEAST;
            self.diagonal[at] = (self.diagonal[at] - *row * *row).max(least);
        }
        self.steps.extend_from_slice(&self.row);
        self.factors.push(0.0);
        // The last place takes this one's, in all that is kept by places.
        self.places[column] = None;
        self.columns.swap_remove(place);
        if let Some(moved) = self.columns.get(place) {
            self.places[*moved] = Some(place);
        }
        self.weight.swap_remove(place);
        self.diagonal.swap_remove(place);
        for step in self.steps.chunks_mut(width) {
            step[place] = step[open - 1];
        }
    }
}
