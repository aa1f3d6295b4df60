//! MoDeGPT (Lin, Gao, Smith, Patel, et al.: "MoDeGPT: Modular Decomposition for Large Language Model Compression", ICLR
//! 2025).
//!
//! The stage does what the shape of a block can say: the feed-forward network. A head's width is the same in the whole
//! model, so that the two other decompositions are functions for callers whose models can say more: [`value_output`] and
//! [`query_key`].

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::stats::{Gram, Needs};
use tensorpress_tensor::{Error, Result, Usable};

use super::surgeon::{damped, inverse};
use super::{Allocation, Module, Part, Repair, Score, Structured, Track};

/// A channel's ridge leverage, [C (C + λ I)⁻¹]_jj with C the second moments of the channels and λ the damping: how little of
/// it the others can say (algorithm 1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leverage;

/// The ridge leverage of each channel of a Gram matrix, λ = `damp` x its mean diagonal: 0 to 1.
///
/// # Errors
/// `InvalidArgument` for a damping that is not above 0: leverages are all 1 then.
pub fn leverages(gram: ArrayView2<'_, f32>, damp: f64, par: Par) -> Result<Usable<Vec<f64>>> {
    if damp <= 0.0 {
        return Err(Error::invalid(format!("damp = {damp}: allowed is more than 0")));
    }
    let mean = gram.diag().iter().map(|v| f64::from(*v)).sum::<f64>() / gram.nrows().max(1) as f64;
    let inverse = match damped(gram, damp)? {
        Usable::Yes(damped) => inverse(damped, par)?,
        Usable::No(reason) => Usable::No(reason),
    };
    Ok(inverse.map(|inverse| {
        inverse.diag().iter().map(|v| (1.0 - damp * mean * v).clamp(0.0, 1.0)).collect()
    }))
}

impl Score for Leverage {
    fn needs(&self) -> Needs {
        Needs::GRAM
    }

    fn modules(&self) -> &'static [Module] {
        &[Module::Channels]
    }

    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let scores = match part.statistic::<Gram>()? {
            // Without any, their order as the damping goes to 0.
            Usable::Yes(gram) => leverages(gram.view(), part.damp.max(1e-9), Par::Rayon)?,
            Usable::No(reason) => Usable::No(reason),
        };
        match scores {
            Usable::Yes(scores) => Track::by_scores(&scores).map(Usable::Yes),
            Usable::No(reason) => Ok(Usable::No(reason)),
        }
    }
}

/// MoDeGPT of the feed-forward networks: channels of most leverage stay, the matrix that reads them becomes Nyström's
/// approximation W_D' = (Sᵀ C S)⁻¹ Sᵀ C W_D ([`least_squares`](super::least_squares)), and blocks of less influence lose
/// more.
///
/// ```
/// use tensorpress_prune::structured::modegpt;
/// use tensorpress_tensor::stage::canonical;
///
/// let text = canonical("modegpt", &mut modegpt())?;
/// assert_eq!(text, "modegpt(sparsity=0.2, epsilon=0.1, multiple=1, damp=0.01)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn modegpt() -> Structured<Leverage> {
    let shares = Allocation::Softmax { epsilon: 0.1 };
    Structured::new(NAME, Leverage, shares, Repair::LeastSquares)
}

const NAME: &str = "modegpt";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "keeps the channels that others say least of and fits what reads them; blocks that turn their hidden \
                 states less lose more";
    Row::rewrite(NAME, about, modegpt)
}

/// Values and outputs of a head of less width (algorithm 3).
#[derive(Debug, Clone, PartialEq)]
pub struct ValueOutput {
    /// Rows that write the values `[rank, hidden]`.
    pub value: Array2<f32>,
    /// For each query head that reads them, columns of the output matrix `[hidden, rank]`.
    pub outputs: Vec<Array2<f32>>,
}

/// The best values and outputs of width `rank` for a head: with C = `gram` of what the values read `[hidden, hidden]` and M
/// the outputs of all query heads of the group one above the other, the factors of M W_V that lose least of ‖(M W_V - P V)
/// C^½‖: P the leading left singular vectors of M W_V C^½, V = Pᵀ M W_V. Nothing is inverted, so that C may be singular.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for a rank of 0; `Numerical`.
pub fn value_output(
    gram: ArrayView2<'_, f32>,
    value: ArrayView2<'_, f32>,
    outputs: &[ArrayView2<'_, f32>],
    rank: usize,
) -> Result<ValueOutput> {
    let (width, hidden) = value.dim();
    let fits = outputs.iter().all(|o| o.ncols() == width && o.nrows() == outputs[0].nrows());
    if gram.dim() != (hidden, hidden) || outputs.is_empty() || !fits {
        return Err(Error::shape(format!(
            "values {width} x {hidden} with outputs of other shapes"
        )));
    }
    if rank == 0 {
        return Err(Error::invalid("rank = 0: allowed are 1 and more"));
    }
    let root = root(gram)?;
    let stacked = concatenate(Axis(0), outputs).map_err(|e| Error::shape(e.to_string()))?;
    let thin = linalg::qr(stacked.mapv(f64::from).view())?;
    let small = thin.r.dot(&value.mapv(f64::from));
    let svd = linalg::svd(small.dot(&root).view())?.truncate(rank);
    let value = svd.u.t().dot(&small).mapv(|v| v as f32);
    let left = thin.q.dot(&svd.u).mapv(|v| v as f32);
    let rows = outputs[0].nrows();
    let of = |head: usize| left.slice(s![head * rows..(head + 1) * rows, ..]).to_owned();
    Ok(ValueOutput { value, outputs: (0..outputs.len()).map(of).collect() })
}

/// The dimensions of a head that stay in queries and keys, ascending (algorithm 2): the `kept` of highest ‖C^½ w_q,i‖
/// ‖C^½ w_k,i‖, where a key counts with the norm over all query heads of its group. With `rotary`, dimensions i and i +
/// dim / 2 turn together, stay together, and count with their sum; `kept` is then rounded down to pairs, at least one.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for more than there are, and for an odd width with `rotary`.
pub fn query_key(
    gram: ArrayView2<'_, f32>,
    queries: &[ArrayView2<'_, f32>],
    key: ArrayView2<'_, f32>,
    kept: usize,
    rotary: bool,
) -> Result<Vec<usize>> {
    let (width, hidden) = key.dim();
    if gram.dim() != (hidden, hidden) || queries.iter().any(|q| q.dim() != key.dim()) {
        return Err(Error::shape(format!("keys {width} x {hidden} with queries of other shapes")));
    }
    if kept == 0 || kept > width || rotary && !width.is_multiple_of(2) {
        return Err(Error::invalid(format!(
            "kept = {kept}: allowed are 1 to {width}, and an even width where dimensions turn in pairs"
        )));
    }
    let gram = gram.mapv(f64::from);
    let energies = |w: &ArrayView2<'_, f32>| -> Array1<f64> {
        let w = w.mapv(f64::from);
        (w.dot(&gram) * &w).sum_axis(Axis(1)).mapv(|v| v.max(0.0))
    };
    let asked: Array1<f64> =
        queries.iter().map(energies).fold(Array1::zeros(width), |sum, more| sum + more);
    let scores = (asked * energies(&key)).mapv(f64::sqrt);
    let (units, step) = if rotary { (width / 2, width / 2) } else { (width, width) };
    let of = |unit: usize| (unit..width).step_by(step);
    let sums: Vec<f64> = (0..units).map(|unit| of(unit).map(|i| scores[i]).sum()).collect();
    let number = if rotary { (kept / 2).max(1) } else { kept };
    let mut stay: Vec<usize> =
        Track::by_scores(&sums)?.kept(units - number).into_iter().flat_map(of).collect();
    stay.sort_unstable();
    Ok(stay)
}

/// A symmetric root of second moments; eigenvalues below 0 by rounding count as 0.
fn root(gram: ArrayView2<'_, f32>) -> Result<Array2<f64>> {
    let eigen = linalg::symmetric_eigen(gram.mapv(f64::from).view())?;
    let scaled = &eigen.vectors * &eigen.values.mapv(|v| v.max(0.0).sqrt());
    Ok(scaled.dot(&eigen.vectors.t()))
}
