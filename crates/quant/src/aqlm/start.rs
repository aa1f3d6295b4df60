use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};

use super::AdditiveCodes;
use crate::codebook::{assign, means};

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
            let means = means(&rest, None, entries, &mut random, par);
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
