//! Adaptive MLP pruning (Shen: "Adaptive MLP Pruning for Large Vision Transformers", 2026): the pieces around a model that
//! the caller runs.

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// A neuron's importance, the mean over tokens of |h_j ∂L/∂h_j|, from its activations and their gradients `[tokens,
/// neurons]` each: what the loss moves, to first order, without it. In f64.
///
/// # Errors
/// `ShapeMismatch`; `Numerical` for an importance that is not finite, naming the neuron.
pub fn taylor_importance(
    activations: ArrayView2<'_, f32>,
    gradients: ArrayView2<'_, f32>,
) -> Result<Vec<f64>> {
    if activations.dim() != gradients.dim() {
        let (a, b) = (activations.dim(), gradients.dim());
        return Err(Error::shape(format!("gradients {b:?} of activations {a:?}")));
    }
    let mut sums = vec![0.0; activations.ncols()];
    for (h, g) in activations.rows().into_iter().zip(gradients.rows()) {
        let products = h.iter().zip(g).map(|(h, g)| (f64::from(*h) * f64::from(*g)).abs());
        sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
    }
    let tokens = activations.nrows().max(1) as f64;
    sums.iter_mut().for_each(|sum| *sum /= tokens);
    match sums.iter().position(|sum| !sum.is_finite()) {
        None => Ok(sums),
        Some(neuron) => {
            let message = format!("the importance of neuron {neuron} is {}", sums[neuron]);
            Err(Error::numerical(message))
        }
    }
}

/// A loss without labels, and its gradient `[samples, channels]`: the mean over samples of the entropy of softmax(temperature
/// x cosine to each other sample's features). All of a sample's likenesses count, not one class. 0 for one sample.
///
/// # Errors
/// `InvalidArgument` for a temperature that is not above 0 and finite; `Numerical` for features that are zero or not finite,
/// naming the sample.
pub fn similarity_entropy(
    features: ArrayView2<'_, f32>,
    temperature: f64,
) -> Result<(f64, Array2<f64>)> {
    if !(temperature.is_finite() && temperature > 0.0) {
        let message = format!("temperature = {temperature}: allowed is more than 0");
        return Err(Error::invalid(message));
    }
    let samples = features.nrows();
    let mut unit = features.mapv(f64::from);
    let mut lengths = Vec::with_capacity(samples);
    for (sample, mut row) in unit.rows_mut().into_iter().enumerate() {
        let length = row.dot(&row).sqrt();
        if !(length.is_finite() && length > 0.0) {
            let message = format!("the features of sample {sample} have length {length}");
            return Err(Error::numerical(message));
        }
        row.mapv_inplace(|v| v / length);
        lengths.push(length);
    }
    let likeness = unit.dot(&unit.t()) * temperature;
    let (mut loss, mut by_likeness) = (0.0, Array2::<f64>::zeros((samples, samples)));
    for i in (0..samples).filter(|_| samples > 1) {
        let others = || (0..samples).filter(move |j| *j != i);
        let most = others().map(|j| likeness[[i, j]]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = others().map(|j| (likeness[[i, j]] - most).exp()).sum();
        let log = |j: usize| likeness[[i, j]] - most - sum.ln();
        let entropy: f64 = -others().map(|j| log(j).exp() * log(j)).sum::<f64>();
        loss += entropy / samples as f64;
        others().for_each(|j| {
            by_likeness[[i, j]] = -log(j).exp() * (log(j) + entropy) / samples as f64;
        });
    }
    let both = &by_likeness + &by_likeness.t();
    let mut gradient = both.dot(&unit) * temperature;
    for ((mut g, z), length) in gradient.rows_mut().into_iter().zip(unit.rows()).zip(lengths) {
        let along = g.dot(&z);
        g.zip_mut_with(&z, |g, z| *g = (*g - along * z) / length);
    }
    Ok((loss, gradient))
}

/// How many neurons each block keeps, from the last block to the first: the fewest with which the loss rises by no more than
/// `allowance` above what it is before that block, by `steps` bisections (ln 1.02 and 6 in the paper). Neurons go in the
/// order of their importance, which is the caller's: `loss` is told how many the blocks keep. At least one stays.
///
/// The number found is one whose loss was seen to be within the allowance, or all.
///
/// # Errors
/// `InvalidArgument` for an allowance that is negative or no number, and for a block without neurons; those of `loss`.
pub fn adaptive_widths(
    neurons: &[usize],
    allowance: f64,
    steps: usize,
    loss: &mut dyn FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<usize>> {
    if allowance.is_nan() || allowance < 0.0 {
        return Err(Error::invalid(format!("allowance = {allowance}: allowed are 0 and more")));
    }
    if let Some(block) = neurons.iter().position(|n| *n == 0) {
        return Err(Error::invalid(format!("block {block} has no neurons")));
    }
    let mut widths = neurons.to_vec();
    let mut before = loss(&widths)?;
    for block in (0..widths.len()).rev() {
        let (mut below, mut within, mut here) = (0_usize, widths[block], before);
        for _ in 0..steps {
            let middle = below.midpoint(within);
            if middle == below {
                break;
            }
            widths[block] = middle;
            let lost = loss(&widths)?;
            match lost - before <= allowance {
                true => (within, here) = (middle, lost),
                false => below = middle,
            }
        }
        (widths[block], before) = (within, here);
    }
    Ok(widths)
}
