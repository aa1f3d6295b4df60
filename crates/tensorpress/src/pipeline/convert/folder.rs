//! Conversions to a folder, a shard for each block.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tensorpress_formats::gptq::Version;
use tensorpress_formats::repacked;
use tensorpress_model::Source;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::{Context as _, DType, Error, Node, RawTensor, Result, Tensor};

use super::layers::{self, Kind, Scheme};
use super::{ConversionReport, Convert, Converted, Event, Target};
use crate::pipeline::finish::{assemble, config, publish};
use crate::pipeline::folder::{self, Work};
use crate::pipeline::regroup::regroup;
use crate::pipeline::shard::{self, Item};
use crate::pipeline::side::Side;
use crate::pipeline::state::Identity;

/// What is to be done to the model's matrices.
struct Plan {
    /// Those of blocks, by name: what others' folders quantise.
    linears: BTreeSet<String>,
    /// Of others' folders.
    scheme: Option<Scheme>,
    /// Modules that stay floats.
    ignored: Vec<String>,
    /// What readers do not take.
    notes: Vec<String>,
}

pub(super) fn convert(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
) -> Result<ConversionReport> {
    folder::check_target(out, source, job.force)?;
    let plan = plan(job, source)?;
    let side = Side::of(source, out)?.notes;
    let identity = Identity::of_job(source, job.identity()?)?;
    let mut work = Work::open(job.folder(out), identity, source.checkpoint(), job.force)?;
    let done = write(job, source, out, &plan, &mut work);
    let mut report = work.ended(done)?;
    report.notes.extend(plan.notes);
    report.notes.extend(side);
    Ok(report)
}

fn plan(job: &Convert<'_>, source: &Source) -> Result<Plan> {
    if source.config().shapes.is_some() && job.target != Target::Tensorpress {
        let what = "blocks of this model have shapes of their own, for which others have no key";
        return Err(Error::unsupported(format!(
            "{what}: allowed is {}",
            Target::Tensorpress.name()
        )));
    }
    let specs = (0..source.blocks()).flat_map(|block| source.linears(block));
    let linears: BTreeSet<String> = specs.map(|spec| spec.name).collect();
    let ours = matches!(job.target, Target::Tensorpress | Target::Safetensors);
    if ours {
        return Ok(Plan { linears, scheme: None, ignored: Vec::new(), notes: Vec::new() });
    }
    let mut kinds = Vec::with_capacity(linears.len());
    let mut widths = Vec::with_capacity(linears.len());
    for name in &linears {
        job.check_cancelled()?;
        if !source.trees().contains_key(name) && !source.checkpoint().contains(name) {
            let what = "lies in a stack of matrices, which others' folders do not quantise";
            return Err(Error::unsupported(what).in_tensor(name));
        }
        let node = source.weight(name)?;
        kinds.push((name.clone(), layers::kind(job.target, &*node).in_tensor(name)?));
        widths.push(node.shape()[1]);
        source.checkpoint().release();
    }
    let scheme = layers::scheme(job.target, &kinds, &widths, job.requantize)?;
    let mut ignored = Vec::new();
    for (name, kind) in &kinds {
        let plain = *kind == Kind::Other && !job.requantize;
        if plain && !source.trees().contains_key(name) {
            if matches!(job.target, Target::Gptq(_)) {
                let what = "is floats beside quantised layers, which GPTQ's folders do not have: requantise";
                return Err(Error::unsupported(what).in_tensor(name));
            }
            ignored.push(name.strip_suffix(".weight").unwrap_or(name).to_owned());
        }
    }
    // Readers that are told of some modules leave no others out, nor the head.
    if source.has_head() && !matches!(job.target, Target::Gptq(_)) {
        ignored.push("lm_head".to_owned());
    }
    let mut notes = Vec::new();
    if job.target == Target::Gptq(Version::V1) && !scheme.symmetric {
        let what =
            "GPTQModel reads zero points in gptq_v2 alone; auto-gptq and those after it read both";
        notes.push(what.to_owned());
    }
    Ok(Plan { linears, scheme: Some(scheme), ignored, notes })
}

fn write(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
    plan: &Plan,
    work: &mut Work,
) -> Result<ConversionReport> {
    work.begin(source.blocks())?;
    let shard_of = |name: &str| source.block_of(name).map_or(0, |block| block + 1);
    let trees: Vec<&String> = source.trees().keys().collect();
    let is_part = |name: &str| {
        let whole = source.trees().contains_key(name);
        whole || name.match_indices('.').any(|(at, _)| source.trees().contains_key(&name[..at]))
    };
    let resumed = work.units().len();
    job.tell(Event::Begun { blocks: source.blocks(), resumed: resumed.saturating_sub(1) });
    for index in resumed..work.shards() {
        job.check_cancelled()?;
        if index > 0 {
            job.tell(Event::Block { block: index - 1, blocks: source.blocks() });
        }
        let mut made = Made::default();
        for name in trees.iter().filter(|name| shard_of(name) == index) {
            made.add(job, source, plan, name).in_tensor(name.as_str())?;
        }
        let names = source.checkpoint().names();
        for name in names.filter(|name| shard_of(name) == index && !is_part(name)) {
            made.add_plain(job, source, plan, name).in_tensor(name)?;
        }
        let mut items: Vec<Item<'_>> = Vec::new();
        for (name, node) in &made.nodes {
            items.push(Item::Compressed { name: name.clone(), node: &**node, announced: None });
        }
        let tensors = made.tensors.into_iter();
        items.extend(tensors.map(|(name, tensor)| Item::Made { name, tensor }));
        items.extend(made.copied.into_iter().map(Item::Copied));
        let written = shard::write(&work.shard(index), source, &items)?;
        let mut unit = written.unit(Vec::new());
        unit.converted = made.report;
        work.finished(unit)?;
        source.checkpoint().release();
    }
    let mut report = job.report(source);
    report.tensors = work.units().iter().flat_map(|unit| unit.converted.clone()).collect();
    report.bytes_after = match job.shard_size {
        Some(most) => regroup(work, most, &mut |block, blocks| {
            job.check_cancelled()?;
            job.tell(Event::Block { block, blocks });
            Ok(())
        })?,
        None => work.units().iter().map(|unit| unit.bytes).sum(),
    };
    assemble(work, source, out, &said(job, source, plan)?)?;
    publish(work, out, job.force)?;
    Ok(report)
}

/// `config.json`.
fn said(job: &Convert<'_>, source: &Source, plan: &Plan) -> Result<Value> {
    let ours = !source.trees().is_empty() || source.config().shapes.is_some();
    if job.target == Target::Tensorpress && ours {
        return config(source);
    }
    let mut config = source.raw_config().clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
        if let (Some(scheme), false) = (plan.scheme, config.is_empty()) {
            let said = layers::config(job.target, scheme, &plan.ignored);
            config.insert("quantization_config".into(), said);
        }
        let name = job.dtype.map(|dtype| match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        });
        if let (Some(name), Target::Safetensors) = (name, job.target) {
            config.insert("torch_dtype".into(), json!(name));
        }
    }
    Ok(config)
}

/// What a shard will hold.
#[derive(Default)]
struct Made {
    nodes: Vec<(String, Box<dyn Node>)>,
    tensors: Vec<(String, RawTensor)>,
    copied: Vec<String>,
    report: Vec<Converted>,
}

fn node_name(source: &Source, name: &str) -> String {
    let tree = source.trees().get(name);
    let of = |tree: &Value| {
        let node = tree["node"].as_str().unwrap_or("a node").to_owned();
        tree["type"].as_str().map_or(node, str::to_owned)
    };
    tree.map_or_else(|| source.checkpoint().dtype_name(name).unwrap_or("?").to_owned(), of)
}

impl Made {
    fn note(&mut self, source: &Source, name: &str, to: &str, error: Option<f64>, lossless: bool) {
        let from = node_name(source, name);
        let (name, to) = (name.to_owned(), to.to_owned());
        self.report.push(Converted { name, from, to, lossless, error });
    }

    /// A matrix that is quantised.
    fn add(&mut self, job: &Convert<'_>, source: &Source, plan: &Plan, name: &str) -> Result<()> {
        let node = source.weight(name)?;
        let scheme = plan.scheme.filter(|_| plan.linears.contains(name));
        match (job.target, scheme) {
            (Target::Tensorpress, _) => {
                let node = repacked(node)?;
                let to = node.describe()["node"].as_str().unwrap_or_default().to_owned();
                self.note(source, name, &to, None, true);
                self.nodes.push((name.to_owned(), node));
            }
            (target, Some(scheme)) => self.layer(target, job, source, scheme, name, node)?,
            (_, None) => {
                let dtype = if job.target == Target::Safetensors { job.dtype } else { None };
                self.floats(source, name, &*node, dtype)?;
            }
        }
        Ok(())
    }

    fn layer(
        &mut self,
        target: Target,
        job: &Convert<'_>,
        source: &Source,
        scheme: Scheme,
        name: &str,
        node: Box<dyn Node>,
    ) -> Result<()> {
        let to = target.name();
        match layers::tensors(target, scheme, name, &*node) {
            Ok(tensors) => {
                self.tensors.extend(tensors);
                self.note(source, name, &to, None, true);
            }
            Err(e) if !job.requantize => return Err(e),
            Err(_) => {
                let (node, error) = layers::rounded(target, scheme, name, &*node)?;
                self.tensors.extend(layers::tensors(target, scheme, name, &*node)?);
                self.note(source, name, &to, error, false);
            }
        }
        Ok(())
    }

    /// A decoded matrix: in this type, or in the narrowest that holds it exactly.
    fn floats(
        &mut self,
        source: &Source,
        name: &str,
        node: &dyn Node,
        dtype: Option<DType>,
    ) -> Result<()> {
        let weight = decode(node)?;
        let exact = |dtype: &DType| weight.iter().all(|v| dtype.round(*v).to_bits() == v.to_bits());
        let narrowest = || [DType::F16, DType::BF16].into_iter().find(&exact).unwrap_or(DType::F32);
        let dtype = dtype.unwrap_or_else(narrowest);
        let tensor = RawTensor::from_f32(weight.view().into_dyn(), dtype)?;
        let lossless = dtype == DType::F32 || exact(&dtype);
        let error = match lossless {
            true => None,
            false => layers::relative(&weight, &tensor.to_matrix()?),
        };
        self.note(source, name, dtype.name(), error, lossless);
        self.tensors.push((name.to_owned(), tensor));
        Ok(())
    }

    /// A tensor that is stored as it is.
    fn add_plain(
        &mut self,
        job: &Convert<'_>,
        source: &Source,
        plan: &Plan,
        name: &str,
    ) -> Result<()> {
        let checkpoint = source.checkpoint();
        let is_float = checkpoint.dtype(name).is_ok_and(|dtype| dtype.is_float());
        let rounded = plan.scheme.filter(|_| job.requantize && plan.linears.contains(name));
        if let Some(scheme) = rounded.filter(|_| is_float) {
            return self.layer(job.target, job, source, scheme, name, source.weight(name)?);
        }
        let dtype = job.dtype.filter(|_| job.target == Target::Safetensors && is_float);
        let Some(dtype) = dtype.filter(|dtype| checkpoint.dtype(name).ok() != Some(*dtype)) else {
            self.copied.push(name.to_owned());
            return Ok(());
        };
        let stored = checkpoint.tensor(name)?;
        let values = stored.to_matrix()?;
        let mut bytes = Vec::new();
        let flat: Vec<f32> = values.iter().copied().collect();
        dtype.write_f32(&flat, &mut bytes)?;
        let tensor = RawTensor::new(dtype, stored.shape().to_vec(), bytes.into())?;
        let got = tensor.to_matrix()?;
        let lossless = values.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
        let error = if lossless { None } else { layers::relative(&values, &got) };
        self.note(source, name, dtype.name(), error, lossless);
        self.tensors.push((name.to_owned(), tensor));
        Ok(())
    }
}
