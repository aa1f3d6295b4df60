//! `tensorpress inspect`

use serde::Serialize;
use tensorpress::bill::{Bill, LayerBill};
use tensorpress::model::{Config, Source};
use tensorpress::tensor::Storage;

use crate::args::Inspect;
use crate::failure::{Failure, Outcome};
use crate::open::{open, packed};
use crate::output::{bytes, itemised, print, print_json, shown, table};

mod container;

#[derive(Serialize)]
struct Inspection<'a> {
    /// Nothing where nothing is known but the tensors.
    config: Option<&'a Config>,
    parameters: u64,
    file_bytes: u64,
    bits_per_weight: f64,
    storage: &'a Storage,
    uncompressed_bytes: u64,
    container_bytes: u64,
    tensors: Vec<Stored>,
    compressed: &'a [LayerBill],
}

/// A tensor that is stored as it is.
#[derive(Serialize)]
struct Stored {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

pub(crate) fn run(args: &Inspect) -> Outcome {
    if let Some(packed) = packed(&args.model, args.base.as_deref())? {
        return container::run(args, &packed);
    }
    let opened = open(&args.model, None)?;
    let bill = opened.unmoved(Bill::of(&opened.source).map_err(Failure::from))?;
    let found = inspect(&opened.source, &bill);
    if args.json { print_json(&found) } else { print(&describe(&found, &bill)) }
}

fn inspect<'a>(source: &'a Source, bill: &'a Bill) -> Inspection<'a> {
    let tensors = stored(source, bill);
    let parameters = bill.weights
        + tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum::<u64>();
    Inspection {
        config: source.unknown().is_none().then(|| source.config()),
        parameters,
        file_bytes: bill.file_bytes,
        bits_per_weight: bill.bits_per_weight,
        storage: &bill.storage,
        uncompressed_bytes: bill.uncompressed_bytes,
        container_bytes: bill.container_bytes,
        tensors,
        compressed: &bill.layers,
    }
}

/// Tensors that are no parts of compressed weights.
fn stored(source: &Source, bill: &Bill) -> Vec<Stored> {
    let checkpoint = source.checkpoint();
    let part = |name: &str| {
        let of = |layer: &LayerBill| {
            name.strip_prefix(layer.name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        bill.layers.iter().any(of)
    };
    let stored = |name: &str| {
        // Also of a type that is not read here.
        let dtype = checkpoint.dtype_name(name).unwrap_or_default().to_owned();
        let shape = checkpoint.shape(name).unwrap_or_default().to_vec();
        let bytes = checkpoint.stored_bytes(name).unwrap_or(0);
        Stored { name: name.to_owned(), dtype, shape, bytes }
    };
    checkpoint.names().filter(|name| !part(name)).map(stored).collect()
}

fn describe(found: &Inspection<'_>, bill: &Bill) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row =
        |name: &str, value: String| rows.push(vec![name.to_owned(), format!("  {value}")]);
    let architecture = found.config.map(|config| format!("{:?}", config.architecture));
    row("architecture", architecture.map_or("unknown".to_owned(), |name| name.to_lowercase()));
    row("parameters", found.parameters.to_string());
    if let Some(config) = found.config {
        let towers = config.towers.as_deref();
        let towers = towers.map(|[texts, images]| {
            format!(": {} of texts, {} of images", texts.blocks, images.blocks)
        });
        row("blocks", format!("{}{}", config.blocks, towers.unwrap_or_default()));
        let shapes = || (0..config.blocks).map(|block| config.shape(block));
        let inner = range(shapes().map(|shape| shape.intermediate));
        let hidden: Vec<usize> =
            (0..config.stacks().len()).map(|stack| config.stack(stack).hidden).collect();
        let hidden = range(hidden.iter().copied());
        let inside = if config.heads > 0 { "feed-forward" } else { "inside blocks" };
        row("hidden", format!("{hidden}, {inside} {inner}"));
        let heads = range(shapes().map(|shape| shape.heads));
        let kv_heads = range(shapes().map(|shape| shape.kv_heads));
        if config.heads > 0 {
            let width = config.head_dim;
            row("heads", format!("{heads} of width {width}, {kv_heads} for keys and values"));
        }
        if config.vocab > 0 {
            row(
                "vocabulary",
                format!("{}{}", config.vocab, if config.tied { ", tied" } else { "" }),
            );
        }
        if let Some(images) = config.images {
            let (size, patch) = (images.size, images.patch);
            row("images", format!("{size} x {size}, in patches of {patch} x {patch}"));
        }
        row("context", config.limit().map_or("any".to_owned(), |limit| limit.to_string()));
    }
    row("weight files", bytes(found.file_bytes));
    row("bits per weight", format!("{:.4}", found.bits_per_weight));
    if !bill.layers.is_empty() {
        row("compressed", itemised(&bill.storage, bill.weights));
        row("other tensors", bytes(bill.uncompressed_bytes));
        row("headers", bytes(bill.container_bytes));
    }
    let mut text = table(&rows) + "\n";
    let mut rows = vec![["tensor", "type", "shape", "bytes"].map(str::to_owned).to_vec()];
    for tensor in &found.tensors {
        let (dtype, shape) = (tensor.dtype.clone(), format!("{:?}", tensor.shape));
        rows.push(vec![shown(&tensor.name), dtype, shape, tensor.bytes.to_string()]);
    }
    text += &table(&rows);
    if !bill.layers.is_empty() {
        let header = ["compressed", "tree", "shape", "bits", "parts in bits", "multiply"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for layer in &bill.layers {
            rows.push(vec![
                shown(&layer.name),
                tree(&layer.tree),
                format!("{:?}", layer.shape),
                format!("{:.3}", layer.bits_per_weight),
                format!(" {}", itemised(&layer.storage, (layer.shape[0] * layer.shape[1]) as u64)),
                format!("{:?}", layer.multiply).to_lowercase(),
            ]);
        }
        text += "\n";
        text += &table(&rows);
    }
    text
}

/// The one value that all blocks have, or the least and the greatest.
fn range(values: impl Iterator<Item = usize> + Clone) -> String {
    let (least, most) = (values.clone().min().unwrap_or(0), values.max().unwrap_or(0));
    if least == most { least.to_string() } else { format!("{least} to {most}") }
}

/// `transformed(grouped_affine)`: the ids of a tree without versions.
fn tree(json: &serde_json::Value) -> String {
    let name = json["node"].as_str().unwrap_or("?");
    let name = name.split('.').next().unwrap_or(name);
    let children: Vec<String> = match json {
        serde_json::Value::Object(fields) => {
            fields.values().filter(|v| v.get("node").is_some()).map(tree).collect()
        }
        _ => Vec::new(),
    };
    if children.is_empty() { name.to_owned() } else { format!("{name}({})", children.join(", ")) }
}
