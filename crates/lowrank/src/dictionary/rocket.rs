use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, Gram, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Group, Method, Node, Result, Target,
    Usable,
};

use super::code::Code;
use super::{Atoms, kept, unless_larger};
use crate::factors::fitting;
use crate::levels::{Level, energy};
use crate::metric::{InputGram, Metric, Root, Weighing};
use crate::project::{Solver, exponent, power_of_two, scaled};
use crate::rank::Rank;

/// ROCKET's factors of a matrix (*Rapid Optimization via Calibration-guided Knapsack Enhanced Truncation for Efficient Model
/// Compression*, arXiv 2602.11008, 2026): W ~ C D, C `[out, atoms]` with as many numbers in each row, D `[atoms, in]`
/// dense, the atoms being leading directions of whitened weights.
///
/// One decomposition, one choice of entries, one least squares: nothing is iterated. Of each output those entries stay
/// that weigh most in the whitened space and in that of the weights (by the geometric mean of both); then D is fitted to
/// what stayed. By the identity of this crate's notes the whitening's inverse cancels, so that singular inputs will do.
/// Statistics that cannot be used: by the weights alone, and it says so. A matrix whose factors would take as many bytes
/// as itself stays dense, and says so.
///
/// ```
/// use tensorpress_lowrank::{Atoms, Rocket};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((64, 32), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 32), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let method = Rocket::new(Atoms::default().with_ratio(0.5));
/// let made = method.compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!((made.node.shape(), made.fallback), ([64, 32], None));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Rocket {
    /// Sizes and stored type.
    pub atoms: Atoms,
    /// How singular vectors are found. Default [`Solver::Auto`].
    pub solver: Solver,
}

impl Rocket {
    /// A dictionary of this size.
    #[must_use]
    pub fn new(atoms: Atoms) -> Self {
        Self { atoms, ..Self::default() }
    }

    /// Sets how singular vectors are found.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// What the matrix would take and lose with each of these ratios and spreads, stored as `source` says unless a type is
    /// set: what a knapsack over all matrices chooses from. One decomposition serves all.
    ///
    /// # Errors
    /// `InvalidArgument` naming the parameter, `MissingCalibration` without a Gram matrix, `ShapeMismatch`, `Numerical`
    /// for weights or statistics that cannot be decomposed.
    pub fn levels(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
        settings: &[(f64, f64)],
        source: DType,
        par: Par,
    ) -> Result<Vec<Level<(f64, f64)>>> {
        Target::new("weight", weight).check_finite()?;
        let settings: Vec<_> = settings
            .iter()
            .map(|&(ratio, spread)| {
                let atoms = self.atoms.with_number(0).with_ratio(ratio).with_spread(spread);
                atoms.check().map(|()| atoms)
            })
            .collect::<Result<_>>()?;
        let (weighing, _) = InputGram.weighing(calibration, par)?.or_else(|_| Weighing::plain());
        if weight.is_empty() {
            let nothing = |atoms: &Atoms| Level::new((atoms.ratio, atoms.spread), 0, 0.0);
            return Ok(settings.iter().map(nothing).collect());
        }
        let (out, inp) = weight.dim();
        let most = settings.iter().map(|atoms| atoms.sizes(inp, out, source)[0]).max();
        let weight = weight.as_standard_layout().into_owned();
        let whitened =
            Whitened::of(&weight, &weighing.root, most.unwrap_or(1), self.solver, 0, par)?;
        let level = |atoms: Atoms| {
            let (product, _) = whitened.factors(
                atoms.sizes(inp, out, source),
                atoms.dtype.unwrap_or(source),
                par,
            )?;
            let choice = (atoms.ratio, atoms.spread);
            Level::of(choice, &product, &weight, &weighing.root, par)
        };
        settings.into_iter().map(level).collect()
    }

    fn factor(&self, target: &Target<'_>, root: &Root, group: &Group<'_>) -> Result<Compressed> {
        target.check_finite()?;
        let weight = target.kept_weight().into_owned();
        if weight.is_empty() {
            return kept(target, &weight, "it is empty".to_owned());
        }
        let sizes = self.atoms.sizes(weight.ncols(), weight.nrows(), target.dtype);
        let dtype = self.atoms.dtype.unwrap_or(target.dtype);
        let (solver, seed, par) = (self.solver, group.seed, group.par);
        let made = Whitened::of(&weight, root, sizes[0], solver, seed, par)
            .and_then(|whitened| whitened.factors(sizes, dtype, par));
        match Usable::of(made)? {
            Usable::Yes((product, note)) => unless_larger(target, &weight, product, note),
            Usable::No(reason) if *root == Root::Identity => kept(target, &weight, reason),
            Usable::No(reason) => {
                let plain = self.factor(target, &Root::Identity, group)?;
                Ok(plain.with_note(Some(by_weights(&reason))))
            }
        }
    }
}

fn by_weights(why: &str) -> String {
    format!("{why}: factored by the error of the weights instead")
}

/// The leading directions of W S, and how long weights are along them.
struct Whitened<'a> {
    weight: &'a Array2<f32>,
    /// The power of two that weights are about as large as.
    own: i32,
    /// P `[out, atoms]`.
    directions: Array2<f32>,
    /// σ_j = ‖P_jᵀ W S‖.
    seen: Vec<f64>,
    /// ‖P_jᵀ W‖.
    lengths: Vec<f64>,
}

impl<'a> Whitened<'a> {
    fn of(
        weight: &'a Array2<f32>,
        root: &Root,
        atoms: usize,
        solver: Solver,
        seed: u64,
        par: Par,
    ) -> Result<Self> {
        let own = exponent(weight.iter());
        let usual = scaled(weight.view(), -own);
        let white = root.apply(scaled(weight.view(), -own - root.exponent()).view(), par)?;
        let (directions, _) = solver.directions(white.view(), Rank::Number(atoms), seed, par)?;
        let lengths = |m: ArrayView2<'_, f32>| {
            let mut along = Array2::zeros((directions.ncols(), m.ncols()));
            linalg::matmul_tn(directions.view(), m, along.view_mut(), false, par);
            along.rows().into_iter().map(|row| energy(row.iter()).sqrt()).collect::<Vec<f64>>()
        };
        let (seen, lengths) = (lengths(white.view()), lengths(usual.view()));
        Ok(Self { weight, own, directions, seen, lengths })
    }

    /// With so many atoms, and numbers in each code.
    fn factors(
        &self,
        [atoms, nonzeros]: [usize; 2],
        dtype: DType,
        par: Par,
    ) -> Result<(Product, Option<String>)> {
        let atoms = atoms.min(self.directions.ncols());
        // Columns as long as rows of D will be about, as in a projection.
        let mut full = self.directions.slice(s![.., ..atoms]).to_owned();
        for (mut column, length) in full.columns_mut().into_iter().zip(&self.lengths) {
            column.mapv_inplace(|v| (f64::from(v) * length.sqrt()) as f32);
        }
        // |V_ij| = |P_ij| σ_j and |V_ij| ‖S⁻¹u_j‖, where S⁻¹u_j = Wᵀ P_j / σ_j: their geometric mean.
        let importance: Vec<f64> = self
            .seen
            .iter()
            .zip(&self.lengths)
            .map(|(seen, length)| (seen * length).sqrt())
            .collect();
        let p = &self.directions;
        let importance =
            |row: usize, atom: usize| f64::from(p[[row, atom]].abs()) * importance[atom];
        let code = Code::largest(full.view(), importance, nonzeros.min(atoms));
        let usual = scaled(self.weight.view(), -self.own);
        let dictionary = code.dictionary(usual.view(), None, None, par)?;
        let back = power_of_two(self.own);
        let dictionary = dictionary.mapv(|v| (f64::from(v) * back) as f32);
        let (dtype, note) = fitting(dtype, dictionary.iter().chain(&code.values));
        let dense = Dense::from_f32(dictionary.view(), dtype)?.boxed();
        Ok((Product::new(code.node(false, dtype)?, dense)?, note))
    }
}

impl Knobs for Rocket {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.atoms.knobs(keys)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "a sparse factor times a dense one, from whitened weights by one least squares";
    Row::method("rocket", about, Rocket::default)
}

impl Method for Rocket {
    fn id(&self) -> &'static str {
        "rocket"
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs::of::<Gram>()
    }
}

impl Compress for Rocket {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.atoms.check()?;
        group.channels()?;
        let weighing = InputGram.weighing(&group.calibration, group.par)?;
        let (weighing, reason) = weighing.or_else(|_| Weighing::plain());
        let note = reason.as_deref().map(by_weights);
        let factor = |target: &Target<'_>| {
            let layer = self.factor(target, &weighing.root, &group).in_tensor(target.name)?;
            Ok(layer.with_note(note.clone()))
        };
        let layers = group.targets.iter().map(factor).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}
