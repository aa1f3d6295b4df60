use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Dense, Mask, Masked};
use tensorpress_tensor::{DType, Node, Result};

/// Codes of vectors over atoms, as many numbers each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Code {
    pub(super) atoms: usize,
    pub(super) nonzeros: usize,
    /// Atoms of each code, rising; as many as `nonzeros`.
    pub(super) places: Vec<u32>,
    /// Their numbers.
    pub(super) values: Vec<f32>,
}

/// What is added to the diagonal of normal equations, of its mean: for atoms that are nearly others.
const RIDGE: f64 = 1e-9;

impl Code {
    /// The entries of `full` `[codes, atoms]` where `importance` is largest in each row; of equals the first.
    pub(super) fn largest(
        full: ArrayView2<'_, f32>,
        importance: impl Fn(usize, usize) -> f64,
        nonzeros: usize,
    ) -> Self {
        let (codes, atoms) = full.dim();
        let mut code = Self::empty(codes, atoms, nonzeros);
        let places = code.places.chunks_exact_mut(nonzeros.max(1));
        for (row, (places, values)) in
            places.zip(code.values.chunks_exact_mut(nonzeros.max(1))).enumerate()
        {
            let weights: Vec<f64> = (0..atoms).map(|atom| importance(row, atom)).collect();
            let mut order: Vec<u32> = (0..atoms as u32).collect();
            order.sort_by(|a, b| weights[*b as usize].total_cmp(&weights[*a as usize]));
            places.copy_from_slice(&order[..nonzeros]);
            places.sort_unstable();
            for (value, place) in values.iter_mut().zip(places) {
                *value = full[[row, *place as usize]];
            }
        }
        code
    }

    pub(super) fn empty(codes: usize, atoms: usize, nonzeros: usize) -> Self {
        let count = codes * nonzeros;
        Self { atoms, nonzeros, places: vec![0; count], values: vec![0.0; count] }
    }

    fn rows(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        let size = self.nonzeros.max(1);
        self.places.chunks_exact(size).zip(self.values.chunks_exact(size))
    }

    /// The dictionary `[atoms, length]` that loses least of the targets `[codes, length]`, each weighted: the normal
    /// equations C ᵀΩ C D = Cᵀ Ω T. An atom that no code uses stays as it is in `old`, or is 0.
    ///
    /// # Errors
    /// `Numerical`, if they cannot be solved.
    pub(super) fn dictionary(
        &self,
        targets: ArrayView2<'_, f32>,
        weights: Option<&[f64]>,
        old: Option<&Array2<f32>>,
        par: Par,
    ) -> Result<Array2<f32>> {
        let (atoms, length) = (self.atoms, targets.ncols());
        let mut normal = Array2::<f64>::zeros((atoms, atoms));
        let mut right = Array2::<f64>::zeros((atoms, length));
        for (i, ((places, values), target)) in self.rows().zip(targets.rows()).enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[i]);
            let target = target.mapv(f64::from);
            for (place, value) in places.iter().zip(values) {
                let value = weight * f64::from(*value);
                right.row_mut(*place as usize).scaled_add(value, &target);
                for (other, times) in places.iter().zip(values) {
                    normal[[*place as usize, *other as usize]] += value * f64::from(*times);
                }
            }
        }
        let ridge = RIDGE * normal.diag().sum() / atoms.max(1) as f64;
        for atom in 0..atoms {
            if normal[[atom, atom]] <= 0.0 {
                normal[[atom, atom]] = 1.0;
                if let Some(old) = old {
                    right.row_mut(atom).assign(&old.row(atom).mapv(f64::from));
                }
            }
        }
        let lower = linalg::cholesky_damped(normal, ridge, par)?;
        linalg::solve_triangular(lower.view(), Triangle::Lower, right.view_mut(), par)?;
        linalg::solve_triangular(lower.t(), Triangle::Upper, right.view_mut(), par)?;
        Ok(right.mapv(|v| v as f32))
    }

    /// `[codes, atoms]`, or the transpose; entries that no code uses are not stored.
    pub(super) fn node(&self, transposed: bool, dtype: DType) -> Result<Box<dyn Node>> {
        let codes = self.places.len() / self.nonzeros.max(1);
        let mut dense = Array2::<f32>::zeros((codes, self.atoms));
        let mut kept = Array2::from_elem((codes, self.atoms), false);
        for (i, (places, values)) in self.rows().enumerate() {
            for (place, value) in places.iter().zip(values) {
                dense[[i, *place as usize]] = *value;
                kept[[i, *place as usize]] = true;
            }
        }
        if transposed {
            (dense, kept) = (dense.reversed_axes(), kept.reversed_axes());
        }
        let (dense, kept) = (dense.as_standard_layout(), kept.as_standard_layout());
        let values = Dense::from_f32(dense.view(), dtype)?;
        Ok(Masked::new(Mask::from_bools(kept.view()), values.boxed())?.boxed())
    }
}
