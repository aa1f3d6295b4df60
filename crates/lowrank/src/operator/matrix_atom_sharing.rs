use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView1, ArrayView2, Zip, s};
use tensorpress_tensor::{DType, Error, Result};

use crate::metric::Root;

/// Layers that share atoms: W_l ~ Σ c_ls D_s over `atoms` matrices D_s of the layers' own shape.
///
/// Zhussip et al.: *Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning* (MASA), 2025:
/// one dictionary for each type of projection, of all layers. For weights that exist the best dictionary is known: the
/// layers are the rows of a matrix `[layers, out in]`, and its leading left singular vectors are the coefficients. They
/// come from the Gram matrix `[layers, layers]` of the layers, so that nothing of the size of the stack is decomposed.
/// Atoms are D_s = Σ c_ls W_l, also where errors are weighed by a root of the inputs' second moments: the root cancels, as
/// it does for factors.
///
/// ```
/// use tensorpress_lowrank::{Root, operator::MatrixAtoms};
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let (a, b) = (Array2::<f32>::eye(4), Array2::from_elem((4, 4), 1.0));
/// let layers = [a.clone(), &a + &b, &a - &b];
/// let views: Vec<_> = layers.iter().map(|w| w.view()).collect();
/// let made = MatrixAtoms::new(2).fit(&views, &Root::Identity, Par::Seq)?;
/// assert!((made.layer(1) - &layers[1]).iter().all(|d| d.abs() < 1e-6));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MatrixAtoms {
    /// Atoms of a dictionary, 1 or more; no more than layers are made. Default 4.
    pub atoms: usize,
}

impl Default for MatrixAtoms {
    fn default() -> Self {
        Self { atoms: 4 }
    }
}

/// A dictionary and what the layers are made of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AtomFit {
    /// D_s `[out, in]`.
    pub atoms: Vec<Array2<f32>>,
    /// c `[layers, atoms]`, with orthonormal columns.
    pub coefficients: Array2<f32>,
    /// ‖(W_l - Ŵ_l) S‖² of each layer, before atoms and coefficients are rounded to f32.
    pub lost: Vec<f64>,
}

impl MatrixAtoms {
    /// So many atoms.
    #[must_use]
    pub fn new(atoms: usize) -> Self {
        Self { atoms }
    }

    /// The dictionary that loses least of these layers, weighed by a root S of their inputs' second moments.
    ///
    /// # Errors
    /// `InvalidArgument` for no atoms or no layers, `ShapeMismatch` if layers or root differ in shape, `Numerical` for
    /// entries that are not finite, if atoms are beyond f32, or without convergence.
    pub fn fit(&self, layers: &[ArrayView2<'_, f32>], root: &Root, par: Par) -> Result<AtomFit> {
        if self.atoms == 0 {
            return Err(Error::invalid("atoms = 0: allowed are 1 and more"));
        }
        let Some(first) = layers.first() else {
            return Err(Error::invalid("atoms of no layers"));
        };
        if let Some(other) = layers.iter().find(|layer| layer.dim() != first.dim()) {
            let message = format!("a layer {:?} beside {:?}", other.dim(), first.dim());
            return Err(Error::shape(message));
        }
        let seen = layers.iter().map(|w| root.apply(w.view(), par)).collect::<Result<Vec<_>>>()?;
        let gram = Array2::from_shape_fn((layers.len(), layers.len()), |(l, m)| {
            if m > l {
                return 0.0; // the lower triangle is what is used
            }
            let add = |sum: f64, a: &f32, b: &f32| sum + f64::from(*a) * f64::from(*b);
            Zip::from(&seen[l]).and(&seen[m]).fold(0.0, add)
        });
        let eigen = linalg::symmetric_eigen(gram.view())?;
        let count = self.atoms.min(layers.len());
        let leading = eigen.vectors.slice(s![.., layers.len() - count..]);
        let coefficients = leading.slice(s![.., ..;-1]).to_owned();
        let atom = |s: usize| combined(layers, coefficients.column(s).iter().copied());
        let atoms: Vec<Array2<f64>> = (0..count).map(atom).collect();
        let fits = atoms.iter().flatten().all(|v| (*v as f32).is_finite());
        if !fits {
            return Err(Error::numerical("an atom is beyond f32"));
        }
        // Of a layer's own squares: those of its row outside the leading directions.
        let others = eigen.vectors.slice(s![.., ..layers.len() - count]);
        let values = eigen.values.slice(s![..layers.len() - count]);
        let lost = |row: ArrayView1<'_, f64>| {
            row.iter().zip(values).map(|(v, value)| v * v * value.max(0.0)).sum::<f64>()
        };
        let lost = others.rows().into_iter().map(lost).collect();
        let atoms = atoms.into_iter().map(|atom| atom.mapv(|v| v as f32)).collect();
        Ok(AtomFit { atoms, coefficients: coefficients.mapv(|v| v as f32), lost })
    }
}

/// Σ c_l M_l in f64.
fn combined(
    matrices: &[ArrayView2<'_, f32>],
    coefficients: impl Iterator<Item = f64>,
) -> Array2<f64> {
    let mut sum = Array2::zeros(matrices[0].dim());
    for (matrix, c) in matrices.iter().zip(coefficients) {
        sum.zip_mut_with(matrix, |sum, v| *sum += c * f64::from(*v));
    }
    sum
}

impl AtomFit {
    /// A layer as its atoms make it.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Array2<f32> {
        let atoms: Vec<_> = self.atoms.iter().map(|atom| atom.view()).collect();
        let coefficients = self.coefficients.row(layer);
        combined(&atoms, coefficients.iter().map(|c| f64::from(*c))).mapv(|v| v as f32)
    }

    /// X Ŵᵀ of every layer for inputs X `[tokens, in]` that they share: each atom multiplies once, however many layers
    /// there are.
    ///
    /// # Panics
    /// If X has another number of inputs.
    #[must_use]
    pub fn outputs(&self, x: ArrayView2<'_, f32>, par: Par) -> Vec<Array2<f32>> {
        let product = |atom: &Array2<f32>| {
            let mut y = Array2::zeros((x.nrows(), atom.nrows()));
            linalg::matmul_nt(x, atom.view(), y.view_mut(), false, par);
            y
        };
        let products: Vec<Array2<f32>> = self.atoms.iter().map(product).collect();
        let views: Vec<_> = products.iter().map(|y| y.view()).collect();
        let of =
            |c: Array1<f32>| combined(&views, c.iter().map(|c| f64::from(*c))).mapv(|v| v as f32);
        self.coefficients.rows().into_iter().map(|c| of(c.to_owned())).collect()
    }

    /// Bytes of atoms in this type and coefficients in f32.
    #[must_use]
    pub fn bytes(&self, atoms: DType) -> usize {
        let values = self.atoms.iter().map(Array2::len).sum::<usize>();
        values * atoms.size() + self.coefficients.len() * DType::F32.size()
    }
}
