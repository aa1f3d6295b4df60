use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Moments, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, ErrorKind, Group, Method, Node, Result,
    Target, Usable,
};

use super::code::Code;
use super::pursuit::pursue;
use super::{Atoms, kept, unless_larger};
use crate::factors::fitting;
use crate::levels::energy;
use crate::project::{Solver, exponent, power_of_two, scaled};
use crate::rank::Rank;

/// DSFormer's factors (Chand et al., 2023): W ~ D S, D `[out, atoms]` small and dense, S `[atoms, in]` with as many numbers
/// in each column.
///
/// Fitted to the weights alone, or each input by how active it is: columns are coded by orthogonal matching pursuit, D by
/// least squares, in turn, from the leading singular directions. No step loses more than the one before. (The paper goes
/// on to train D and S on the task.) A matrix whose factors would take as many bytes as itself stays dense, and says so.
///
/// ```
/// use tensorpress_lowrank::{Atoms, DsFormer};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((32, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let method = DsFormer::new(Atoms::default().with_ratio(0.5)).with_scaled(false);
/// let made = method.compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!((made.node.shape(), made.fallback), ([32, 64], None));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DsFormer {
    /// Sizes and stored type.
    pub atoms: Atoms,
    /// Times that codes and dictionary are fitted. Default 8.
    pub rounds: usize,
    /// Errors of an input's weights count by its mean square over the calibration. Default true.
    pub scaled: bool,
    /// How singular vectors are found. Default [`Solver::Auto`].
    pub solver: Solver,
}

impl Default for DsFormer {
    fn default() -> Self {
        let (atoms, solver) = (Atoms::default(), Solver::default());
        Self { atoms, rounds: 8, scaled: true, solver }
    }
}

impl DsFormer {
    /// A dictionary of this size.
    #[must_use]
    pub fn new(atoms: Atoms) -> Self {
        Self { atoms, ..Self::default() }
    }

    /// Sets how often codes and dictionary are fitted.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets whether inputs count by how active they are.
    #[must_use]
    pub fn with_scaled(mut self, scaled: bool) -> Self {
        self.scaled = scaled;
        self
    }

    /// Sets how singular vectors are found.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// What each input counts, 1 on average; and why all count alike, if they do.
    fn activity(&self, group: &Group<'_>) -> Result<(Option<Vec<f64>>, Option<String>)> {
        if !self.scaled {
            return Ok((None, None));
        }
        let moments = match group.calibration.usable::<Moments>() {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            moments => moments?,
        };
        let squares = moments.and_then(|moments| {
            let squares = moments.sum_of_squares().mapv(|sum| sum.max(0.0));
            let mean = squares.mean().unwrap_or(0.0);
            match mean > 0.0 && mean.is_finite() {
                true => Usable::Yes(squares.mapv(|square| square / mean).to_vec()),
                false => Usable::no("all its inputs were zero"),
            }
        });
        Ok(match squares {
            Usable::Yes(squares) => (Some(squares), None),
            Usable::No(reason) => (None, Some(format!("{reason}: all inputs count alike"))),
        })
    }

    fn factor(
        &self,
        target: &Target<'_>,
        activity: Option<&[f64]>,
        group: &Group<'_>,
    ) -> Result<Compressed> {
        target.check_finite()?;
        let weight = target.kept_weight().into_owned();
        if weight.is_empty() {
            return kept(target, &weight, "it is empty".to_owned());
        }
        let own = exponent(weight.iter());
        let columns = scaled(weight.t(), -own).as_standard_layout().into_owned();
        let [atoms, nonzeros] = self.atoms.sizes(weight.nrows(), weight.ncols(), target.dtype);
        let fitted = self.fit(&columns, activity, atoms, nonzeros, group.seed, group.par);
        let (dictionary, mut code) = match Usable::of(fitted)? {
            Usable::Yes(fitted) => fitted,
            Usable::No(reason) => return kept(target, &weight, reason),
        };
        let back = power_of_two(own);
        code.values.iter_mut().for_each(|v| *v = (f64::from(*v) * back) as f32);
        let dtype = self.atoms.dtype.unwrap_or(target.dtype);
        let (dtype, note) = fitting(dtype, dictionary.iter().chain(&code.values));
        let dense = dictionary.t().as_standard_layout().into_owned();
        let dense = Dense::from_f32(dense.view(), dtype)?.boxed();
        unless_larger(target, &weight, Product::new(dense, code.node(true, dtype)?)?, note)
    }

    /// Atoms of length 1 `[atoms, length]` and codes for the vectors `[codes, length]`.
    fn fit(
        &self,
        vectors: &Array2<f32>,
        weights: Option<&[f64]>,
        atoms: usize,
        nonzeros: usize,
        seed: u64,
        par: Par,
    ) -> Result<(Array2<f32>, Code)> {
        let mut weighted = vectors.clone();
        if let Some(weights) = weights {
            for (mut row, weight) in weighted.axis_iter_mut(Axis(0)).zip(weights) {
                row.mapv_inplace(|v| (f64::from(v) * weight.sqrt()) as f32);
            }
        }
        let (first, _) = self.solver.directions(weighted.t(), Rank::Number(atoms), seed, par)?;
        let mut dictionary = first.t().as_standard_layout().into_owned();
        let nonzeros = nonzeros.min(dictionary.nrows());
        let mut code = pursue(vectors.view(), &dictionary, nonzeros, None, par);
        for round in 0..self.rounds {
            if round > 0 {
                code = pursue(vectors.view(), &dictionary, nonzeros, Some(&code), par);
            }
            dictionary = code.dictionary(vectors.view(), weights, Some(&dictionary), par)?;
            normalise(&mut dictionary, &mut code);
        }
        Ok((dictionary, code))
    }
}

/// Atoms of length 1; codes take the lengths over.
fn normalise(dictionary: &mut Array2<f32>, code: &mut Code) {
    let lengths: Vec<f64> =
        dictionary.rows().into_iter().map(|atom| energy(atom.iter()).sqrt()).collect();
    for (mut atom, length) in dictionary.rows_mut().into_iter().zip(&lengths) {
        if *length > 0.0 {
            atom.mapv_inplace(|v| (f64::from(v) / length) as f32);
        }
    }
    for (value, place) in code.values.iter_mut().zip(&code.places) {
        *value = (f64::from(*value) * lengths[*place as usize]) as f32;
    }
}

impl Knobs for DsFormer {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.atoms.knobs(keys)?;
        let about = "times that codes and dictionary are fitted in turn";
        keys.int("rounds", &mut self.rounds, 0..=1000, about)?;
        keys.flag("scaled", &mut self.scaled, "errors count by how active their inputs are")
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "a small dense factor times a sparse one, as many numbers in each of its columns";
    Row::method("dsformer", about, DsFormer::default)
}

impl Method for DsFormer {
    fn id(&self) -> &'static str {
        "dsformer"
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        if self.scaled { Needs::MOMENTS } else { Needs::NONE }
    }
}

impl Compress for DsFormer {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.atoms.check()?;
        let channels = group.channels()?;
        let (activity, note) = self.activity(&group)?;
        if let Some(known) = activity.as_ref().map(Vec::len).filter(|known| *known != channels) {
            return Err(Error::shape(format!("statistics of {known} inputs for {channels}")));
        }
        let factor = |target: &Target<'_>| {
            let layer = self.factor(target, activity.as_deref(), &group).in_tensor(target.name)?;
            Ok(layer.with_note(note.clone()))
        };
        let layers = group.targets.iter().map(factor).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }
}
