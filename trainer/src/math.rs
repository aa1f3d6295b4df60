//! Matrix products and the element-wise kernels, all sequential: parallelism lies a level above,
//! over the shards of a batch.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A row-major matrix view over a slice; `stride` is the distance between rows.
#[derive(Clone, Copy)]
pub struct View<'a> {
    mat: MatRef<'a, f32>,
}

/// View of the first `rows` x `cols` values of `data`.
pub fn view(data: &[f32], rows: usize, cols: usize) -> View<'_> {
    View { mat: MatRef::from_row_major_slice(&data[..rows * cols], rows, cols) }
}

impl View<'_> {
    /// The transposed view.
    pub fn t(self) -> Self {
        View { mat: self.mat.transpose() }
    }
}

/// `out = a b`, with `out` row-major and contiguous.
pub fn gemm(out: &mut [f32], a: View<'_>, b: View<'_>) {
    product(out, Accum::Replace, a, b);
}

/// `out += a b`, with `out` row-major and contiguous.
pub fn gemm_add(out: &mut [f32], a: View<'_>, b: View<'_>) {
    product(out, Accum::Add, a, b);
}

fn product(out: &mut [f32], accum: Accum, a: View<'_>, b: View<'_>) {
    let (rows, cols) = (a.mat.nrows(), b.mat.ncols());
    let out = MatMut::from_row_major_slice_mut(&mut out[..rows * cols], rows, cols);
    matmul(out, accum, a.mat, b.mat, 1.0, Par::Seq);
}

/// `exp` to about 2 ulp for `x <= 88`, without branches, so that loops over it vectorise (the
/// library function does not). Below -87 it returns about 1e-38, which is as good as zero here.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding and taking it away rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that x - n ln 2 keeps its low bits.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let poly = 1.987_569_1e-4;
    let poly = poly * r + 1.398_199_9e-3;
    let poly = poly * r + 8.333_452e-3;
    let poly = poly * r + 4.166_579_6e-2;
    let poly = poly * r + 0.166_666_66;
    let poly = poly * r + 0.5;
    let value = poly * r * r + r + 1.0;
    // The integer sits in the low mantissa bits of `shifted`; 0x7f moves it into the exponent.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(0x7f)) << 23);
    value * scale
}

/// Sum of a slice in 16 lanes: vectorises, and the order is fixed.
pub fn sum(x: &[f32]) -> f32 {
    lanes(x, |acc, v| acc + v, 0.0, |a, b| a + b)
}

/// Largest value of a slice.
pub fn max(x: &[f32]) -> f32 {
    lanes(x, f32::max, f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn lanes(
    x: &[f32],
    step: impl Fn(f32, f32) -> f32,
    start: f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut acc = [start; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            acc[i] = step(acc[i], chunk[i]);
        }
    }
    for (a, &v) in acc.iter_mut().zip(rest) {
        *a = step(*a, v);
    }
    acc.into_iter().fold(start, join)
}

/// Dot product in 16 lanes.
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut acc = [0.0f32; 16];
    let ((xs, xr), (ys, yr)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (a, b) in xs.iter().zip(ys) {
        for i in 0..16 {
            acc[i] += a[i] * b[i];
        }
    }
    for (acc, (a, b)) in acc.iter_mut().zip(xr.iter().zip(yr)) {
        *acc += a * b;
    }
    acc.into_iter().sum()
}

/// `y += a x`.
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Softmax in place; returns the logarithm of the sum of exponentials.
pub fn softmax(row: &mut [f32]) -> f32 {
    let top = max(row);
    for v in row.iter_mut() {
        *v = exp(*v - top);
    }
    let total = sum(row);
    let inv = 1.0 / total;
    for v in row.iter_mut() {
        *v *= inv;
    }
    top + total.ln()
}

/// RMS norm of every row of `x` into `out`; `rstd` receives each row's reciprocal deviation.
pub fn rms_norm(out: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let d = weight.len();
    for ((out, x), rstd) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(rstd) {
        *rstd = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
        for i in 0..d {
            out[i] = x[i] * *rstd * weight[i];
        }
    }
}

/// Backward of [`rms_norm`]: adds to `dx` and `dweight`.
pub fn rms_norm_backward(
    dx: &mut [f32],
    dweight: &mut [f32],
    dout: &[f32],
    x: &[f32],
    rstd: &[f32],
    weight: &[f32],
) {
    let d = weight.len();
    let mut scaled = vec![0.0; d];
    for (t, &rstd) in rstd.iter().enumerate() {
        let row = t * d..(t + 1) * d;
        let (dx, dout, x) = (&mut dx[row.clone()], &dout[row.clone()], &x[row]);
        for i in 0..d {
            dweight[i] += dout[i] * x[i] * rstd;
            scaled[i] = dout[i] * weight[i];
        }
        let mean = dot(&scaled, x) / d as f32 * rstd * rstd;
        for i in 0..d {
            dx[i] += rstd * (scaled[i] - x[i] * mean);
        }
    }
}

/// `act = silu(gate) * up`, where a row of `gate_up` is `gate` then `up`.
pub fn swiglu(act: &mut [f32], gate_up: &[f32], width: usize) {
    for (act, gu) in act.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = gu.split_at(width);
        for i in 0..width {
            act[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
        }
    }
}

/// Backward of [`swiglu`]: `gate_up` is overwritten by its gradient.
pub fn swiglu_backward(gate_up: &mut [f32], dact: &[f32], width: usize) {
    for (dact, gu) in dact.chunks_exact(width).zip(gate_up.chunks_exact_mut(2 * width)) {
        let (gate, up) = gu.split_at_mut(width);
        for i in 0..width {
            let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * sigmoid;
            let dgate = dact[i] * up[i] * sigmoid * (1.0 + gate[i] - silu);
            up[i] = dact[i] * silu;
            gate[i] = dgate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        for i in -8600..=8800 {
            let x = i as f32 / 100.0;
            let relative = (exp(x) as f64 / (x as f64).exp() - 1.0).abs();
            assert!(relative < 4e-7, "exp({x}) is off by {relative}");
        }
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn gemm_multiplies_and_transposes() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 0.0, 1.0, 1.0]);
        let mut out = [10.0; 4];
        gemm(&mut out, view(&a, 2, 3), view(&b, 2, 3).t());
        assert_eq!(out, [7.0, 5.0, 16.0, 11.0]);
        gemm_add(&mut out, view(&a, 3, 2).t(), view(&b, 3, 2));
        assert_eq!(out, [7.0 + 12.0, 5.0 + 5.0, 16.0 + 16.0, 11.0 + 6.0]);
    }
}
