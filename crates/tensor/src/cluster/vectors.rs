use ndarray::{Array2, ArrayView2, Axis};

use crate::linalg::{Par, SplitMix};
use crate::{Error, Result, Target};

/// Vectors that means are found on, at most; all are assigned.
const SAMPLE: usize = 1 << 16;
/// Steps of k-means, at most.
const STEPS: usize = 30;
/// Vectors that a thread assigns at a time.
const MANY: usize = 256;

/// Vectors in clusters around means.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// `[clusters, size]`.
    pub means: Array2<f32>,
    /// The nearest mean of every vector, the first of equally near ones.
    pub codes: Vec<u16>,
}

impl Clusters {
    /// How many vectors each cluster has.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.means.nrows()];
        self.codes.iter().for_each(|code| counts[usize::from(*code)] += 1);
        counts
    }

    /// The mean of every vector.
    #[must_use]
    pub fn decode(&self) -> Array2<f32> {
        let rows: Vec<usize> = self.codes.iter().map(|code| usize::from(*code)).collect();
        self.means.select(Axis(0), &rows)
    }

    /// Bits of a code by Shannon's entropy of the codes: what a good coder needs.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        entropy(&self.counts())
    }
}

/// Shannon's entropy of counts, in bits.
#[must_use]
pub fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let bits = |count: &u64| *count as f64 / total * (total / *count as f64).log2();
    counts.iter().filter(|count| **count > 0).map(bits).sum()
}

/// K-means of vectors `[vectors, size]` (Lloyd, 1982): from `count` of them, drawn at random, at most 30 steps, clusters without
/// vectors begun anew; means of more than 65,536 vectors are found on a sample. Vectors count as much as `weights` say, or
/// all alike.
///
/// ```
/// use tensorpress_tensor::cluster::cluster;
/// use tensorpress_tensor::{linalg::Par, ndarray::array};
///
/// let vectors = array![[0.0, 0.0], [9.0, 8.0], [0.0, 1.0], [9.0, 9.0]];
/// let made = cluster(vectors.view(), None, 2, 1, Par::Seq)?;
/// assert!(made.codes[0] == made.codes[2] && made.codes[1] == made.codes[3]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` unless `count` is 1 to 65536, `ShapeMismatch` for weights of another length, `Numerical` for vectors that
/// are not finite, and weights that are not, or negative.
pub fn cluster(
    vectors: ArrayView2<'_, f32>,
    weights: Option<&[f32]>,
    count: usize,
    seed: u64,
    par: Par,
) -> Result<Clusters> {
    if !(1..=1 << 16).contains(&count) {
        return Err(Error::invalid(format!("{count} clusters: allowed are 1 to 65536")));
    }
    Target::new("vectors", vectors).check_finite()?;
    if let Some(weights) = weights {
        if weights.len() != vectors.nrows() {
            let message = format!("{} weights of {} vectors", weights.len(), vectors.nrows());
            return Err(Error::shape(message));
        }
        if let Some((i, w)) =
            weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0))
        {
            return Err(Error::numerical(format!("weight {i} is {w}")));
        }
    }
    let vectors = vectors.as_standard_layout().into_owned();
    let means = means(&vectors, weights, count, &mut SplitMix::new(seed), par);
    let codes = assign(vectors.view(), &means, par);
    Ok(Clusters { means, codes })
}

/// The means `[entries, size]` of so many clusters of vectors `[vectors, size]`: k-means of a sample of at most 65,536, begun
/// at some of its vectors; what [`cluster`] does.
#[must_use]
pub fn means(
    vectors: &Array2<f32>,
    weights: Option<&[f32]>,
    entries: usize,
    random: &mut SplitMix,
    par: Par,
) -> Array2<f32> {
    let count = vectors.nrows();
    if count <= SAMPLE {
        let mut means = seeds(vectors, entries, random);
        lloyd(vectors, vectors, weights, &mut means, STEPS, random, par);
        return means;
    }
    let picked: Vec<usize> = (0..SAMPLE).map(|_| pick(count, random)).collect();
    let sample = vectors.select(Axis(0), &picked);
    let weights = weights.map(|weights| picked.iter().map(|at| weights[*at]).collect::<Vec<_>>());
    let mut means = seeds(vectors, entries, random);
    lloyd(&sample, vectors, weights.as_deref(), &mut means, STEPS, random, par);
    means
}

fn pick(count: usize, random: &mut SplitMix) -> usize {
    (random.next_f64() * count as f64) as usize % count
}

/// Vectors `[entries, size]` drawn at random, some perhaps twice; zeros where there are none.
#[must_use]
pub fn seeds(vectors: &Array2<f32>, entries: usize, random: &mut SplitMix) -> Array2<f32> {
    let mut means = Array2::zeros((entries, vectors.ncols()));
    if vectors.nrows() > 0 {
        for mut mean in means.rows_mut() {
            mean.assign(&vectors.row(pick(vectors.nrows(), random)));
        }
    }
    means
}

/// At most so many steps of Lloyd's algorithm on `means` `[entries, size]`; means without vectors are begun anew at one of
/// `all`.
pub fn lloyd(
    vectors: &Array2<f32>,
    all: &Array2<f32>,
    weights: Option<&[f32]>,
    means: &mut Array2<f32>,
    steps: usize,
    random: &mut SplitMix,
    par: Par,
) {
    let (entries, size) = means.dim();
    if vectors.nrows() == 0 {
        return;
    }
    let mut before = Vec::new();
    for _ in 0..steps {
        let chosen = assign(vectors.view(), means, par);
        if chosen == before {
            break;
        }
        let mut sums = Array2::<f64>::zeros((entries, size));
        let mut counts = vec![0f64; entries];
        for (i, (vector, code)) in vectors.rows().into_iter().zip(&chosen).enumerate() {
            let (code, weight) = (usize::from(*code), weights.map_or(1.0, |w| f64::from(w[i])));
            counts[code] += weight;
            let sum = sums.row_mut(code);
            sum.into_iter().zip(vector).for_each(|(s, v)| *s += weight * f64::from(*v));
        }
        for (code, count) in counts.iter().enumerate() {
            if *count > 0.0 {
                means.row_mut(code).assign(&sums.row(code).mapv(|sum| (sum / *count) as f32));
            } else {
                // Of no use there: begun anew.
                means.row_mut(code).assign(&all.row(pick(all.nrows(), random)));
            }
        }
        before = chosen;
    }
}

/// The nearest mean of every vector; the first of equally near ones.
#[must_use]
pub fn assign(vectors: ArrayView2<'_, f32>, means: &Array2<f32>, par: Par) -> Vec<u16> {
    let size = vectors.ncols();
    let mut codes = vec![0u16; vectors.nrows()];
    if size == 0 {
        return codes;
    }
    let halves: Vec<f32> =
        means.rows().into_iter().map(|m| 0.5 * m.iter().map(|v| v * v).sum::<f32>()).collect();
    let vectors = vectors.as_slice().expect("standard layout");
    let means = means.as_slice().expect("standard layout");
    let pieces = vectors.chunks(MANY * size).zip(codes.chunks_mut(MANY));
    par.for_each(pieces, |(vectors, codes)| {
        for (vector, code) in vectors.chunks(size).zip(codes) {
            let mut least = f32::INFINITY;
            for (at, (mean, half)) in means.chunks(size).zip(&halves).enumerate() {
                let along: f32 = mean.iter().zip(vector).map(|(m, v)| m * v).sum();
                if half - along < least {
                    (least, *code) = (half - along, at as u16);
                }
            }
        }
    });
    codes
}
