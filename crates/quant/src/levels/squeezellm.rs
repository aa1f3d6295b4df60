use std::cmp::Ordering;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView1};
use tensorpress_tensor::node::{Dense, Mask, Masked, Sum, decode};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, Moments, Needs, Supply};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, ErrorKind, Group, Method, Node,
    Result, Target, Usable,
};

use super::LevelSpec;
use super::spec::wide_enough;

/// SqueezeLLM (Kim et al., 2023): the best levels of each row where a weight counts by how sensitive the loss is to it, the
/// diagonal of the Fisher matrix that a caller supplies; the largest and the most sensitive weights may stay as they are,
/// in a sparse term.
///
/// Without a supplied diagonal each weight counts by the energy of its input, the Gram matrix's diagonal; without that, all
/// count alike. Either is said in `fallback`.
///
/// ```
/// use tensorpress_quant::{LevelSpec, SqueezeLlm};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let method = SqueezeLlm::new(LevelSpec::new(3)).with_outliers(0.01);
/// let made = method.compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// assert!(made.fallback.is_some_and(|note| note.contains("no fisher was supplied")));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SqueezeLlm {
    /// Levels, and which rows share them.
    pub levels: LevelSpec,
    /// The largest weights that stay, as a fraction of the matrix, 0 to 0.5. Default 0.
    pub outliers: f64,
    /// The most sensitive weights that stay, as a fraction of the matrix, 0 to 0.5. Default 0.
    pub sensitive: f64,
    /// Stored type of what stays; f32 in its place where it cannot hold it well. Default f16.
    pub kept: DType,
}

impl Default for SqueezeLlm {
    fn default() -> Self {
        Self { levels: LevelSpec::default(), outliers: 0.0, sensitive: 0.0, kept: DType::F16 }
    }
}

impl SqueezeLlm {
    /// Tables as they are specified, and nothing that stays.
    #[must_use]
    pub fn new(levels: LevelSpec) -> Self {
        Self { levels, ..Self::default() }
    }

    /// Sets the fraction of the largest weights that stay.
    #[must_use]
    pub fn with_outliers(mut self, outliers: f64) -> Self {
        self.outliers = outliers;
        self
    }

    /// Sets the fraction of the most sensitive weights that stay.
    #[must_use]
    pub fn with_sensitive(mut self, sensitive: f64) -> Self {
        self.sensitive = sensitive;
        self
    }

    /// Sets the stored type of what stays.
    #[must_use]
    pub fn with_kept(mut self, kept: DType) -> Self {
        self.kept = kept;
        self
    }

    fn check(&self) -> Result<()> {
        self.levels.check()?;
        for (name, part) in [("outliers", self.outliers), ("sensitive", self.sensitive)] {
            if !(0.0..=0.5).contains(&part) {
                return Err(Error::invalid(format!("{name} = {part}: allowed are 0 to 0.5")));
            }
        }
        if !self.kept.is_float() {
            let message = format!("kept = {:?}: allowed are f16, bf16 and f32", self.kept);
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    fn compress_one(
        &self,
        target: &Target<'_>,
        calibration: &Calibration,
        par: Par,
    ) -> Result<Compressed> {
        target.check_finite()?;
        let (importance, mut note) = importance(target, calibration, par)?;
        let view = importance.as_ref().map(|importance| importance.view());
        if target.mask.is_some() || self.outliers + self.sensitive == 0.0 {
            if self.outliers + self.sensitive > 0.0 {
                let more = "nothing stays beside a support";
                note = Some(note.map_or(more.to_owned(), |note| format!("{note}; {more}")));
            }
            let table = self.levels.fit(target, view, par)?;
            return Ok(Compressed::new(table).boxed().with_fallback(note));
        }
        let stays = self.stays(target, importance.as_ref());
        // Tables are fitted to what is left, as if the rest had been pruned.
        let rest = Mask::from_bools(stays.mapv(|stays| !stays).view());
        let mut fitted = Target::new(target.name, target.weight.view());
        fitted.mask = Some(&rest);
        let table = self.levels.fit(&fitted, view, par)?;
        let mut left = target.weight.to_owned() - decode(&table)?;
        left.zip_mut_with(&stays, |left, stays| *left = if *stays { *left } else { 0.0 });
        let most = left.iter().fold(0f32, |most, left| most.max(left.abs()));
        let left = Dense::from_f32(left.view(), wide_enough(self.kept, most))?;
        let sparse = Masked::new(Mask::from_bools(stays.view()), left.boxed())?;
        let sum = Sum::new(vec![table.boxed(), sparse.boxed()]).in_tensor(target.name)?;
        Ok(Compressed::new(sum).boxed().with_fallback(note))
    }

    /// What stays: the most sensitive first, then the largest of the others; of equals the first.
    fn stays(&self, target: &Target<'_>, importance: Option<&Array2<f32>>) -> Array2<bool> {
        let (rows, cols) = target.weight.dim();
        let mut stays = vec![false; rows * cols];
        let many = |part: f64| (part * (rows * cols) as f64) as usize;
        if let Some(importance) = importance {
            mark_greatest(many(self.sensitive), importance.iter().copied(), &mut stays);
        }
        let sizes = target.weight.iter().map(|w| w.abs());
        mark_greatest(many(self.outliers), sizes, &mut stays);
        Array2::from_shape_vec((rows, cols), stays).expect("a flag each")
    }
}

/// Marks the `many` greatest of the values that are not marked.
fn mark_greatest(many: usize, values: impl Iterator<Item = f32>, marked: &mut [bool]) {
    let free = values.zip(&*marked).enumerate().filter(|(_, (_, marked))| !**marked);
    let mut free: Vec<(f32, usize)> = free.map(|(i, (value, _))| (value, i)).collect();
    let many = many.min(free.len());
    let order = |a: &(f32, usize), b: &(f32, usize)| match b.0.total_cmp(&a.0) {
        Ordering::Equal => a.1.cmp(&b.1),
        other => other,
    };
    if many > 0 && many < free.len() {
        free.select_nth_unstable_by(many, order);
    }
    free[..many].iter().for_each(|(_, i)| marked[*i] = true);
}

/// How much each weight counts, and why it is not what was asked for.
fn importance(
    target: &Target<'_>,
    calibration: &Calibration,
    par: Par,
) -> Result<(Option<Array2<f32>>, Option<String>)> {
    let reason = match calibration.supplied(Supply::FISHER, target, par) {
        Ok(fisher) => match fisher.indexed_iter().find(|(_, v)| **v < 0.0) {
            Some(((r, c), v)) => format!("the fisher's entry [{r}, {c}] is {v}"),
            None if fisher.iter().all(|v| *v == 0.0) => "the fisher is 0 everywhere".to_owned(),
            None => return Ok((Some(fisher), None)),
        },
        Err(e) if matches!(e.kind(), ErrorKind::MissingCalibration | ErrorKind::Numerical) => {
            e.message().to_owned()
        }
        Err(e) => return Err(e),
    };
    Ok(match energies(calibration, target.weight.ncols())? {
        Usable::Yes(energies) => {
            let energies = ArrayView1::from(&energies);
            let all = energies.broadcast(target.weight.dim()).expect("an energy a column");
            (
                Some(all.to_owned()),
                Some(format!("{reason}: weights count by their inputs' energies")),
            )
        }
        Usable::No(why) => (None, Some(format!("{reason}, {why}: all weights count alike"))),
    })
}

/// Mean squares of the inputs, from moments or the Gram matrix.
fn energies(calibration: &Calibration, channels: usize) -> Result<Usable<Vec<f32>>> {
    let tokens = calibration.tokens().max(1) as f64;
    let missing = |e: &Error| e.kind() == ErrorKind::MissingCalibration;
    let squares: Usable<Vec<f64>> = match calibration.usable::<Moments>() {
        Ok(moments) => moments.map(|moments| moments.sum_of_squares().to_vec()),
        Err(e) if missing(&e) => match calibration.gram() {
            Ok(gram) => {
                let diagonal = gram.diag().mapv(f64::from).to_vec();
                calibration.seen().map(|()| diagonal)
            }
            Err(e) if missing(&e) => Usable::no("no statistics of its inputs were collected"),
            Err(e) => Usable::of(Err(e))?,
        },
        Err(e) => return Err(e),
    };
    Ok(squares.and_then(|squares| {
        if squares.len() != channels {
            return Usable::no(format!("statistics are of {} inputs", squares.len()));
        }
        let energies: Vec<f32> = squares.iter().map(|sum| (sum / tokens) as f32).collect();
        match energies.iter().all(|energy| energy.is_finite() && *energy >= 0.0) {
            true if energies.iter().all(|energy| *energy == 0.0) => {
                Usable::no("its inputs are all zero")
            }
            true => Usable::Yes(energies),
            false => Usable::no("its inputs' energies are beyond f32"),
        }
    }))
}

impl Knobs for SqueezeLlm {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.levels.knobs(keys)?;
        let about = "fraction of the weights that stays: the largest";
        keys.float("outliers", &mut self.outliers, 0.0..=0.5, about)?;
        let about = "fraction of the weights that stays: the most sensitive";
        keys.float("sensitive", &mut self.sensitive, 0.0..=0.5, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("kept", &mut self.kept, &types, "stored type of what stays")
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "squeezellm",
        "rounds to the levels that lose least of each row where sensitive weights count more",
        SqueezeLlm::default,
    )
}

impl Method for SqueezeLlm {
    fn id(&self) -> &'static str {
        "squeezellm"
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS.union(Needs::supplied(Supply::FISHER))
    }
}

impl Compress for SqueezeLlm {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        group.channels()?;
        let one = |t: &Target<'_>| self.compress_one(t, &group.calibration, group.par);
        Ok(CompressedGroup::new(group.targets.iter().map(one).collect::<Result<_>>()?))
    }
}
