//! Attention over signs (EcoFormer, Liu et al., 2022): queries and keys become a few bits each, fitted to what attention
//! looks at, and attention becomes sums over them, linear in the number of tokens.

use crate::factor::{Triangle, cholesky_damped, invert_triangular, symmetric_eigen};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::{Error, Result, ndarray};

/// How hashing is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HashConfig {
    /// Bits of a code.
    pub bits: usize,
    /// Vectors that others are compared with, drawn from those that are fitted to.
    pub anchors: usize,
    /// Steps of gradient ascent of each bit behind the spectral start.
    pub steps: usize,
    /// Of the draw.
    pub seed: u64,
}

impl Default for HashConfig {
    fn default() -> Self {
        Self { bits: 16, anchors: 25, steps: 20, seed: 0 }
    }
}

impl HashConfig {
    /// Sets the bits of a code.
    #[must_use]
    pub fn with_bits(mut self, bits: usize) -> Self {
        self.bits = bits;
        self
    }

    /// Sets how many vectors others are compared with.
    #[must_use]
    pub fn with_anchors(mut self, anchors: usize) -> Self {
        self.anchors = anchors;
        self
    }

    /// Sets the steps behind the spectral start.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }
}

/// Codes of `bits` signs: bit b of x is the sign of `sum_j a_bj (k(x, z_j) - mean_j)` over anchors z, with the kernel
/// `exp(-|x - z|² / 2 width²)`. The width is the mean distance to the anchors.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelHash {
    /// `[anchors, dim]`
    anchors: Array2<f32>,
    width: f64,
    /// `[anchors]`
    mean: Array1<f64>,
    /// `[bits, anchors]`
    coefficients: Array2<f64>,
}

/// Which pairs of queries and keys shall agree: 1 for the `share` of all pairs with most attention, -1 for that with
/// least, 0 for the others; of maps `[n, n]`, made symmetric.
///
/// # Errors
/// `ShapeMismatch` for a map that is not square, `InvalidArgument` for a share beyond 0 to 0.5.
pub fn similar_pairs(map: ArrayView2<'_, f32>, share: f64) -> Result<Array2<f32>> {
    let n = map.nrows();
    if map.ncols() != n {
        return Err(Error::shape(format!("attention {:?}: as many queries as keys", map.dim())));
    }
    if !(0.0..=0.5).contains(&share) {
        return Err(Error::invalid(format!("share = {share}: allowed are 0 to 0.5")));
    }
    let both = &map + &map.t();
    let mut order: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).collect();
    order.sort_by(|a, b| both[*b].total_cmp(&both[*a]));
    let count = (share * order.len() as f64) as usize;
    let mut pairs = Array2::eye(n);
    for (rank, (i, j)) in order.iter().enumerate() {
        let sign = f32::from(rank < count) - f32::from(rank >= order.len() - count);
        (pairs[[*i, *j]], pairs[[*j, *i]]) = (sign, sign);
    }
    Ok(pairs)
}

impl KernelHash {
    /// Fits codes of vectors `[n, dim]` so that products of codes, over the bits, come near `pairs` `[n, n]`, bit after
    /// bit: each is the top generalised eigenvector of what is left of the pairs (spectral relaxation), and from there
    /// gradient ascent with the sign made smooth; a bit that ascent does not help stays as it was.
    ///
    /// # Errors
    /// `ShapeMismatch` for other pairs; `InvalidArgument` for no bits or anchors, or more anchors than vectors;
    /// `Numerical` for what is not finite.
    pub fn fit(
        x: ArrayView2<'_, f32>,
        pairs: ArrayView2<'_, f32>,
        config: &HashConfig,
    ) -> Result<Self> {
        let (n, HashConfig { bits, anchors, steps, seed }) = (x.nrows(), *config);
        if pairs.dim() != (n, n) {
            return Err(Error::shape(format!("pairs {:?} of {n} vectors", pairs.dim())));
        }
        if bits == 0 || anchors == 0 || anchors > n {
            return Err(Error::invalid(format!(
                "bits = {bits}, anchors = {anchors}: at least 1, and at most {n} anchors"
            )));
        }
        let mut random = SplitMix::new(seed);
        let mut drawn: Vec<usize> = (0..n).collect();
        for i in 0..anchors {
            let j = i + (random.next_f64() * (n - i) as f64) as usize;
            drawn.swap(i, j);
        }
        let z = x.select(Axis(0), &drawn[..anchors]);
        let mut squares = Array2::zeros((n, anchors));
        for ((i, j), square) in squares.indexed_iter_mut() {
            *square = distance(x.row(i), z.row(j));
        }
        let width = squares.iter().map(|s: &f64| s.sqrt()).sum::<f64>() / squares.len() as f64;
        let mut hash = Self {
            anchors: z,
            width: if width > 0.0 { width } else { 1.0 },
            mean: Array1::zeros(anchors),
            coefficients: Array2::zeros((0, anchors)),
        };
        let kernel = hash.kernel(x);
        hash.mean = kernel.mean_axis(Axis(0)).unwrap_or_default();
        let kernel = kernel - &hash.mean;
        let metric = kernel.t().dot(&kernel);
        let damp = 1e-8 * metric.diag().sum().max(1e-12);
        let whiten =
            invert_triangular(cholesky_damped(metric, damp, Par::Seq)?, Triangle::Lower, Par::Seq)?;
        let mut left = pairs.mapv(|p| f64::from(p) * bits as f64);
        for _ in 0..bits {
            let target = whiten.dot(&kernel.t().dot(&left).dot(&kernel)).dot(&whiten.t());
            let top = symmetric_eigen(target.view())?.vectors;
            let start = whiten.t().dot(&top.column(anchors - 1));
            let start = ascend(&kernel, &left, start, steps);
            let signs = kernel.dot(&start).mapv(sign);
            for (mut row, s) in left.rows_mut().into_iter().zip(&signs) {
                row.scaled_add(-s, &signs);
            }
            hash.coefficients.push_row(start.view()).expect("as wide");
        }
        Ok(hash)
    }

    fn kernel(&self, x: ArrayView2<'_, f32>) -> Array2<f64> {
        Array2::from_shape_fn((x.nrows(), self.anchors.nrows()), |(i, j)| {
            let square = distance(x.row(i), self.anchors.row(j));
            (-square / (2.0 * self.width * self.width)).exp()
        })
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.coefficients.nrows()
    }

    /// Signs `[n, bits]` of vectors `[n, dim]`, 1 or -1.
    ///
    /// # Errors
    /// `ShapeMismatch` for other channels.
    pub fn codes(&self, x: ArrayView2<'_, f32>) -> Result<Array2<i8>> {
        if x.ncols() != self.anchors.ncols() {
            let (found, dim) = (x.ncols(), self.anchors.ncols());
            return Err(Error::shape(format!("vectors of {found} channels: {dim} expected")));
        }
        let kernel = self.kernel(x) - &self.mean;
        Ok(kernel.dot(&self.coefficients.t()).mapv(|x| sign(x) as i8))
    }
}

fn distance(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn sign(x: f64) -> f64 {
    if x < 0.0 { -1.0 } else { 1.0 }
}

/// Raises hᵀ R h from `start` with h = tanh(K a / 2), normalised; keeps the best by the signs themselves.
fn ascend(
    kernel: &Array2<f64>,
    left: &Array2<f64>,
    start: Array1<f64>,
    steps: usize,
) -> Array1<f64> {
    let worth = |a: &Array1<f64>| {
        let signs = kernel.dot(a).mapv(sign);
        signs.dot(&left.dot(&signs))
    };
    let scaled = |a: Array1<f64>| {
        let spread = kernel.dot(&a).mapv(|x| x * x).mean().unwrap_or(0.0).sqrt();
        if spread > 0.0 { a / spread } else { a }
    };
    let mut a = scaled(start);
    let (mut best, mut most) = (a.clone(), worth(&a));
    for _ in 0..steps {
        let h = kernel.dot(&a).mapv(|x| (x / 2.0).tanh());
        let slope = left.dot(&h) * h.mapv(|h| 1.0 - h * h);
        let gradient = kernel.t().dot(&slope);
        let (norm, size) = (gradient.dot(&gradient).sqrt(), a.dot(&a).sqrt());
        if norm == 0.0 || !norm.is_finite() {
            break;
        }
        a.scaled_add(0.1 * size / norm, &gradient);
        a = scaled(a);
        let now = worth(&a);
        if now > most {
            (best, most) = (a.clone(), now);
        }
    }
    best
}

/// Attention over codes: weights are the shares of bits that agree, so that all a query needs of the tokens before it are
/// sums over them, `bits + 1` vectors however many they are. Only additions and subtractions of values, and one division.
#[derive(Debug, Clone, PartialEq)]
pub struct HashedTokens {
    bits: usize,
    /// `[bits + 1, value_dim + 1]`: by sign, and of all; the last channel counts.
    sums: Array2<f64>,
}

impl HashedTokens {
    /// No tokens, for codes of so many bits and values of so many channels.
    #[must_use]
    pub fn new(bits: usize, value_dim: usize) -> Self {
        Self { bits, sums: Array2::zeros((bits + 1, value_dim + 1)) }
    }

    /// Takes the code `[bits]` of a key, and its value `[value_dim]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of bits or channels.
    pub fn push(&mut self, code: ArrayView1<'_, i8>, value: ArrayView1<'_, f32>) -> Result<()> {
        self.check(code.len(), value.len())?;
        let signs = code.iter().copied().chain([1]);
        for (mut row, sign) in self.sums.rows_mut().into_iter().zip(signs) {
            let value = value.iter().map(|v| f64::from(*v)).chain([1.0]);
            for (sum, v) in row.iter_mut().zip(value) {
                *sum += if sign < 0 { -v } else { v };
            }
        }
        Ok(())
    }

    /// What a query of this code `[bits]` gets, `[value_dim]`; zeros where no key agrees with it in any bit.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of bits.
    pub fn attend(&self, code: ArrayView1<'_, i8>) -> Result<Vec<f32>> {
        let width = self.sums.ncols() - 1;
        self.check(code.len(), width)?;
        // Twice the number of bits that agree is the product of the codes and the number of bits.
        let mut sum = self.sums.row(self.bits).mapv(|s| s * self.bits as f64);
        for (row, sign) in self.sums.rows().into_iter().zip(&code) {
            sum.scaled_add(if *sign < 0 { -1.0 } else { 1.0 }, &row);
        }
        let weight = sum[width];
        let over = |s: &f64| if weight > 0.0 { (s / weight) as f32 } else { 0.0 };
        Ok(sum.iter().take(width).map(over).collect())
    }

    fn check(&self, bits: usize, channels: usize) -> Result<()> {
        if (bits, channels + 1) == (self.bits, self.sums.ncols()) {
            return Ok(());
        }
        Err(Error::shape(format!(
            "a code of {bits} bits and {channels} channels: {} and {} expected",
            self.bits,
            self.sums.ncols() - 1
        )))
    }
}
