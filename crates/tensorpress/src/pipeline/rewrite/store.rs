//! Judgements and edits as files: safetensors, whose metadata has what is no tensor. Decisions are JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tensorpress_tensor::checkpoint::{write_atomically, write_shard};
use tensorpress_tensor::rewrite::{BlockShape, Change, Decision, Edit, Judgement, Level};
use tensorpress_tensor::{
    Checkpoint, Context as _, DType, Error, Part, PartKind, RawTensor, Result, Tensor,
};
use xxhash_rust::xxh3::Xxh3;

use crate::pipeline::state::Stored;

/// Key of the metadata.
const KEY: &str = "tensorpress.rewrite";
/// Before names that a rewrite chose; the levels have no such name.
const NAMED: &str = "tensor:";
const LEVELS: &str = "levels";

/// What becomes of a tensor, in the name under which what is needed for it lies.
const ROWS: &str = "rows:";
const COLUMNS: &str = "columns:";
const ADDED: &str = "added:";
const NEW: &str = "new:";
/// The axis and a colon follow.
const WITHIN: &str = "within:";

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Beside {
    dropped: bool,
    shape: Option<BlockShape>,
    gone: Vec<String>,
    moved: BTreeMap<String, String>,
    notes: BTreeMap<String, String>,
}

pub(super) fn write_judgement(path: &Path, judgement: &Judgement) -> Result<Stored> {
    let levels = judgement.levels().iter().flat_map(|level| [level.cost, level.error]);
    let bytes: Vec<u8> = levels.flat_map(f64::to_le_bytes).collect();
    let shape = vec![judgement.levels().len(), 2];
    let levels = RawTensor::new(DType::F64, shape, bytes.into())?;
    let mut tensors = BTreeMap::from([(LEVELS.to_owned(), levels)]);
    let named = judgement.tensors().iter();
    tensors.extend(named.map(|(name, tensor)| (format!("{NAMED}{name}"), tensor.clone())));
    write(path, &Beside { notes: judgement.notes().clone(), ..Beside::default() }, &tensors)
}

pub(super) fn read_judgement(path: &Path) -> Result<Judgement> {
    let (beside, file) = read(path)?;
    let mut judgement = Judgement::new();
    for name in file.names() {
        let tensor = file.tensor(name)?;
        if let Some(name) = name.strip_prefix(NAMED) {
            judgement = judgement.with_tensor(name, tensor);
            continue;
        }
        let numbers: Vec<f64> =
            tensor.bytes().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let level = |pair: &[f64; 2]| Level { cost: pair[0], error: pair[1] };
        judgement = judgement.with_levels(numbers.as_chunks::<2>().0.iter().map(level).collect());
    }
    for (weight, note) in &beside.notes {
        judgement = judgement.with_note(weight, note);
    }
    Ok(judgement)
}

pub(super) fn write_decisions(path: &Path, decisions: &[Decision]) -> Result<Stored> {
    let text = serde_json::to_vec(decisions).expect("names and numbers are JSON");
    write_atomically(path, &mut |file| {
        file.write_all(&text).map_err(|e| Error::io("write the decisions", path, e))
    })?;
    stored(path)
}

pub(super) fn read_decisions(path: &Path) -> Result<Vec<Decision>> {
    let text = std::fs::read(path).map_err(|e| Error::io("read the decisions", path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::corruption(format!("decisions of a rewrite: {e}")).in_file(path))
}

pub(super) fn write_edit(path: &Path, edit: &Edit) -> Result<Stored> {
    let mut tensors = BTreeMap::new();
    let mut beside = Beside {
        dropped: edit.is_dropped(),
        shape: edit.shape().cloned(),
        notes: edit.notes().clone(),
        ..Beside::default()
    };
    for (name, change) in edit.changes() {
        let (kind, tensor) = match change {
            Change::Within { axis, kept } => {
                let shape = vec![kept.len(), kept.first().map_or(0, Vec::len)];
                let flat = numbers(&kept.concat())?;
                let lists = RawTensor::new(flat.dtype(), shape, flat.bytes().clone())?;
                tensors.insert(format!("{WITHIN}{axis}:{name}"), lists);
                continue;
            }
            Change::Rows(kept) => (ROWS, numbers(kept)?),
            Change::Columns(kept) => (COLUMNS, numbers(kept)?),
            Change::Added(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (ADDED, RawTensor::new(DType::F32, vec![values.len()], bytes.into())?)
            }
            Change::New(tensor) => (NEW, tensor.clone()),
            Change::Gone => {
                beside.gone.push(name.clone());
                continue;
            }
            Change::Moved(to) => {
                beside.moved.insert(name.clone(), to.clone());
                continue;
            }
        };
        tensors.insert(format!("{kind}{name}"), tensor);
    }
    write(path, &beside, &tensors)
}

pub(super) fn read_edit(path: &Path) -> Result<Edit> {
    let (beside, file) = read(path)?;
    let mut edit = if beside.dropped { Edit::dropped() } else { Edit::new() };
    if let Some(shape) = beside.shape {
        edit = edit.with_shape(shape);
    }
    for stored in file.names() {
        let tensor = file.tensor(stored)?;
        let within = stored.strip_prefix(WITHIN).and_then(|rest| rest.split_once(':'));
        let (name, change) = if let Some((axis, name)) = within {
            let axis = axis.parse().map_err(|_| Error::corruption("no axis").in_file(path))?;
            let count = tensor.shape().last().copied().unwrap_or(0).max(1);
            let kept = indices(&tensor).chunks(count).map(<[usize]>::to_vec).collect();
            (name, Change::Within { axis, kept })
        } else if let Some(name) = stored.strip_prefix(ROWS) {
            (name, Change::Rows(indices(&tensor)))
        } else if let Some(name) = stored.strip_prefix(COLUMNS) {
            (name, Change::Columns(indices(&tensor)))
        } else if let Some(name) = stored.strip_prefix(ADDED) {
            (name, Change::Added(tensor.to_matrix()?.into_raw_vec_and_offset().0))
        } else {
            (stored.strip_prefix(NEW).unwrap_or(stored), Change::New(tensor))
        };
        edit = edit.with_change(name, change);
    }
    for name in &beside.gone {
        edit = edit.with_change(name, Change::Gone);
    }
    for (name, to) in &beside.moved {
        edit = edit.with_change(name, Change::Moved(to.clone()));
    }
    for (weight, note) in &beside.notes {
        edit = edit.with_note(weight, note);
    }
    Ok(edit)
}

fn numbers(list: &[usize]) -> Result<RawTensor> {
    let bytes: Vec<u8> = list.iter().flat_map(|i| (*i as u64).to_le_bytes()).collect();
    RawTensor::new(DType::U64, vec![list.len()], bytes.into())
}

fn indices(tensor: &RawTensor) -> Vec<usize> {
    let chunks = tensor.bytes().as_chunks::<8>().0;
    chunks.iter().map(|b| u64::from_le_bytes(*b) as usize).collect()
}

fn write(path: &Path, beside: &Beside, tensors: &BTreeMap<String, RawTensor>) -> Result<Stored> {
    let text = serde_json::to_string(beside).expect("names and notes are JSON");
    let metadata = BTreeMap::from([(KEY.to_owned(), text)]);
    write_shard(path, &metadata, &mut |sink| {
        tensors.iter().try_for_each(|(name, tensor)| {
            sink.part(Part {
                name: name.clone(),
                kind: PartKind::Values,
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: Cow::Borrowed(tensor.bytes()),
            })
        })
    })?;
    stored(path)
}

fn read(path: &Path) -> Result<(Beside, Checkpoint)> {
    let file = Checkpoint::open_files(&[path.to_path_buf()])?;
    let text = file.metadata().next().and_then(|metadata| metadata.get(KEY));
    let text = text.ok_or_else(|| Error::corruption("no step of a rewrite")).in_file(path)?;
    let beside = serde_json::from_str(text)
        .map_err(|e| Error::corruption(format!("step of a rewrite: {e}")).in_file(path))?;
    Ok((beside, file))
}

/// Length and hash of a file.
pub(in crate::pipeline) fn stored(path: &Path) -> Result<Stored> {
    let io = |e| Error::io("read the file", path, e);
    let mut file = File::open(path).map_err(io)?;
    let (mut hash, mut bytes, mut piece) = (Xxh3::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut piece).map_err(io)?;
        if read == 0 {
            return Ok(Stored { bytes, hash: format!("{:032x}", hash.digest128()) });
        }
        hash.update(&piece[..read]);
        bytes += read as u64;
    }
}
