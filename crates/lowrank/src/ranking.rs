use std::ops::Range;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::{DType, Error, Node, Result, Target};

use crate::factors::fitting;
use crate::metric::Root;
use crate::project::{Projection, Solver, project};
use crate::rank::Rank;

/// Parts of several matrices in one order, of which any first ones can be kept: one compressed model serves every size.
///
/// Each matrix keeps at least its first part, so these come first.
///
/// ```
/// use tensorpress_lowrank::Ranking;
///
/// let ranking = Ranking::by_scores(&[vec![9.0, 1.0], vec![5.0, 4.0]])?;
/// // Every part takes 10 bytes.
/// let kept = ranking.keep(30, |_, parts| 10 * parts as u64)?;
/// assert_eq!(kept, [vec![0], vec![0, 1]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    units: usize,
    /// Unit and part, the most important first.
    order: Vec<(usize, usize)>,
}

impl Ranking {
    /// All parts by falling score, whatever matrix they are of; of equals those of the first matrix, then the first parts
    /// (ACIP: Genzel et al., *Choose Your Model Size: Any Compression by a Single Gradient Descent*, 2025, whose scores are
    /// masks trained under a penalty; [`Directions`] has scores of its own).
    ///
    /// # Errors
    /// `Numerical` for NaN; `InvalidArgument` for a matrix without parts.
    pub fn by_scores(scores: &[Vec<f64>]) -> Result<Self> {
        check(scores, "score")?;
        let mut order = places(scores);
        let of = |(unit, part): (usize, usize)| scores[unit][part];
        order.sort_by(|a, b| of(*b).total_cmp(&of(*a)));
        Ok(Self::first_of_each_ahead(scores.len(), order))
    }

    /// Layer by layer of blocks: the first of every matrix, then the second of every one ..., within a layer by rising
    /// loss; of equals those of the first matrix (BitStack: Wang et al., 2025, section 3.2). `losses[m][b]` is what the model
    /// loses (its perplexity, say) with b + 1 blocks of matrix m where all others have b; those of the first blocks
    /// only order these.
    ///
    /// # Errors
    /// `Numerical` for NaN; `InvalidArgument` for a matrix without blocks.
    pub fn by_layers(losses: &[Vec<f64>]) -> Result<Self> {
        check(losses, "loss")?;
        let mut order = places(losses);
        order.sort_by(|a, b| a.1.cmp(&b.1).then(losses[a.0][a.1].total_cmp(&losses[b.0][b.1])));
        Ok(Self { units: losses.len(), order })
    }

    fn first_of_each_ahead(units: usize, order: Vec<(usize, usize)>) -> Self {
        let mut seen = vec![false; units];
        let is_first = |(unit, _): &(usize, usize)| !std::mem::replace(&mut seen[*unit], true);
        let (mut order, rest): (Vec<_>, Vec<_>) = order.into_iter().partition(is_first);
        order.extend(rest);
        Self { units, order }
    }

    /// Matrix and part, the most important first.
    #[must_use]
    pub fn order(&self) -> &[(usize, usize)] {
        &self.order
    }

    /// The parts of each matrix, rising, in the longest beginning of the order that fits: `cost(matrix, parts)` is what so
    /// many parts of a matrix take, and never falls with more.
    ///
    /// # Errors
    /// `InvalidArgument` if one part of each does not fit, naming the budget that would.
    pub fn keep(&self, budget: u64, cost: impl Fn(usize, usize) -> u64) -> Result<Vec<Vec<usize>>> {
        let mut kept = vec![Vec::new(); self.units];
        let mut spent: u64 = (0..self.units).map(|unit| cost(unit, 1)).sum();
        if spent > budget {
            return Err(Error::invalid(format!("budget = {budget}: allowed are {spent} and more")));
        }
        for (unit, part) in &self.order {
            let parts: &mut Vec<usize> = &mut kept[*unit];
            if !parts.is_empty() {
                let more = cost(*unit, parts.len() + 1).saturating_sub(cost(*unit, parts.len()));
                if spent + more > budget {
                    break;
                }
                spent += more;
            }
            parts.push(*part);
        }
        kept.iter_mut().for_each(|parts| parts.sort_unstable());
        Ok(kept)
    }
}

fn check(scores: &[Vec<f64>], what: &str) -> Result<()> {
    for (unit, parts) in scores.iter().enumerate() {
        if parts.is_empty() {
            return Err(Error::invalid(format!(
                "matrix {unit} has no parts: allowed are 1 and more"
            )));
        }
        if let Some(part) = parts.iter().position(|score| score.is_nan()) {
            return Err(Error::numerical(format!(
                "the {what} of part {part} of matrix {unit} is NaN"
            )));
        }
    }
    Ok(())
}

fn places(scores: &[Vec<f64>]) -> Vec<(usize, usize)> {
    let parts = |(unit, parts): (usize, &Vec<f64>)| (0..parts.len()).map(move |part| (unit, part));
    scores.iter().enumerate().flat_map(parts).collect()
}

/// All directions of a matrix, of which any can be kept: W = Σ_j P_j (P_jᵀ W), P the left singular vectors of W S.
///
/// ```
/// use tensorpress_lowrank::{Directions, Root};
/// use tensorpress_tensor::{DType, Node, linalg::Par, ndarray::Array2, node::decode};
///
/// let weight = Array2::from_shape_fn((6, 9), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let directions = Directions::of(weight.view(), &Root::Identity, 0, Par::Seq)?;
/// let node = directions.node(&[0, 2], DType::F32)?;
/// assert_eq!(node.shape(), [6, 9]);
/// // All of them are no smaller than the matrix, which is stored instead.
/// let all = directions.node(&[0, 1, 2, 3, 4, 5], DType::F32)?;
/// assert_eq!(decode(&*all)?, weight);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Directions {
    weight: Array2<f32>,
    factors: Projection,
    /// ‖P_jᵀ W S‖².
    energies: Vec<f64>,
}

impl Directions {
    /// Of a matrix, by a root of its inputs' second moments.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for an entry that is not finite, or without convergence.
    pub fn of(weight: ArrayView2<'_, f32>, root: &Root, seed: u64, par: Par) -> Result<Self> {
        let full = weight.nrows().min(weight.ncols()).max(1);
        let factors = project(weight, root, Rank::Number(full), Solver::Exact, seed, par)?;
        let seen = root.apply(factors.right.view(), par)?;
        let square = |row: ArrayView2<'_, f32>| row.iter().map(|v| f64::from(*v).powi(2)).sum();
        // Columns of the left factor are as long as rows of the right one: divided out.
        let lengths = factors.left.axis_chunks_iter(Axis(1), 1).map(square);
        let energies = seen.axis_chunks_iter(Axis(0), 1).zip(lengths);
        let energies = energies.map(|(row, length): (_, f64)| length * square(row)).collect();
        Ok(Self { weight: weight.as_standard_layout().into_owned(), factors, energies })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.energies.len()
    }

    /// The matrix is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.energies.is_empty()
    }

    /// What dropping each loses, ‖P_jᵀ W S‖²: the square of a whitened singular value.
    #[must_use]
    pub fn energies(&self) -> &[f64] {
        &self.energies
    }

    /// How much the loss of the model changes, to first order, when each is dropped: |P_jᵀ G Wᵀ P_j|, G `[out, in]` the
    /// gradient of the loss by the weights. That is the gradient by a mask on the direction, which a penalty's first step
    /// compares.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for a gradient that is not finite.
    pub fn changes(&self, gradient: ArrayView2<'_, f32>, par: Par) -> Result<Vec<f64>> {
        if gradient.dim() != self.weight.dim() {
            let message =
                format!("a gradient {:?} of weights {:?}", gradient.dim(), self.weight.dim());
            return Err(Error::shape(message));
        }
        Target::new("gradient", gradient).check_finite()?;
        let mut along = Array2::zeros(self.factors.right.dim());
        linalg::matmul_tn(self.factors.left.view(), gradient, along.view_mut(), false, par);
        let dot = |(a, b): (ArrayView2<'_, f32>, ArrayView2<'_, f32>)| {
            a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().abs()
        };
        let rows =
            along.axis_chunks_iter(Axis(0), 1).zip(self.factors.right.axis_chunks_iter(Axis(0), 1));
        Ok(rows.map(dot).collect())
    }

    /// What so many directions take in this type: no more than the matrix.
    #[must_use]
    pub fn bytes(&self, kept: usize, dtype: DType) -> u64 {
        let (out, inp) = self.weight.dim();
        ((kept * (out + inp)).min(out * inp) * dtype.size()) as u64
    }

    /// The factors of some directions; the matrix itself where they would not be smaller. In f32 where `dtype` cannot hold
    /// the factors.
    ///
    /// # Errors
    /// `InvalidArgument` for a direction that is not there, or a type that is none of floats.
    pub fn node(&self, kept: &[usize], dtype: DType) -> Result<Box<dyn Node>> {
        let all: Range<usize> = 0..self.len();
        if let Some(bad) = kept.iter().find(|at| !all.contains(*at)) {
            return Err(Error::invalid(format!("direction {bad}: allowed are {all:?}")));
        }
        if !dtype.is_float() {
            return Err(Error::invalid(format!("{dtype:?}: allowed are f16, bf16 and f32")));
        }
        let (out, inp) = self.weight.dim();
        if kept.len() * (out + inp) >= out * inp {
            return Ok(Dense::from_f32(self.weight.view(), dtype)?.boxed());
        }
        let left = self.factors.left.select(Axis(1), kept);
        let right = self.factors.right.select(Axis(0), kept);
        let (dtype, _) = fitting(dtype, left.iter().chain(&right));
        let dense = |m: Array2<f32>| Ok::<_, Error>(Dense::from_f32(m.view(), dtype)?.boxed());
        Ok(Product::new(dense(left)?, dense(right)?)?.boxed())
    }
}
