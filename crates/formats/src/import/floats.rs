//! Small floats with scales: the floats of compressed-tensors, and DeepSeek's.

use serde_json::json;
use tensorpress_tensor::node::{Format as _, Json};
use tensorpress_tensor::{Checkpoint, Error, Result};

use super::method::Scheme;
use super::weight::{Weight, bytes_of, dense, matrix, packed, stored};
use crate::float::{Small, SmallFormat};
use crate::parts::group_length;

/// Tree of small floats; its scales are a child of their own.
fn floats(
    element: Small,
    shape: [usize; 2],
    tile: [usize; 2],
    scaling: &str,
    scales: Option<Json>,
) -> Json {
    let mut json = json!({
        "node": SmallFormat::ID,
        "shape": shape,
        "element": element.name(),
        "tile": tile.map(|length| length.max(1)),
        "scaling": scaling,
        "codes": packed(shape, element.bits() as u8),
    });
    if let Some(scales) = scales {
        json["scales"] = scales;
    }
    json
}

/// A layer of 8-bit floats, whose scales are a float each for the matrix, a row, a run of inputs or a tile.
pub(super) fn float_quantized(
    of: &Checkpoint,
    layer: &str,
    scale: &str,
    tile: Option<[usize; 2]>,
) -> Result<Weight> {
    let (codes, scale) = (format!("{layer}.weight"), format!("{layer}.{scale}"));
    let shape @ [rows, cols] = matrix(of, &codes)?;
    let element = match of.dtype_name(&codes) {
        Some("F8_E5M2") => Small::E5m2,
        _ => Small::E4m3Fn,
    };
    let (grid, tile) = match (of.shape(&scale), tile) {
        (Some(&[height, width]), Some(tile)) => ([height, width], tile),
        (Some(&[height, groups]), None) => {
            ([height, groups], [1, group_length(&scale, cols, groups)?])
        }
        (Some([] | [1]), _) => ([1, 1], [rows, cols]),
        (Some(&[height]), None) if height == rows => ([height, 1], [1, cols]),
        (found, _) => {
            let what = format!("shape {found:?} for a weight {shape:?}");
            return Err(Error::shape(what).in_tensor(scale));
        }
    };
    let dtype = of.dtype(&scale)?.name();
    let tree = floats(element, shape, tile, "multiply", Some(dense(dtype, grid)));
    let parts = vec![("codes", bytes_of(of, &codes)?), ("scales.values", stored(of, &scale)?)];
    Ok(Weight { name: codes, tree: Some(tree), parts })
}

/// Whether tiles share scales: what schemes of floats say.
pub(super) fn tile_of(schemes: &[Scheme]) -> Option<[usize; 2]> {
    schemes.iter().filter(|scheme| scheme.float).find_map(|scheme| scheme.tile)
}

/// A layer in a format of Microscaling.
pub(super) fn mx(of: &Checkpoint, layer: &str) -> Result<Weight> {
    let (full, packed_name) = (format!("{layer}.weight"), format!("{layer}.weight_packed"));
    let scale = format!("{layer}.weight_scale");
    let codes = if of.contains(&packed_name) { packed_name } else { full.clone() };
    let [rows, width] = matrix(of, &codes)?;
    let [_, blocks] = matrix(of, &scale)?;
    let cols = blocks.checked_mul(32).ok_or_else(|| Error::shape("overflows").in_tensor(&scale))?;
    let elements = [Small::E2m1Fn, Small::E2m3Fn, Small::E4m3Fn];
    let fits = |element: &Small| width * 8 == cols * element.bits() as usize;
    let Some(element) = elements.into_iter().find(fits) else {
        let what = format!("{width} bytes a row, with {blocks} scales: no format of Microscaling");
        return Err(Error::shape(what).in_tensor(codes));
    };
    let scales = floats(Small::E8m0FnU, [rows, blocks], [1, 1], "none", None);
    let tree = floats(element, [rows, cols], [1, 32], "multiply", Some(scales));
    let parts = vec![("codes", bytes_of(of, &codes)?), ("scales.codes", bytes_of(of, &scale)?)];
    Ok(Weight { name: full, tree: Some(tree), parts })
}

/// A layer of NVFP4: scales of blocks of 16 are over one for all.
pub(super) fn nvfp4(of: &Checkpoint, layer: &str) -> Result<Weight> {
    let part = |part: &str| format!("{layer}.{part}");
    let (codes, scale, global) =
        (part("weight_packed"), part("weight_scale"), part("weight_global_scale"));
    let [rows, width] = matrix(of, &codes)?;
    let cols = width.checked_mul(2).ok_or_else(|| Error::shape("overflows").in_tensor(&codes))?;
    let blocks = cols.div_ceil(16);
    let dtype = of.dtype(&global)?.name();
    let scales =
        floats(Small::E4m3Fn, [rows, blocks], [rows, blocks], "divide", Some(dense(dtype, [1, 1])));
    let tree = floats(Small::E2m1Fn, [rows, cols], [1, 16], "multiply", Some(scales));
    let parts = vec![
        ("codes", bytes_of(of, &codes)?),
        ("scales.codes", bytes_of(of, &scale)?),
        ("scales.scales.values", stored(of, &global)?),
    ];
    Ok(Weight { name: part("weight"), tree: Some(tree), parts })
}
