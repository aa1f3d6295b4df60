//! The bytes of a file's tensors.

use tensorpress_formats::export::{Fit, as_blocks, fitting};
use tensorpress_formats::ggml::{self, Type};
use tensorpress_formats::gguf::TensorInfo;
use tensorpress_formats::gguf::model::{Paired, pairs};
use tensorpress_model::Source;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::{Context as _, DType, Error, Node, Result, Tensor};

use super::super::{Convert, Converted, layers};
use super::plan::{Entry, Plan};

/// The bytes of a tensor, and what became of what it was made of.
pub(super) fn tensor(
    job: &Convert<'_>,
    source: &Source,
    plan: &Plan,
    info: &TensorInfo,
) -> Result<(Vec<u8>, Vec<Converted>)> {
    if let Some(values) = plan.made.get(&info.name) {
        return Ok((values.iter().flat_map(|value| value.to_le_bytes()).collect(), Vec::new()));
    }
    let entry = &plan.entries[&info.name];
    let mut all = Vec::with_capacity(info.bytes as usize);
    let mut report = Vec::new();
    let known = job.importance.as_ref().and_then(|known| known.matrices.get(&info.name));
    for (expert, name) in entry.from.iter().enumerate() {
        let importance = known.and_then(|squares| squares.importance(expert));
        let made = one(source, entry, name, importance.as_deref());
        let (bytes, converted) = made.in_tensor(name)?;
        all.extend_from_slice(&bytes);
        report.extend(converted);
    }
    if all.len() as u64 != info.bytes {
        let (is, says) = (all.len(), info.bytes);
        return Err(Error::corruption(format!("{is} bytes, where the header says {says}")));
    }
    Ok((all, report))
}

fn one(
    source: &Source,
    entry: &Entry,
    name: &str,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, Option<Converted>)> {
    let stored = source.checkpoint().shape(name);
    if stored.is_some_and(|shape| shape.len() != 2) || entry.place.plus_one {
        return vector(source, entry, name).map(|bytes| (bytes, None));
    }
    let node = source.weight(name)?;
    if let Some(importance) = importance.filter(|known| known.len() != node.shape()[1]) {
        let (is, wanted) = (importance.len(), node.shape()[1]);
        return Err(Error::shape(format!("importance of {is} inputs for {wanted}")));
    }
    let (bytes, error, lossless) = matrix(&*node, entry.fit, importance)?;
    let bytes = match entry.place.paired {
        Some(paired) => moved(source, paired, &bytes, node.shape()[0])?,
        None => bytes,
    };
    let from = match source.trees().get(name) {
        Some(tree) => tree["type"].as_str().or(tree["node"].as_str()).unwrap_or("?").to_owned(),
        None => source.checkpoint().dtype_name(name).unwrap_or("?").to_owned(),
    };
    let (name, to) = (name.to_owned(), entry.fit.name().to_owned());
    Ok((bytes, Some(Converted { name, from, to, lossless, error })))
}

/// Bytes of a matrix in a type, how far it is from what it was, and whether it is that.
fn matrix(
    node: &dyn Node,
    fit: Fit,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, Option<f64>, bool)> {
    if fitting(node).is_ok_and(|found| found == fit) {
        return Ok((as_blocks(node)?.1, None, true));
    }
    let weight = decode(node)?;
    let [rows, cols] = node.shape();
    let mut bytes = Vec::new();
    let mut got = weight.clone();
    match fit {
        Fit::F32 => {
            DType::F32.write_f32(weight.as_slice().expect("standard layout"), &mut bytes)?
        }
        Fit::Blocks(ty) => {
            let row = cols / ty.block_len() * ty.block_bytes();
            bytes.resize(rows * row, 0);
            let values = weight.as_slice().expect("standard layout");
            ggml::encode(ty, values, importance, &mut bytes)?;
            ggml::decode(ty, &bytes, got.as_slice_mut().expect("standard layout"))?;
        }
        other => return Err(Error::unsupported(format!("floats as {}", other.name()))),
    }
    let lossless = weight.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
    Ok((bytes, if lossless { None } else { layers::relative(&weight, &got) }, lossless))
}

/// Rows of a folder's q or k in the file's order.
fn moved(source: &Source, paired: Paired, bytes: &[u8], rows: usize) -> Result<Vec<u8>> {
    let config = source.config();
    let heads = if paired == Paired::Queries { config.heads } else { config.kv_heads };
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Error::shape(format!("{rows} rows of {heads} heads, which are not in pairs")));
    }
    let width = bytes.len() / rows.max(1);
    let mut out = vec![0; bytes.len()];
    for (row, to) in pairs(rows, heads).into_iter().enumerate() {
        let from = &bytes[row * width..(row + 1) * width];
        out[to * width..(to + 1) * width].copy_from_slice(from);
    }
    Ok(out)
}

/// A vector, or anything else that is no matrix.
fn vector(source: &Source, entry: &Entry, name: &str) -> Result<Vec<u8>> {
    let tensor = source.checkpoint().tensor(name)?;
    let dtype = match entry.fit {
        Fit::Blocks(Type::F16) => DType::F16,
        Fit::Blocks(Type::BF16) => DType::BF16,
        _ => DType::F32,
    };
    if tensor.dtype() == dtype && entry.place.paired.is_none() && !entry.place.plus_one {
        return Ok(tensor.bytes().to_vec());
    }
    if !tensor.dtype().is_float() {
        let what = format!("{} elements have no type here", tensor.dtype().name());
        return Err(Error::unsupported(what));
    }
    let mut values: Vec<f32> = tensor.to_matrix()?.into_raw_vec_and_offset().0;
    if entry.place.plus_one {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    let mut bytes = Vec::new();
    dtype.write_f32(&values, &mut bytes)?;
    match entry.place.paired {
        Some(paired) => moved(source, paired, &bytes, values.len()),
        None => Ok(bytes),
    }
}
