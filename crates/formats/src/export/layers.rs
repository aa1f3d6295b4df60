//! Layers of others' folders out of a node.

use tensorpress_tensor::node::{
    Blocks, Child, KnownLevels, LevelTable, SymbolBuf, Tables, as_node, decode,
};
use tensorpress_tensor::{DType, Node, RawTensor, Result};

use super::{Grids, refuse};
use crate::awq as awq_format;
use crate::bnb::{Blockwise, FourBit, QuantType, State, Statistics};
use crate::compressed_tensors::{Granularity, Integers, PackQuantized, Packing, Scales};
use crate::gptq as gptq_format;
use crate::parts::runs;

/// Tensors of a layer, by what stands behind its name.
pub type Stored = Vec<(&'static str, RawTensor)>;

const REQUANTIZE: &str = "compress the original model instead, or requantise";

fn grids(node: &dyn Node, format: &str) -> Result<Grids> {
    Grids::of(node)?.ok_or_else(|| {
        let what = node.describe()["node"].as_str().unwrap_or("a node").to_owned();
        refuse(format!("{format} holds integers on grids, and this is {what}"), REQUANTIZE)
    })
}

/// A layer of GPTQ: integers of 2, 3, 4 or 8 bits in groups, their inputs in any order.
///
/// # Errors
/// `Unsupported` for what the format cannot hold, with what would do; those of reading the node.
pub fn gptq(node: &dyn Node, version: gptq_format::Version) -> Result<Stored> {
    let grids = grids(node, "GPTQ")?;
    let bits = match grids.bits {
        1 => 2,
        bits @ 2..=4 => bits,
        _ => 8,
    };
    let stored = if version == gptq_format::Version::V2 { 0 } else { 1 };
    let most = (1u16 << bits) - 1 + stored;
    if let Some(zero) = grids.zeros.iter().find(|zero| !(stored..=most).contains(zero)) {
        let why = format!("a zero point of {zero}, where {bits} bits hold {stored} to {most}");
        return Err(refuse(why, "gptq_v2 holds 0, or requantise"));
    }
    let group_of = match grids.group_of {
        Some(index) => index,
        None => runs(grids.codes.ncols(), grids.group),
    };
    let layer = gptq_format::Unpacked {
        codes: grids.codes,
        zeros: grids.zeros,
        scales: grids.scales,
        dtype: grids.dtype,
        group_of,
    };
    let layer = layer.pack(gptq_format::Format::new(bits, version))?;
    let mut stored =
        vec![("qweight", layer.qweight), ("qzeros", layer.qzeros), ("scales", layer.scales)];
    stored.extend(layer.g_idx.map(|index| ("g_idx", index)));
    Ok(stored)
}

/// A layer of AWQ: integers of 4 bits in groups that are runs and divide a row.
///
/// # Errors
/// As [`gptq`].
pub fn awq(node: &dyn Node, layout: awq_format::Layout) -> Result<Stored> {
    let grids = grids(node, "AWQ")?;
    if grids.bits > 4 {
        let why = format!("AWQ holds 4 bits, and these are {}", grids.bits);
        return Err(refuse(why, "gptq holds 8, or requantise"));
    }
    if grids.group_of.is_some() {
        return Err(refuse("AWQ has no order of inputs", "gptq has one, or requantise"));
    }
    let (group, cols) = (grids.group, grids.codes.ncols());
    if group < cols && !cols.is_multiple_of(group) {
        let why = format!("groups of {group} in rows of {cols}");
        return Err(refuse(why, "AWQ's divide a row; gptq holds a short one, or requantise"));
    }
    if let Some(zero) = grids.zeros.iter().find(|zero| **zero > 15) {
        return Err(refuse(format!("a zero point of {zero}"), "AWQ holds 0 to 15; requantise"));
    }
    let layer = awq_format::Unpacked {
        codes: grids.codes,
        scales: grids.scales,
        dtype: grids.dtype,
        zeros: awq_format::Zeros::Codes(grids.zeros.mapv(|zero| zero as u8)),
    };
    let layer = layer.pack(layout)?;
    Ok(vec![("qweight", layer.qweight), ("qzeros", layer.qzeros), ("scales", layer.scales)])
}

/// A layer of compressed-tensors, `pack-quantized`: integers of 1 to 8 bits in groups, their inputs in any order.
/// `symmetric`: there are no zero points, which must be in the middle then.
///
/// # Errors
/// As [`gptq`].
pub fn compressed_tensors(node: &dyn Node, bits: u8, symmetric: bool) -> Result<Stored> {
    let grids = grids(node, "compressed-tensors")?;
    if grids.bits > bits {
        let why = format!("codes of {} bits, in a scheme of {bits}", grids.bits);
        return Err(refuse(why, "one scheme holds all layers; requantise"));
    }
    // Codes of fewer bits lie in the middle of the grid of more.
    let half = 1i16 << (bits - 1);
    let signed = |code: u16| code as i16 - half;
    let zeros = match (symmetric, grids.zero()) {
        (true, Some(zero)) if signed(zero) == 0 => None,
        (true, zero) => {
            let why = format!("zero points {zero:?}, in a symmetric scheme of {bits} bits");
            return Err(refuse(why, "an asymmetric scheme holds them"));
        }
        (false, _) => {
            if let Some(zero) = grids.zeros.iter().find(|zero| signed(**zero) >= half) {
                let why = format!("a zero point of {zero}, beyond {bits} bits");
                return Err(refuse(why, "requantise"));
            }
            Some(grids.zeros.mapv(|zero| signed(zero) as i8))
        }
    };
    let granularity = match grids.group_of {
        Some(index) => Granularity::Indexed(index),
        None if !grids.codes.ncols().is_multiple_of(grids.group) => {
            Granularity::Indexed(runs(grids.codes.ncols(), grids.group))
        }
        None => Granularity::Group,
    };
    let integers = Integers {
        values: grids.codes.mapv(|code| signed(code.into()) as i8),
        zeros,
        scales: Scales { values: grids.scales, dtype: grids.dtype, granularity },
    };
    let layer = PackQuantized::pack(&integers, bits, Packing::Dense)?;
    let mut stored = vec![
        ("weight_packed", layer.weight_packed),
        ("weight_scale", layer.weight_scale),
        ("weight_shape", layer.weight_shape),
    ];
    stored.extend(layer.weight_zero_point.map(|zeros| ("weight_zero_point", zeros)));
    stored.extend(layer.weight_g_idx.map(|index| ("weight_g_idx", index)));
    Ok(stored)
}

/// Values of a table's child.
fn values(node: &dyn Node) -> Result<Vec<f32>> {
    Ok(decode(node)?.into_raw_vec_and_offset().0)
}

fn blockwise(table: &LevelTable) -> Result<Option<Blockwise>> {
    let Blocks::Flat(block) = table.format().blocks() else {
        return Ok(None);
    };
    if table.format().tables() != Tables::One || !table.format().has_scales() {
        return Ok(None);
    }
    let mut symbols = SymbolBuf::of(table.codes());
    let rows = 0..table.shape()[0];
    let codes = symbols.read(table.codes(), rows)?.iter().map(|code| code as u8).collect();
    let child = |slot: usize| match table.child(slot) {
        Child::Node(node) => Some(&**node),
        _ => None,
    };
    let (Some(levels), Some(scales)) = (child(0), child(1)) else { return Ok(None) };
    let absmax = match as_node::<LevelTable>(scales) {
        Some(inner) if inner.format().has_offset() => {
            let Some(codes) = blockwise(inner)? else { return Ok(None) };
            let offset = values(match inner.child(2) {
                Child::Node(node) => &**node,
                _ => return Ok(None),
            })?[0];
            Statistics::Nested { codes: Box::new(codes), offset }
        }
        _ => Statistics::Plain(values(scales)?),
    };
    Ok(Some(Blockwise { levels: values(levels)?, codes, absmax, block }))
}

/// A tensor of bitsandbytes of 4 bits: NF4 or FP4, its statistics perhaps nested. The parts' names stand behind that of
/// the weight; its own is empty. `dtype` is what the tensor was before.
///
/// # Errors
/// As [`gptq`].
pub fn bits_and_bytes(node: &dyn Node, dtype: DType) -> Result<Stored> {
    let why = "bitsandbytes holds NF4 and FP4 in blocks of the flattened matrix, and this is not";
    let unlike = || refuse(why, "compress with nf4 or fp4");
    let table = as_node::<LevelTable>(node).ok_or_else(unlike)?;
    let blocks = blockwise(table)?.ok_or_else(unlike)?;
    let of = |known: KnownLevels| known.levels() == &blocks.levels[..];
    let kind = match (of(KnownLevels::Nf4), of(KnownLevels::Fp4)) {
        (true, _) => QuantType::Nf4,
        (_, true) => QuantType::Fp4,
        _ => return Err(unlike()),
    };
    let state = State::new(kind, dtype, node.shape().to_vec());
    let layer = FourBit::pack(&state, &blocks)?;
    let quant_state = match kind {
        QuantType::Nf4 => "quant_state.bitsandbytes__nf4",
        QuantType::Fp4 => "quant_state.bitsandbytes__fp4",
    };
    let mut stored = vec![
        ("", layer.weight),
        ("absmax", layer.absmax),
        ("quant_map", layer.quant_map),
        (quant_state, layer.quant_state),
    ];
    stored.extend(layer.nested_absmax.map(|part| ("nested_absmax", part)));
    stored.extend(layer.nested_quant_map.map(|part| ("nested_quant_map", part)));
    Ok(stored)
}
