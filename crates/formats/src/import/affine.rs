//! Integers on grids: GPTQ, AWQ, and the integers of compressed-tensors.

use serde_json::json;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Format as _, Json, PackedPlane};
use tensorpress_tensor::{Bytes, Checkpoint, Context as _, DType, Error, Result};

use super::method::Scheme;
use super::weight::{Weight, Zero, affine, bytes_of, made, matrix, packed, stored, transposed};
use crate::awq::{self, OffsetFormat};
use crate::compressed_tensors::{Granularity, IntQuantized, Marlin24, PackQuantized, Packing};
use crate::gptq;
use crate::parts::{Fields, group_index, runs};
use crate::words::{Along, Layout, Order, WordPlane};

fn whole(lengths: Option<usize>, name: &str, what: &str) -> Result<usize> {
    lengths.ok_or_else(|| Error::shape(format!("does not hold whole {what}")).in_tensor(name))
}

/// `number * 32 / bits`, where that is whole.
fn codes_in(words: usize, bits: u8) -> Option<usize> {
    let all = words.checked_mul(32)?;
    all.is_multiple_of(bits.into()).then(|| all / usize::from(bits))
}

/// Inputs sorted by their groups, and how long a group is, where that makes runs of equal lengths of them.
fn order(groups_of: &[u32], groups: usize) -> Option<(Vec<u32>, usize)> {
    let group = groups_of.len().div_ceil(groups.max(1));
    let mut order: Vec<u32> = (0..groups_of.len() as u32).collect();
    order.sort_by_key(|input| groups_of[*input as usize]);
    let sorted = order.iter().map(|input| groups_of[*input as usize]);
    sorted.eq(runs(groups_of.len(), group)).then_some((order, group))
}

/// Columns in another order, packed.
fn permuted(codes: &Codes, order: &[u32], bits: u8) -> Result<Bytes> {
    let (rows, cols) = codes.dim();
    let moved: Vec<u8> = codes
        .rows()
        .into_iter()
        .flat_map(|row| order.iter().map(move |col| row[*col as usize]))
        .collect();
    let plane = PackedPlane::pack(&moved, rows, cols, bits)?;
    Ok(plane.bytes().expect("rows are even").to_vec().into())
}

/// What the codecs give.
type Codes = Array2<u8>;

/// Codes whose inputs lie in another order, within a map that says which.
fn reordered(
    of: &Checkpoint,
    weight: &mut Weight,
    order: Vec<u32>,
    shape: [usize; 2],
    bits: u8,
    codes: impl Fn(&Checkpoint) -> Result<Codes> + Send + Sync + 'static,
) -> Result<()> {
    let channels = order.len();
    let dtype = if channels <= 1 << 16 { DType::U16 } else { DType::U32 };
    let bytes: Vec<u8> =
        order.iter().flat_map(|input| input.to_le_bytes()[..dtype.size()].to_vec()).collect();
    let bytes = Bytes::from(bytes);
    let index = made(of, dtype, vec![channels], move |_| Ok(bytes.clone()))?;
    let inner = weight.tree.take().unwrap_or_default();
    weight.tree = Some(json!({
        "node": "transformed.v1",
        "side": "in",
        "transform": {"kind": "index", "channels": channels, "outer": channels},
        "inner": inner,
    }));
    let stride = (channels * usize::from(bits)).div_ceil(8);
    let codes = made(of, DType::U8, vec![shape[0] * stride], move |of| {
        permuted(&codes(of)?, &order, bits)
    })?;
    for (name, _) in &mut weight.parts {
        *name = match *name {
            "scales" => "inner.scales",
            "zeros" => "inner.zeros",
            other => other,
        };
    }
    weight.parts.push(("inner.codes", codes));
    weight.parts.push(("transform", index));
    Ok(())
}

/// A layer of GPTQ.
pub(super) fn gptq(
    of: &Checkpoint,
    layer: &str,
    bits: u8,
    group: Option<usize>,
    version: gptq::Version,
) -> Result<Weight> {
    let [qweight, qzeros, scales, g_idx] =
        ["qweight", "qzeros", "scales", "g_idx"].map(|part| format!("{layer}.{part}"));
    let [words, outputs] = matrix(of, &qweight)?;
    let inputs = whole(codes_in(words, bits), &qweight, "codes")?;
    let [groups, _] = matrix(of, &scales)?;
    let shape = [outputs, inputs];
    let mut format = gptq::Format::new(bits, version);
    format.group = group;
    let add = u16::from(version != gptq::Version::V2);
    let zeros = Layout { add, ..Layout::new(bits, Along::Rows) };
    let zeros_plane = WordPlane::described(zeros, [outputs, groups]);
    let mut weight = Weight {
        name: format!("{layer}.weight"),
        tree: None,
        parts: vec![("zeros", bytes_of(of, &qzeros)?), ("scales", transposed(of, &scales)?)],
    };
    let natural = group.unwrap_or(inputs.max(1));
    let groups_of = if of.contains(&g_idx) {
        group_index(&of.tensor(&g_idx)?, &g_idx, inputs, groups)?
    } else if inputs.div_ceil(natural) == groups {
        runs(inputs, natural)
    } else {
        let what = format!("{groups} groups, but {inputs} inputs in groups of {natural}");
        return Err(Error::shape(what).in_tensor(&scales));
    };
    let zero = Zero::Plane(zeros_plane);
    if groups_of == runs(inputs, natural) && inputs.div_ceil(natural) == groups {
        let codes = Layout::new(bits, Along::Columns).down();
        weight.tree = Some(affine(shape, natural, WordPlane::described(codes, shape), zero));
        weight.parts.push(("codes", bytes_of(of, &qweight)?));
        return Ok(weight);
    }
    let layer = layer.to_owned();
    let read = move |of: &Checkpoint| gptq::Layer::read(of, &layer)?.unpack(format);
    let Some((order, group)) = order(&groups_of, groups) else {
        // Groups of any lengths have no node; the weights are what they are.
        return decoded(of, weight.name, shape, move |of| {
            let all = read(of)?.decode(DType::F32)?;
            Ok(all.as_standard_layout().into_owned())
        });
    };
    weight.tree = Some(affine(shape, group, packed(shape, bits), zero));
    reordered(of, &mut weight, order, shape, bits, move |of| Ok(read(of)?.codes))?;
    Ok(weight)
}

/// A weight that is decoded when it is asked for.
pub(super) fn decoded(
    of: &Checkpoint,
    name: String,
    shape: [usize; 2],
    decode: impl Fn(&Checkpoint) -> Result<Array2<f32>> + Send + Sync + 'static,
) -> Result<Weight> {
    let made = made(of, DType::F32, shape.to_vec(), move |of| {
        let mut bytes = Vec::new();
        let weight = decode(of)?;
        let weight = weight.as_standard_layout();
        DType::F32.write_f32(weight.as_slice().expect("standard layout"), &mut bytes)?;
        Ok(bytes.into())
    })?;
    Ok(Weight { name, tree: None, parts: vec![("", made)] })
}

/// A layer of AWQ.
pub(super) fn awq(
    of: &Checkpoint,
    layer: &str,
    layout: awq::Layout,
    group: Option<usize>,
) -> Result<Weight> {
    let [qweight, qzeros, scales] =
        ["qweight", "qzeros", "scales"].map(|part| format!("{layer}.{part}"));
    let [rows, cols] = matrix(of, &qweight)?;
    let name = format!("{layer}.weight");
    let overflow = || Error::shape(format!("shape [{rows}, {cols}] overflows")).in_tensor(&qweight);
    let times = |n: usize, by: usize| n.checked_mul(by).ok_or_else(overflow);
    let shape = match layout {
        awq::Layout::Gemm => [times(cols, 8)?, rows],
        awq::Layout::Gemv => [rows, times(cols, 8)?],
        awq::Layout::GemvFast => [times(rows, 4)?, cols],
    };
    let [outputs, inputs] = shape;
    let group = group.unwrap_or(inputs.max(1));
    let groups = inputs.div_ceil(group);
    let codes_part = ("codes", bytes_of(of, &qweight)?);
    match layout {
        awq::Layout::Gemm => {
            let codes = Layout { order: Order::Interleaved, ..Layout::new(4, Along::Rows) };
            let zeros = WordPlane::described(codes, [outputs, groups]);
            let tree = affine(shape, group, WordPlane::described(codes, shape), Zero::Plane(zeros));
            let parts = vec![
                codes_part,
                ("zeros", bytes_of(of, &qzeros)?),
                ("scales", transposed(of, &scales)?),
            ];
            Ok(Weight { name, tree: Some(tree), parts })
        }
        awq::Layout::Gemv => {
            let codes = Layout::new(4, Along::Columns);
            let stored = matrix(of, &qzeros)?[1];
            let padding = stored.saturating_sub(groups.div_ceil(8));
            let zeros = WordPlane::described(Layout { padding, ..codes }, [outputs, groups]);
            let tree = affine(shape, group, WordPlane::described(codes, shape), Zero::Plane(zeros));
            let dtype = of.dtype(&scales)?;
            let padded = matrix(of, &scales)?[1];
            if padded < groups {
                let what = format!("scales of {padded} groups, where {groups} are needed");
                return Err(Error::shape(what).in_tensor(&scales));
            }
            let scales = made(of, dtype, vec![outputs, groups], move |of| {
                let (stored, size) = (of.bytes(&scales)?, dtype.size());
                let rows = stored.chunks_exact((padded * size).max(1));
                Ok(rows.flat_map(|row| row[..groups * size].to_vec()).collect::<Vec<_>>().into())
            })?;
            let parts = vec![codes_part, ("zeros", bytes_of(of, &qzeros)?), ("scales", scales)];
            Ok(Weight { name, tree: Some(tree), parts })
        }
        awq::Layout::GemvFast => {
            let codes = Layout { order: Order::Tiles, ..Layout::new(4, Along::Columns) };
            let floats = |part: String| -> Result<_> {
                let dtype = of.dtype(&part)?;
                if matrix(of, &part)?[0] < groups {
                    let what = format!("fewer than {groups} groups");
                    return Err(Error::shape(what).in_tensor(&part));
                }
                made(of, dtype, vec![outputs, groups], move |of| {
                    let (stored, size) = (of.bytes(&part)?, dtype.size());
                    let mut bytes = Vec::with_capacity(outputs * groups * size);
                    for output in 0..outputs {
                        for group in 0..groups {
                            let at = (group * outputs + output) * size;
                            let value = stored.get(at..at + size);
                            bytes.extend_from_slice(
                                value.ok_or_else(|| Error::insufficient("ends too early"))?,
                            );
                        }
                    }
                    Ok(bytes.into())
                })
            };
            let mut tree = json!({
                "node": OffsetFormat::ID,
                "shape": shape,
                "codes": WordPlane::described(codes, shape),
            });
            tree["group"] = group.into();
            let parts = vec![codes_part, ("scales", floats(scales)?), ("offsets", floats(qzeros)?)];
            Ok(Weight { name, tree: Some(tree), parts })
        }
    }
}

/// Bits of packed codes: those of a scheme whose words are as many as are stored.
fn fitting(schemes: &[Scheme], words: usize, inputs: usize, dense: bool) -> Option<(u8, bool)> {
    let of_scheme = |scheme: &Scheme| {
        let bits = scheme.bits;
        let fits = |dense: bool| {
            let fields = if dense { Fields::dense(bits) } else { Fields::aligned(bits) };
            fields.words(inputs) == Some(words)
        };
        match (fits(true), fits(false)) {
            (true, true) => Some((bits, dense)),
            (true, false) => Some((bits, true)),
            (false, true) => Some((bits, false)),
            (false, false) => None,
        }
    };
    schemes.iter().filter(|scheme| !scheme.float).find_map(of_scheme)
}

/// Two stored lengths.
fn dims_of(of: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let tensor = of.tensor(name)?;
    let stored_as = tensorpress_tensor::Tensor::shape(&tensor).to_vec();
    let as_two: &[usize] = if stored_as.len() == 1 { &[2] } else { &[2, 1] };
    crate::compressed_tensors::read_shape(&tensor, name, as_two)
}

/// A layer of packed integers of compressed-tensors.
pub(super) fn pack_quantized(
    of: &Checkpoint,
    layer: &str,
    schemes: &[Scheme],
    dense: bool,
) -> Result<Weight> {
    let part = |part: &str| format!("{layer}.{part}");
    let (codes, scale) = (part("weight_packed"), part("weight_scale"));
    let shape @ [outputs, inputs] = dims_of(of, &part("weight_shape"))?;
    let [_, words] = matrix(of, &codes)?;
    let Some((bits, dense)) = fitting(schemes, words, inputs, dense) else {
        let what = format!("{words} words for {inputs} inputs, which fit no scheme of integers");
        return Err(Error::shape(what).in_tensor(&codes));
    };
    let packing = if dense { Packing::Dense } else { Packing::WordAligned };
    let name = format!("{layer}.weight");
    let groups = match of.shape(&scale) {
        Some(&[_, groups]) => Some(groups),
        _ => None,
    };
    let mut weight = Weight { name, tree: None, parts: vec![("scales", stored(of, &scale)?)] };
    let zero_part = part("weight_zero_point");
    let zero = if of.contains(&zero_part) {
        weight.parts.push(("zeros", bytes_of(of, &zero_part)?));
        let layout = Layout { dense, ..Layout::new(bits, Along::Rows).down() };
        let grid = if groups.is_some() { outputs } else { 1 };
        Zero::Plane(WordPlane::described(layout, [grid, groups.unwrap_or(1)]))
    } else {
        Zero::One(1 << (bits - 1))
    };
    let g_idx = part("weight_g_idx");
    if of.contains(&g_idx) {
        let groups = groups.unwrap_or(1);
        let groups_of = group_index(&of.tensor(&g_idx)?, &g_idx, inputs, groups)?;
        let layer = layer.to_owned();
        let read = move |of: &Checkpoint| PackQuantized::read(of, &layer)?.unpack(bits, packing);
        let Some((order, group)) = order(&groups_of, groups) else {
            return decoded(of, weight.name, shape, move |of| read(of)?.decode(DType::F32));
        };
        weight.tree = Some(affine(shape, group, packed(shape, bits), zero));
        let half = 1u8 << (bits - 1);
        reordered(of, &mut weight, order, shape, bits, move |of| {
            Ok(read(of)?.values.mapv(|value| (value as u8).wrapping_add(half)))
        })?;
        return Ok(weight);
    }
    let layout = Layout { dense, ..Layout::new(bits, Along::Columns) };
    weight.tree = Some(grids(shape, groups, WordPlane::described(layout, shape), zero, &scale)?);
    weight.parts.push(("codes", bytes_of(of, &codes)?));
    Ok(weight)
}

/// Tree of integers with `groups` scales a row, or one for all.
fn grids(
    shape: [usize; 2],
    groups: Option<usize>,
    codes: Json,
    zero: Zero,
    scale: &str,
) -> Result<Json> {
    let inputs = shape[1];
    let Some(groups) = groups else {
        let mut tree = affine(shape, inputs.max(1), codes, zero);
        tree["per_tensor"] = true.into();
        return Ok(tree);
    };
    let group = crate::parts::group_length(scale, inputs, groups)?;
    Ok(affine(shape, group, codes, zero))
}

/// A layer of bytes that are integers.
pub(super) fn int_quantized(of: &Checkpoint, layer: &str, schemes: &[Scheme]) -> Result<Weight> {
    let part = |part: &str| format!("{layer}.{part}");
    let (codes, scale, zeros) = (part("weight"), part("weight_scale"), part("weight_zero_point"));
    let shape @ [outputs, _] = matrix(of, &codes)?;
    if let Some(tile) = schemes.iter().find_map(|scheme| scheme.tile.filter(|_| !scheme.float)) {
        let layer = layer.to_owned();
        return decoded(of, codes, shape, move |of| {
            IntQuantized::read(of, &layer)?.unpack(Some(tile))?.decode(DType::F32)
        });
    }
    let groups = match of.shape(&scale) {
        Some(&[_, groups]) => Some(groups),
        _ => None,
    };
    let signed = Layout { signed: true, ..Layout::new(8, Along::Columns) };
    let mut parts = vec![("codes", bytes_of(of, &codes)?), ("scales", stored(of, &scale)?)];
    let zero = if of.contains(&zeros) {
        parts.push(("zeros", bytes_of(of, &zeros)?));
        let grid = if groups.is_some() { outputs } else { 1 };
        Zero::Plane(WordPlane::described(signed, [grid, groups.unwrap_or(1)]))
    } else {
        Zero::One(128)
    };
    let tree = grids(shape, groups, WordPlane::described(signed, shape), zero, &scale)?;
    Ok(Weight { name: codes, tree: Some(tree), parts })
}

/// A layer of integers of which each four inputs keep two, in the order of a kernel: their codes are laid out anew when
/// they are asked for.
pub(super) fn marlin24(of: &Checkpoint, layer: &str, schemes: &[Scheme]) -> Result<Weight> {
    let [tiles, width] = matrix(of, &format!("{layer}.weight_packed"))?;
    let scale = format!("{layer}.scale_packed");
    let [groups, outputs] = matrix(of, &scale)?;
    let inputs = tiles.checked_mul(32);
    let inputs = inputs.ok_or_else(|| Error::shape("overflows").in_tensor(layer))?;
    let bits = [4u8, 8].into_iter().find(|bits| outputs / 2 * usize::from(*bits) == width);
    let known = |bits: &u8| schemes.is_empty() || schemes.iter().any(|s| s.bits == *bits);
    let Some(bits) = bits.filter(known) else {
        let what = format!("{width} words for {outputs} outputs, which fit no scheme");
        return Err(Error::shape(what).in_tensor(format!("{layer}.weight_packed")));
    };
    let shape = [outputs, inputs];
    let group = crate::parts::group_length(&scale, inputs, groups)?;
    let half = 1u8 << (bits - 1);
    let name = layer.to_owned();
    let read = move |of: &Checkpoint| Marlin24::read(of, &name)?.unpack(bits).in_tensor(&name);
    let again = read.clone();
    let stride = (inputs * usize::from(bits)).div_ceil(8);
    let codes = made(of, DType::U8, vec![outputs * stride], move |of| {
        let codes = read(of)?.values.mapv(|value| (value as u8).wrapping_add(half));
        let (rows, cols) = codes.dim();
        let codes: Vec<u8> = codes.iter().copied().collect();
        let plane = PackedPlane::pack(&codes, rows, cols, bits)?;
        Ok(plane.bytes().expect("rows are even").to_vec().into())
    })?;
    let scales = made(of, DType::F16, vec![outputs, groups], move |of| {
        let scales = again(of)?.scales;
        debug_assert!(matches!(scales.granularity, Granularity::Group));
        let mut bytes = Vec::new();
        let values: Vec<f32> = scales.values.iter().copied().collect();
        DType::F16.write_f32(&values, &mut bytes)?;
        Ok(bytes.into())
    })?;
    let tree = affine(shape, group, packed(shape, bits), Zero::One(half.into()));
    let parts = vec![("codes", codes), ("scales", scales)];
    Ok(Weight { name: format!("{layer}.weight"), tree: Some(tree), parts })
}
