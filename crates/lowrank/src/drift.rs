use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result, Usable};

use crate::aim::Ask;
use crate::metric::Root;
use crate::project::{exponent, scaled};
use crate::rank::Rank;

/// Where a b is sought, in parts of the largest, and steps from the best of them.
const STARTS: [f64; 3] = [0.0, 0.5, 1.0];
const STEPS: usize = 10;

/// What W is moved by: W + b W M, M = D H⁻¹ `[in, in]`, and how far.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Mᵀ.
    transposed: Array2<f32>,
    beta: Option<f32>,
    most: f32,
}

impl Drift {
    /// By Mᵀ `[in, in]`, as far as `beta` says, or as [`crate::DriftedGram::beta`] is chosen up to `most`.
    #[must_use]
    pub fn new(transposed: Array2<f32>, beta: Option<f32>, most: f32) -> Self {
        Self { transposed, beta, most }
    }

    /// W + b W M.
    pub(crate) fn moved(
        &self,
        weight: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<Usable<Array2<f32>>> {
        let along = self.along(weight.view(), ask.par)?;
        let beta = match Usable::of(self.beta(weight, &along, root, ask))? {
            Usable::Yes(beta) => beta,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let moved = weight + &(along * beta);
        Ok(match moved.iter().all(|w| w.is_finite()) {
            true => Usable::Yes(moved),
            false => Usable::no("the correction of drift is beyond f32"),
        })
    }

    /// W M.
    pub(crate) fn along(&self, weight: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        let (inputs, cols) = (self.transposed.nrows(), weight.ncols());
        if inputs != cols {
            return Err(Error::shape(format!("statistics of {inputs} inputs for {cols}")));
        }
        let mut along = Array2::zeros(weight.dim());
        linalg::matmul_nt(weight, self.transposed.view(), along.view_mut(), false, par);
        Ok(along)
    }

    pub(crate) fn beta(
        &self,
        weight: &Array2<f32>,
        along: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<f32> {
        match self.beta {
            Some(beta) => Ok(beta),
            None => self.chosen(weight, along, root, ask),
        }
    }

    /// The b with the largest share of ‖G(b)‖² in the directions that are kept, G(b) = (W + b W M) S (adaptive
    /// collaborative error suppression: section 4 there). With directions P held, the share is a ratio of two squares
    /// in b, whose maximum has a closed form; P of the new b then holds no less. So every step climbs.
    fn chosen(
        &self,
        weight: &Array2<f32>,
        along: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<f32> {
        let own = exponent(weight.iter()) + root.exponent();
        let see = |m: &Array2<f32>| root.apply(scaled(m.view(), -own).view(), ask.par);
        let (still, along) = (see(weight)?, see(along)?);
        let all = Square::of(&still, &along);
        let directions = |b: f64, rank: Rank| {
            let at = &still + &(&along * (b as f32));
            ask.solver.directions(at.view(), rank, ask.seed, ask.par).map(|(p, _)| p)
        };
        let rank = Rank::Number(directions(0.0, ask.rank)?.ncols().max(1));
        let most = f64::from(self.most);
        // The best share by the directions at b, and where it is.
        let step = |b: f64| {
            let p = directions(b, rank)?;
            let project = |m: &Array2<f32>| {
                let mut inner = Array2::zeros((p.ncols(), m.ncols()));
                linalg::matmul_tn(p.view(), m.view(), inner.view_mut(), false, ask.par);
                inner
            };
            Ok::<_, Error>(Square::of(&project(&still), &project(&along)).best_share(&all, most))
        };
        let mut best = (f64::NEG_INFINITY, 0.0);
        for start in STARTS {
            let reached = step(start * most)?;
            if reached.0 > best.0 {
                best = reached;
            }
        }
        for _ in 0..STEPS {
            let reached = step(best.1)?;
            let near = (reached.1 - best.1).abs() <= 1e-3 * most;
            if reached.0 > best.0 {
                best = reached;
            }
            if near {
                break;
            }
        }
        Ok(best.1 as f32)
    }
}

/// ‖A + b B‖² = aa + 2 ab b + bb b².
struct Square {
    aa: f64,
    ab: f64,
    bb: f64,
}

impl Square {
    fn of(a: &Array2<f32>, b: &Array2<f32>) -> Self {
        let dot = |x: &Array2<f32>, y: &Array2<f32>| {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        Self { aa: dot(a, a), ab: dot(a, b), bb: dot(b, b) }
    }

    fn at(&self, b: f64) -> f64 {
        self.aa + b * (2.0 * self.ab + b * self.bb)
    }

    /// The largest share of `all` for b from 0 to `most`, and that b; the smallest of equals.
    fn best_share(&self, all: &Self, most: f64) -> (f64, f64) {
        // Where the derivative of the ratio is 0; the cubes cancel.
        let c2 = self.bb * all.ab - self.ab * all.bb;
        let c1 = self.bb * all.aa - self.aa * all.bb;
        let c0 = self.ab * all.aa - self.aa * all.ab;
        let root = (c1 * c1 - 4.0 * c2 * c0).max(0.0).sqrt();
        // Without cancellation, whichever of the two is small.
        let q = -0.5 * (c1 + root.copysign(c1));
        let within = [q / c2, c0 / q].into_iter().filter(|b| *b > 0.0 && *b < most);
        let share = |b: f64| match all.at(b) {
            all if all > 0.0 => self.at(b) / all,
            _ => 1.0,
        };
        let mut best = (share(0.0), 0.0);
        for b in within.chain([most]) {
            if share(b) > best.0 {
                best = (share(b), b);
            }
        }
        best
    }
}
