//! `tensorpress inspect` of a packed file: what each tensor takes, and the model inside if there is one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tensorpress::Result;
use tensorpress::bill::Bill;
use tensorpress::entropy::PackedFile;
use tensorpress::entropy::chunk::{CHUNK_BYTES, describe as describe_chunk};
use tensorpress::entropy::container::{FileEntry, Stored, VERSION};
use tensorpress::open_packed_model;

use super::{Inspection, describe, inspect};
use crate::args::Inspect;
use crate::failure::Outcome;
use crate::open::tell_notes;
use crate::output::{bytes, print, print_json, ratio, shown, table};

#[derive(Serialize)]
struct Container<'a> {
    format_version: u32,
    bytes_before: u64,
    bytes_after: u64,
    ratio: f64,
    /// Where the base was when the file was packed.
    base: Option<&'a str>,
    files: Vec<File<'a>>,
    tensors: Vec<Tensor<'a>>,
    /// What `inspect` says of the model inside.
    model: Option<Inspection<'a>>,
    /// Why there is none.
    no_model: Option<String>,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    bytes: u64,
    stored_bytes: u64,
    xxh3_128: String,
}

/// A tensor in a packed file.
#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    file: &'a str,
    dtype: &'a str,
    shape: &'a [u64],
    bytes: u64,
    stored_bytes: u64,
    /// 8 x stored bytes over the number of values; null where that is 0.
    bits_per_value: Option<f64>,
    /// Some of it is stored as the difference from the base.
    delta: bool,
    /// The earlier tensor that it is equal to, and stored as.
    same_as: Option<&'a str>,
    /// Its byte planes; those of the difference, where it is stored as one.
    planes: Vec<Plane>,
    /// Bytes that the order-0 entropies of the planes of each chunk add up to.
    bound_bytes: f64,
}

/// A byte plane of a tensor, over all its chunks.
#[derive(Serialize)]
struct Plane {
    plane: String,
    /// Each coding that some chunk uses.
    codings: BTreeSet<&'static str>,
    symbols: u64,
    stored_bytes: u64,
    /// Bits a symbol, of the entropy in each chunk.
    entropy: f64,
}

/// Planes of a segment's chunks, added up.
fn planes(packed: &PackedFile, number: usize) -> Result<Vec<Plane>> {
    let segment = &packed.index().segments[number];
    let Stored::Chunks { chunks, .. } = &segment.stored else { return Ok(Vec::new()) };
    let mut planes: BTreeMap<String, Plane> = BTreeMap::new();
    for chunk in 0..chunks.len() {
        let (_, stored) = packed.stored_chunk(number, chunk)?;
        let len = (segment.len - (chunk * CHUNK_BYTES) as u64).min(CHUNK_BYTES as u64);
        for found in describe_chunk(segment.values, &stored, len as usize)? {
            let plane = planes.entry(found.plane.clone().into_owned()).or_insert_with(|| Plane {
                plane: found.plane.into_owned(),
                codings: BTreeSet::new(),
                symbols: 0,
                stored_bytes: 0,
                entropy: 0.0,
            });
            plane.codings.insert(found.coding);
            plane.symbols += found.symbols as u64;
            plane.stored_bytes += found.stored as u64;
            plane.entropy += found.entropy_bits;
        }
    }
    let mut planes: Vec<Plane> = planes.into_values().rev().collect();
    planes.iter_mut().for_each(|plane| plane.entropy /= plane.symbols.max(1) as f64);
    Ok(planes)
}

pub(super) fn run(args: &Inspect, packed: &PackedFile) -> Outcome {
    let opened = open_packed_model(packed.clone());
    opened.iter().for_each(tell_notes);
    let bill = opened.as_ref().ok().map(Bill::of).transpose()?;
    let (model, no_model) = match (&opened, &bill) {
        (Ok(source), Some(bill)) => (Some(inspect(source, bill)), None),
        (Ok(_), None) => (None, None),
        (Err(_), _) if !packed.index().is_folder => (None, Some("is one file".to_owned())),
        (Err(error), _) => (None, Some(error.to_string())),
    };
    let index = packed.index();
    let (before, after) = (packed.unpacked_bytes(), packed.stored_bytes());
    let found = Container {
        format_version: VERSION,
        bytes_before: before,
        bytes_after: after,
        ratio: ratio(after, before),
        base: index.base.as_deref(),
        files: files(packed),
        tensors: tensors(packed)?,
        model,
        no_model,
    };
    if args.json {
        return print_json(&found);
    }
    let mut text = show(&found);
    if let (Some(model), Some(bill)) = (&found.model, &bill) {
        text += "\n";
        text += &describe(model, bill);
    }
    print(&text)
}

fn files(packed: &PackedFile) -> Vec<File<'_>> {
    let stored =
        |file: &FileEntry| file.segments.clone().map(|number| packed.stored_bytes_of(number)).sum();
    let files = packed.index().files.iter();
    files
        .map(|entry| File {
            path: &entry.path,
            bytes: entry.len,
            stored_bytes: stored(entry),
            xxh3_128: format!("{:032x}", entry.hash),
        })
        .collect()
}

fn tensors(packed: &PackedFile) -> Result<Vec<Tensor<'_>>> {
    let index = packed.index();
    let segments = index.segments.iter().enumerate();
    segments
        .filter_map(|(number, segment)| Some((number, segment, segment.tensor.as_ref()?)))
        .map(|(number, segment, tensor)| {
            let stored_bytes = packed.stored_bytes_of(number);
            let values = tensor.shape.iter().try_fold(1, |n: u64, d| n.checked_mul(*d));
            let (delta, same_as) = match &segment.stored {
                Stored::SameAs(earlier) => {
                    let earlier = index.segments[*earlier].tensor.as_ref();
                    (false, earlier.map(|t| t.name.as_str()))
                }
                Stored::Chunks { base, .. } => (base.is_some(), None),
                _ => (false, None),
            };
            let planes = planes(packed, number)?;
            let bits = planes.iter().map(|plane| plane.entropy * plane.symbols as f64);
            Ok(Tensor {
                name: &tensor.name,
                bound_bytes: bits.sum::<f64>() / 8.0,
                planes,
                file: &index.file_of(number).path,
                dtype: &tensor.dtype,
                shape: &tensor.shape,
                bytes: segment.len,
                stored_bytes,
                bits_per_value: values
                    .filter(|n| *n > 0)
                    .map(|n| 8.0 * stored_bytes as f64 / n as f64),
                delta,
                same_as,
            })
        })
        .collect()
}

/// `byte 1 2.588 rans`
fn show_plane(plane: &Plane) -> String {
    let codings: Vec<&str> = plane.codings.iter().copied().collect();
    format!("{} {:.3} {}", plane.plane, plane.entropy, codings.join("/"))
}

fn show(found: &Container<'_>) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row =
        |name: &str, value: String| rows.push(vec![name.to_owned(), format!("  {value}")]);
    let (before, after) = (bytes(found.bytes_before), bytes(found.bytes_after));
    row("packed", format!("{before} in {after} ({:.2} %)", 100.0 * found.ratio));
    row("files", found.files.len().to_string());
    row("tensors", found.tensors.len().to_string());
    if let Some(base) = found.base {
        row("packed against", base.to_owned());
    }
    if let Some(reason) = &found.no_model {
        row("no model", reason.clone());
    }
    let mut text = table(&rows) + "\n";
    let header = ["file", "bytes", "stored"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for file in &found.files {
        rows.push(vec![shown(file.path), file.bytes.to_string(), file.stored_bytes.to_string()]);
    }
    text += &table(&rows);
    if found.tensors.is_empty() {
        return text;
    }
    let header = [
        "tensor",
        "type",
        "shape",
        "bytes",
        "stored",
        "bits per value",
        "over entropy",
        "entropy of planes",
        "",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for tensor in &found.tensors {
        let note = match (tensor.same_as, tensor.delta) {
            (Some(earlier), _) => format!("as {}", shown(earlier)),
            (None, true) => "difference".to_owned(),
            (None, false) => String::new(),
        };
        rows.push(vec![
            shown(tensor.name),
            tensor.dtype.to_owned(),
            format!("{:?}", tensor.shape),
            tensor.bytes.to_string(),
            tensor.stored_bytes.to_string(),
            tensor.bits_per_value.map_or("-".to_owned(), |bits| format!("{bits:.3}")),
            match tensor.bound_bytes {
                bound if bound > 0.0 => {
                    format!("{:+.2} %", 100.0 * (tensor.stored_bytes as f64 / bound - 1.0))
                }
                _ => "-".to_owned(),
            },
            format!(" {}", tensor.planes.iter().map(show_plane).collect::<Vec<_>>().join(", ")),
            note,
        ]);
    }
    text += "\n";
    text += &table(&rows);
    text
}
