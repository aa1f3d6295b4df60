//! What stands beside caches: tests of heads, spans, latent attention, hashed attention, streams.

mod heads;
mod kernel_hash;
mod mla;
mod sentinel;
mod stream;

use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::Array2;

/// Normal numbers.
fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| gaussian(seed, (r * columns + c) as u64) as f32)
}

/// Each row over its sum, after the exponential.
fn softmax(mut x: Array2<f64>) -> Array2<f64> {
    for mut row in x.rows_mut() {
        let most = row.fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        row.mapv_inplace(|x| (x - most).exp());
        let sum = row.sum();
        row /= sum;
    }
    x
}
