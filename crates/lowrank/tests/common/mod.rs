//! What several tests are built of.

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, ArrayBase, Data, Ix2};

/// Between -0.5 and 0.5.
pub fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

/// Inputs with a spectrum and a mean.
pub fn inputs(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
    let mut x = random(tokens, channels, seed).dot(&random(channels, channels, seed + 1));
    for (c, mut column) in x.columns_mut().into_iter().enumerate() {
        let size = 3.0 / (1.0 + c as f32);
        column.mapv_inplace(|v| v * size + 0.3 * size);
    }
    x
}

/// Σ m², in f64.
pub fn energy<S: Data<Elem = T>, T: Copy + Into<f64>>(m: &ArrayBase<S, Ix2>) -> f64 {
    m.iter().map(|v| (*v).into().powi(2)).sum()
}
