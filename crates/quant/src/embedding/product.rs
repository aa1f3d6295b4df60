use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, s};
use tensorpress_tensor::{Error, Result, Target, kernels};

use super::top;
use crate::codebook::{assign, lloyd, means, seeds};

/// How a [`ProductQuantizer`] is trained.
///
/// Product quantisation (Jégou et al., 2011) cuts vectors into parts and replaces each by one of the `entries` centroids of
/// its part; optimised (OPQ, Ge et al., 2013), an orthogonal rotation before it is fitted in turns with codes and centroids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProductSpec {
    /// Parts, a byte each. Default 8.
    pub parts: usize,
    /// Centroids a part, 1 to 256. Default 256.
    pub entries: usize,
    /// Turns in which the rotation is fitted; 0: none is (plain PQ). Default 20.
    pub rotations: usize,
    /// Seed of what k-means begins with.
    pub seed: u64,
}

impl Default for ProductSpec {
    fn default() -> Self {
        Self { parts: 8, entries: 256, rotations: 20, seed: 0 }
    }
}

impl ProductSpec {
    /// So many parts of so many centroids.
    #[must_use]
    pub fn new(parts: usize, entries: usize) -> Self {
        Self { parts, entries, ..Self::default() }
    }

    /// Sets the turns in which the rotation is fitted.
    #[must_use]
    pub fn with_rotations(mut self, rotations: usize) -> Self {
        self.rotations = rotations;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Trains on vectors `[vectors, size]`.
    ///
    /// # Errors
    /// `InvalidArgument` unless `entries` is 1 to 256 and `parts` divides the size, `InsufficientData` without vectors,
    /// `Numerical` for vectors that are not finite.
    pub fn train(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<ProductQuantizer> {
        let (count, size) = vectors.dim();
        if !(1..=256).contains(&self.entries) {
            return Err(Error::invalid(format!(
                "entries = {}: allowed are 1 to 256",
                self.entries
            )));
        }
        if self.parts == 0 || size == 0 || !size.is_multiple_of(self.parts) {
            let message = format!("{} parts of vectors of {size}: they must divide it", self.parts);
            return Err(Error::invalid(message));
        }
        if count == 0 {
            return Err(Error::insufficient("no vector to train a product quantiser on"));
        }
        Target::new("vectors", vectors).check_finite()?;
        let mut random = SplitMix::new(self.seed);
        let mut quantizer = ProductQuantizer {
            parts: self.parts,
            centroids: Array2::zeros((self.parts * self.entries, size / self.parts)),
            rotation: None,
        };
        if self.rotations > 0 {
            quantizer.rotate(vectors, self.rotations, &mut random, par)?;
        }
        let turned = quantizer.turned(vectors, par);
        for part in 0..self.parts {
            let made = means(&quantizer.part(&turned, part), None, self.entries, &mut random, par);
            quantizer.book_mut(part).assign(&made);
        }
        Ok(quantizer)
    }
}

/// A trained product quantiser: codes, distances by tables, and gradients of the scores.
///
/// ```
/// use tensorpress_quant::embedding::ProductSpec;
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// let vectors = Array2::from_shape_fn((100, 8), |(i, j)| ((i * 7 + j * 13) % 29) as f32 - 14.0);
/// let quantizer = ProductSpec::new(4, 16).train(vectors.view(), Par::Seq)?;
/// let codes = quantizer.encode(vectors.view(), Par::Seq)?;
/// assert_eq!(codes.bytes(), 400);
/// let found = quantizer.search(vectors.row(3), &codes, 5)?;
/// assert_eq!(found.len(), 5);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ProductQuantizer {
    parts: usize,
    /// `[parts * entries, size of a part]`.
    centroids: Array2<f32>,
    /// R of X R, `[size, size]`, orthogonal.
    rotation: Option<Array2<f32>>,
}

/// Codes of vectors, a byte a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductCodes {
    parts: usize,
    codes: Vec<u8>,
}

impl ProductCodes {
    /// Vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.codes.len() / self.parts
    }

    /// No vectors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The codes of a vector, one a part.
    ///
    /// # Panics
    /// If there is no such vector.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.codes[row * self.parts..][..self.parts]
    }

    /// Bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len()
    }
}

/// Gradients of a sum of weighted scores.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreGradients {
    /// Of the centroids, in the layout of [`ProductQuantizer::centroids`].
    pub centroids: Array2<f32>,
    /// Of the query.
    pub query: Vec<f32>,
}

impl ProductQuantizer {
    /// Parts of a vector.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Centroids of a part.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.centroids.nrows() / self.parts
    }

    /// Size of the vectors.
    #[must_use]
    pub fn size(&self) -> usize {
        self.parts * self.centroids.ncols()
    }

    /// All centroids `[parts * entries, size / parts]`, part by part; those of the rotated vectors.
    #[must_use]
    pub fn centroids(&self) -> ArrayView2<'_, f32> {
        self.centroids.view()
    }

    /// R, which vectors are multiplied by first, if one was fitted.
    #[must_use]
    pub fn rotation(&self) -> Option<ArrayView2<'_, f32>> {
        self.rotation.as_ref().map(|rotation| rotation.view())
    }

    /// Bytes of centroids and rotation in f32.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.centroids.len() + self.rotation.as_ref().map_or(0, Array2::len))
    }

    /// Moves the centroids: `centroids += step * direction`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn step(&mut self, step: f32, direction: ArrayView2<'_, f32>) {
        assert_eq!(self.centroids.dim(), direction.dim(), "centroids");
        self.centroids.scaled_add(step, &direction);
    }

    fn book(&self, part: usize) -> ArrayView2<'_, f32> {
        self.centroids.slice(s![part * self.entries()..(part + 1) * self.entries(), ..])
    }

    fn book_mut(&mut self, part: usize) -> tensorpress_tensor::ndarray::ArrayViewMut2<'_, f32> {
        let entries = self.entries();
        self.centroids.slice_mut(s![part * entries..(part + 1) * entries, ..])
    }

    fn part(&self, vectors: &Array2<f32>, part: usize) -> Array2<f32> {
        let size = self.centroids.ncols();
        let part = vectors.slice(s![.., part * size..(part + 1) * size]);
        part.as_standard_layout().into_owned()
    }

    /// X R.
    fn turned(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
        let Some(rotation) = &self.rotation else {
            return vectors.as_standard_layout().into_owned();
        };
        let mut turned = Array2::zeros(vectors.dim());
        linalg::matmul(vectors, rotation.view(), turned.view_mut(), false, par);
        turned
    }

    /// Alternates a step of k-means in every part with the rotation for which what it makes is nearest (Procrustes).
    fn rotate(
        &mut self,
        vectors: ArrayView2<'_, f32>,
        turns: usize,
        random: &mut SplitMix,
        par: Par,
    ) -> Result<()> {
        let size = vectors.ncols();
        self.rotation = Some(Array2::eye(size));
        for turn in 0..turns {
            let turned = self.turned(vectors, par);
            let mut coded = Array2::zeros(turned.dim());
            for part in 0..self.parts {
                let own = self.part(&turned, part);
                let mut book = match turn {
                    0 => seeds(&own, self.entries(), random),
                    _ => self.book(part).to_owned(),
                };
                lloyd(&own, &own, None, &mut book, if turn == 0 { 10 } else { 1 }, random, par);
                let chosen = assign(own.view(), &book, par);
                let width = self.centroids.ncols();
                for (row, code) in chosen.iter().enumerate() {
                    let place = s![row, part * width..(part + 1) * width];
                    coded.slice_mut(place).assign(&book.row(usize::from(*code)));
                }
                self.book_mut(part).assign(&book);
            }
            let mut cross = Array2::<f64>::zeros((size, size));
            let wide = |m: ArrayView2<'_, f32>| m.mapv(f64::from);
            let (x, y) = (wide(vectors), wide(coded.view()));
            linalg::matmul_tn(x.view(), y.view(), cross.view_mut(), false, par);
            let largest = cross.iter().fold(0f64, |m, v| m.max(v.abs()));
            if !(largest > 0.0 && largest.is_finite()) {
                break;
            }
            cross.mapv_inplace(|v| v / largest);
            let svd = linalg::svd(cross.view())?;
            self.rotation = Some(svd.u.dot(&svd.vt).mapv(|v| v as f32));
        }
        Ok(())
    }

    fn check(&self, vectors: ArrayView2<'_, f32>) -> Result<()> {
        if vectors.ncols() != self.size() {
            let message = format!("vectors of {}, trained for {}", vectors.ncols(), self.size());
            return Err(Error::shape(message));
        }
        Target::new("vectors", vectors).check_finite()
    }

    /// The nearest centroid of every part of every vector.
    ///
    /// # Errors
    /// `ShapeMismatch` for vectors of another size, `Numerical` for those that are not finite.
    pub fn encode(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<ProductCodes> {
        self.check(vectors)?;
        let turned = self.turned(vectors, par);
        let mut codes = vec![0u8; vectors.nrows() * self.parts];
        for part in 0..self.parts {
            let chosen = assign(self.part(&turned, part).view(), &self.book(part).to_owned(), par);
            for (row, code) in chosen.into_iter().enumerate() {
                codes[row * self.parts + part] = code as u8;
            }
        }
        Ok(ProductCodes { parts: self.parts, codes })
    }

    fn check_codes(&self, codes: &ProductCodes) -> Result<()> {
        let fits = |code: &u8| usize::from(*code) < self.entries();
        if codes.parts != self.parts || !codes.codes.iter().all(fits) {
            return Err(Error::invalid("codes of another product quantiser"));
        }
        Ok(())
    }

    /// The vectors that codes stand for, `[vectors, size]`.
    ///
    /// # Errors
    /// `InvalidArgument` for codes of another quantiser.
    pub fn decode(&self, codes: &ProductCodes, par: Par) -> Result<Array2<f32>> {
        self.check_codes(codes)?;
        let mut turned = Array2::zeros((codes.len(), self.size()));
        for (row, mut to) in turned.rows_mut().into_iter().enumerate() {
            self.gather(codes.row(row), to.as_slice_mut().expect("standard layout"));
        }
        let Some(rotation) = &self.rotation else { return Ok(turned) };
        let mut vectors = Array2::zeros(turned.dim());
        linalg::matmul_nt(turned.view(), rotation.view(), vectors.view_mut(), false, par);
        Ok(vectors)
    }

    fn gather(&self, codes: &[u8], to: &mut [f32]) {
        let width = self.centroids.ncols();
        for ((part, code), to) in codes.iter().enumerate().zip(to.chunks_mut(width)) {
            let centroid = self.centroids.row(part * self.entries() + usize::from(*code));
            to.copy_from_slice(centroid.to_slice().expect("standard layout"));
        }
    }

    /// The scalar products of a query with all centroids `[parts, entries]`: the table of asymmetric distances.
    ///
    /// # Errors
    /// As [`ProductQuantizer::encode`].
    pub fn table(&self, query: ArrayView1<'_, f32>) -> Result<Array2<f32>> {
        let turned = self.turned_query(query)?;
        let width = self.centroids.ncols();
        Ok(Array2::from_shape_fn((self.parts, self.entries()), |(part, entry)| {
            let centroid = self.centroids.row(part * self.entries() + entry);
            let centroid = centroid.to_slice().expect("standard layout");
            kernels::dot(&turned[part * width..][..width], centroid)
        }))
    }

    fn turned_query(&self, query: ArrayView1<'_, f32>) -> Result<Vec<f32>> {
        let query = query.insert_axis(tensorpress_tensor::ndarray::Axis(0));
        self.check(query)?;
        Ok(self.turned(query, Par::Seq).into_raw_vec_and_offset().0)
    }

    /// The score of every vector: the scalar product of the query and what its codes stand for, by sums of table entries.
    ///
    /// # Errors
    /// `InvalidArgument` for codes or a table of another quantiser.
    pub fn scan(&self, table: ArrayView2<'_, f32>, codes: &ProductCodes) -> Result<Vec<f32>> {
        self.check_codes(codes)?;
        if table.dim() != (self.parts, self.entries()) {
            return Err(Error::invalid("a table of another product quantiser"));
        }
        let (table, entries) = (table.as_standard_layout(), self.entries());
        let table = table.as_slice().expect("standard layout");
        let score = |codes: &[u8]| {
            let places = codes.iter().zip(table.chunks(entries));
            places.map(|(code, table)| table[usize::from(*code)]).sum()
        };
        Ok(codes.codes.chunks(self.parts).map(score).collect())
    }

    /// The `k` vectors of largest score, largest first.
    ///
    /// # Errors
    /// As [`ProductQuantizer::table`] and [`ProductQuantizer::scan`].
    pub fn search(
        &self,
        query: ArrayView1<'_, f32>,
        codes: &ProductCodes,
        k: usize,
    ) -> Result<Vec<(usize, f32)>> {
        Ok(top(&self.scan(self.table(query)?.view(), codes)?, k))
    }

    /// Gradients of the sum of `weight * score(vector)` over pairs `(vector, weight)`, by centroids and query; codes stay as they
    /// are. The score is linear in both: of centroid c of a part it is the query's part, wherever c is the vector's code.
    ///
    /// # Errors
    /// As [`ProductQuantizer::encode`]; `InvalidArgument` for codes of another quantiser and vectors that are not there.
    pub fn score_gradients(
        &self,
        query: ArrayView1<'_, f32>,
        codes: &ProductCodes,
        weights: &[(usize, f32)],
    ) -> Result<ScoreGradients> {
        self.check_codes(codes)?;
        let turned = self.turned_query(query)?;
        let (width, size) = (self.centroids.ncols(), self.size());
        let mut centroids = Array2::<f32>::zeros(self.centroids.dim());
        let mut sum = vec![0f32; size];
        let mut vector = vec![0f32; size];
        for (row, weight) in weights {
            if *row >= codes.len() {
                return Err(Error::invalid(format!("vector {row} of {}", codes.len())));
            }
            for (part, code) in codes.row(*row).iter().enumerate() {
                let mut gradient = centroids.row_mut(part * self.entries() + usize::from(*code));
                let query = &turned[part * width..][..width];
                gradient.iter_mut().zip(query).for_each(|(g, q)| *g += weight * q);
            }
            self.gather(codes.row(*row), &mut vector);
            sum.iter_mut().zip(&vector).for_each(|(s, v)| *s += weight * v);
        }
        let query = match &self.rotation {
            None => sum,
            Some(rotation) => {
                rotation.rows().into_iter().map(|row| row.dot(&ArrayView1::from(&sum))).collect()
            }
        };
        Ok(ScoreGradients { centroids, query })
    }
}
