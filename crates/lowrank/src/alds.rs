use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Dense, Index, Product, Side, Stacked, Transformed};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Node, Result,
    Target, Usable,
};

use crate::dictionary::{kept, unless_larger};
use crate::factors::{check_float, fitting, float_knob};
use crate::levels::Level;
use crate::metric::Root;
use crate::project::{Solver, exponent, project, scaled};
use crate::rank::Rank;

/// ALDS's factors (Liebenwein et al., *Compressing Neural Networks: Towards Determining the Optimal Layer-wise
/// Decomposition*, NeurIPS 2021): inputs in k groups of consecutive ones, each group's columns a truncated SVD of rank j.
/// W ~ [U_1 ... U_k] diag(V_1 ... V_k), U_i `[out, j]`, V_i `[j, in / k]`.
///
/// Looks at no statistics. One group is [`crate::svd`]. A matrix whose factors would take as many bytes as itself stays
/// dense, and says so.
///
/// ```
/// use tensorpress_lowrank::{Alds, Rank};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Alds::new(2, Rank::Number(3)).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!((made.node.shape(), made.fallback), ([16, 64], None));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Alds {
    /// k. Default 2; at most one group an input.
    pub groups: usize,
    /// j, or what fraction of the parameters goes; of an energy the least j that keeps it of every group.
    pub rank: Rank,
    /// Stored type of the factors; none, the default: that of the weights.
    pub dtype: Option<DType>,
    /// How singular vectors are found. Default [`Solver::Auto`].
    pub solver: Solver,
}

impl Default for Alds {
    fn default() -> Self {
        Self::new(2, Rank::default())
    }
}

impl Alds {
    /// So many groups, of this rank each.
    #[must_use]
    pub fn new(groups: usize, rank: Rank) -> Self {
        Self { groups, rank, dtype: None, solver: Solver::default() }
    }

    /// Sets the stored type of the factors.
    #[must_use]
    pub fn with_dtype(mut self, dtype: Option<DType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets how singular vectors are found.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    fn check_all(&self) -> Result<()> {
        if self.groups == 0 {
            return Err(Error::invalid("groups = 0: allowed are 1 and more"));
        }
        check_float(self.dtype)?;
        self.rank.check()
    }

    /// j for a matrix, and at most what its groups have: of an energy the most that any of them needs.
    fn rank_of(&self, weight: &Array2<f32>, seed: u64, par: Par) -> Result<usize> {
        let (out, inp) = weight.dim();
        let groups = self.groups.min(inp);
        let rank = match self.rank {
            Rank::Number(rank) => rank,
            Rank::Ratio(ratio) => {
                let kept = (out * inp) as f64 * (1.0 - ratio);
                (kept / (groups * out + inp) as f64 + 1e-9) as usize
            }
            Rank::Energy(_) => {
                let mut most = 1;
                for columns in places(inp, groups) {
                    let part = weight.slice(s![.., columns]);
                    let part = scaled(part, -exponent(weight.iter()));
                    let (p, _) = self.solver.directions(part.view(), self.rank, seed, par)?;
                    most = most.max(p.ncols());
                }
                most
            }
        };
        Ok(rank.clamp(1, out.min(inp / groups)))
    }

    /// What the matrix takes with so many groups and every rank, in bytes of factors of this type, and what it loses:
    /// the bound of the relative error max_i σ_{j+1}(W_i) / σ_1(W) (spectral norms; section 3.1). The matrix itself
    /// comes last, as one group of full rank. `allocate::Minimax` over the levels of several matrices is the paper's
    /// global step and its local one together: the least common error within a budget, each matrix by its cheapest
    /// number of groups.
    ///
    /// # Errors
    /// `InvalidArgument` for 0 groups; `Numerical` for weights that are not finite, or without convergence.
    pub fn levels(
        weight: ArrayView2<'_, f32>,
        groups: &[usize],
        dtype: DType,
    ) -> Result<Vec<Level<(usize, usize)>>> {
        Target::new("weight", weight).check_finite()?;
        let (out, inp) = weight.dim();
        let usual = scaled(weight, -exponent(weight.iter()));
        let values =
            |columns: Range<usize>| Ok::<_, Error>(linalg::svd(usual.slice(s![.., columns]))?.s);
        let most = values(0..inp)?.first().map_or(0.0, |v| f64::from(*v));
        let dense = (out * inp * dtype.size()) as u64;
        let mut levels = Vec::new();
        for &k in groups {
            Self::new(k, Rank::default()).check_all()?;
            if k > inp {
                continue;
            }
            let spectra = places(inp, k).map(values).collect::<Result<Vec<_>>>()?;
            for rank in 1..=out.min(inp / k) {
                let bytes = bytes_of([out, inp], k, rank, dtype);
                if bytes >= dense {
                    break;
                }
                let next = spectra.iter().filter_map(|values| values.get(rank));
                let lost = next.fold(0.0f64, |lost, v| lost.max(f64::from(*v)));
                let error = if most > 0.0 { lost / most } else { 0.0 };
                levels.push(Level::new((k, rank), bytes, error));
            }
        }
        levels.push(Level::new((1, out.min(inp)), dense, 0.0));
        Ok(levels)
    }

    fn factor(&self, target: &Target<'_>, seed: u64, par: Par) -> Result<Compressed> {
        target.check_finite()?;
        let weight = target.kept_weight().into_owned();
        if weight.is_empty() {
            return kept(target, &weight, "it is empty".to_owned());
        }
        let (out, inp) = weight.dim();
        let groups = self.groups.min(inp);
        let rank = match Usable::of(self.rank_of(&weight, seed, par))? {
            Usable::Yes(rank) => rank,
            Usable::No(reason) => return kept(target, &weight, reason),
        };
        let mut left = Array2::<f32>::zeros((out, groups * rank));
        let mut right = Vec::with_capacity(groups);
        for (i, columns) in places(inp, groups).enumerate() {
            let part = weight.slice(s![.., columns.clone()]);
            let made = project(part, &Root::Identity, Rank::Number(rank), self.solver, seed, par);
            let made = match Usable::of(made)? {
                Usable::Yes(made) => made,
                Usable::No(reason) => return kept(target, &weight, reason),
            };
            left.slice_mut(s![.., i * rank..(i + 1) * rank]).assign(&made.left);
            right.push((columns, made.right));
        }
        let values = left.iter().chain(right.iter().flat_map(|(_, m)| m));
        let (dtype, note) = fitting(self.dtype.unwrap_or(target.dtype), values);
        let dense = |m: &Array2<f32>| Ok::<_, Error>(Dense::from_f32(m.view(), dtype)?.boxed());
        let of_group = |(columns, m): &(Range<usize>, Array2<f32>)| match groups {
            1 => dense(m),
            _ => {
                let index = columns.clone().map(|c| c as u32).collect();
                let index = Arc::new(Index::new(index, inp)?);
                Ok(Transformed::new(Side::In, index, dense(m)?)?.boxed())
            }
        };
        let mut right = right.iter().map(of_group).collect::<Result<Vec<_>>>()?;
        let right = match right.len() {
            1 => right.remove(0),
            _ => Stacked::new(right)?.boxed(),
        };
        unless_larger(target, &weight, Product::new(dense(&left)?, right)?, note)
    }
}

/// Bytes of factors of this rank, and of the places of the inputs of several groups.
fn bytes_of([out, inp]: [usize; 2], groups: usize, rank: usize, dtype: DType) -> u64 {
    let places = if inp <= 1 << 16 { 2 * inp } else { 4 * inp };
    let places = if groups > 1 { places } else { 0 };
    (rank * (groups * out + inp) * dtype.size() + places) as u64
}

/// Consecutive inputs of each group, as even as can be.
fn places(inputs: usize, groups: usize) -> impl Iterator<Item = Range<usize>> {
    let at = move |i: usize| i * (inputs / groups) + i.min(inputs % groups);
    (0..groups).map(move |i| at(i)..at(i + 1))
}

impl Knobs for Alds {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("groups", &mut self.groups, 1..=1 << 20, "groups of consecutive inputs")?;
        self.rank.knobs(keys)?;
        float_knob(keys, &mut self.dtype)
    }

    fn check(&self) -> Result<()> {
        self.check_all()
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method("alds", "factors of a rank for each group of inputs", Alds::default)
}

impl Method for Alds {
    fn id(&self) -> &'static str {
        "alds"
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for Alds {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check_all()?;
        group.channels()?;
        let factor =
            |target: &Target<'_>| self.factor(target, group.seed, group.par).in_tensor(target.name);
        let layers = group.targets.iter().map(factor).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}
