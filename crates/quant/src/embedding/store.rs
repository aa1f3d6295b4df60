use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::node::InputRounding;
use tensorpress_tensor::{Error, Result, Target, kernels};

use super::precision::{EmbeddingPrecision, Small};
use super::{Pca, top};
use crate::activation::Int8Rows;

/// What two embeddings are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Similarity {
    /// The cosine of their angle.
    #[default]
    Cosine,
    /// Their scalar product.
    Dot,
    /// Minus the number of coordinates whose signs differ; of binary stores only.
    Hamming,
}

/// How embeddings are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StoreSpec {
    /// Principal coordinates that are kept; `None`: all coordinates, as they are.
    pub dims: Option<usize>,
    /// How coordinates are held.
    pub precision: EmbeddingPrecision,
    /// What embeddings are compared by. Default: the cosine.
    pub similarity: Similarity,
}

impl StoreSpec {
    /// All coordinates in this precision.
    #[must_use]
    pub fn new(precision: EmbeddingPrecision) -> Self {
        Self { dims: None, precision, similarity: Similarity::Cosine }
    }

    /// Sets the principal coordinates that are kept.
    #[must_use]
    pub fn with_dims(mut self, dims: Option<usize>) -> Self {
        self.dims = dims;
        self
    }

    /// Sets what embeddings are compared by.
    #[must_use]
    pub fn with_similarity(mut self, similarity: Similarity) -> Self {
        self.similarity = similarity;
        self
    }
}

/// Embeddings for retrieval in few bytes (Huerga-Pérez et al., 2025): principal coordinates, if asked for, in floats of 32, 16 or
/// 8 bits, bytes or signs; searched as they are held.
///
/// Vectors of a cosine are brought to length 1 first. With principal coordinates z of x, the product of a query q with x is
/// `q mean + (q basis) z`. Queries of stores of bytes are rounded to bytes too, and multiplied in integers.
///
/// ```
/// use tensorpress_quant::embedding::{EmbeddingPrecision, EmbeddingStore, StoreSpec};
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// let vectors = Array2::from_shape_fn((50, 16), |(i, j)| ((i * 7 + j * 13) % 29) as f32 - 14.0);
/// let spec = StoreSpec::new(EmbeddingPrecision::E4M3).with_dims(Some(12));
/// let store = EmbeddingStore::build(vectors.view(), spec, Par::Seq)?;
/// assert_eq!(store.search(vectors.row(7), 3)?[0].0, 7);
/// assert_eq!(store.vector_bytes(), 12);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EmbeddingStore {
    spec: StoreSpec,
    size: usize,
    dims: usize,
    pca: Option<Pca>,
    held: Held,
}

/// The coordinates of all vectors.
#[derive(Debug, Clone)]
enum Held {
    /// Little-endian floats of 32 or 16 bits, or codes of 8-bit floats, and what these are multiplied by.
    Floats {
        bytes: Vec<u8>,
        scale: f32,
    },
    Bytes(Int8Rows),
    /// Bit c % 8 of byte c / 8 of a vector: the coordinate is negative.
    Signs(Vec<u8>),
}

impl EmbeddingStore {
    /// Stores vectors `[vectors, size]`.
    ///
    /// # Errors
    /// `InvalidArgument` for `dims` that are not 1 to the size, vectors of size 0, and a Hamming distance of anything but
    /// signs; `InsufficientData` for principal coordinates of no vectors; `Numerical` for vectors that are not finite.
    pub fn build(vectors: ArrayView2<'_, f32>, spec: StoreSpec, par: Par) -> Result<Self> {
        Target::new("vectors", vectors).check_finite()?;
        let pca = spec.dims.map(|dims| Pca::fit(normalised(vectors, spec).view(), dims, par));
        Self::with_pca(vectors, spec, pca.transpose()?, par)
    }

    /// The same with principal directions that are known already.
    pub(super) fn with_pca(
        vectors: ArrayView2<'_, f32>,
        spec: StoreSpec,
        pca: Option<Pca>,
        par: Par,
    ) -> Result<Self> {
        let size = vectors.ncols();
        if size == 0 {
            return Err(Error::invalid("embeddings without coordinates"));
        }
        if spec.similarity == Similarity::Hamming && spec.precision != EmbeddingPrecision::Binary {
            let message = format!("Hamming distances of {:?}: of signs only", spec.precision);
            return Err(Error::invalid(message));
        }
        let mut vectors = normalised(vectors, spec);
        if let Some(pca) = &pca {
            vectors = pca.project(vectors.view(), par)?;
        }
        let dims = vectors.ncols();
        let held = hold(&vectors, spec.precision)?;
        Ok(Self { spec, size, dims, pca, held })
    }

    /// How it was asked for.
    #[must_use]
    pub fn spec(&self) -> StoreSpec {
        self.spec
    }

    /// Vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.held {
            Held::Floats { bytes, .. } | Held::Signs(bytes) => bytes.len() / self.vector_bytes(),
            Held::Bytes(rows) => rows.shape()[0],
        }
    }

    /// No vectors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a vector.
    #[must_use]
    pub fn vector_bytes(&self) -> usize {
        self.spec.precision.bytes(self.dims)
    }

    /// Bytes of all vectors, and of principal directions and scale beside.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scale = if self.spec.precision.small().is_some() { 4 } else { 0 };
        self.len() * self.vector_bytes() + self.pca.as_ref().map_or(0, Pca::bytes) + scale
    }

    /// The similarity of a query with every vector.
    ///
    /// # Errors
    /// `ShapeMismatch` for a query of another size, `Numerical` for one that is not finite.
    pub fn scores(&self, query: ArrayView1<'_, f32>) -> Result<Vec<f32>> {
        let query = query.insert_axis(Axis(0));
        if query.ncols() != self.size {
            let message = format!("a query of {} for embeddings of {}", query.ncols(), self.size);
            return Err(Error::shape(message));
        }
        Target::new("query", query).check_finite()?;
        let query = normalised(query, self.spec);
        let (query, beside) = match &self.pca {
            None => (query, 0.0),
            Some(pca) if self.spec.similarity == Similarity::Hamming => {
                (pca.project(query.view(), Par::Seq)?, 0.0)
            }
            Some(pca) => (pca.along(query.view(), Par::Seq)?, query.row(0).dot(pca.mean())),
        };
        let values = query.as_slice().expect("one row");
        let mut scores = self.products(values, query.view())?;
        scores.iter_mut().for_each(|score| *score += beside);
        Ok(scores)
    }

    fn products(&self, query: &[f32], row: ArrayView2<'_, f32>) -> Result<Vec<f32>> {
        let width = self.vector_bytes();
        match &self.held {
            Held::Bytes(rows) => {
                let query = Int8Rows::round(row, InputRounding::by_token(8)?)?;
                Ok(query.product(rows, Par::Seq)?.into_raw_vec_and_offset().0)
            }
            Held::Signs(bytes) if self.spec.similarity == Similarity::Hamming => {
                let signs = signs(query);
                let distance = |own: &[u8]| {
                    own.iter().zip(&signs).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
                };
                Ok(bytes.chunks(width).map(|own| -(distance(own) as f32)).collect())
            }
            _ => {
                let mut vector = vec![0.0; self.dims];
                let small = self.spec.precision.small();
                let each = |i| {
                    self.read(i, small.as_ref(), &mut vector)?;
                    Ok(kernels::dot(query, &vector))
                };
                (0..self.len()).map(each).collect()
            }
        }
    }

    /// The coordinates of vector i.
    fn read(&self, i: usize, small: Option<&Small>, to: &mut [f32]) -> Result<()> {
        let width = self.vector_bytes();
        match &self.held {
            Held::Floats { bytes, scale } => {
                let bytes = &bytes[i * width..][..width];
                let Some(small) = small else {
                    return self.spec.precision.dtype().read_f32(bytes, to);
                };
                to.iter_mut().zip(bytes).for_each(|(to, code)| *to = scale * small.decode(*code));
            }
            Held::Bytes(rows) => {
                let codes = &rows.codes()[i * self.dims..][..self.dims];
                to.iter_mut().zip(codes).for_each(|(to, c)| *to = rows.scales()[i] * f32::from(*c));
            }
            Held::Signs(bytes) => {
                let bytes = &bytes[i * width..][..width];
                let sign = |c: usize| if bytes[c / 8] >> (c % 8) & 1 == 0 { 1.0 } else { -1.0 };
                to.iter_mut().enumerate().for_each(|(c, to)| *to = sign(c));
            }
        }
        Ok(())
    }

    /// The coordinates as they are held, `[vectors, dims]`: principal ones, if those are kept; signs as 1 and -1.
    ///
    /// # Errors
    /// None that building did not meet.
    pub fn decode(&self) -> Result<Array2<f32>> {
        let mut all = Array2::zeros((self.len(), self.dims));
        let small = self.spec.precision.small();
        for (i, mut row) in all.rows_mut().into_iter().enumerate() {
            self.read(i, small.as_ref(), row.as_slice_mut().expect("standard layout"))?;
        }
        Ok(all)
    }

    /// The `k` most similar vectors, the most similar first.
    ///
    /// # Errors
    /// As [`EmbeddingStore::scores`].
    pub fn search(&self, query: ArrayView1<'_, f32>, k: usize) -> Result<Vec<(usize, f32)>> {
        Ok(top(&self.scores(query)?, k))
    }
}

/// Vectors of length 1 where a cosine is asked for; those of length 0 stay.
pub(super) fn normalised(vectors: ArrayView2<'_, f32>, spec: StoreSpec) -> Array2<f32> {
    let mut vectors = vectors.as_standard_layout().into_owned();
    if spec.similarity == Similarity::Cosine {
        for mut row in vectors.rows_mut() {
            let length = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                row.mapv_inplace(|v| (f64::from(v) / length) as f32);
            }
        }
    }
    vectors
}

fn signs(values: &[f32]) -> Vec<u8> {
    let byte = |values: &[f32]| {
        values.iter().enumerate().fold(0, |byte, (i, v)| byte | u8::from(*v < 0.0) << i)
    };
    values.chunks(8).map(byte).collect()
}

fn hold(vectors: &Array2<f32>, precision: EmbeddingPrecision) -> Result<Held> {
    let values = vectors.as_slice().expect("standard layout");
    Ok(match precision {
        EmbeddingPrecision::F32 | EmbeddingPrecision::F16 => {
            let mut bytes = Vec::new();
            precision.dtype().write_f32(values, &mut bytes)?;
            Held::Floats { bytes, scale: 1.0 }
        }
        EmbeddingPrecision::E4M3 | EmbeddingPrecision::E5M2 => {
            let small = precision.small().expect("an 8-bit float");
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            // A power of two: numbers that the type has stay what they are.
            let scale = match largest > 0.0 {
                true => {
                    2f32.powi((largest / small.most()).log2().ceil().clamp(-126.0, 127.0) as i32)
                }
                false => 1.0,
            };
            Held::Floats { bytes: values.iter().map(|v| small.encode(v / scale)).collect(), scale }
        }
        EmbeddingPrecision::Int8 => {
            Held::Bytes(Int8Rows::round(vectors.view(), InputRounding::by_token(8)?)?)
        }
        EmbeddingPrecision::Binary => {
            Held::Signs(values.chunks(vectors.ncols()).flat_map(signs).collect())
        }
    })
}
