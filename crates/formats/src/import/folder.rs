//! The folder that others' folder would be if tensorpress had made it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, Files, Made, View};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Bytes, Checkpoint, Context as _, Error, Result};

use super::method::Method;
use super::weight::{Weight, stored};
use super::{affine, floats, levels, sparse};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// How the parts of a quantised layer are called.
const MARKS: [&str; 7] = [
    ".qweight",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".SCB",
    ".bitmask",
    ".weight_shape",
];
const STATES: [&str; 2] = [".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"];

/// What others have quantised, and how: what `config.json` says.
///
/// # Errors
/// Those of reading it, and of [`Method::read`]; each names the file.
pub fn method_of(files: &dyn Files) -> Result<Option<Method>> {
    Ok(read(files)?.and_then(|(_, method)| method))
}

/// `config.json`, and what it says of quantisation.
fn read(files: &dyn Files) -> Result<Option<(Json, Option<Method>)>> {
    if !files.contains(CONFIG) {
        return Ok(None);
    }
    let text = files.read(CONFIG)?;
    // What is wrong with a config is for its readers to say.
    let Ok(config) = serde_json::from_slice::<Json>(&text) else { return Ok(None) };
    let method = match &config["quantization_config"] {
        Json::Null => None,
        quantization => Method::read(quantization).in_file(&files.path(CONFIG))?,
    };
    Ok(Some((config, method)))
}

/// The same folder where its weights are floats or ours; else a view of it in which they are nodes of ours over the stored
/// bytes, and `config.json` says nothing of others' quantisation. Parts are read, or made, when they are asked for.
///
/// # Errors
/// As [`method_of`]; those of opening the folder's weights; for layers that contradict their scheme those of their format,
/// naming tensor and file.
pub fn as_ours(files: Arc<dyn Files>) -> Result<Arc<dyn Files>> {
    let Some((mut config, Some(method))) = read(&*files)? else { return Ok(files) };
    let checkpoint = Checkpoint::open_in(&*files)?;
    if layers(&checkpoint).is_empty() {
        // Weights are not what the config says; its readers tell what is wrong.
        return Ok(files);
    }
    let path = checkpoint.files().next().map_or_else(|| files.path(WEIGHTS), Into::into);
    let weights = view(&checkpoint, &method).in_file(&path)?;
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
    }
    let config = serde_json::to_vec_pretty(&config).expect("a value is JSON");
    Ok(Arc::new(Ours {
        hidden: checkpoint.files().map(PathBuf::from).collect(),
        files,
        config: config.into(),
        weights,
    }))
}

/// Which layers are quantised, in the order of their names.
fn layers(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let mut layers = BTreeSet::new();
    for name in checkpoint.names() {
        let of_mark = MARKS.iter().find_map(|mark| name.strip_suffix(mark));
        let of_state = STATES.iter().find_map(|mark| name.strip_suffix(mark));
        let of_state = of_state.map(|tensor| tensor.strip_suffix(".weight").unwrap_or(tensor));
        let found = of_mark.or(of_state);
        layers.extend(found.map(|layer| layer.strip_suffix(".weight").unwrap_or(layer).to_owned()));
    }
    layers
}

/// Parts that a node does without, or that are within it.
const CONSUMED: [&str; 19] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "scale_packed",
    "meta",
    "SCB",
    "weight_format",
    "shape",
    "compressed",
    "bitmask",
];

fn layer(of: &Checkpoint, layer: &str, method: &Method) -> Result<Weight> {
    let has = |part: &str| of.contains(&format!("{layer}.{part}"));
    match method {
        Method::Gptq { bits, group, version } => affine::gptq(of, layer, *bits, *group, *version),
        Method::Awq { layout, group } => affine::awq(of, layer, *layout, *group),
        Method::Fp8 { tile } => floats::float_quantized(of, layer, "weight_scale_inv", Some(*tile)),
        Method::BitsAndBytes => {
            let weight = format!("{layer}.weight");
            let states = STATES.map(|state| format!("{weight}{state}"));
            match states.iter().find(|state| of.contains(state)) {
                Some(state) => levels::four_bits(of, &weight, state),
                None => levels::int8(of, layer),
            }
        }
        Method::CompressedTensors { schemes, dense } => {
            if has("weight.bitmask") {
                let weight = format!("{layer}.weight");
                sparse::bitmask(of, &weight, weight.clone())
            } else if has("bitmask") {
                sparse::bitmask(of, layer, format!("{layer}.weight"))
            } else if has("meta") {
                affine::marlin24(of, layer, schemes)
            } else if has("weight_global_scale") {
                floats::nvfp4(of, layer)
            } else if has("weight_shape") {
                affine::pack_quantized(of, layer, schemes, *dense)
            } else if of.dtype_name(&format!("{layer}.weight_scale")) == Some("U8") {
                floats::mx(of, layer)
            } else if of.dtype_name(&format!("{layer}.weight")) == Some("I8") {
                affine::int_quantized(of, layer, schemes)
            } else if has("weight") && has("weight_scale") {
                floats::float_quantized(of, layer, "weight_scale", floats::tile_of(schemes))
            } else {
                let what = "parts that no scheme of compressed-tensors has";
                Err(Error::unsupported(what).in_tensor(layer))
            }
        }
    }
}

/// All tensors under the names that ours have.
fn view(checkpoint: &Checkpoint, method: &Method) -> Result<Arc<dyn ByteSource>> {
    let mut tensors: BTreeMap<String, Made> = BTreeMap::new();
    let mut trees = serde_json::Map::new();
    let layers = layers(checkpoint);
    for name in &layers {
        let weight = layer(checkpoint, name, method)?;
        for (part, made) in weight.parts {
            let full = match part {
                "" => weight.name.clone(),
                part => format!("{}.{part}", weight.name),
            };
            tensors.insert(full, made);
        }
        trees.extend(weight.tree.map(|tree| (weight.name, tree)));
    }
    for name in checkpoint.names().filter(|name| !is_consumed(name, &layers)) {
        tensors.insert(name.to_owned(), stored(checkpoint, name)?);
    }
    let mut metadata: BTreeMap<String, String> =
        checkpoint.metadata().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    if !trees.is_empty() {
        metadata.insert("tensorpress".into(), Json::Object(trees).to_string());
    }
    let behind = checkpoint.sources().cloned().collect();
    Ok(Arc::new(View::new(&metadata, tensors, behind).whole()))
}

/// Whether a stored tensor is a part of a quantised layer, in the node or for other programs' kernels alone.
fn is_consumed(name: &str, layers: &BTreeSet<String>) -> bool {
    let within = |(at, _): (usize, &str)| {
        let (layer, part) = (&name[..at], &name[at + 1..]);
        let part = part.strip_prefix("weight.").map_or(part, |_| "weight");
        layers.contains(layer) && CONSUMED.contains(&part)
    };
    name.match_indices('.').any(within)
}

/// The view of a folder.
#[derive(Debug)]
struct Ours {
    files: Arc<dyn Files>,
    /// What the view stands for.
    hidden: Vec<PathBuf>,
    config: Bytes,
    weights: Arc<dyn ByteSource>,
}

impl Ours {
    /// Weights and their index are not what they were.
    fn is_hidden(&self, name: &str) -> bool {
        name == WEIGHTS
            || name.ends_with(".safetensors.index.json")
            || self.hidden.contains(&self.files.path(name))
    }
}

impl Files for Ours {
    fn names(&self) -> Result<Vec<String>> {
        let mut names = self.files.names()?;
        names.retain(|name| !self.is_hidden(name));
        names.push(WEIGHTS.to_owned());
        names.sort();
        Ok(names)
    }

    fn below(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut paths = self.files.below(wanted)?;
        paths.retain(|path| !self.is_hidden(path));
        paths.extend(wanted(WEIGHTS).then(|| WEIGHTS.to_owned()));
        paths.sort();
        Ok(paths)
    }

    fn contains(&self, name: &str) -> bool {
        name == WEIGHTS || !self.is_hidden(name) && self.files.contains(name)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        match name {
            WEIGHTS => Ok(self.weights.clone()),
            CONFIG => Ok(Arc::new(self.config.clone())),
            _ => self.files.open(name),
        }
    }

    /// Weights are said to lie in the first of their files.
    fn path(&self, name: &str) -> PathBuf {
        match (name, self.hidden.first()) {
            (WEIGHTS, Some(first)) => first.clone(),
            _ => self.files.path(name),
        }
    }
}
