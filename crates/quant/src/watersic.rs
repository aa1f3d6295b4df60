mod job;
mod outputs;
mod path;
mod rate;
mod sweep;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{StepFormat, Steps, Trellis};
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Result, Target, kernels,
};

use job::Job;
use outputs::Outputs;
use path::Paths;

use tensorpress_tensor::obs::{Damping, Factor};

/// Coded grids with feedback (WaterSIC; entropy-coded LDLQ): integers of any size on steps that make every weight's error
/// cost the same, to be entropy-coded ([`Steps`] under `coded`).
///
/// With A = E\[x xᵀ] = U D Uᵀ of the inputs, columns are rounded one after another to multiples of
/// delta / (sqrt(Dⱼ) sqrt(Gᵢᵢ)), each on the target that makes good for the errors before. G is the Fisher matrix of the
/// outputs, where a caller supplies it ([`Supply::OUTPUT_FISHER`](tensorpress_tensor::stats::Supply::OUTPUT_FISHER),
/// or its diagonal).
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
    /// Bits a weight when it is coded: of all matrices of a model together, which then have one step in common
    /// ([`Method::shared_bits`]), or of each. Default 3.
    pub bits: f32,
    /// Each matrix is to take these bits, whatever it costs. Default false; always so where G is not asked for, and for a
    /// matrix alone.
    pub each: bool,
    /// The step where costs are 1, in place of `bits`: in the square root of nats a token where G is supplied, else of
    /// the output's energy. One delta for all matrices is the best division of bits among them.
    pub delta: Option<f32>,
    /// Damping of A. Default 0.1: of a calibration of some ten thousand tokens, feedback by less damped factors also makes
    /// good for what is only in these.
    pub damp: f32,
    /// What the damping of A is a part of. Default each entry of the diagonal.
    pub damping: Damping,
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
            each: false,
            delta: None,
            damp: 0.1,
            damping: Damping::default(),
            columns: ColumnSteps::default(),
            rows: RowSteps::default(),
            gdamp: None,
            states: 8,
            lam: 0.1,
        }
    }
}

impl Watersic {
    /// So many bits a weight.
    #[must_use]
    pub fn bits(bits: f32) -> Self {
        Self { bits, ..Self::default() }
    }

    /// Sets whether each matrix of a model is to take these bits, rather than all of them together.
    #[must_use]
    pub fn with_each(mut self, each: bool) -> Self {
        self.each = each;
        self
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

    /// Sets what the damping of A is a part of.
    #[must_use]
    pub fn with_damping(mut self, damping: Damping) -> Self {
        self.damping = damping;
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

    /// What is done to one matrix, and what is to be said about it.
    fn on<T>(
        &self,
        target: &Target<'_>,
        inputs: &Factor,
        outputs: &Outputs,
        par: Par,
        act: impl FnOnce(&Job<'_>) -> T,
    ) -> (T, Option<String>) {
        let weight = target.kept_weight();
        let cols = weight.ncols();
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
        (act(&job), note)
    }

    fn quantize(&self, job: &Job<'_>, step: Option<f64>) -> Result<Steps> {
        let (mut codes, exponents) = match self.delta.map(|delta| f64::from(delta).log2()).or(step)
        {
            Some(delta) => job.run(delta),
            None => job.search(f64::from(self.bits)),
        };
        if kernels::abs_max(job.weight.as_slice().expect("standard layout")) > NEAR_THE_END {
            stay_finite(&mut codes, job.row_exponents, &exponents);
        }
        let codes = codes.as_slice().expect("made in standard layout");
        StepFormat::leaf(codes, job.row_exponents, &exponents)
    }

    /// The factor of the inputs' matrix, or that of I and why.
    fn inputs_or_none(&self, group: &mut Group<'_>) -> Result<(Factor, Option<String>)> {
        Knobs::check(self)?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        Factor::of_inputs(group, self.damp, self.damping)
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

impl Knobs for Watersic {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "bits a weight of all matrices together when they are coded, all counted";
        keys.float("bits", &mut self.bits, 0.05..=20.0, about)?;
        let about = "each matrix takes these bits, not all of them together";
        keys.flag("each", &mut self.each, about)?;
        let about = "in place of bits: the step where costs are 1, the same for all matrices";
        keys.optional_float("delta", &mut self.delta, 1e-6..=1e6, about)?;
        let about = "added to the diagonal of the Gram matrix, a part of what `damping` says";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)?;
        let names = [("each", Damping::Each), ("mean", Damping::Mean)];
        let about = "what the damping is a part of: each entry of the diagonal, or their mean";
        keys.choice("damping", &mut self.damping, &names, about)?;
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

    fn shared_bits(&self) -> Option<f64> {
        let shared = !self.each && self.delta.is_none() && self.rows != RowSteps::None;
        shared.then_some(f64::from(self.bits))
    }

    fn loses_by_steps(&self) -> bool {
        true
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
        let (inputs, reason) = self.inputs_or_none(&mut group)?;
        let reason = reason.map(|reason| format!("{reason}: rounded without feedback"));
        let layers = group.targets.iter().map(|target| {
            let (outputs, rows) = self
                .outputs(target, &inputs, &group.calibration, group.par)
                .in_tensor(target.name)?;
            let (node, note) = self.on(target, &inputs, &outputs, group.par, |job| {
                self.quantize(job, target.step).in_tensor(target.name)
            });
            Ok(Compressed::new(node?)
                .with_fallback(reason.clone().or_else(|| inputs.note.clone()))
                .with_note(rows)
                .with_note(note))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }

    fn rates(&self, mut group: Group<'_>) -> Result<Vec<RateCurve>> {
        let (inputs, _) = self.inputs_or_none(&mut group)?;
        let curves = group.targets.iter().map(|target| {
            let (outputs, _) = self
                .outputs(target, &inputs, &group.calibration, group.par)
                .in_tensor(target.name)?;
            let bits = f64::from(self.bits);
            Ok(self.on(target, &inputs, &outputs, group.par, |job| job.curve(bits)).0)
        });
        curves.collect()
    }
}
