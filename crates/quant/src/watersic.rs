mod path;
mod rate;
mod sweep;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::{Mask, StepFormat, Steps, Trellis};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, Needs, Supply};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, ErrorKind, Group, Method, Result,
    Target, Usable, kernels,
};

use path::Paths;
use sweep::Sweep;

use crate::factor::Factor;

/// Coded grids with feedback (WaterSIC; entropy-coded LDLQ): integers of any size on steps that make every weight's error
/// cost the same, to be entropy-coded ([`Steps`] under `coded`).
///
/// With A = E\[x xᵀ] = U D Uᵀ of the inputs, columns are rounded one after another to multiples of
/// delta / (sqrt(Dⱼ) sqrt(Gᵢᵢ)), each on the target that makes good for the errors before. G is the Fisher matrix of the
/// outputs, where a caller supplies it ([`Supply::OUTPUT_FISHER`], or its diagonal).
///
/// Never fails on singular or missing statistics: damping grows until there is a factor, a layer without statistics is
/// rounded without feedback, and says so.
///
/// ```
/// use tensorpress_quant::Watersic;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Watersic::bits(4.0).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Watersic {
    /// Bits a weight that each matrix is to take when it is coded. Default 3.
    pub bits: f32,
    /// The step where costs are 1, in place of `bits`: in the square root of nats a token where G is supplied, else of
    /// the output's energy. One delta for all matrices is the best division of bits among them.
    pub delta: Option<f32>,
    /// Damping of A in proportion to each diagonal entry. Default 0.01.
    pub damp: f32,
    /// Steps of columns. By default by what their errors cost.
    pub columns: ColumnSteps,
    /// Steps of rows. By default by G's diagonal where there is one.
    pub rows: RowSteps,
    /// Damping of G: of its diagonal's mean for steps (default 0.1), in proportion for feedback (default 1).
    pub gdamp: Option<f32>,
    /// States of the trellis along the rows of a column: 0 for none, 4, 8, 32 or 256. Default 8.
    pub states: usize,
    /// What a bit costs along the trellis, in squared steps. Default 0.1.
    pub lam: f32,
}

/// How the steps of columns differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ColumnSteps {
    /// By what an error in the column costs once later ones made good for it: 1 / sqrt(Dⱼ).
    #[default]
    Ldl,
    /// Not at all.
    Equal,
}

/// How the steps of rows differ, and whether rows feed each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RowSteps {
    /// As [`RowSteps::Diag`] where G is supplied, else [`RowSteps::None`] without a word.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// By the diagonal of G: 1 / sqrt(Gᵢᵢ).
    Diag,
    /// By the factor of G, whose rows take errors over from those before.
    Full,
}

impl Default for Watersic {
    fn default() -> Self {
        Self {
            bits: 3.0,
            delta: None,
            damp: 0.01,
            columns: ColumnSteps::default(),
            rows: RowSteps::default(),
            gdamp: None,
            states: 8,
            lam: 0.1,
        }
    }
}

impl Watersic {
    /// So many bits a weight in each matrix.
    #[must_use]
    pub fn bits(bits: f32) -> Self {
        Self { bits, ..Self::default() }
    }

    /// One step for all matrices, where costs are 1.
    #[must_use]
    pub fn delta(delta: f32) -> Self {
        Self { delta: Some(delta), ..Self::default() }
    }

    /// Sets the damping of A.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// Sets how the steps of columns differ.
    #[must_use]
    pub fn with_columns(mut self, columns: ColumnSteps) -> Self {
        self.columns = columns;
        self
    }

    /// Sets how the steps of rows differ.
    #[must_use]
    pub fn with_rows(mut self, rows: RowSteps) -> Self {
        self.rows = rows;
        self
    }

    /// Sets the damping of G.
    #[must_use]
    pub fn with_gdamp(mut self, gdamp: f32) -> Self {
        self.gdamp = Some(gdamp);
        self
    }

    /// Sets the trellis: its states (0 for none), and what a bit costs.
    #[must_use]
    pub fn with_trellis(mut self, states: usize, lam: f32) -> Self {
        (self.states, self.lam) = (states, lam);
        self
    }

    /// What errors in the outputs cost: of each row, and what rows feed each other.
    fn outputs(
        &self,
        target: &Target<'_>,
        inputs: &Factor,
        calibration: &Calibration,
        par: Par,
    ) -> Result<(Outputs, Option<String>)> {
        let supplied = match self.rows {
            RowSteps::None => Usable::no(""),
            _ => self.fisher(target, calibration, par)?,
        };
        let found = supplied.and_then(|g| self.costs(&g, par));
        Ok(match found {
            Usable::Yes(found) => found,
            Usable::No(reason) => {
                let wanted = matches!(self.rows, RowSteps::Diag | RowSteps::Full);
                let note = wanted.then(|| format!("{reason}: rows of equal steps"));
                (Outputs::equal(target, inputs), note)
            }
        })
    }

    /// G `[out, out]`, or its diagonal `[1, out]` where that will do.
    fn fisher(
        &self,
        target: &Target<'_>,
        calibration: &Calibration,
        par: Par,
    ) -> Result<Usable<Array2<f32>>> {
        let mut missing = None;
        for supply in [self.supply(), Supply::OUTPUT_FISHER] {
            match calibration.supplied(supply, target, par) {
                Err(e) if e.kind() == ErrorKind::MissingCalibration => missing = Some(e),
                other => return Usable::of(other),
            }
        }
        Ok(Usable::no(missing.map_or(String::new(), |e| e.message().to_owned())))
    }

    fn supply(&self) -> Supply {
        match self.rows {
            RowSteps::Full => Supply::OUTPUT_FISHER,
            _ => Supply::OUTPUT_FISHER_DIAGONAL,
        }
    }

    /// Costs by G `[out, out]` or its diagonal `[1, out]`.
    fn costs(&self, g: &Array2<f32>, par: Par) -> Usable<(Outputs, Option<String>)> {
        let whole = g.is_square();
        if self.rows == RowSteps::Full && whole {
            let damp = f64::from(self.gdamp.unwrap_or(1.0));
            return match Factor::of("output Fisher matrix", g.view(), 1.0, damp, par) {
                Ok(factor) => Usable::Yes((
                    Outputs { costs: factor.pivots, feedback: Some(factor.unit) },
                    factor.note,
                )),
                Err(e) => Usable::no(e.message()),
            };
        }
        let diagonal = if whole { g.diag() } else { g.row(0) };
        let diagonal: Vec<f64> = diagonal.iter().map(|v| f64::from(v.max(0.0))).collect();
        let mean = diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return Usable::no("its output Fisher matrix is 0");
        }
        // Rows that nothing was seen to depend on still cost something.
        let damp = f64::from(self.gdamp.unwrap_or(0.1)).max(1e-6) * mean;
        let costs = diagonal.into_iter().map(|g| g + damp).collect();
        let note = (self.rows == RowSteps::Full)
            .then(|| "only the diagonal of the output Fisher matrix: rows feed nothing".to_owned());
        Usable::Yes((Outputs { costs, feedback: None }, note))
    }

    fn quantize(
        &self,
        target: &Target<'_>,
        inputs: &Factor,
        outputs: &Outputs,
        par: Par,
    ) -> Result<(Steps, Option<String>)> {
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let half_log = |cost: &f64| -0.5 * cost.log2();
        let mut columns: Vec<f64> = inputs.pivots.iter().map(half_log).collect();
        if self.columns == ColumnSteps::Equal {
            let mean = columns.iter().sum::<f64>() / cols.max(1) as f64;
            columns.fill(mean);
        }
        let row_exponents: Vec<i32> =
            outputs.costs.iter().map(|cost| StepFormat::eighths(half_log(cost).exp2())).collect();
        let mut note = None;
        let mut paths = Trellis::new(self.states).map(Paths::new);
        if target.mask.is_some() && paths.take().is_some() {
            note = Some("masked: no trellis".to_owned());
        }
        let job = Job {
            weight: weight.view(),
            inputs: inputs.unit.view(),
            outputs: outputs.feedback.as_ref().map(|unit| unit.view()),
            columns: &columns,
            row_exponents: &row_exponents,
            paths: paths.as_ref().map(|paths| (paths, self.lam)),
            mask: target.mask,
            par,
        };
        let (codes, exponents) = match self.delta {
            Some(delta) => job.run(f64::from(delta).log2()),
            None => job.search(f64::from(self.bits)),
        };
        let mut codes = codes;
        if kernels::abs_max(weight.as_slice().expect("standard layout")) > NEAR_THE_END {
            stay_finite(&mut codes, &row_exponents, &exponents);
        }
        let codes = codes.as_slice().expect("made in standard layout");
        let leaf = StepFormat::leaf(codes, &row_exponents, &exponents)?;
        debug_assert_eq!(codes.len(), rows * cols);
        Ok((leaf, note))
    }
}

/// Weights beyond this may be rounded to what is no number of f32.
const NEAR_THE_END: f32 = 1e37;

/// Brings codes whose values would be infinite nearer to 0, by fours, so that they stay on their path.
fn stay_finite(codes: &mut Array2<i32>, rows: &[i32], columns: &[i32]) {
    for ((row, column), code) in codes.indexed_iter_mut() {
        let step = StepFormat::step(rows[row]) * StepFormat::step(columns[column]);
        while !(*code as f32 * step).is_finite() {
            *code -= 4 * code.signum();
        }
    }
}

/// What errors in a matrix's outputs cost.
#[derive(Debug)]
struct Outputs {
    /// A squared error of each, positive.
    costs: Vec<f64>,
    /// Unit upper: what rows feed each other.
    feedback: Option<Array2<f32>>,
}

impl Outputs {
    /// All alike, so that the outputs' mean energy is 1: errors are relative then.
    fn equal(target: &Target<'_>, inputs: &Factor) -> Self {
        let mut energy = 0.0f64;
        for row in target.kept_weight().rows() {
            let squares = row.iter().zip(&inputs.diagonal).map(|(w, a)| f64::from(*w).powi(2) * a);
            energy += squares.sum::<f64>();
        }
        let rows = target.weight.nrows();
        let cost = rows as f64 / energy;
        let cost = if cost.is_finite() && cost > 0.0 { cost } else { 1.0 };
        Self { costs: vec![cost; rows], feedback: None }
    }
}

/// A matrix to be rounded at one step or another.
#[derive(Debug, Clone, Copy)]
struct Job<'a> {
    weight: ArrayView2<'a, f32>,
    inputs: ArrayView2<'a, f32>,
    outputs: Option<ArrayView2<'a, f32>>,
    /// log2 of the columns' steps, where delta is 1.
    columns: &'a [f64],
    row_exponents: &'a [i32],
    paths: Option<(&'a Paths, f32)>,
    mask: Option<&'a Mask>,
    par: Par,
}

impl Job<'_> {
    /// Codes, and the exponents of the columns' steps.
    fn run(&self, delta_log2: f64) -> (Array2<i32>, Vec<i32>) {
        let exponent = |log2: &f64| StepFormat::eighths((log2 + delta_log2).exp2());
        let exponents: Vec<i32> = self.columns.iter().map(exponent).collect();
        let steps = |of: &[i32]| of.iter().map(|e| StepFormat::step(*e)).collect::<Vec<f32>>();
        let codes = Sweep {
            weight: self.weight.reborrow(),
            inputs: self.inputs.reborrow(),
            outputs: self.outputs.map(ArrayView2::reborrow),
            row_steps: &steps(self.row_exponents),
            column_steps: &steps(&exponents),
            paths: self.paths,
            mask: self.mask,
            par: self.par,
        }
        .run();
        (codes, exponents)
    }

    /// The codes that take nearest to `bits` a weight. Some rows find the step nearly, where rows do not feed each other; all
    /// of them find it.
    fn search(&self, bits: f64) -> (Array2<i32>, Vec<i32>) {
        let mut start = rate::first_guess(self, bits);
        let rows = self.weight.nrows();
        let pieces = rows.div_ceil(path::ROWS);
        if self.outputs.is_none() && self.mask.is_none() && pieces > 2 * rate::SOME {
            let piece = |n: usize| n * pieces / rate::SOME * path::ROWS;
            let chosen: Vec<usize> =
                (0..rate::SOME).flat_map(|n| piece(n)..(piece(n) + path::ROWS).min(rows)).collect();
            let weight = self.weight.select(Axis(0), &chosen);
            let row_exponents: Vec<i32> = chosen.iter().map(|r| self.row_exponents[*r]).collect();
            let few = Job {
                weight: weight.view(),
                inputs: self.inputs.reborrow(),
                outputs: None,
                columns: self.columns,
                row_exponents: &row_exponents,
                paths: self.paths,
                mask: None,
                par: self.par,
            };
            start = rate::search(&few, bits, start).0;
        }
        let (_, codes, exponents) = rate::search(self, bits, start);
        (codes, exponents)
    }
}

impl Knobs for Watersic {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "bits a weight of each matrix when it is coded, all counted";
        keys.float("bits", &mut self.bits, 0.05..=20.0, about)?;
        let about = "in place of bits: the step where costs are 1, the same for all matrices";
        keys.optional_float("delta", &mut self.delta, 1e-6..=1e6, about)?;
        let about = "added to the diagonal of the Gram matrix, in proportion to each entry";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        let names = [("ldl", ColumnSteps::Ldl), ("equal", ColumnSteps::Equal)];
        let about = "steps of columns: by the pivots of the Gram matrix, or equal";
        keys.choice("columns", &mut self.columns, &names, about)?;
        let names = [
            ("auto", RowSteps::Auto),
            ("none", RowSteps::None),
            ("diag", RowSteps::Diag),
            ("full", RowSteps::Full),
        ];
        let about = "steps of rows by the output Fisher matrix: its diagonal, or with feedback; auto: \
                     its diagonal if it is supplied";
        keys.choice("rows", &mut self.rows, &names, about)?;
        let about = "damping of the output Fisher matrix: 0.1 of the mean for steps, 1 in \
                     proportion for feedback";
        keys.optional_float("gdamp", &mut self.gdamp, 0.0..=1e6, about)?;
        let about = "states of the trellis along each column; 0 for none";
        keys.one_of("states", &mut self.states, &[0, 4, 8, 32, 256], about)?;
        let about = "what a bit costs along the trellis, in squared steps";
        keys.float("lam", &mut self.lam, 0.0..=10.0, about)
    }

    fn check(&self) -> Result<()> {
        let positive = |name, value: f32| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(Error::invalid(format!("{name} = {value}: allowed are positive numbers"))),
        };
        positive("bits", self.bits)?;
        self.delta.map_or(Ok(()), |delta| positive("delta", delta))?;
        let dampings =
            [("damp", self.damp), ("gdamp", self.gdamp.unwrap_or(0.0)), ("lam", self.lam)];
        for (name, value) in dampings {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 0 and more")));
            }
        }
        if self.states != 0 && !Trellis::STATES.contains(&self.states) {
            let states = self.states;
            let message = format!("states = {states}: allowed are 0, 4, 8, 32 and 256");
            return Err(Error::invalid(message));
        }
        Ok(())
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "watersic",
        "integers of any size on steps by what errors cost, with feedback; made to be coded",
        Watersic::default,
    )
}

impl Method for Watersic {
    fn id(&self) -> &'static str {
        "watersic"
    }

    fn needs(&self) -> Needs {
        let gram = Needs::GRAM.true_sequentially();
        match self.rows {
            RowSteps::None => gram,
            _ => gram | Needs::supplied(self.supply()),
        }
    }
}

impl Compress for Watersic {
    type Node = Steps;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<Steps>> {
        Knobs::check(self)?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let (inputs, reason) = Factor::of_inputs(&mut group, self.damp)?;
        let reason = reason.map(|reason| format!("{reason}: rounded without feedback"));
        let layers = group.targets.iter().map(|target| {
            let (outputs, rows) = self
                .outputs(target, &inputs, &group.calibration, group.par)
                .in_tensor(target.name)?;
            let (node, note) =
                self.quantize(target, &inputs, &outputs, group.par).in_tensor(target.name)?;
            Ok(Compressed::new(node)
                .with_fallback(reason.clone().or_else(|| inputs.note.clone()))
                .with_note(rows)
                .with_note(note))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
