//! How far a compressed matrix is from the original.

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::{Accum, Node, Result, Scratch};

/// Inputs that an output error is measured on.
pub(super) const INPUTS: usize = 256;

/// At most [`INPUTS`] of the sampled inputs, evenly spread.
pub(super) fn spread(samples: &Array2<f32>) -> Array2<f32> {
    let step = samples.nrows().div_ceil(INPUTS).max(1);
    samples.slice(s![..;step, ..]).to_owned()
}

/// Changes beside the node: scales folded into the norm before (new over old, one an input), added bias.
#[derive(Clone, Copy, Default)]
pub(super) struct Around<'a> {
    pub(super) ratio: Option<&'a [f32]>,
    pub(super) bias: Option<&'a [f32]>,
}

/// ‖X(W-Ŵ)ᵀ‖ / ‖XWᵀ‖ where there are inputs, else ‖W-Ŵ‖ / ‖W‖; nothing where that is not finite.
pub(super) fn relative(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    around: Around<'_>,
    inputs: Option<ArrayView2<'_, f32>>,
    par: Par,
) -> Result<Option<f64>> {
    let (difference, size) = match inputs {
        Some(x) if x.nrows() > 0 => of_outputs(weight, node, around, x, par)?,
        _ => of_weights(weight, node, around, par)?,
    };
    let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
    Ok(error.is_finite().then_some(error))
}

fn of_outputs(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    around: Around<'_>,
    x: ArrayView2<'_, f32>,
    par: Par,
) -> Result<(f64, f64)> {
    let mut exact = Array2::zeros((x.nrows(), weight.nrows()));
    linalg::matmul_nt(x, weight, exact.view_mut(), false, par);
    let mut got = Array2::zeros(exact.dim());
    let mut scratch = Scratch::new(par);
    match around.ratio {
        None => node.matmul(x, got.view_mut(), Accum::Replace, &mut scratch)?,
        Some(ratio) => {
            let mut x = x.to_owned();
            for mut row in x.rows_mut() {
                row.iter_mut().zip(ratio).for_each(|(x, r)| *x *= r);
            }
            node.matmul(x.view(), got.view_mut(), Accum::Replace, &mut scratch)?;
        }
    }
    if let Some(bias) = around.bias {
        for mut row in got.rows_mut() {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    Ok(squares(exact.view(), got.view()))
}

fn of_weights(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    around: Around<'_>,
    par: Par,
) -> Result<(f64, f64)> {
    let (rows, cols) = weight.dim();
    let step = (1 << 18) / cols.max(1) + 1;
    let mut scratch = Scratch::new(par);
    let (mut difference, mut size) = (0.0, 0.0);
    let mut tile = Array2::zeros((step.min(rows), cols));
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        let mut tile = tile.slice_mut(s![..range.len(), ..]);
        node.decode_rows(range.clone(), tile.view_mut(), Accum::Replace, &mut scratch)?;
        if let Some(ratio) = around.ratio {
            for mut row in tile.rows_mut() {
                row.iter_mut().zip(ratio).for_each(|(w, r)| *w *= r);
            }
        }
        let (d, s) = squares(weight.slice(s![range, ..]), tile.view());
        (difference, size) = (difference + d, size + s);
    }
    Ok((difference, size))
}

/// Sums of squares of the difference, and of `exact`.
fn squares(exact: ArrayView2<'_, f32>, got: ArrayView2<'_, f32>) -> (f64, f64) {
    exact.iter().zip(got).fold((0.0, 0.0), |(difference, size), (e, g)| {
        let (e, g) = (f64::from(*e), f64::from(*g));
        (difference + (e - g) * (e - g), size + e * e)
    })
}
