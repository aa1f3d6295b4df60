//! Linear layers that are compressed together.

use std::collections::BTreeMap;

use tensorpress_model::{LinearSpec, SharedInput, Source};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::rewrite::Role;
use tensorpress_tensor::stats::{Calibration, Needs, Supply};
use tensorpress_tensor::{
    Compressed, Context as _, DType, DynCompress, Error, Fold, Group, Node, Result, Target, Tensor,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Context;
use super::error::{self, Around};
use super::mix::{Tried, token_nanos};
use super::report::LayerReport;

/// Linear layers that share an input and a method.
pub(super) struct Job {
    pub(super) specs: Vec<LinearSpec>,
    method: usize,
    /// The norm that feeds these layers and no others, and what is added to its weight.
    norm: Option<(String, f32)>,
    /// The matrix that feeds them and no others, row by channel, and is compressed after them.
    feeder: Option<String>,
}

/// Factors that rows of matrices are still to be multiplied by, by the matrix's name.
pub(super) type Rows = BTreeMap<String, Vec<f32>>;

/// What became of a job.
#[derive(Default)]
pub(super) struct Output {
    pub(super) nodes: Vec<(String, Box<dyn Node>)>,
    /// Norm that scales were folded into, and corrected biases.
    pub(super) norms: Vec<Vector>,
    /// Scales that were folded into a matrix yet to be compressed.
    pub(super) rows: Rows,
    pub(super) biases: Vec<(String, Vector)>,
    pub(super) layers: Vec<LayerReport>,
}

/// New values of a stored vector.
#[derive(Clone)]
pub(super) struct Vector {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// As the stored type represents them.
    pub(super) values: Vec<f32>,
}

impl Vector {
    fn new(name: &str, dtype: DType, mut values: Vec<f32>) -> Self {
        values.iter_mut().for_each(|v| *v = dtype.round(*v));
        Self { name: name.to_owned(), dtype, values }
    }

    fn read(source: &Source, name: &str) -> Result<Self> {
        let tensor = source.checkpoint().tensor(name)?;
        let values = tensor.to_matrix().in_tensor(name)?.into_raw_vec_and_offset().0;
        Ok(Self { name: name.to_owned(), dtype: tensor.dtype(), values })
    }
}

impl Context<'_> {
    /// Different layers draw different random numbers.
    pub(super) fn seed_of(&self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// Names tensor and file in an error.
    pub(super) fn located(&self, error: Error, name: &str) -> Error {
        match self.source.checkpoint().file_of(name) {
            Some(file) => error.in_tensor(name).in_file(file),
            None => error.in_tensor(name),
        }
    }

    /// Calibration with what is supplied of weights.
    fn with_supplied(&self, calibration: Calibration) -> Calibration {
        match &self.supplied {
            Some(by) => calibration.with_supplied(by.clone()),
            None => calibration,
        }
    }

    /// The jobs of the layers that read one input.
    pub(super) fn jobs(&self, readers: &[LinearSpec], calibrated: bool) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        for spec in readers {
            let Some(method) = self.plan.index(&spec.name) else { continue };
            // What needs no statistics gains nothing from company, and one weight at a time is less memory.
            let alone = !calibrated || self.plan.method(method).method.needs().is_none();
            let company = |job: &&mut Job| job.method == method;
            match jobs.iter_mut().find(company).filter(|_| !alone) {
                Some(job) => job.specs.push(spec.clone()),
                None => {
                    let specs = vec![spec.clone()];
                    jobs.push(Job { specs, method, norm: None, feeder: None });
                }
            }
        }
        if let [job] = jobs.as_mut_slice() {
            let first = &job.specs[0];
            let norm = first.norm.clone().filter(|_| job.specs.len() == readers.len());
            job.norm = norm.map(|norm| (norm, first.norm_offset));
        }
        jobs
    }

    /// log2 of the step of a weight: its own, or that of its method.
    pub(super) fn step_of(&self, name: &str, method: usize) -> Option<f64> {
        self.own_steps.get(name).or_else(|| self.steps.get(&method)).copied()
    }

    /// The jobs of layers that read one input at a level of a mix, none of which folds anything into what stands before it.
    pub(super) fn jobs_at(&self, specs: &[LinearSpec], level: usize, calibrated: bool) -> Vec<Job> {
        let alone = !calibrated || self.plan.method(level).method.needs().is_none();
        match alone {
            true => specs.iter().map(|spec| Job::alone(spec.clone(), level)).collect(),
            false => {
                vec![Job { specs: specs.to_vec(), method: level, norm: None, feeder: None }]
            }
        }
    }

    /// What the methods of these jobs need; a few samples too, so that errors can be measured.
    pub(super) fn needs_of(&self, jobs: &[Job]) -> Needs {
        let needs = jobs.iter().map(|job| self.plan.method(job.method).method.needs());
        needs.fold(Needs::samples(error::INPUTS), Needs::union)
    }

    /// About the bytes of the statistics for these jobs.
    pub(super) fn bytes_of(&self, jobs: &[Job]) -> u64 {
        jobs.first().map_or(0, |job| self.needs_of(jobs).bytes(job.specs[0].shape[1]))
    }
}

impl Job {
    /// Finds what feeds a matrix channel by channel: values behind the attention's output matrix, unless heads share
    /// them; the factor that no activation stands behind before the matrix out of a gated network. It has to be
    /// compressed too, and later: only who reads the block as it was can come first.
    pub(super) fn find_feeder(&mut self, context: &Context<'_>, linears: &[LinearSpec]) {
        let [spec] = self.specs.as_slice() else { return };
        let of = |role: Role| {
            linears.iter().find(|other| other.role == role && other.expert == spec.expert)
        };
        let feeder = match spec.role {
            Role::O => of(Role::V),
            Role::Down => of(Role::Gate).and(of(Role::Up)),
            _ => None,
        };
        let fits = |feeder: &&LinearSpec| {
            feeder.shape[0] == spec.shape[1] && context.plan.index(&feeder.name).is_some()
        };
        let first = !context.plan.method(self.method).method.needs().true_sequential;
        self.feeder = feeder.filter(fits).filter(|_| first).map(|feeder| feeder.name.clone());
    }

    /// It has to come before what feeds it.
    pub(super) fn is_fed(&self) -> bool {
        self.feeder.is_some()
    }

    fn weights(&self, context: &Context<'_>, rows: &Rows) -> Result<Vec<Array2<f32>>> {
        let load = |spec: &LinearSpec| -> Result<Array2<f32>> {
            let read = || context.source.stored(spec)?.to_matrix();
            let mut weight = read().map_err(|e| context.located(e, &spec.name))?;
            for (mut row, factor) in
                weight.rows_mut().into_iter().zip(rows.get(&spec.name).into_iter().flatten())
            {
                row.mapv_inplace(|w| w * factor);
            }
            Ok(weight)
        };
        self.specs.iter().map(load).collect()
    }

    fn targets<'w>(&'w self, context: &Context<'_>, weights: &'w [Array2<f32>]) -> Vec<Target<'w>> {
        let targets = self.specs.iter().zip(weights).map(|(spec, w)| {
            Target::new(&spec.name, w.view())
                .with_dtype(context.source.dtype_of(spec).unwrap_or(DType::F32))
                .with_scores(matches!(spec.role, Role::Q | Role::K))
                .with_step(context.step_of(&spec.name, self.method))
        });
        targets.collect()
    }

    /// One layer alone.
    pub(super) fn alone(spec: LinearSpec, method: usize) -> Self {
        Self { specs: vec![spec], method, norm: None, feeder: None }
    }

    /// What errors in the outputs of a layer cost, where that is known.
    fn costs(&self, context: &Context<'_>, spec: &LinearSpec) -> Result<Option<Array2<f32>>> {
        let Some(by) = &context.supplied else { return Ok(None) };
        let costs = by.of_weights(Supply::OUTPUT_FISHER_DIAGONAL, &spec.name)?;
        Ok(costs.filter(|costs| costs.dim() == (1, spec.shape[0])))
    }

    /// What each layer takes and loses as the method of this job makes it; where it is `timed`, how long a token takes.
    pub(super) fn measure(
        &self,
        context: &Context<'_>,
        calibration: Calibration,
        timed: bool,
        par: Par,
    ) -> Result<Vec<(String, Tried)>> {
        let method = &context.plan.method(self.method).method;
        let made = self.make(context, calibration, method, par)?;
        let measure = |(name, layer, loss): (String, Compressed, f64)| {
            let bytes = context.length_of(&*layer.node).in_tensor(&name)?;
            let nanos = timed.then(|| token_nanos(layer.node)).transpose().in_tensor(&name)?;
            Ok((name, Tried { bytes, loss, nanos }))
        };
        made.into_iter().map(measure).collect()
    }

    /// Each layer as any method makes it, with its loss.
    pub(super) fn make(
        &self,
        context: &Context<'_>,
        calibration: Calibration,
        method: &dyn DynCompress,
        par: Par,
    ) -> Result<Vec<(String, Compressed, f64)>> {
        let weights = self.weights(context, &Rows::new())?;
        let inputs = calibration.samples().ok().map(error::spread);
        let result = method.compress_group_dyn(self.apart(context, &weights, calibration, par));
        let result = result.map_err(|e| self.located(context, e))?;
        let mut made = Vec::with_capacity(self.specs.len());
        for ((spec, weight), layer) in self.specs.iter().zip(&weights).zip(result.layers) {
            let costs = self.costs(context, spec)?;
            let costs = costs.as_ref().map(|costs| costs.row(0));
            let (node, bias) = (layer.node.as_ref(), layer.bias.as_deref());
            let inputs = inputs.as_ref().map(|x| x.view());
            let loss = error::loss(weight.view(), node, bias, inputs, costs, par);
            let loss = loss.in_tensor(&spec.name)?;
            made.push((spec.name.clone(), layer, loss));
        }
        Ok(made)
    }

    /// The group of these layers, none of which is folded into anything.
    fn apart<'w>(
        &'w self,
        context: &Context<'_>,
        weights: &'w [Array2<f32>],
        calibration: Calibration,
        par: Par,
    ) -> Group<'w> {
        Group {
            targets: self.targets(context, weights),
            calibration: context.with_supplied(calibration),
            fold: None,
            seed: context.seed_of(&self.specs[0].name),
            par,
        }
    }

    /// Names the layer and its file in an error; the first, if no layer is named.
    fn located(&self, context: &Context<'_>, error: Error) -> Error {
        let name = error.tensor().unwrap_or(&self.specs[0].name).to_owned();
        context.located(error, &name)
    }

    /// Number of the method.
    pub(super) fn method(&self) -> usize {
        self.method
    }

    /// Bits of these layers by the step.
    pub(super) fn rates(
        &self,
        context: &Context<'_>,
        calibration: Calibration,
        par: Par,
    ) -> Result<Vec<(String, RateCurve)>> {
        let weights = self.weights(context, &Rows::new())?;
        let method = &context.plan.method(self.method).method;
        let curves = method.rates_dyn(self.apart(context, &weights, calibration, par));
        let curves = curves.map_err(|e| self.located(context, e))?;
        Ok(self.specs.iter().map(|spec| spec.name.clone()).zip(curves).collect())
    }

    /// Compresses the layers of this job, rows first multiplied by what was folded into them.
    pub(super) fn run(
        &self,
        context: &Context<'_>,
        calibration: Calibration,
        rows: &Rows,
        par: Par,
    ) -> Result<Output> {
        let source = context.source;
        let calibration = context.with_supplied(calibration);
        let planned = context.plan.method(self.method);
        let weights = self.weights(context, rows)?;
        let inputs = calibration.samples().ok().map(error::spread);
        let offset = self.norm.as_ref().map_or(0.0, |(_, offset)| *offset);
        let read = |(name, offset): &(String, f32)| -> Result<Vector> {
            let mut norm = Vector::read(source, name)?;
            norm.values.iter_mut().for_each(|value| *value += offset);
            Ok(norm)
        };
        let norm = self.norm.as_ref().map(read).transpose()?;
        let ones = vec![1.0; self.specs[0].shape[1]];
        let fold = match &norm {
            Some(norm) => Some(Fold { values: &norm.values, dtype: norm.dtype }),
            None => self.feeder.as_ref().map(|_| Fold { values: &ones, dtype: DType::F32 }),
        };
        let first = self.specs[0].name.as_str();
        let group = Group {
            targets: self.targets(context, &weights),
            calibration,
            fold,
            seed: context.seed_of(first),
            par,
        };
        let result = planned.method.compress_group_dyn(group);
        let result = result.map_err(|e| self.located(context, e))?;
        let mut output = Output::default();
        let mut ratio = None;
        if let (Some(folded), Some(fold)) = (result.folded, fold) {
            let over = |(new, old): (&f32, &f32)| if *old == 0.0 { 0.0 } else { new / old };
            ratio = Some(folded.iter().zip(fold.values).map(over).collect::<Vec<f32>>());
            match (&norm, &self.feeder) {
                (Some(norm), _) => {
                    let stored = folded.iter().map(|value| value - offset).collect();
                    output.norms.push(Vector::new(&norm.name, norm.dtype, stored));
                }
                (None, Some(feeder)) => drop(output.rows.insert(feeder.clone(), folded)),
                (None, None) => {}
            }
        }
        for ((spec, weight), layer) in self.specs.iter().zip(&weights).zip(result.layers) {
            let factors = rows.get(&spec.name).map(Vec::as_slice);
            let bias = changed_bias(source, spec, factors, layer.bias.as_deref())?;
            let around = Around { ratio: ratio.as_deref(), bias: layer.bias.as_deref() };
            let inputs = inputs.as_ref().map(|x| x.view());
            let weight = weight.view();
            output.layers.push(report(
                &spec.name,
                &planned.text,
                weight,
                &layer,
                around,
                inputs,
                par,
            )?);
            output.biases.extend(bias.map(|bias| (spec.name.clone(), bias)));
            output.nodes.push((spec.name.clone(), layer.node));
        }
        Ok(output)
    }
}

/// The bias times the factors of its rows, plus a correction; nothing where neither changes it.
fn changed_bias(
    source: &Source,
    spec: &LinearSpec,
    factors: Option<&[f32]>,
    correction: Option<&[f32]>,
) -> Result<Option<Vector>> {
    if correction.is_none() && factors.is_none() {
        return Ok(None);
    }
    let mut bias = match source.stored_bias(spec)? {
        Some((dtype, values)) => Vector { name: spec.bias.clone(), dtype, values },
        None if correction.is_none() => return Ok(None),
        None => Vector::new(&spec.bias, source.dtype_of(spec)?, vec![0.0; spec.shape[0]]),
    };
    let factors = factors.unwrap_or_default();
    bias.values.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
    let correction = correction.unwrap_or_default();
    bias.values.iter_mut().zip(correction).for_each(|(v, c)| *v += c);
    Ok(Some(Vector::new(&spec.bias, bias.dtype, bias.values)))
}

/// The line of a report on one matrix.
pub(super) fn report(
    name: &str,
    method: &str,
    weight: ArrayView2<'_, f32>,
    layer: &Compressed,
    around: Around<'_>,
    inputs: Option<ArrayView2<'_, f32>>,
    par: Par,
) -> Result<LayerReport> {
    let error =
        error::relative(weight, layer.node.as_ref(), around, inputs, par).in_tensor(name)?;
    Ok(LayerReport {
        name: name.to_owned(),
        method: method.to_owned(),
        // Known when the shard is written: see `Written::unit`.
        bits_per_weight: 0.0,
        error,
        fallback: layer.fallback.clone(),
    })
}

/// The readers of each input of a block, in the order in which a token meets the inputs.
pub(super) fn readers(source: &Source, block: usize) -> Vec<(SharedInput, Vec<LinearSpec>)> {
    let mut readers: Vec<(SharedInput, Vec<LinearSpec>)> = Vec::new();
    for spec in source.linears(block) {
        match readers.iter_mut().find(|(input, _)| *input == spec.input) {
            Some((_, list)) => list.push(spec),
            None => readers.push((spec.input, vec![spec])),
        }
    }
    readers
}
