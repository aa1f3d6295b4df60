//! Layer-wise relevance propagation as a criterion (Yeom, Seegerer, Lapuschkin, Binder, Wiedemann, Müller, Samek: "Pruning
//! by Explaining: A Novel Criterion for Deep Neural Network Pruning", Pattern Recognition 2021).

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// How a linear layer hands relevance back to its inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Relevance {
    /// R_i = Σ_j (a_i w_ij)⁺ / Σ_i (a_i w_ij)⁺ R_j: α = 1, β = 0, for the layers of a convolutional network.
    Positive,
    /// R_i = Σ_j a_i w_ij / (Σ_i a_i w_ij + ε sign) R_j: for dense layers at the top.
    Epsilon(f64),
}

impl Relevance {
    /// Relevance of the inputs `[samples, in]`, from activations `[samples, in]`, W `[out, in]` and the relevance of the
    /// outputs `[samples, out]`. An output that nothing contributes to hands nothing back. In f64.
    ///
    /// A convolution is a linear layer on its patches: rows of patches as samples, and relevances of an input summed over
    /// the patches it is in.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for an ε that is negative or not finite; `Numerical` for relevance that is not
    /// finite, naming sample and input.
    pub fn propagate(
        self,
        activations: ArrayView2<'_, f32>,
        weight: ArrayView2<'_, f32>,
        outputs: ArrayView2<'_, f64>,
    ) -> Result<Array2<f64>> {
        let ((samples, inputs), rows) = (activations.dim(), weight.nrows());
        if weight.ncols() != inputs || outputs.dim() != (samples, rows) {
            let (w, r) = (weight.dim(), outputs.dim());
            return Err(Error::shape(format!(
                "relevance {r:?} of outputs of a matrix {w:?} of activations {samples} x {inputs}"
            )));
        }
        if let Self::Epsilon(epsilon) = self
            && !(epsilon.is_finite() && epsilon >= 0.0)
        {
            return Err(Error::invalid(format!("epsilon = {epsilon}: allowed are 0 and more")));
        }
        let mut relevance = Array2::<f64>::zeros((samples, inputs));
        for ((a, r), mut back) in
            activations.rows().into_iter().zip(outputs.rows()).zip(relevance.rows_mut())
        {
            for (w, r) in weight.rows().into_iter().zip(r) {
                let part = |a: &f32, w: &f32| {
                    let product = f64::from(*a) * f64::from(*w);
                    if self == Self::Positive { product.max(0.0) } else { product }
                };
                let sum: f64 = a.iter().zip(w).map(|(a, w)| part(a, w)).sum();
                let over = match self {
                    Self::Epsilon(epsilon) => sum + if sum < 0.0 { -epsilon } else { epsilon },
                    Self::Positive => sum,
                };
                if over == 0.0 {
                    continue;
                }
                for ((back, a), w) in back.iter_mut().zip(a).zip(w) {
                    *back += part(a, w) / over * r;
                }
            }
        }
        match relevance.indexed_iter().find(|(_, r)| !r.is_finite()) {
            None => Ok(relevance),
            Some(((sample, input), r)) => {
                let message = format!("the relevance of input {input} at sample {sample} is {r}");
                Err(Error::numerical(message))
            }
        }
    }
}

/// Relevance at the top `[samples, classes]`: the logit of each sample's target, and 0 for all others.
///
/// # Errors
/// `InvalidArgument` unless there is a target for each sample, below the number of classes.
pub fn target_relevance(logits: ArrayView2<'_, f32>, targets: &[usize]) -> Result<Array2<f64>> {
    let (samples, classes) = logits.dim();
    if targets.len() != samples || targets.iter().any(|target| *target >= classes) {
        let message = format!("targets: allowed are {samples} numbers below {classes}");
        return Err(Error::invalid(message));
    }
    let of = |(sample, class): (usize, usize)| match targets[sample] == class {
        true => f64::from(logits[[sample, class]]),
        false => 0.0,
    };
    Ok(Array2::from_shape_fn((samples, classes), of))
}

/// Gives the relevance of each filter that stays, layer by layer.
pub type Judge<'a> = dyn FnMut(&[Vec<usize>]) -> Result<Vec<Vec<f64>>> + 'a;

/// What stays of layers of so many filters when `number` have gone, a few at a time: `judge` is told what stays and gives
/// each filter's relevance, summed over samples, and of all layers together the `each` lowest of those that stay go. The
/// last filter of a layer stays; of equal ones those of earlier layers go first.
///
/// # Errors
/// `InvalidArgument` where that many cannot go, and for an `each` of 0; `ShapeMismatch` for other numbers of relevances;
/// `Numerical` for one that is no number; those of `judge`.
pub fn remove_lowest(
    filters: &[usize],
    number: usize,
    each: usize,
    judge: &mut Judge<'_>,
) -> Result<Vec<Vec<usize>>> {
    let most = filters.iter().map(|n| n.saturating_sub(1)).sum::<usize>();
    if number > most || each == 0 {
        return Err(Error::invalid(format!(
            "number = {number}, each = {each}: allowed are 0 to {most}, for a filter of each layer stays, and 1 and more"
        )));
    }
    let mut kept: Vec<Vec<usize>> = filters.iter().map(|n| (0..*n).collect()).collect();
    let mut left = number;
    while left > 0 {
        let scores = judge(&kept)?;
        let fits = scores.iter().zip(&kept).all(|(scores, kept)| scores.len() == kept.len());
        if scores.len() != kept.len() || !fits {
            return Err(Error::shape("relevances of other filters than those that stay"));
        }
        let mut all: Vec<(f64, usize, usize)> = Vec::new();
        for (layer, (scores, kept)) in scores.iter().zip(&kept).enumerate() {
            all.extend(scores.iter().zip(kept).map(|(score, filter)| (*score, layer, *filter)));
        }
        if let Some((score, layer, filter)) = all.iter().find(|(score, ..)| score.is_nan()) {
            let message = format!("the relevance of filter {filter} of layer {layer} is {score}");
            return Err(Error::numerical(message));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut now = each.min(left);
        for (_, layer, filter) in all {
            if now == 0 {
                break;
            }
            if kept[layer].len() > 1 {
                kept[layer].retain(|k| *k != filter);
                (now, left) = (now - 1, left - 1);
            }
        }
    }
    Ok(kept)
}
