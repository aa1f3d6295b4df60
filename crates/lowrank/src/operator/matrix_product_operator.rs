use tensorpress_tensor::ndarray::{Array2, Array4, ArrayView2, Axis};
use tensorpress_tensor::node::TensorTrain;
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{Error, Node, Result, Usable};

use super::form::{Effort, Fitted, Form, Operator};
use super::split::{Split, balance, energy, least_keeping, spectrum, unfolded};
use crate::rank::Rank;

/// W as a matrix product operator: a train of `legs` small tensors with bonds between neighbours.
///
/// Tomut et al.: *CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks*, 2024.
/// Outputs and inputs are numbered by legs, as near to equal as the divisors of their number allow; singular values are
/// cut from one bond after the other (Oseledets: *Tensor-train decomposition*, 2011, algorithm 1). What a cut drops is
/// orthogonal to all that the others drop, so that ‖W - Ŵ‖² is exactly the sum of the squares that were dropped; the best
/// operator with these bonds loses at least a (legs - 1)-th of it (corollary 2.4 there).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MatrixProduct {
    /// Tensors in the train, 1 to 16. Default 2.
    pub legs: usize,
    /// The bond dimension: a number is the largest bond; a ratio the largest bond with which that fraction of the
    /// parameters goes; an energy shares what may be dropped among the cuts. Default a fifth of the parameters goes.
    pub bond: Rank,
}

impl Default for MatrixProduct {
    fn default() -> Self {
        Self { legs: 2, bond: Rank::default() }
    }
}

/// [`MatrixProduct`] as a method.
///
/// ```
/// use tensorpress_lowrank::{Rank, operator::compactif_ai};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = compactif_ai(3, Rank::Number(5)).compress(weight.view(), &Calibration::none(64))?;
/// assert!(made.fallback.is_none() && made.node.shape() == [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn compactif_ai(legs: usize, bond: Rank) -> Operator<MatrixProduct> {
    Operator::new(MatrixProduct { legs, bond })
}

/// A decomposition, before it is stored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MatrixProductFit {
    /// `[bond before, out leg, in leg, bond behind]` of each tensor.
    pub tensors: Vec<Array4<f64>>,
    /// The sum of the squared singular values that each cut dropped.
    pub dropped: Vec<f64>,
}

/// What a bond dimension costs and loses.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BondPoint {
    /// The largest bond.
    pub bond: usize,
    /// Numbers that are stored.
    pub weights: usize,
    /// Multiplications of a product with one token.
    pub products: usize,
    /// ‖W - Ŵ‖ / ‖W‖; 0 for a matrix of zeros.
    pub error: f64,
}

impl MatrixProduct {
    fn check_all(&self) -> Result<()> {
        match self.legs {
            1..=16 => self.bond.check(),
            legs => Err(Error::invalid(format!("legs = {legs}: allowed are 1 to 16"))),
        }
    }

    /// The legs `[out, in]` of a matrix of this shape: each the divisor nearest to an equal share, in ratio.
    #[must_use]
    pub fn legs_of(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        let [out, inp] = shape.map(|channels| legs(channels, self.legs));
        out.into_iter().zip(inp).map(|(i, j)| [i, j]).collect()
    }

    /// Decomposes a matrix that is not empty into tensors with these legs.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible parameters, `ShapeMismatch` if the legs are not those of the matrix, `Numerical` for
    /// entries that are not finite, or without convergence.
    pub fn decompose(
        &self,
        weight: ArrayView2<'_, f64>,
        legs: &[[usize; 2]],
        effort: Effort,
    ) -> Result<MatrixProductFit> {
        self.check_all()?;
        let [out, inp] = [0, 1].map(|side| legs.iter().map(|leg| leg[side]).product::<usize>());
        if legs.is_empty() || weight.is_empty() || weight.dim() != (out, inp) {
            let dim = weight.dim();
            return Err(Error::shape(format!("legs {legs:?} of a matrix {dim:?}")));
        }
        if let Some(((r, c), w)) = weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            return Err(Error::numerical(format!("weight [{r}, {c}] is {w}")));
        }
        let most = match self.bond {
            Rank::Number(bond) => bond,
            Rank::Ratio(ratio) => bond_for(legs, (out * inp) as f64 * (1.0 - ratio)),
            Rank::Energy(_) => usize::MAX,
        };
        let bonds = largest_bonds(legs, most);
        let mut rest = unfolded(weight, legs);
        // Each cut may drop its share of the whole, or keep that of what is left to it.
        let may_drop = match self.bond {
            Rank::Energy(kept) => Some((1.0 - kept) * energy(&rest) / bonds.len().max(1) as f64),
            _ => None,
        };
        let (mut tensors, mut dropped, mut before) = (Vec::new(), Vec::new(), 1);
        for (k, [i, j]) in legs.iter().enumerate() {
            let lines = before * i * j;
            let behind = rest.len() / lines;
            let line = rest.into_shape_with_order((lines, behind)).expect("row-major");
            let Some(bond) = bonds.get(k) else {
                tensors.push(tensor(line, [before, *i, *j, 1]));
                break;
            };
            let rank = match may_drop {
                None => *bond,
                Some(may_drop) => {
                    let squares = spectrum(line.view())?;
                    let all: f64 = squares.iter().sum();
                    let kept = if all > 0.0 { 1.0 - may_drop / all } else { 0.0 };
                    least_keeping(&squares, kept)
                }
            };
            let Split { left, right } = Split::of(line.view(), rank, effort)?;
            dropped.push(energy(&(&line - &left.dot(&right))));
            let rank = left.ncols();
            tensors.push(tensor(left, [before, *i, *j, rank]));
            (rest, before) = (right, rank);
        }
        Ok(MatrixProductFit { tensors, dropped })
    }

    /// The sensitivity of a matrix that is not empty: what each of these bond dimensions costs and loses. Where errors rise
    /// least with falling bonds, there a model is compressed first.
    ///
    /// # Errors
    /// As [`MatrixProduct::decompose`].
    pub fn profile(
        &self,
        weight: ArrayView2<'_, f64>,
        bonds: &[usize],
        effort: Effort,
    ) -> Result<Vec<BondPoint>> {
        let legs = self.legs_of([weight.nrows(), weight.ncols()]);
        let all = energy(weight);
        let point = |bond: &usize| {
            let with = Self { bond: Rank::Number(*bond), ..*self };
            let made = with.decompose(weight, &legs, effort)?;
            let lost: f64 = made.dropped.iter().sum();
            let error = if all > 0.0 { (lost / all).sqrt() } else { 0.0 };
            Ok(BondPoint { bond: *bond, weights: made.weights(), products: made.products(), error })
        };
        bonds.iter().map(point).collect()
    }
}

impl MatrixProductFit {
    /// Numbers that are stored.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.tensors.iter().map(Array4::len).sum()
    }

    /// Multiplications of a product with one token: every tensor meets the outputs that are made and the inputs that are
    /// still to come.
    #[must_use]
    pub fn products(&self) -> usize {
        let legs = |range: &[Array4<f64>], side: usize| {
            range.iter().map(|t| t.shape()[side]).product::<usize>()
        };
        let cost = |(k, t): (usize, &Array4<f64>)| {
            legs(&self.tensors[..k], 1) * t.len() * legs(&self.tensors[k + 1..], 2)
        };
        self.tensors.iter().enumerate().map(cost).sum()
    }

    /// The tensors as cores of a [`TensorTrain`], balanced across each bond.
    #[must_use]
    pub fn fitted(mut self) -> Fitted {
        for k in 1..self.tensors.len() {
            let [before, behind] = &mut self.tensors[k - 1..=k] else { unreachable!("two") };
            let bonds = before.axis_iter_mut(Axis(3)).zip(behind.axis_iter_mut(Axis(0)));
            bonds.for_each(|(mut a, mut b)| balance(a.iter_mut(), b.iter_mut()));
        }
        let lost = self.dropped.iter().sum();
        let legs = self.tensors.iter().map(|t| [t.shape()[1], t.shape()[2]]).collect();
        let core = |t: Array4<f64>| {
            let (a, i, j, b) = t.dim();
            // [a, i, j, b] as [i b, a j].
            let turned = t.permuted_axes([1, 3, 0, 2]).as_standard_layout().into_owned();
            turned.into_shape_with_order((i * b, a * j)).expect("row-major")
        };
        let factors = self.tensors.into_iter().map(core).collect();
        let tree = move |nodes: Vec<Box<dyn Node>>| Ok(TensorTrain::new(legs, nodes)?.boxed());
        Fitted { factors, tree: Box::new(tree), lost }
    }
}

fn tensor(lines: Array2<f64>, [a, i, j, b]: [usize; 4]) -> Array4<f64> {
    let lines = lines.as_standard_layout().into_owned();
    lines.into_shape_with_order((a, i, j, b)).expect("as many values")
}

/// So many factors of a number, each the divisor of what is left that is nearest to an equal share, in ratio.
fn legs(mut channels: usize, count: usize) -> Vec<usize> {
    let mut legs = Vec::with_capacity(count);
    for left in (2..=count).rev() {
        let share = (channels.max(1) as f64).ln() / left as f64;
        let far = |d: &usize| ((*d as f64).ln() - share).abs();
        let divisors = (1..=channels).filter(|d| channels.is_multiple_of(*d));
        let leg = divisors.min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(1);
        legs.push(leg);
        channels /= leg;
    }
    legs.push(channels);
    legs
}

/// The bonds between tensors: at most `most`, and no more than either side of the cut numbers.
fn largest_bonds(legs: &[[usize; 2]], most: usize) -> Vec<usize> {
    let numbers = |legs: &[[usize; 2]]| {
        legs.iter().fold(1usize, |all, [i, j]| all.saturating_mul(i.saturating_mul(*j)))
    };
    (1..legs.len()).map(|k| most.min(numbers(&legs[..k])).min(numbers(&legs[k..]))).collect()
}

/// The largest bond with which a train has no more numbers than allowed; 1 if none is small enough.
fn bond_for(legs: &[[usize; 2]], allowed: f64) -> usize {
    let weights = |most: usize| {
        let bonds = largest_bonds(legs, most);
        let bond = |k: usize| bonds.get(k).map_or(1.0, |bond| *bond as f64);
        let before = |k: usize| k.checked_sub(1).map_or(1.0, bond);
        let size = |(k, [i, j]): (usize, &[usize; 2])| before(k) * (i * j) as f64 * bond(k);
        legs.iter().enumerate().map(size).sum::<f64>()
    };
    let largest = largest_bonds(legs, usize::MAX).into_iter().max().unwrap_or(1);
    // Falls with the bond: bisect.
    let (mut fits, mut beyond) = (1, largest + 1);
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        if weights(middle) <= allowed + 1e-9 { fits = middle } else { beyond = middle }
    }
    fits
}

impl Form for MatrixProduct {
    fn id(&self) -> &'static str {
        "compactif_ai"
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("legs", &mut self.legs, 1..=16, "tensors in the train")?;
        self.bond.knobs(keys)
    }

    fn check(&self) -> Result<()> {
        self.check_all()
    }

    fn fit(&self, weight: ArrayView2<'_, f64>, effort: Effort) -> Result<Usable<Fitted>> {
        let legs = self.legs_of([weight.nrows(), weight.ncols()]);
        Ok(Usable::Yes(self.decompose(weight, &legs, effort)?.fitted()))
    }
}
