//! PruneNet (Sengupta, Chaudhary, Chakraborty: "You Only Prune Once: Designing Calibration-Free Model Compression With
//! Policy Learning", ICLR 2025): the spectrum of what stays.

use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::rewrite::Role;
use tensorpress_tensor::stage::{Keys, Row, WeightPart};
use tensorpress_tensor::{Error, Result, Usable};

use super::{Allocation, Module, Part, Repair, Score, Structured, Track};
use crate::pattern::count;

/// The distance of Kolmogorov and Smirnov of two samples: the largest difference of their distribution functions, 0 to 1; 1
/// if one is empty and the other is not. Samples in any order, of finite numbers.
#[must_use]
pub fn kolmogorov_smirnov(a: &[f64], b: &[f64]) -> f64 {
    let sorted = |sample: &[f64]| {
        let mut sample = sample.to_vec();
        sample.sort_by(f64::total_cmp);
        sample
    };
    let (a, b) = (sorted(a), sorted(b));
    if a.is_empty() || b.is_empty() {
        return if a.len() == b.len() { 0.0 } else { 1.0 };
    }
    let (mut i, mut j, mut most) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        // Values that tie step together.
        let here = a[i].min(b[j]);
        i += a[i..].iter().take_while(|v| **v <= here).count();
        j += b[j..].iter().take_while(|v| **v <= here).count();
        most = most.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    most
}

/// Keeps the rows of the feed-forward network's up matrix whose singular values are distributed most like those of the whole
/// matrix.
///
/// The paper draws sets of rows from a policy, a distribution with a probability a row, which it trains by REINFORCE on
/// minus the distance; here the search is for one matrix, without a network: rows are drawn one by one in proportion to
/// exp(logit), from logits of 0, and each round moves the logits along the gradient of the log-probability of the rows drawn
/// to go, times what their reward is above the mean of the round's. The best set that was drawn counts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Spectrum {
    /// Rounds of the search. Default 8.
    pub rounds: usize,
    /// Sets drawn a round. Default 4.
    pub draws: usize,
    /// How far logits move. Default 1.
    pub rate: f64,
    /// Seed of the draws. Default 0.
    pub seed: u64,
}

impl Default for Spectrum {
    fn default() -> Self {
        Self { rounds: 8, draws: 4, rate: 1.0, seed: 0 }
    }
}

impl Spectrum {
    /// Sets the rounds of the search.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets how many sets are drawn a round.
    #[must_use]
    pub fn with_draws(mut self, draws: usize) -> Self {
        self.draws = draws;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Rows of W `[rows, in]` of which the first `gone` go, and the distance that leaves; the others follow as they were
    /// drawn. Takes rounds x draws spectra of matrices `[min(kept, in), min(kept, in)]`.
    ///
    /// # Errors
    /// `InvalidArgument` if all rows were to go; `Numerical` for entries that are not finite.
    pub fn order(&self, weight: ArrayView2<'_, f32>, gone: usize) -> Result<(Vec<usize>, f64)> {
        let rows = weight.nrows();
        if gone >= rows {
            let message = format!("gone = {gone}: allowed are fewer than {rows} rows");
            return Err(Error::invalid(message));
        }
        let whole = spectrum(weight)?;
        let distance = |order: &[usize]| {
            let mut kept = order[gone..].to_vec();
            kept.sort_unstable();
            spectrum(weight.select(Axis(0), &kept).view()).map(|s| kolmogorov_smirnov(&whole, &s))
        };
        let mut random = SplitMix::new(self.seed);
        let mut logits = vec![0.0; rows];
        let mut best: (Vec<usize>, f64) = ((0..rows).collect(), f64::INFINITY);
        for _ in 0..if gone == 0 { 1 } else { self.rounds } {
            let mut drawn = Vec::with_capacity(self.draws);
            for _ in 0..self.draws {
                let order = draw(&logits, &mut random);
                let distance = distance(&order)?;
                if distance < best.1 {
                    best = (order.clone(), distance);
                }
                drawn.push((order, distance));
            }
            let mean = drawn.iter().map(|(_, d)| d).sum::<f64>() / drawn.len() as f64;
            let gradients: Vec<Vec<f64>> =
                drawn.iter().map(|(order, _)| log_gradient(&logits, order, gone)).collect();
            for ((_, distance), gradient) in drawn.iter().zip(gradients) {
                let step = self.rate * (mean - distance) * rows as f64 / drawn.len() as f64;
                logits.iter_mut().zip(gradient).for_each(|(logit, g)| *logit += step * g);
            }
        }
        Ok(best)
    }
}

/// Rows one by one, each in proportion to exp(logit) of those that are left (Plackett and Luce; by Gumbel's trick).
fn draw(logits: &[f64], random: &mut SplitMix) -> Vec<usize> {
    let mut gumbel = |logit: &f64| {
        let uniform = random.next_f64().max(f64::MIN_POSITIVE);
        logit - (-uniform.ln()).max(f64::MIN_POSITIVE).ln()
    };
    let keys: Vec<f64> = logits.iter().map(&mut gumbel).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]).then(a.cmp(b)));
    order
}

/// The gradient by the logits of the log-probability that the first `gone` of an order are drawn as they were, one by one,
/// each in proportion to exp(logit) of those that are left.
///
/// # Panics
/// Unless the order is one of all logits.
#[must_use]
pub fn log_gradient(logits: &[f64], order: &[usize], gone: usize) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
    // Sums over what is left at each draw, from the last back.
    let mut left: Vec<f64> = vec![0.0; order.len() + 1];
    for (at, row) in order.iter().enumerate().rev() {
        left[at] = left[at + 1] + weights[*row];
    }
    let mut gradient = vec![0.0; logits.len()];
    let mut share = 0.0;
    for (at, row) in order.iter().enumerate() {
        if at < gone {
            // Beside logits that are far above, what is left counts nothing: no more is added than numbers hold.
            share = (share + 1.0 / left[at].max(f64::MIN_POSITIVE)).min(f64::MAX);
        }
        gradient[*row] = f64::from(u8::from(at < gone)) - weights[*row] * share;
    }
    gradient
}

/// Singular values, by the eigenvalues of the smaller Gram matrix in f64.
fn spectrum(weight: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
    let wide = weight.mapv(f64::from);
    let wide = if wide.nrows() < wide.ncols() { wide.reversed_axes() } else { wide };
    let mut gram = Array2::zeros((wide.ncols(), wide.ncols()));
    linalg::matmul_tn(wide.view(), wide.view(), gram.view_mut(), false, Par::Rayon);
    let eigen = linalg::symmetric_eigen(gram.view())?;
    Ok(eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect())
}

impl Score for Spectrum {
    fn modules(&self) -> &'static [Module] {
        &[Module::Channels]
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("rounds", &mut self.rounds, 1..=1 << 12, "rounds of the search")?;
        keys.int("draws", &mut self.draws, 1..=1 << 12, "sets of rows drawn a round")?;
        keys.float("rate", &mut self.rate, 0.0..=1e3, "how far a round moves the odds of rows")?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "of the draws")
    }

    fn check(&self) -> Result<()> {
        let bad = |what: &str, value: f64, allowed: &str| {
            Err(Error::invalid(format!("{what} = {value}: allowed are {allowed}")))
        };
        match self {
            Self { rounds: 0, .. } => bad("rounds", 0.0, "1 and more"),
            Self { draws: 0, .. } => bad("draws", 0.0, "1 and more"),
            Self { rate, .. } if !(rate.is_finite() && *rate >= 0.0) => {
                bad("rate", *rate, "0 and more")
            }
            _ => Ok(()),
        }
    }

    /// Steps say the order alone: what is lost is the distance, and only of one number of rows.
    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let writers = part.writers()?;
        let up = writers.iter().find(|(spec, _)| spec.role == Role::Up);
        let Some((_, up)) = up else { return Ok(Usable::no("has no matrix into the network")) };
        let gone = count(part.units, part.share).min(part.units - 1);
        let (order, distance) = match Usable::of(self.order(up.view(), gone))? {
            Usable::Yes(found) => found,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let step = |at: usize| if at < gone { distance / gone as f64 } else { 1.0 };
        let steps = (0..order.len()).map(step).collect();
        Track::new(order, steps).map(Usable::Yes)
    }
}

/// PruneNet without its network: each feed-forward network loses the rows of its up matrix, with all that belongs to them,
/// that change the distribution of its singular values least ([`Spectrum`]). Needs no calibration; alone it gives a plain
/// folder.
///
/// ```
/// use tensorpress_prune::structured::{kolmogorov_smirnov, prunenet};
///
/// assert!(prunenet().with_sparsity(0.3).check().is_ok());
/// assert_eq!(kolmogorov_smirnov(&[1.0, 2.0], &[2.0, 3.0]), 0.5);
/// ```
#[must_use]
pub fn prunenet() -> Structured<Spectrum> {
    Structured::new(NAME, Spectrum::default(), Allocation::Uniform, Repair::None)
}

const NAME: &str = "prunenet";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes the channels without which the singular values of the up matrix are distributed as before; \
                 needs no calibration";
    Row::rewrite(NAME, about, prunenet)
}
