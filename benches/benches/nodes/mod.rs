//! What benches of nodes share: a check of products, and a support.

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::{Accum, Node, Scratch};

/// Panics unless the product agrees with that of `some` decoded rows.
pub fn check(node: &dyn Node, x: ArrayView2<'_, f32>, some: usize, tolerance: f64) {
    let [rows, cols] = node.shape();
    let mut scratch = Scratch::default();
    let mut y = Array2::zeros((x.nrows(), rows));
    node.matmul(x, y.view_mut(), Accum::Replace, &mut scratch).expect("multiplies");
    let (mut error, mut size) = (0.0, 0.0);
    for r in (0..rows).step_by(rows.div_ceil(some)) {
        let mut row = Array2::zeros((1, cols));
        node.decode_rows(r..r + 1, row.view_mut(), Accum::Replace, &mut scratch).expect("decodes");
        for t in 0..x.nrows() {
            let exact: f64 = (0..cols).map(|c| f64::from(x[[t, c]]) * f64::from(row[[0, c]])).sum();
            error += (f64::from(y[[t, r]]) - exact).powi(2);
            size += exact * exact;
        }
    }
    let relative = (error / size).sqrt();
    assert!(relative < tolerance, "relative error {relative:e}");
}

/// Every group of four columns keeps two.
pub fn pairs([rows, cols]: [usize; 2]) -> Mask {
    let mut random = SplitMix::new(3);
    let two = [0b0011u8, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100];
    let mut pick = || two[(random.next_u64() >> 32) as usize % 6];
    let bits: Vec<u8> = (0..rows * cols / 8).map(|_| pick() | pick() << 4).collect();
    Mask::new(rows, cols, bits.into()).expect("whole bytes")
}
