//! How far products in 8 bits can be off.

use tensorpress_tensor::kernels;

/// How far products of coded rows a' = a - e and b' = b - f are off, for a and b of length 1 and s = a.b:
/// |s - a'.b'| <= |b.e| + |a.f| + |e| |f|. What b has beside its part s a along a has the length sqrt(1 - s^2), so
/// that |b.e| <= |s| |a.e| + sqrt(1 - s^2) |e|, and likewise |a.f|: the more alike, the closer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Errors {
    /// Whatever s is, and what f32 adds to it.
    always: f32,
    /// To be multiplied by sqrt(1 - s^2).
    across: f32,
}

impl Errors {
    pub(super) fn new(a: Rounding, b: Rounding, cols: usize) -> Self {
        // Integers above 2^24 as floats, scales, and the exact products' own rounding: below 3e-7 sqrt(cols) each.
        let sums = 1e-6 * (cols as f32).sqrt();
        Self { always: a.along + b.along + a.apart * b.apart + sums, across: a.apart + b.apart }
    }

    /// The most that a product can be off whose exact value is `exact` or more.
    fn at(&self, exact: f32) -> f32 {
        // Lengths are 1 but for a few units of f32's last place.
        const LENGTHS: f32 = 1e-5;
        let cosine = exact.clamp(0.0, 1.0);
        self.always + self.across * (1.0 - cosine * cosine + LENGTHS).sqrt()
    }

    /// The least exact product of rows with this product in 8 bits.
    pub(super) fn least_exact(&self, coded: f32) -> f32 {
        coded - self.at(coded - self.at(0.0))
    }

    /// The least product in 8 bits of rows with this exact product or more.
    pub(super) fn least_coded(&self, exact: f32) -> f32 {
        exact - self.at(exact)
    }
}

/// What coding a row changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rounding {
    /// The length of the change.
    apart: f32,
    /// Its product with the row.
    along: f32,
}

impl Rounding {
    pub(super) fn of(row: &[f32], step: f32) -> Self {
        let (square, product) = kernels::step_error(row, step);
        Self { apart: square.sqrt(), along: product.abs() }
    }

    pub(super) fn max(self, other: Self) -> Self {
        Self { apart: self.apart.max(other.apart), along: self.along.max(other.along) }
    }
}

/// The step of a row's codes, -127 to 127 of them. A row of zeros is coded exactly whatever its step.
pub(super) fn step(row: &[f32]) -> f32 {
    let step = kernels::abs_max(row) / 127.0;
    if step > 0.0 { step } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::kernels::Par;
    use tensorpress_tensor::kernels::{
        Activations, AffinePanels, AffineRows, PanelInput, Work, quantize_affine,
    };
    use tensorpress_tensor::linalg::gaussian;

    use super::*;

    /// Rows that are hard to code: noise, single large entries, one entry only, near-copies, nothing.
    fn rows(cols: usize) -> Vec<Vec<f32>> {
        let noise = |seed| (0..cols).map(move |c| gaussian(seed, c as u64) as f32);
        let mut rows: Vec<Vec<f32>> = (0..6).map(|seed| noise(seed).collect()).collect();
        for (seed, apart) in [(7, 1e-6), (8, 1e-3), (9, 0.1), (10, -2.0)] {
            rows.push(noise(0).zip(noise(seed)).map(|(a, n)| a + apart * n).collect());
        }
        for large in [3.0, 30.0, 3e3] {
            rows.push(noise(11).enumerate().map(|(c, v)| if c == 1 { large } else { v }).collect());
        }
        rows.push((0..cols).map(|c| if c == 1 { -1.0 } else { 0.0 }).collect());
        rows.push(vec![1.0; cols]);
        rows.push(vec![0.0; cols]);
        for row in &mut rows {
            let length = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-9);
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        rows
    }

    #[test]
    fn no_product_is_further_off() {
        let mut checked = 0;
        for cols in [2, 31, 64, 768, 5000] {
            let rows = rows(cols);
            let codings: Vec<_> = rows.iter().map(|row| Rounding::of(row, step(row))).collect();
            let mut codes = vec![0; rows.len() * cols];
            for (row, codes) in rows.iter().zip(codes.chunks_mut(cols)) {
                quantize_affine(row, step(row), 128.0, 255, codes);
            }
            let scales: Vec<f32> = rows.iter().map(|row| step(row)).collect();
            let coded = AffineRows {
                packed: &codes,
                bits: 8,
                rows: rows.len(),
                cols,
                group: cols,
                scales: &scales,
                zeros: &vec![128.0; rows.len()],
            };
            let panels = AffinePanels::new(&coded, Par::Seq).expect("supported");
            let all = rows.concat();
            let form = panels.input_form();
            let input = PanelInput::new(&all, rows.len(), cols, form, Activations::Int8);
            let mut products = vec![0.0; rows.len() * rows.len()];
            panels.matmul_input(
                0..panels.rows(),
                &input,
                &mut products,
                false,
                &mut Work::default(),
            );
            for (i, a) in rows.iter().enumerate() {
                for (j, b) in rows.iter().enumerate() {
                    let exact: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                    let (exact, coded) = (exact as f32, products[i * rows.len() + j]);
                    let errors = Errors::new(codings[i], codings[j], cols);
                    let off = (exact - coded).abs();
                    assert!(off <= errors.at(exact), "{cols}: {i}, {j}: {coded} for {exact}");
                    // What the search relies on.
                    assert!(
                        exact >= errors.least_exact(coded) && coded >= errors.least_coded(exact)
                    );
                    checked += 1;
                }
            }
        }
        println!("checked: {checked} products against their bound");
    }

    #[test]
    fn the_bound_is_worth_having() {
        let row: Vec<f32> = rows(768).swap_remove(0);
        let rounding = Rounding::of(&row, step(&row));
        let errors = Errors::new(rounding, rounding, row.len());
        assert!(errors.at(0.0) < 0.03 && errors.at(0.99) < 0.005, "{errors:?}");
    }
}
