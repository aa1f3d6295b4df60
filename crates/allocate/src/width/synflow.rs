use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// A layer of a chain: `[out, in * area]`, where each input channel has `area` neighbouring columns (those of a convolution's
/// kernel; 1 in a matrix).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Flow<'a> {
    weight: ArrayView2<'a, f32>,
    area: usize,
}

impl<'a> Flow<'a> {
    /// A matrix.
    #[must_use]
    pub fn matrix(weight: ArrayView2<'a, f32>) -> Self {
        Self { weight, area: 1 }
    }

    /// A convolution with so many weights an output and input channel.
    #[must_use]
    pub fn conv(weight: ArrayView2<'a, f32>, area: usize) -> Self {
        Self { weight, area }
    }
}

/// What share of the flow each weight carries, a layer each.
///
/// The flow is R = 1ᵀ |W_L| ... |W_1| 1, the output where all inputs are 1 and all weights their magnitudes, and a weight's
/// share |w| ∂R/∂|w| / R (Tanaka et al., *Pruning neural networks without any data by iteratively conserving synaptic
/// flow*, NeurIPS 2020): |w_oi| times the flow into i times that out of o. What flows through one layer flows through all
/// of them, so that the shares of each sum to 1.
///
/// # Errors
/// `ShapeMismatch`, naming the layer, where channels do not meet; `Numerical` for a weight that is no finite number;
/// `InsufficientData` where nothing flows.
pub fn flows(chain: &[Flow<'_>]) -> Result<Vec<Array2<f64>>> {
    let magnitudes = magnitudes(chain)?;
    shares(chain, &magnitudes)
}

/// What share of its weights each layer of a chain keeps if all together keep `density`: those that carry the largest shares
/// of the flow (SynFlow, by [`flows`]), pruned in so many rounds, of which round k of n leaves density^(k/n).
///
/// # Errors
/// As [`flows`]; `InvalidArgument` for a density that is not above 0 and at most 1, or no rounds.
pub fn synflow(chain: &[Flow<'_>], density: f64, rounds: usize) -> Result<Vec<f64>> {
    if !(density > 0.0 && density <= 1.0) || rounds == 0 {
        let message =
            format!("a density of {density} in {rounds} rounds: allowed is (0, 1] in 1 or more");
        return Err(Error::invalid(message));
    }
    let mut kept = magnitudes(chain)?;
    let all: usize = kept.iter().map(Array2::len).sum();
    let mut alive = vec![true; all];
    for round in 1..=rounds {
        let flows: Vec<f64> =
            shares(chain, &kept)?.iter().flat_map(|layer| layer.iter().copied()).collect();
        let keep = (density.powf(round as f64 / rounds as f64) * all as f64).round() as usize;
        let mut order: Vec<usize> = (0..all).filter(|at| alive[*at]).collect();
        if keep.max(1) < order.len() {
            // Of equals the first stays.
            let by = |a: &usize, b: &usize| flows[*b].total_cmp(&flows[*a]).then(a.cmp(b));
            let (_, _, pruned) = order.select_nth_unstable_by(keep.max(1) - 1, by);
            pruned.iter().for_each(|at| alive[*at] = false);
        }
        for (weight, alive) in kept.iter_mut().flatten().zip(&alive) {
            *weight = if *alive { *weight } else { 0.0 };
        }
    }
    let mut at = 0;
    let density = |layer: &Array2<f64>| {
        let left = alive[at..at + layer.len()].iter().filter(|alive| **alive).count();
        at += layer.len();
        left as f64 / layer.len() as f64
    };
    Ok(kept.iter().map(density).collect())
}

fn magnitudes(chain: &[Flow<'_>]) -> Result<Vec<Array2<f64>>> {
    for (at, layer) in chain.iter().enumerate() {
        let (rows, columns) = layer.weight.dim();
        let before =
            if at == 0 { columns / layer.area.max(1) } else { chain[at - 1].weight.nrows() };
        if rows == 0 || columns == 0 || layer.area.checked_mul(before) != Some(columns) {
            let message = format!("{rows} x {columns} behind {before} channels of {}", layer.area);
            return Err(Error::shape(message).in_tensor(format!("layer {at}")));
        }
        if layer.weight.iter().any(|w| !w.is_finite()) {
            return Err(Error::numerical("has weights that are no finite numbers")
                .in_tensor(format!("layer {at}")));
        }
    }
    Ok(chain.iter().map(|layer| layer.weight.mapv(|w| f64::from(w).abs())).collect())
}

fn shares(chain: &[Flow<'_>], kept: &[Array2<f64>]) -> Result<Vec<Array2<f64>>> {
    // All layers share one sum, so that vectors may have any length: 1, as products of many are beyond any number.
    let unit = |flow: Array1<f64>| {
        let sum = flow.sum();
        match sum > 0.0 {
            true => Ok(flow / sum),
            false => Err(Error::insufficient("nothing flows from the first layer to the last")),
        }
    };
    let spread = |flow: &Array1<f64>, area: usize| -> Array1<f64> {
        flow.iter().flat_map(|flow| std::iter::repeat_n(*flow, area)).collect()
    };
    let gather = |flow: Array1<f64>, area: usize| -> Array1<f64> {
        flow.to_vec().chunks(area).map(|columns| columns.iter().sum()).collect()
    };
    let Some(first) = kept.first() else { return Ok(Vec::new()) };
    let mut into = vec![unit(Array1::ones(first.ncols() / chain[0].area))?];
    for (layer, weight) in chain.iter().zip(kept) {
        let last = into.last().map(|flow| spread(flow, layer.area)).unwrap_or_default();
        into.push(unit(weight.dot(&last))?);
    }
    let mut out = unit(Array1::ones(kept.last().map_or(1, Array2::nrows)))?;
    let mut shares = Vec::with_capacity(kept.len());
    for (at, weight) in kept.iter().enumerate().rev() {
        let before = spread(&into[at], chain[at].area);
        let mut share = weight.clone();
        for (mut row, out) in share.outer_iter_mut().zip(&out) {
            row.zip_mut_with(&before, |share, before| *share *= before * out);
        }
        let sum = share.sum();
        if sum > 0.0 {
            share /= sum;
        }
        shares.push(share);
        if at > 0 {
            out = unit(gather(weight.t().dot(&out), chain[at].area))?;
        }
    }
    shares.reverse();
    Ok(shares)
}
