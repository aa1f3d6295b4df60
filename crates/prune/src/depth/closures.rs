//! Criteria by what comes out of a network that the caller runs.

use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

/// Gives the outputs `[samples, values]` of the network with these of its units (`true` stays; what has gone is an identity,
/// or nothing): of the same inputs and seeds each time.
pub type Run<'a> = dyn FnMut(&[bool]) -> Result<Array2<f32>> + 'a;

/// How far outputs are from those of the whole network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutputDistance {
    /// Mean over samples of the squared distance, E ‖y' - y‖² (LAPTOP-Diff).
    #[default]
    Squared,
    /// ‖mean(y') - mean(y)‖ + ‖std(y') - std(y)‖, value by value over samples, which are the latents of several seeds
    /// (Castells, Song, Kim, Choi: "LD-Pruner: Efficient Pruning of Latent Diffusion Models using Task-Agnostic Insights",
    /// 2024): blind to which sample is which. The deviation is that of the samples themselves (divided by their number), 0
    /// for one.
    Moments,
}

impl OutputDistance {
    /// The distance of `changed` from `reference`, `[samples, values]` each. In f64.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InsufficientData` for no sample; `Numerical` for outputs that are not finite, naming sample and
    /// value.
    pub fn between(
        self,
        reference: ArrayView2<'_, f32>,
        changed: ArrayView2<'_, f32>,
    ) -> Result<f64> {
        if reference.dim() != changed.dim() {
            let (a, b) = (reference.dim(), changed.dim());
            return Err(Error::shape(format!("outputs {a:?} and {b:?}")));
        }
        if reference.nrows() == 0 {
            return Err(Error::insufficient("outputs of no sample"));
        }
        for outputs in [reference, changed] {
            if let Some(((sample, value), v)) = outputs.indexed_iter().find(|(_, v)| !v.is_finite())
            {
                let message = format!("output {value} of sample {sample} is {v}");
                return Err(Error::numerical(message));
            }
        }
        let (reference, changed) = (reference.mapv(f64::from), changed.mapv(f64::from));
        let norm = |v: Array1<f64>| v.dot(&v).sqrt();
        Ok(match self {
            Self::Squared => {
                let difference = &changed - &reference;
                difference.iter().map(|d| d * d).sum::<f64>() / reference.nrows() as f64
            }
            Self::Moments => {
                let mean = |y: &Array2<f64>| y.mean_axis(Axis(0)).expect("there are samples");
                let spread = |y: &Array2<f64>| y.std_axis(Axis(0), 0.0);
                norm(mean(&changed) - mean(&reference))
                    + norm(spread(&changed) - spread(&reference))
            }
        })
    }
}

/// What the output loses without each of the units that stay, beside what has gone already: its distance from `reference`,
/// the outputs of the whole network. Infinite for what has gone.
///
/// # Errors
/// Those of [`OutputDistance::between`] and of `run`.
pub fn removal_losses(
    kept: &[bool],
    reference: ArrayView2<'_, f32>,
    distance: OutputDistance,
    run: &mut Run<'_>,
) -> Result<Vec<f64>> {
    let mut kept = kept.to_vec();
    let mut losses = vec![f64::INFINITY; kept.len()];
    for unit in 0..kept.len() {
        if kept[unit] {
            kept[unit] = false;
            losses[unit] = distance.between(reference, run(&kept)?.view())?;
            kept[unit] = true;
        }
    }
    Ok(losses)
}

/// Which of so many units stay when `number` have gone, those of least loss first; `each` at a time, and then the others are
/// measured again beside what has gone. All at once is the form of LD-Pruner. Of equal losses, later units go first.
///
/// ```
/// use tensorpress_prune::depth::{OutputDistance, remove_greedily};
/// use tensorpress_tensor::ndarray::Array2;
///
/// // Three units that add to the one output of two samples.
/// let mut run = |kept: &[bool]| {
///     let parts = [[1.0, 1.0], [0.1, -0.1], [0.0, 2.0]];
///     let sum = |sample: usize| (0..3).filter(|u| kept[*u]).map(|u| parts[u][sample]).sum::<f32>();
///     Ok(Array2::from_shape_fn((2, 1), |(sample, _)| sum(sample)))
/// };
/// let stays = remove_greedily(3, 1, 1, OutputDistance::Moments, &mut run)?;
/// assert_eq!(stays, [true, false, true]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` for more than there are, and for an `each` of 0; those of [`removal_losses`].
pub fn remove_greedily(
    units: usize,
    number: usize,
    each: usize,
    distance: OutputDistance,
    run: &mut Run<'_>,
) -> Result<Vec<bool>> {
    if number > units || each == 0 {
        return Err(Error::invalid(format!(
            "number = {number}, each = {each}: allowed are 0 to {units}, and 1 and more"
        )));
    }
    let mut kept = vec![true; units];
    let reference = run(&kept)?;
    let mut left = number;
    while left > 0 {
        let losses = removal_losses(&kept, reference.view(), distance, run)?;
        let now = each.min(left);
        lowest(&losses, now).into_iter().for_each(|unit| kept[unit] = false);
        left -= now;
    }
    Ok(kept)
}

/// The places of the lowest; of equal ones, later come first.
pub(super) fn lowest(losses: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..losses.len()).collect();
    order.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(b.cmp(a)));
    order.truncate(count);
    order
}
