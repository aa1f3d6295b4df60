//! Nearest rows in two steps: 8-bit products, whose error is bounded, leave a few candidates for each row; their exact
//! products decide. The answers are those of the exact products.

use ndarray::{ArrayView2, Axis};
use tensorpress_tensor::kernels::{
    self, Activations, AffinePanels, AffineRows, ErrorNorm, PanelInput,
};

/// Products looked at together: they stay in the second-level cache.
const PRODUCTS: usize = 1 << 17;

/// Products with one largest value.
const BLOCK: usize = 64;

/// Candidates of a row above which f32 products are cheaper.
const CANDIDATES: usize = 64;

/// As [`super::similarity::nearest`] for rows of length 1 or 0, in standard layout. Rows with many near-equals are left
/// undecided: `None`.
pub(crate) fn nearest(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
) -> Option<Vec<Option<(f32, usize)>>> {
    let (cols, rows) = (b.ncols(), b.nrows());
    let coded = Coded::new(b)?;
    let step = (PRODUCTS / rows).clamp(8, 512);
    let mut products = vec![0.0; step * rows];
    let mut best = Vec::with_capacity(a.nrows());
    let mut tops = Vec::with_capacity(rows.div_ceil(BLOCK));
    for tile in a.axis_chunks_iter(Axis(0), step) {
        let values = tile.to_slice().expect("standard layout");
        let group = coded.panels.group();
        let input = PanelInput::new(values, tile.nrows(), cols, group, Activations::Int8);
        let products = &mut products[..tile.nrows() * rows];
        coded.panels.matmul_input(&input, products, false, false);
        for (row, products) in values.chunks(cols).zip(products.chunks(rows)) {
            best.push(decide(row, products, &coded, &mut tops));
        }
    }
    Some(best)
}

/// The largest exact product of a row, given all of its products in 8 bits.
fn decide(
    row: &[f32],
    products: &[f32],
    coded: &Coded<'_>,
    tops: &mut Vec<f32>,
) -> Option<(f32, usize)> {
    let error = coded.error(row);
    let exact = |at: usize| kernels::dot(row, &coded.exact[at * row.len()..][..row.len()]);
    // The best of each block: most blocks hold no candidate, and are not looked at again.
    tops.clear();
    tops.extend(products.chunks(BLOCK).map(|block| kernels::minmax(block).1));
    let most = kernels::minmax(tops).1;
    let block = tops.iter().position(|top| *top == most)? * BLOCK;
    let first = block + products[block..].iter().position(|p| *p == most)?;
    let mut best = (exact(first), first);
    let mut candidates = 0;
    for (block, top) in tops.iter().enumerate() {
        // None below this can be the best; what is best rises as candidates are decided.
        if *top < best.0 - error {
            continue;
        }
        let start = block * BLOCK;
        for (i, product) in products[start..].iter().take(BLOCK).enumerate() {
            if *product < best.0 - error {
                continue;
            }
            candidates += 1;
            if candidates > CANDIDATES {
                return None;
            }
            let (value, at) = (exact(start + i), start + i);
            if value > best.0 || (value == best.0 && at < best.1) {
                best = (value, at);
            }
        }
    }
    Some(best)
}

/// Rows, and the same in 8 bits.
struct Coded<'a> {
    exact: &'a [f32],
    panels: AffinePanels,
    /// The longest difference of a row from its coded form.
    apart: f64,
}

impl<'a> Coded<'a> {
    fn new(b: ArrayView2<'a, f32>) -> Option<Self> {
        let (rows, cols) = b.dim();
        if rows == 0 || !AffinePanels::supports(8, cols, cols) {
            return None;
        }
        let exact = b.to_slice().expect("standard layout");
        let mut codes = vec![0; exact.len()];
        let (mut scales, mut apart) = (Vec::with_capacity(rows), 0.0f64);
        for (row, codes) in exact.chunks(cols).zip(codes.chunks_mut(cols)) {
            // Codes 1 to 255 stand for -127 to 127 steps. A row of zeros is coded exactly whatever its step.
            let step = kernels::abs_max(row) / 127.0;
            let scale = if step > 0.0 { step } else { 1.0 };
            kernels::quantize_affine(row, scale, 128.0, 255, codes);
            let squares = kernels::grid_error(row, scale, 128.0, 255, ErrorNorm::Square);
            apart = apart.max(f64::from(squares).sqrt());
            scales.push(scale);
        }
        let zeros = vec![128.0; rows];
        let (packed, group) = (&codes[..], cols);
        let rows =
            AffineRows { packed, bits: 8, rows, cols, group, scales: &scales, zeros: &zeros };
        Some(Self { exact, panels: AffinePanels::new(&rows, false)?, apart })
    }

    /// No product of a row with these is further off than this: |a.b - a'.b'| <= |a - a'| |b'| + |a| |b - b'|, where a'
    /// is off by half a step at most in every entry, and lengths are at most 1.
    fn error(&self, row: &[f32]) -> f32 {
        let step = f64::from(kernels::abs_max(row)) / 127.0;
        let rounding = step / 2.0 * (row.len() as f64).sqrt();
        // What f32 adds to it: scales and sums.
        const SUMS: f64 = 1e-5;
        (rounding * (1.0 + self.apart) + self.apart + SUMS) as f32
    }
}
