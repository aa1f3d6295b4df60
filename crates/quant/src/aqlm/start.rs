use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};

use super::AdditiveCodes;

/// Vectors that means are found on, at most; all are assigned.
const SAMPLE: usize = 1 << 16;
/// Steps of k-means, at most.
const STEPS: usize = 30;
/// Vectors that a thread assigns at a time.
const MANY: usize = 256;

impl AdditiveCodes {
    /// K-means, book by book, of what the books before left of the rows over their norms.
    #[must_use]
    pub fn start(
        weight: ArrayView2<'_, f32>,
        books: usize,
        bits: u8,
        size: usize,
        seed: u64,
        par: Par,
    ) -> Self {
        let (rows, cols) = weight.dim();
        let (vectors, entries) = (cols.div_ceil(size), 1usize << bits);
        let norm = |row: usize| {
            let square: f64 = weight.row(row).iter().map(|w| f64::from(*w).powi(2)).sum();
            let norm = square.sqrt() as f32;
            if norm > 0.0 && norm.is_finite() { norm } else { 1.0 }
        };
        let scales: Vec<f32> = (0..rows).map(norm).collect();
        // The last vector of a row is filled up with zeros.
        let mut rest = Array2::<f32>::zeros((rows * vectors, size));
        for ((row, column), w) in weight.indexed_iter() {
            rest[[row * vectors + column / size, column % size]] = w / scales[row];
        }
        let mut codebooks = Array2::zeros((books * entries, size));
        let mut codes = Array2::zeros((rows, vectors * books));
        let mut random = SplitMix::new(seed);
        for book in 0..books {
            let means = means(&rest, entries, &mut random, par);
            let chosen = assign(rest.view(), &means, par);
            for (at, (mut rest, code)) in rest.rows_mut().into_iter().zip(&chosen).enumerate() {
                rest -= &means.row(usize::from(*code));
                codes[[at / vectors, at % vectors * books + book]] = *code;
            }
            codebooks.slice_mut(s![book * entries..(book + 1) * entries, ..]).assign(&means);
        }
        Self { cols, bits, books, codebooks, codes, scales }
    }
}

/// The means of so many clusters, from k-means of a sample, begun at some of its vectors.
fn means(vectors: &Array2<f32>, entries: usize, random: &mut SplitMix, par: Par) -> Array2<f32> {
    let (count, size) = vectors.dim();
    let mut means = Array2::zeros((entries, size));
    if count == 0 {
        return means;
    }
    let mut pick = |_: usize| (random.next_f64() * count as f64) as usize % count;
    let sample = match count <= SAMPLE {
        true => vectors.clone(),
        false => {
            let picked: Vec<usize> = (0..SAMPLE).map(&mut pick).collect();
            vectors.select(tensorpress_tensor::ndarray::Axis(0), &picked)
        }
    };
    for (mut mean, at) in means.rows_mut().into_iter().zip((0..entries).map(&mut pick)) {
        mean.assign(&vectors.row(at));
    }
    let mut before = Vec::new();
    for _ in 0..STEPS {
        let chosen = assign(sample.view(), &means, par);
        if chosen == before {
            break;
        }
        let mut sums = Array2::<f64>::zeros((entries, size));
        let mut counts = vec![0usize; entries];
        for (vector, code) in sample.rows().into_iter().zip(&chosen) {
            let code = usize::from(*code);
            counts[code] += 1;
            sums.row_mut(code).iter_mut().zip(vector).for_each(|(s, v)| *s += f64::from(*v));
        }
        for (code, count) in counts.iter().enumerate() {
            match count {
                // Of no use there: begun anew.
                0 => means.row_mut(code).assign(&vectors.row(pick(0))),
                _ => {
                    let mean = sums.row(code).mapv(|sum| (sum / *count as f64) as f32);
                    means.row_mut(code).assign(&mean);
                }
            }
        }
        before = chosen;
    }
    means
}

/// The nearest mean of every vector; the first of equally near ones.
fn assign(vectors: ArrayView2<'_, f32>, means: &Array2<f32>, par: Par) -> Vec<u16> {
    let size = vectors.ncols();
    let mut codes = vec![0u16; vectors.nrows()];
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
