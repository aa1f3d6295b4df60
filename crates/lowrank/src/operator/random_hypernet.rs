use std::ops::Range;

use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// All weights from a small latent z and a seed: layer l is θ_l = P_l z, row-major, and the fixed random P_l are never
/// stored.
///
/// Gordon et al.: *D'OH: Decoder-Only random Hypernetworks for Implicit Neural Representations*, 2024. The rate is the size
/// of z and its bits. P_l has independent entries ± 1/√latent: signs are the same on every machine, and as good as
/// Gaussians for random projections (Achlioptas, 2003). The paper trains z through the network; here z is fitted to given
/// weights by least squares, which is where such a training may start.
///
/// ```
/// use tensorpress_lowrank::operator::RandomHypernet;
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((6, 5), |(r, c)| (r as f32 - c as f32) / 10.0);
/// let hypernet = RandomHypernet::new(20).with_seed(7);
/// let latent = hypernet.fit(&[weight.view()], Par::Seq)?;
/// // 20 codes of 8 bits, a scale and the seed; the matrix takes 120.
/// assert_eq!(latent.bytes(), 20 + 4 + 8);
/// assert_eq!(latent.layer(0), latent.rows(0, 0..6));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RandomHypernet {
    /// Numbers in z, 1 to 65536. Default 256. A fit costs latent² for each weight.
    pub latent: usize,
    /// Bits of each of them, 2 to 16. Default 8.
    pub bits: u8,
    /// Of the projections. Default 0.
    pub seed: u64,
}

impl Default for RandomHypernet {
    fn default() -> Self {
        Self { latent: 256, bits: 8, seed: 0 }
    }
}

/// What is stored of weights that a random hypernetwork makes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Latent {
    /// Of the projections.
    pub seed: u64,
    /// Rounded z in steps of the scale, -(2^(bits-1) - 1) to 2^(bits-1) - 1.
    pub codes: Vec<i16>,
    /// z = scale x code.
    pub scale: f32,
    /// Bits of a code, before they are entropy-coded.
    pub bits: u8,
    /// `[out, in]` of each layer.
    pub shapes: Vec<[usize; 2]>,
}

/// Rows of P that are made at a time.
const TILE: usize = 1024;

impl RandomHypernet {
    /// So many numbers for all layers.
    #[must_use]
    pub fn new(latent: usize) -> Self {
        Self { latent, ..Self::default() }
    }

    /// Sets the bits of each.
    #[must_use]
    pub fn with_bits(mut self, bits: u8) -> Self {
        self.bits = bits;
        self
    }

    /// Sets the seed of the projections.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The z of Σ ‖W_l - P_l z‖² least, rounded: to steps of its largest magnitude, then the scale is fitted anew.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible parameters, `Numerical` for entries that are not finite, or if the scale of z is beyond f32.
    pub fn fit(&self, weights: &[ArrayView2<'_, f32>], par: Par) -> Result<Latent> {
        let Self { latent, bits, seed } = *self;
        if !(1..=1 << 16).contains(&latent) {
            return Err(Error::invalid(format!("latent = {latent}: allowed are 1 to 65536")));
        }
        if !(2..=16).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 16")));
        }
        let (mut gram, mut onto) = (Array2::zeros((latent, latent)), Array2::zeros((latent, 1)));
        for (l, weight) in weights.iter().enumerate() {
            if let Some(((r, c), w)) = weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
                return Err(Error::numerical(format!("layer {l}: weight [{r}, {c}] is {w}")));
            }
            let values: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
            for first in (0..values.len()).step_by(TILE) {
                let rows = first..values.len().min(first + TILE);
                let tile = projection(seed, l, rows.clone(), latent);
                let own = ArrayView2::from_shape((rows.len(), 1), &values[rows]).expect("a column");
                linalg::gram_lower(tile.view(), gram.view_mut(), true, par);
                linalg::matmul_tn(tile.view(), own, onto.view_mut(), true, par);
            }
        }
        linalg::mirror_lower(gram.view_mut());
        let z = solve(gram.clone(), onto.clone(), par)?;
        let shapes = weights.iter().map(|w| [w.nrows(), w.ncols()]).collect();
        let most = z.iter().fold(0.0f64, |most, z| most.max(z.abs()));
        let largest = f64::from((1i32 << (bits - 1)) - 1);
        let step = if most > 0.0 { most / largest } else { 0.0 };
        let code =
            |z: &f64| if step > 0.0 { (z / step).round().clamp(-largest, largest) } else { 0.0 };
        let rounded = z.mapv(|z| code(&z));
        // The scale s of least ‖w - s P q‖².
        let seen = rounded.t().dot(&gram.dot(&rounded))[[0, 0]];
        let best = rounded.t().dot(&onto)[[0, 0]] / seen;
        let scale = if best.is_finite() { best as f32 } else { step as f32 };
        match scale.is_finite() {
            true => {
                let codes = rounded.iter().map(|q| *q as i16).collect();
                Ok(Latent { seed, codes, scale, bits, shapes })
            }
            false => Err(Error::numerical("a latent whose scale is beyond f32")),
        }
    }
}

/// z of P ᵀP z = Pᵀ w; where fewer weights than numbers leave it open, the shortest.
fn solve(gram: Array2<f64>, mut onto: Array2<f64>, par: Par) -> Result<Array2<f64>> {
    let Ok(lower) = linalg::cholesky(gram.clone(), par) else {
        return Ok(linalg::least_squares(gram.view(), onto.view(), None, par)?.solution);
    };
    linalg::solve_triangular(lower.view(), linalg::Triangle::Lower, onto.view_mut(), par)?;
    linalg::solve_triangular(lower.t(), linalg::Triangle::Upper, onto.view_mut(), par)?;
    Ok(onto)
}

/// Rows `rows` of P_l `[out in, latent]`: each a run of its own of the layer's sequence, a bit an entry.
fn projection(seed: u64, layer: usize, rows: Range<usize>, latent: usize) -> Array2<f64> {
    // A layer's seed is a value of the seed's sequence: neighbouring layers share no bits.
    let bits = SplitMix::new(SplitMix::new(seed).at(layer as u64));
    let words = latent.div_ceil(64) as u64;
    let size = 1.0 / (latent as f64).sqrt();
    Array2::from_shape_fn((rows.len(), latent), |(row, c)| {
        let word = bits.at((rows.start + row) as u64 * words + c as u64 / 64);
        if word >> (c % 64) & 1 == 1 { -size } else { size }
    })
}

impl Latent {
    /// A layer, made anew.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Array2<f32> {
        self.rows(layer, 0..self.shapes[layer][0])
    }

    /// Rows of a layer, to the same bits that the whole has; the others are not made.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn rows(&self, layer: usize, rows: Range<usize>) -> Array2<f32> {
        let [out, inp] = self.shapes[layer];
        assert!(rows.start <= rows.end && rows.end <= out, "rows {rows:?} of {out}");
        let z: Vec<f64> =
            self.codes.iter().map(|q| f64::from(self.scale) * f64::from(*q)).collect();
        let most = f64::from(f32::MAX);
        let mut made = Array2::zeros((rows.len(), inp));
        for (row, mut made) in rows.zip(made.rows_mut()) {
            let lines = projection(self.seed, layer, row * inp..(row + 1) * inp, z.len());
            for (w, line) in made.iter_mut().zip(lines.rows()) {
                // One after another, whatever rows are asked for.
                let sum = line.iter().zip(&z).map(|(p, z)| p * z).sum::<f64>();
                *w = sum.clamp(-most, most) as f32;
            }
        }
        made
    }

    /// Bytes of codes, scale and seed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.codes.len() * usize::from(self.bits)).div_ceil(8) + 4 + 8
    }

    /// Bits of all codes at their own entropy: what an ideal entropy coder that knows their counts takes.
    #[must_use]
    pub fn entropy_bits(&self) -> f64 {
        let mut counts = std::collections::BTreeMap::new();
        self.codes.iter().for_each(|code| *counts.entry(code).or_insert(0u32) += 1);
        let all = self.codes.len() as f64;
        counts.values().map(|n| f64::from(*n) * (all / f64::from(*n)).log2()).sum()
    }
}
