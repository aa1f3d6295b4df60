use crate::factor::{self, Triangle};
use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::{Error, Result, ndarray};

/// MatryoshkaKV's refinement of a head's basis, so that the first coordinates serve attention best, whichever number of them
/// is kept: at each step a number is drawn, and the basis turns against the gradient of what attention loses at it.
///
/// What is lost are the products with queries: with moments Q of the queries and K of the keys and P the projection on the
/// first r directions, tr(Q (1 - P) K (1 - P)), the expected squared error of a product. (With Q = 1 that is what the
/// principal basis minimises already; it serves values.) Steps stay on orthogonal matrices by the Cayley transform, and a step
/// that does not lower the mean over all numbers is not taken: the loss never grows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Matryoshka {
    /// Numbers of coordinates that are drawn from, as likely each.
    pub ranks: Vec<usize>,
    /// Steps.
    pub steps: usize,
    /// How far the first step turns: the size of the turn's generator. Steps grow up to four times as far while they serve, and
    /// shrink while they do not.
    pub rate: f64,
    /// Of what is drawn.
    pub seed: u64,
}

impl Matryoshka {
    /// 500 steps, the first of 0.1, for these ranks.
    #[must_use]
    pub fn new(ranks: &[usize]) -> Self {
        Self { ranks: ranks.to_vec(), steps: 500, rate: 0.1, seed: 0 }
    }

    /// Sets the number of steps.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The mean over the ranks of the expected squared error of a product of queries `[n, channels]` and keys `[m, channels]`
    /// on a basis `[channels, channels]`.
    ///
    /// # Errors
    /// As [`Matryoshka::refine`].
    pub fn loss(
        &self,
        basis: ArrayView2<'_, f32>,
        queries: ArrayView2<'_, f32>,
        keys: ArrayView2<'_, f32>,
    ) -> Result<f64> {
        self.check(basis, queries, keys)?;
        Ok(self.mean_loss(&basis.mapv(f64::from), &moments(queries), &moments(keys)))
    }

    /// Turns an orthogonal basis `[channels, channels]`, from a principal one on, for queries `[n, channels]` and keys
    /// `[m, channels]`.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for no ranks, or ranks but 1 to the channels; `Numerical` for what is not finite.
    pub fn refine(
        &self,
        basis: ArrayView2<'_, f32>,
        queries: ArrayView2<'_, f32>,
        keys: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>> {
        self.check(basis, queries, keys)?;
        let (q, k) = (moments(queries), moments(keys));
        let mut basis = basis.mapv(f64::from);
        let mut loss = self.mean_loss(&basis, &q, &k);
        let (mut random, mut rate) = (SplitMix::new(self.seed), self.rate);
        for _ in 0..self.steps {
            let rank = self.ranks[(random.next_f64() * self.ranks.len() as f64) as usize];
            let gradient = gradient(&basis, rank, &q, &k);
            // The generator of the turn: antisymmetric.
            let turn = gradient.dot(&basis.t());
            let turn = &turn - &turn.t();
            let size = turn.iter().map(|v| v * v).sum::<f64>().sqrt();
            if size < 1e-12 {
                continue;
            }
            let next = cayley(&(turn * (rate / size)), &basis)?;
            let now = self.mean_loss(&next, &q, &k);
            if now < loss {
                (basis, loss) = (next, now);
                rate = (rate * 1.3).min(4.0 * self.rate);
            } else {
                rate *= 0.7;
            }
        }
        Ok(basis.mapv(|v| v as f32))
    }

    fn mean_loss(&self, basis: &Array2<f64>, q: &Array2<f64>, k: &Array2<f64>) -> f64 {
        let of = |rank: &usize| {
            let rest = complement(basis, *rank);
            (q.dot(&rest) * k.dot(&rest).t()).sum()
        };
        self.ranks.iter().map(of).sum::<f64>() / self.ranks.len() as f64
    }

    fn check(
        &self,
        basis: ArrayView2<'_, f32>,
        queries: ArrayView2<'_, f32>,
        keys: ArrayView2<'_, f32>,
    ) -> Result<()> {
        let dim = basis.nrows();
        if basis.ncols() != dim || queries.ncols() != dim || keys.ncols() != dim {
            let (b, q, k) = (basis.dim(), queries.dim(), keys.dim());
            return Err(Error::shape(format!("basis {b:?}, queries {q:?}, keys {k:?}: one width")));
        }
        let bad = self.ranks.iter().find(|rank| !(1..=dim).contains(*rank));
        if self.ranks.is_empty() || bad.is_some() {
            let ranks = &self.ranks;
            return Err(Error::invalid(format!(
                "ranks = {ranks:?}: allowed are some of 1 to {dim}"
            )));
        }
        match basis.iter().chain(queries).chain(keys).find(|v| !v.is_finite()) {
            Some(bad) => Err(Error::numerical(format!("{bad} in a basis, queries or keys"))),
            None => Ok(()),
        }
    }
}

/// Mean of the rows' outer products.
fn moments(x: ArrayView2<'_, f32>) -> Array2<f64> {
    let x = x.mapv(f64::from);
    x.t().dot(&x) / x.nrows().max(1) as f64
}

/// What is projected away: 1 - U Uᵀ of the first directions.
fn complement(basis: &Array2<f64>, rank: usize) -> Array2<f64> {
    let kept = basis.slice(s![.., ..rank]);
    Array2::eye(basis.nrows()) - kept.dot(&kept.t())
}

/// Of tr(Q E K E) with E = 1 - U Uᵀ: -2 (Q E K + K E Q) U in the kept columns.
fn gradient(basis: &Array2<f64>, rank: usize, q: &Array2<f64>, k: &Array2<f64>) -> Array2<f64> {
    let half = q.dot(&complement(basis, rank)).dot(k);
    let both = &half + &half.t();
    let mut gradient = Array2::zeros(basis.dim());
    let kept = basis.slice(s![.., ..rank]);
    gradient.slice_mut(s![.., ..rank]).assign(&(both.dot(&kept) * -2.0));
    gradient
}

/// (1 + A/2)⁻¹ (1 - A/2) U, orthogonal where A is antisymmetric.
fn cayley(turn: &Array2<f64>, basis: &Array2<f64>) -> Result<Array2<f64>> {
    let half = turn * 0.5;
    let one = Array2::<f64>::eye(turn.nrows());
    let to = (&one - &half).dot(basis);
    // (1 + S)⁻¹ = (1 + SᵀS)⁻¹ (1 + S)ᵀ, whose first factor is positive definite.
    let square = &one + &half.t().dot(&half);
    let lower = factor::cholesky(square, Par::Seq)?;
    let mut x = (&one + &half).t().dot(&to);
    factor::solve_triangular(lower.view(), Triangle::Lower, x.view_mut(), Par::Seq)?;
    factor::solve_triangular(lower.t(), Triangle::Upper, x.view_mut(), Par::Seq)?;
    Ok(x)
}
