use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::{Error, Result, ndarray};

/// Queries, keys and values of a head, from calibration: what a choice of ranks is judged on.
#[derive(Debug, Clone, Copy)]
pub struct HeadSample<'a> {
    /// `[n, head_dim]`, those of the last `n` tokens, rotated as the keys are.
    pub queries: ArrayView2<'a, f32>,
    /// `[tokens, head_dim]`.
    pub keys: ArrayView2<'a, f32>,
    /// `[tokens, value_dim]`.
    pub values: ArrayView2<'a, f32>,
}

impl HeadSample<'_> {
    /// The squared error of attention's output, as a share of that output's own square, where keys and values are held on the
    /// first directions of these bases `[channels, channels]`: what a search for ranks asks for.
    ///
    /// # Errors
    /// `ShapeMismatch` for arrays that do not go together, `InvalidArgument` for ranks beyond the bases.
    pub fn output_error(
        &self,
        (key_basis, key_rank): (ArrayView2<'_, f32>, usize),
        (value_basis, value_rank): (ArrayView2<'_, f32>, usize),
    ) -> Result<f64> {
        let (q, k, v) = (self.queries.dim(), self.keys.dim(), self.values.dim());
        let fit = q.1 == k.1 && k.0 == v.0 && q.0 <= k.0;
        if !fit || key_basis.nrows() != k.1 || value_basis.nrows() != v.1 {
            return Err(Error::shape(format!("queries {q:?}, keys {k:?}, values {v:?} and bases")));
        }
        let on = |x: ArrayView2<'_, f32>, basis: ArrayView2<'_, f32>, rank: usize| {
            if rank > basis.ncols() {
                let most = basis.ncols();
                return Err(Error::invalid(format!("rank = {rank}: allowed are 0 to {most}")));
            }
            let basis = basis.slice(s![.., ..rank]);
            Ok(x.dot(&basis).dot(&basis.t()))
        };
        let exact = self.attend(self.keys, self.values);
        let keys = on(self.keys, key_basis, key_rank)?;
        let values = on(self.values, value_basis, value_rank)?;
        let near = self.attend(keys.view(), values.view());
        let size: f64 = exact.iter().map(|x| x * x).sum();
        let error: f64 = exact.iter().zip(&near).map(|(a, b)| (a - b).powi(2)).sum();
        Ok(if size > 0.0 { error / size } else { error })
    }

    /// Causal attention of the last queries.
    fn attend(&self, keys: ArrayView2<'_, f32>, values: ArrayView2<'_, f32>) -> Array2<f64> {
        let (n, dim) = self.queries.dim();
        let first = keys.nrows() - n;
        let mut out = Array2::zeros((n, values.ncols()));
        for (i, q) in self.queries.rows().into_iter().enumerate() {
            let seen = first + i + 1;
            let scores = keys.slice(s![..seen, ..]).dot(&q);
            let scores = scores.mapv(|x| f64::from(x) / (dim as f64).sqrt());
            let most = scores.fold(f64::NEG_INFINITY, |m, x| m.max(*x));
            let weights = scores.mapv(|x| (x - most).exp());
            let sum = weights.sum();
            for (w, v) in weights.iter().zip(values.rows()) {
                let mut out = out.row_mut(i);
                out.iter_mut().zip(v).for_each(|(o, v)| *o += w / sum * f64::from(*v));
            }
        }
        out
    }
}

/// How many coordinates each head keeps within a budget: from the most on, the head whose measured error grows least for each
/// coordinate it gives up goes one rate down, the first of equals, until the sum fits (MatryoshkaKV's greedy search).
/// `errors` `[heads, ranks]` are those of each head at each of `ranks`, which ascend.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for ranks that do not ascend or a budget below the least of all heads; `Numerical` for
/// errors that are not finite.
pub fn greedy_ranks(
    ranks: &[usize],
    errors: ArrayView2<'_, f64>,
    budget: usize,
) -> Result<Vec<usize>> {
    if errors.ncols() != ranks.len() {
        let (found, expected) = (errors.ncols(), ranks.len());
        return Err(Error::shape(format!("errors at {found} of {expected} ranks")));
    }
    if ranks.is_empty() || ranks.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::invalid(format!("ranks = {ranks:?}: must ascend, one at least")));
    }
    if let Some(bad) = errors.iter().find(|e| !e.is_finite()) {
        return Err(Error::numerical(format!("an error of {bad}")));
    }
    let least = ranks[0] * errors.nrows();
    if budget < least {
        return Err(Error::invalid(format!("budget = {budget}: at least {least}")));
    }
    let mut at = vec![ranks.len() - 1; errors.nrows()];
    let mut sum = ranks[ranks.len() - 1] * errors.nrows();
    while sum > budget {
        let mut best = (f64::INFINITY, 0);
        for (head, at) in at.iter().enumerate().filter(|(_, at)| **at > 0) {
            let grows = errors[[head, at - 1]] - errors[[head, *at]];
            let price = grows / (ranks[*at] - ranks[at - 1]) as f64;
            if price < best.0 {
                best = (price, head);
            }
        }
        let at = &mut at[best.1];
        sum -= ranks[*at] - ranks[*at - 1];
        *at -= 1;
    }
    Ok(at.into_iter().map(|at| ranks[at]).collect())
}
