use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis, s};
use tensorpress_tensor::{Error, Result, Target};

/// The directions in which vectors vary most: coordinates `(x - mean) basis`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    mean: Array1<f32>,
    /// `[size, dims]`, orthonormal columns.
    basis: Array2<f32>,
}

impl Pca {
    /// The first `dims` principal directions of vectors `[vectors, size]`. The sign of each is such that its largest entry is
    /// positive.
    ///
    /// # Errors
    /// `InvalidArgument` unless `dims` is 1 to the size, `InsufficientData` without vectors, `Numerical` for vectors that are
    /// not finite, or so large that their squares are not.
    pub fn fit(vectors: ArrayView2<'_, f32>, dims: usize, par: Par) -> Result<Self> {
        let (count, size) = vectors.dim();
        if dims == 0 || dims > size {
            return Err(Error::invalid(format!("dims = {dims}: allowed are 1 to {size}")));
        }
        if count == 0 {
            return Err(Error::insufficient("no vector to find principal directions of"));
        }
        Target::new("vectors", vectors).check_finite()?;
        let wide = vectors.mapv(f64::from);
        let mean = wide.mean_axis(Axis(0)).expect("there are vectors");
        let centred = wide - &mean;
        let mut covariance = Array2::zeros((size, size));
        linalg::matmul_tn(centred.view(), centred.view(), covariance.view_mut(), false, par);
        let eigen = linalg::symmetric_eigen(covariance.view())?;
        let mut basis = Array2::zeros((size, dims));
        for (j, mut to) in basis.columns_mut().into_iter().enumerate() {
            let direction = eigen.vectors.column(size - 1 - j);
            let largest =
                direction.iter().fold(0f64, |m, v| if v.abs() > m.abs() { *v } else { m });
            to.zip_mut_with(&direction, |to, v| *to = (v * largest.signum()) as f32);
        }
        Ok(Self { mean: mean.mapv(|v| v as f32), basis })
    }

    /// Coordinates that are kept.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.basis.ncols()
    }

    /// Size of the vectors.
    #[must_use]
    pub fn size(&self) -> usize {
        self.basis.nrows()
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> &Array1<f32> {
        &self.mean
    }

    /// The directions `[size, dims]`.
    #[must_use]
    pub fn basis(&self) -> ArrayView2<'_, f32> {
        self.basis.view()
    }

    /// Coordinates of vectors `[vectors, size]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for vectors of another size.
    pub fn project(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        self.along((&self.check(vectors)? - &self.mean).view(), par)
    }

    /// `x basis`, without the mean taken off: what the scalar product of a query with coordinates needs.
    ///
    /// # Errors
    /// As [`Pca::project`].
    pub fn along(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        let vectors = self.check(vectors)?;
        let mut out = Array2::zeros((vectors.nrows(), self.dims()));
        linalg::matmul(vectors, self.basis.view(), out.view_mut(), false, par);
        Ok(out)
    }

    fn check<'a>(&self, vectors: ArrayView2<'a, f32>) -> Result<ArrayView2<'a, f32>> {
        if vectors.ncols() != self.size() {
            let message =
                format!("vectors of {}, principal directions of {}", vectors.ncols(), self.size());
            return Err(Error::shape(message));
        }
        Ok(vectors)
    }

    /// Bytes of mean and directions in f32.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.mean.len() + self.basis.len())
    }

    /// The same with fewer directions.
    #[must_use]
    pub fn truncated(&self, dims: usize) -> Self {
        let dims = dims.min(self.dims());
        Self { mean: self.mean.clone(), basis: self.basis.slice(s![.., ..dims]).to_owned() }
    }
}
