use tensorpress_tensor::grid::IntGrid;
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use tensorpress_tensor::{Error, Result, Target, kernels};

use crate::GridSpec;

/// Sampled inputs in the form that makes output errors cheapest: the rows themselves, or their Gram matrix where
/// there are more rows than channels.
pub(super) enum Inputs<'a> {
    Rows(ArrayView2<'a, f32>),
    Gram { gram: Array2<f32>, tokens: usize },
}

impl<'a> Inputs<'a> {
    pub(super) fn new(rows: ArrayView2<'a, f32>, par: Par) -> Self {
        let (tokens, channels) = rows.dim();
        if tokens <= channels {
            return Self::Rows(rows);
        }
        let mut gram = Array2::zeros((channels, channels));
        linalg::matmul_tn(rows, rows, gram.view_mut(), false, par);
        Self::Gram { gram, tokens }
    }

    /// Mean over tokens and outputs of (X Dᵀ)² for D `[out, in]`.
    fn mean_square(&self, d: ArrayView2<'_, f32>, par: Par) -> f64 {
        let out = d.nrows();
        let (sum, tokens) = match self {
            Self::Rows(x) => {
                let mut y = Array2::zeros((x.nrows(), out));
                linalg::matmul_nt(*x, d, y.view_mut(), false, par);
                (y.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>(), x.nrows())
            }
            Self::Gram { gram, tokens } => {
                let mut dg = Array2::zeros(d.dim());
                linalg::matmul(d, gram.view(), dg.view_mut(), false, par);
                let products = d.iter().zip(&dg).map(|(a, b)| f64::from(*a) * f64::from(*b));
                (products.sum::<f64>(), *tokens)
            }
        };
        sum / (tokens * out).max(1) as f64
    }
}

/// Searches the ratio whose scale loses least; returns that scale and the losses of all ratios.
pub(super) fn best_scale(
    spec: &GridSpec,
    ratios: usize,
    targets: &[Target<'_>],
    mean_abs: &[f32],
    inputs: &Inputs<'_>,
    par: Par,
) -> Result<(Vec<f32>, Vec<f64>)> {
    let mut best = (f64::INFINITY, vec![1.0; mean_abs.len()]);
    let mut losses = Vec::with_capacity(ratios);
    for i in 0..ratios {
        let scale = scale_of(mean_abs, i as f32 / ratios as f32);
        let mut loss = 0.0;
        for target in targets {
            let error = rounding_error(spec, target, &scale, par)?;
            loss += inputs.mean_square(error.view(), par);
        }
        losses.push(loss);
        if loss < best.0 {
            best = (loss, scale);
        }
    }
    if !best.0.is_finite() {
        return Err(Error::numerical("no scale gives a finite output error"));
    }
    Ok((best.1, losses))
}

/// `mean|x|^ratio`, at least 1e-4, divided by the geometric mean of its extremes.
fn scale_of(mean_abs: &[f32], ratio: f32) -> Vec<f32> {
    let mut scale: Vec<f32> = mean_abs.iter().map(|m| m.powf(ratio).max(1e-4)).collect();
    let most = scale.iter().copied().fold(f32::MIN, f32::max);
    let least = scale.iter().copied().fold(f32::MAX, f32::min);
    let middle = (most * least).sqrt();
    scale.iter_mut().for_each(|s| *s /= middle);
    scale
}

/// W - round(W diag(s)) diag(1/s).
fn rounding_error(
    spec: &GridSpec,
    target: &Target<'_>,
    scale: &[f32],
    par: Par,
) -> Result<Array2<f32>> {
    let mut error = target.kept_weight().into_owned();
    let (_, cols) = error.dim();
    let abs_max = {
        let largest = |row: ArrayView1<'_, f32>| {
            row.iter().zip(scale).fold(0.0f32, |m, (w, s)| m.max((w * s).abs()))
        };
        error.rows().into_iter().map(largest).fold(0.0, f32::max)
    };
    let grid = spec.family(abs_max)?;
    let group = spec.group_of(cols);
    let whole = spec.per_tensor().then(|| {
        let scaled: Vec<f32> = error
            .rows()
            .into_iter()
            .flat_map(|r| r.iter().zip(scale).map(|(w, s)| w * s).collect::<Vec<_>>())
            .collect();
        grid.fit(&scaled)
    });
    for_each_row(&mut error, par, |row| {
        let mut scaled = vec![0.0; group];
        let mut codes = vec![0u8; group];
        for (w, s) in row.chunks_mut(group).zip(scale.chunks(group)) {
            let (scaled, codes) = (&mut scaled[..w.len()], &mut codes[..w.len()]);
            scaled.iter_mut().zip(&*w).zip(s).for_each(|((x, w), s)| *x = w * s);
            let p = whole.unwrap_or_else(|| grid.fit(scaled));
            kernels::quantize_affine(scaled, p.scale, p.zero, grid.max_code() as u8, codes);
            for ((w, code), s) in w.iter_mut().zip(&*codes).zip(s) {
                *w -= p.level(f32::from(*code)) / s;
            }
        }
    });
    Ok(error)
}

fn for_each_row(matrix: &mut Array2<f32>, par: Par, f: impl Fn(&mut [f32]) + Send + Sync) {
    let cols = matrix.ncols();
    let all = matrix.as_slice_mut().expect("owned in standard layout");
    if cols == 0 {
        return;
    }
    par.for_each(all.chunks_mut(cols), f);
}

/// Tokens that score a clipping range.
const CLIP_TOKENS: usize = 512;
const CLIP_GRID: usize = 20;
const CLIP_STEPS: usize = 10;

/// Clamps each group of each row to the one of ten shrunken symmetric ranges whose rounding loses least of the
/// group's own output, on at most [`CLIP_TOKENS`] of the sampled inputs.
pub(super) fn clip_to_outputs(
    spec: &GridSpec,
    weight: &mut Array2<f32>,
    samples: ArrayView2<'_, f32>,
    par: Par,
) -> Result<()> {
    let abs_max = kernels::abs_max(weight.as_slice().expect("owned in standard layout"));
    let grid = spec.family(abs_max)?;
    let cols = weight.ncols();
    let group = spec.group_of(cols);
    let stride = (samples.nrows() / CLIP_TOKENS).max(1);
    let picked = samples.slice(s![..;stride, ..]);
    // In f64: candidates differ by less than what f32 loses where some channels are far larger than others.
    let grams: Vec<Array2<f64>> = picked
        .axis_chunks_iter(Axis(1), group)
        .map(|x| {
            let x = x.mapv(f64::from);
            let mut gram = Array2::zeros((x.ncols(), x.ncols()));
            linalg::matmul_tn(x.view(), x.view(), gram.view_mut(), false, par);
            gram
        })
        .collect();
    for_each_row(weight, par, |row| {
        for (w, gram) in row.chunks_mut(group).zip(&grams) {
            let limit = best_limit(&grid, w, gram);
            w.iter_mut().for_each(|w| *w = w.clamp(-limit, limit));
        }
    });
    Ok(())
}

fn best_limit(grid: &IntGrid, w: &[f32], gram: &Array2<f64>) -> f32 {
    let abs_max = kernels::abs_max(w);
    let mut best = (f64::INFINITY, abs_max);
    let mut clipped = vec![0.0; w.len()];
    let mut error = vec![0.0f64; w.len()];
    for step in 0..CLIP_STEPS {
        let limit = abs_max * (1.0 - step as f32 / CLIP_GRID as f32);
        clipped.iter_mut().zip(w).for_each(|(c, w)| *c = w.clamp(-limit, limit));
        let p = grid.fit(&clipped);
        for ((e, w), c) in error.iter_mut().zip(w).zip(&clipped) {
            *e = f64::from(w - p.level(p.code(*c, grid.max_code())));
        }
        let products = gram.rows().into_iter().zip(&error);
        let loss: f64 = products.map(|(g, e)| e * g.dot(&ArrayView1::from(&error[..]))).sum();
        if loss < best.0 {
            best = (loss, limit);
        }
    }
    best.1
}
