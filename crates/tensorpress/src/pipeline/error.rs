//! How far a compressed matrix is from the original.

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, s};
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
        Some(x) if x.nrows() > 0 => {
            let (exact, got) = outputs(weight, node, around, x, par)?;
            squares(exact.view(), got.view())
        }
        _ => of_weights(weight, node, around, par)?,
    };
    let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
    Ok(error.is_finite().then_some(error))
}

/// What the outputs were, and are.
fn outputs(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    around: Around<'_>,
    x: ArrayView2<'_, f32>,
    par: Par,
) -> Result<(Array2<f32>, Array2<f32>)> {
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
    Ok((exact, got))
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

/// ½ E[Σ g² Δy²] over the outputs of a matrix, for inputs X `[tokens, in]` and costs E[g²] one an output; the square of the
/// relative error of the outputs where no costs are known, and of the weights where there are no inputs.
pub(super) fn loss(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    bias: Option<&[f32]>,
    inputs: Option<ArrayView2<'_, f32>>,
    costs: Option<ArrayView1<'_, f32>>,
    par: Par,
) -> Result<f64> {
    let around = Around { ratio: None, bias };
    let (Some(x), Some(costs)) = (inputs.filter(|x| x.nrows() > 0), costs) else {
        let relative = relative(weight, node, around, inputs, par)?;
        return Ok(relative.map_or(f64::NAN, |error| error * error));
    };
    let (exact, got) = outputs(weight, node, around, x, par)?;
    let mut sum = 0.0;
    for (exact, got) in exact.outer_iter().zip(got.outer_iter()) {
        for ((e, g), cost) in exact.iter().zip(got).zip(costs) {
            sum += f64::from(e - g).powi(2) * f64::from(*cost);
        }
    }
    Ok(0.5 * sum / x.nrows() as f64)
}

/// The same of a head, by the second moments `[in, in]` of what it reads: ½ Σ cost e A eᵀ over its rows. Without either, the
/// square of the relative error of the weights, each row by its cost.
pub(super) fn of_rows(
    weight: ArrayView2<'_, f32>,
    node: &dyn Node,
    gram: Option<ArrayView2<'_, f32>>,
    costs: Option<ArrayView1<'_, f32>>,
) -> Result<f64> {
    let (rows, cols) = weight.dim();
    let step = (1 << 18) / cols.max(1) + 1;
    let mut scratch = Scratch::new(Par::Rayon);
    let mut tile = Array2::zeros((step.min(rows), cols));
    let mut through = Array2::zeros(tile.dim());
    let (mut sum, mut size) = (0.0, 0.0);
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        let mut tile = tile.slice_mut(s![..range.len(), ..]);
        node.decode_rows(range.clone(), tile.view_mut(), Accum::Replace, &mut scratch)?;
        tile -= &weight.slice(s![range.clone(), ..]);
        let mut through = through.slice_mut(s![..range.len(), ..]);
        match gram {
            Some(gram) => {
                linalg::matmul_nt(tile.view(), gram, through.view_mut(), false, Par::Rayon)
            }
            None => through.assign(&tile),
        }
        for (at, (e, ea)) in tile.outer_iter().zip(through.outer_iter()).enumerate() {
            let cost = costs.map_or(1.0, |costs| f64::from(costs[start + at]));
            let product = |(e, a): (&f32, &f32)| f64::from(*e) * f64::from(*a);
            sum += cost * e.iter().zip(ea).map(product).sum::<f64>();
            let square = |w: &f32| f64::from(*w).powi(2);
            size += cost * weight.row(start + at).iter().map(square).sum::<f64>();
        }
    }
    Ok(match (gram, costs) {
        (Some(_), Some(_)) => 0.5 * sum,
        _ if sum == 0.0 => 0.0,
        _ => sum / size,
    })
}

/// Sums of squares of the difference, and of `exact`.
fn squares(exact: ArrayView2<'_, f32>, got: ArrayView2<'_, f32>) -> (f64, f64) {
    exact.iter().zip(got).fold((0.0, 0.0), |(difference, size), (e, g)| {
        let (e, g) = (f64::from(*e), f64::from(*g));
        (difference + (e - g) * (e - g), size + e * e)
    })
}
