//! The tables of bitsandbytes.

use serde_json::json;
use tensorpress_tensor::node::{Format as _, Json, KnownLevels, LevelFormat};
use tensorpress_tensor::source::matrix_shape;
use tensorpress_tensor::{Bytes, Checkpoint, Context as _, DType, Error, Result};

use super::weight::{Weight, bytes_of, dense, made, packed, stored};
use crate::bnb::{Int8Format, State};
use crate::words::{Along, Layout, Order, WordPlane};

/// A table of levels: one that has a name where the stored one is that, else as it is stored.
fn table(
    of: &Checkpoint,
    name: &str,
    known: KnownLevels,
    part: &'static str,
    weight: &mut Weight,
) -> Result<Json> {
    let stored_levels = of.tensor(name)?;
    let mut levels = vec![0.0; stored_levels.bytes().len() / 4];
    if stored_levels.dtype() != DType::F32 || levels.len() != known.levels().len() {
        let count = known.levels().len();
        return Err(Error::shape(format!("where {count} levels in F32 belong")).in_tensor(name));
    }
    DType::F32.read_f32(stored_levels.bytes(), &mut levels)?;
    let same = levels.iter().zip(known.levels()).all(|(a, b)| a == b);
    if same {
        return Ok(json!({"node": "known_levels.v1", "name": known}));
    }
    weight.parts.push((part, stored(of, name)?));
    Ok(dense("F32", [1, levels.len()]))
}

use tensorpress_tensor::Tensor as _;

fn levels(shape: [usize; 2], count: usize, block: usize, codes: Json) -> Json {
    json!({
        "node": LevelFormat::ID,
        "shape": shape,
        "count": count,
        "blocks": {"flat": block},
        "codes": codes,
    })
}

/// A tensor of 4 bits.
pub(super) fn four_bits(of: &Checkpoint, name: &str, state: &str) -> Result<Weight> {
    let json = of.bytes(state)?;
    let (state, block, nested) = State::read(&json).in_tensor(state)?;
    if state.shape.contains(&0) {
        return Err(Error::shape(format!("shape {:?} is empty", state.shape)).in_tensor(name));
    }
    state.elements().in_tensor(name)?;
    let [rows, cols] = matrix_shape(&state.shape);
    let shape = [rows, cols];
    let count = state.elements().in_tensor(name)?;
    let blocks = count.div_ceil(block);
    let part = |part: &str| format!("{name}.{part}");
    let codes = Layout { order: Order::Swapped, ..Layout::new(4, Along::Columns) };
    let mut weight =
        Weight { name: name.to_owned(), tree: None, parts: vec![("codes", bytes_of(of, name)?)] };
    let mut tree = levels(shape, 16, block, WordPlane::described(codes, shape));
    let known = state.quant_type.table();
    tree["levels"] = table(of, &part("quant_map"), known, "levels.values", &mut weight)?;
    let absmax = part("absmax");
    tree["scales"] = match nested {
        None => {
            weight.parts.push(("scales.values", stored(of, &absmax)?));
            dense("F32", [1, blocks])
        }
        Some(nested) => {
            let mut scales = levels([1, blocks], 256, nested.block, packed([1, blocks], 8));
            let map = part("nested_quant_map");
            let known = KnownLevels::Dynamic8;
            scales["levels"] = table(of, &map, known, "scales.levels.values", &mut weight)?;
            scales["scales"] = dense("F32", [1, blocks.div_ceil(nested.block)]);
            scales["offset"] = dense("F32", [1, 1]);
            let offset = Bytes::from(nested.offset.to_le_bytes().to_vec());
            let offset = made(of, DType::F32, vec![1, 1], move |_| Ok(offset.clone()))?;
            weight.parts.push(("scales.codes", bytes_of(of, &absmax)?));
            let inner = part("nested_absmax");
            weight.parts.push(("scales.scales.values", stored(of, &inner)?));
            weight.parts.push(("scales.offset.values", offset));
            scales
        }
    };
    weight.tree = Some(tree);
    Ok(weight)
}

/// A layer of LLM.int8.
pub(super) fn int8(of: &Checkpoint, layer: &str) -> Result<Weight> {
    let (codes, absmax) = (format!("{layer}.weight"), format!("{layer}.SCB"));
    let Some(&[rows, cols]) = of.shape(&codes) else {
        return Err(Error::shape("where a matrix of integers belongs").in_tensor(codes));
    };
    let layout = Layout { signed: true, ..Layout::new(8, Along::Columns) };
    let tree = json!({
        "node": Int8Format::ID,
        "shape": [rows, cols],
        "codes": WordPlane::described(layout, [rows, cols]),
    });
    let parts = vec![("codes", bytes_of(of, &codes)?), ("absmax", stored(of, &absmax)?)];
    Ok(Weight { name: codes, tree: Some(tree), parts })
}
