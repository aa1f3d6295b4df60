use tensorpress_tensor::cluster::entropy;
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use tensorpress_tensor::{Error, Result, Target};

use super::{assign, means};

/// McQuic's quantiser (Zhu et al., 2022): vectors are cut into groups, each with codebooks of its own, one a level: the first
/// for the vectors, each further one for what the levels before left over.
///
/// ```
/// use tensorpress_quant::codebook::ResidualSpec;
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// let latents = Array2::from_shape_fn((200, 8), |(i, j)| ((i * 7 + j * 13) % 29) as f32 - 14.0);
/// let quantizer = ResidualSpec::new(2, &[16, 8, 4]).train(latents.view(), Par::Seq)?;
/// let codes = quantizer.encode(latents.view(), Par::Seq)?;
/// assert_eq!((codes.dim(), quantizer.decode(codes.view())?.dim()), ((200, 6), (200, 8)));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResidualSpec {
    /// Groups that a vector is cut into.
    pub groups: usize,
    /// Codewords of each level, 1 to 65,536.
    pub entries: Vec<usize>,
    /// Seed of what k-means begins with. Default 0.
    pub seed: u64,
}

impl ResidualSpec {
    /// So many groups, and a level for each number of codewords.
    #[must_use]
    pub fn new(groups: usize, entries: &[usize]) -> Self {
        Self { groups, entries: entries.into(), seed: 0 }
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Codebooks by k-means, level after level.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are levels of 1 to 65,536 codewords and the groups divide the vectors' size;
    /// `InsufficientData` without vectors, `Numerical` for vectors that are not finite.
    pub fn train(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<ResidualQuantizer> {
        let (count, size) = vectors.dim();
        if self.groups == 0 || size == 0 || !size.is_multiple_of(self.groups) {
            let message =
                format!("{} groups of vectors of {size}: they must divide it", self.groups);
            return Err(Error::invalid(message));
        }
        let fits = |entries: &usize| (1..=1 << 16).contains(entries);
        if self.entries.is_empty() || !self.entries.iter().all(fits) {
            let message = format!("levels of {:?} codewords: allowed are 1 to 65536", self.entries);
            return Err(Error::invalid(message));
        }
        if count == 0 {
            return Err(Error::insufficient("no vector to train codebooks on"));
        }
        Target::new("vectors", vectors).check_finite()?;
        let width = size / self.groups;
        let mut random = SplitMix::new(self.seed);
        let mut books = Vec::with_capacity(self.groups * self.entries.len());
        for group in 0..self.groups {
            let part = vectors.slice(s![.., group * width..(group + 1) * width]);
            let mut rest = part.as_standard_layout().into_owned();
            for entries in &self.entries {
                let book = means(&rest, None, *entries, &mut random, par);
                take_off(&mut rest, &book, par);
                books.push(book);
            }
        }
        Ok(ResidualQuantizer { groups: self.groups, books })
    }
}

/// What is left of vectors after their nearest codewords, and these.
fn take_off(rest: &mut Array2<f32>, book: &Array2<f32>, par: Par) -> Vec<u16> {
    let codes = assign(rest.view(), book, par);
    for (mut rest, code) in rest.rows_mut().into_iter().zip(&codes) {
        rest -= &book.row(usize::from(*code));
    }
    codes
}

/// Trained codebooks of several groups and levels.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualQuantizer {
    groups: usize,
    /// Group by group, level by level, `[entries, size / groups]`.
    books: Vec<Array2<f32>>,
}

impl ResidualQuantizer {
    /// Groups of a vector.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Levels of a group.
    #[must_use]
    pub fn levels(&self) -> usize {
        self.books.len() / self.groups
    }

    /// Size of the vectors.
    #[must_use]
    pub fn size(&self) -> usize {
        self.groups * self.books[0].ncols()
    }

    /// The codebook of a level of a group, `[entries, size / groups]`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn codebook(&self, group: usize, level: usize) -> ArrayView2<'_, f32> {
        assert!(level < self.levels(), "level {level} of {}", self.levels());
        self.books[group * self.levels() + level].view()
    }

    /// Codes `[vectors, groups * levels]`, those of a group side by side: the nearest codeword, level after level.
    ///
    /// # Errors
    /// `ShapeMismatch` for vectors of another size, `Numerical` for those that are not finite.
    pub fn encode(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<Array2<u16>> {
        if vectors.ncols() != self.size() {
            let message = format!("vectors of {}, trained for {}", vectors.ncols(), self.size());
            return Err(Error::shape(message));
        }
        Target::new("vectors", vectors).check_finite()?;
        let width = self.books[0].ncols();
        let mut codes = Array2::zeros((vectors.nrows(), self.books.len()));
        for group in 0..self.groups {
            let part = vectors.slice(s![.., group * width..(group + 1) * width]);
            let mut rest = part.as_standard_layout().into_owned();
            for level in 0..self.levels() {
                let place = group * self.levels() + level;
                let chosen = take_off(&mut rest, &self.books[place], par);
                codes.column_mut(place).iter_mut().zip(chosen).for_each(|(to, code)| *to = code);
            }
        }
        Ok(codes)
    }

    /// The sums of codewords that codes stand for, `[vectors, size]`.
    ///
    /// # Errors
    /// `InvalidArgument` for codes of another shape or beyond their codebook.
    pub fn decode(&self, codes: ArrayView2<'_, u16>) -> Result<Array2<f32>> {
        self.check(codes)?;
        let width = self.books[0].ncols();
        let mut vectors = Array2::zeros((codes.nrows(), self.size()));
        for (place, book) in self.books.iter().enumerate() {
            let group = place / self.levels();
            let mut part = vectors.slice_mut(s![.., group * width..(group + 1) * width]);
            for (mut row, code) in part.rows_mut().into_iter().zip(codes.column(place)) {
                row += &book.row(usize::from(*code));
            }
        }
        Ok(vectors)
    }

    fn check(&self, codes: ArrayView2<'_, u16>) -> Result<()> {
        let wide = codes.ncols() == self.books.len();
        let within = |(place, book): (usize, &Array2<f32>)| {
            codes.column(place).iter().all(|code| usize::from(*code) < book.nrows())
        };
        match wide && self.books.iter().enumerate().all(within) {
            true => Ok(()),
            false => Err(Error::invalid("codes of another residual quantiser")),
        }
    }

    /// How often each codeword of each codebook was chosen: the model of an entropy coder for the codes.
    ///
    /// # Errors
    /// As [`ResidualQuantizer::decode`].
    pub fn frequencies(&self, codes: ArrayView2<'_, u16>) -> Result<Vec<Vec<u64>>> {
        self.check(codes)?;
        let count = |(column, book): (ArrayView1<'_, u16>, &Array2<f32>)| {
            let mut counts = vec![0; book.nrows()];
            column.iter().for_each(|code| counts[usize::from(*code)] += 1);
            counts
        };
        Ok(codes.axis_iter(Axis(1)).zip(&self.books).map(count).collect())
    }

    /// Bits a vector of codes that are coded by their frequencies (Shannon's entropy), and of codes that are packed.
    ///
    /// # Errors
    /// As [`ResidualQuantizer::decode`].
    pub fn bits(&self, codes: ArrayView2<'_, u16>) -> Result<(f64, f64)> {
        let coded = self.frequencies(codes)?.iter().map(|counts| entropy(counts)).sum();
        let packed = |book: &Array2<f32>| f64::from(book.nrows().next_power_of_two().ilog2());
        Ok((coded, self.books.iter().map(packed).sum()))
    }

    /// The probability of each codeword for what is left at a level of a group, as in training: the softmax of minus the squared
    /// distances over `temperature`, with Gumbel noise of this seed, if there is one. Cold and without noise it is the
    /// nearest.
    ///
    /// # Errors
    /// `ShapeMismatch` for a part of another size, `InvalidArgument` unless the temperature is positive, `Numerical` for numbers
    /// that are not finite.
    ///
    /// # Panics
    /// If there is no such codebook.
    pub fn probabilities(
        &self,
        group: usize,
        level: usize,
        rest: ArrayView1<'_, f32>,
        temperature: f64,
        noise: Option<u64>,
    ) -> Result<Vec<f64>> {
        let book = self.codebook(group, level);
        if rest.len() != book.ncols() {
            return Err(Error::shape(format!("{} numbers, not {}", rest.len(), book.ncols())));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            let message = format!("temperature = {temperature}: allowed are positive numbers");
            return Err(Error::invalid(message));
        }
        Target::new("rest", rest.insert_axis(Axis(0))).check_finite()?;
        let mut random = noise.map(SplitMix::new);
        let mut logit = |word: ArrayView1<'_, f32>| {
            let far = word.iter().zip(rest).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            let gumbel = random.as_mut().map_or(0.0, |random| {
                let uniform = random.next_f64().max(f64::MIN_POSITIVE);
                -(-uniform.ln()).ln()
            });
            (gumbel - far.sum::<f64>()) / temperature
        };
        let logits: Vec<f64> = book.rows().into_iter().map(&mut logit).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let total: f64 = shares.iter().sum();
        Ok(shares.into_iter().map(|share| share / total).collect())
    }
}
