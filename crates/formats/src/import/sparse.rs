//! Matrices without their zeros.

use serde_json::json;
use tensorpress_tensor::{Checkpoint, Context as _, Error, Result};

use super::weight::{Weight, bytes_of, stored};

/// A matrix as a mask and what is kept, under `prefix.shape`, `.compressed` and `.bitmask`; `name` is that of the weight.
pub(super) fn bitmask(of: &Checkpoint, prefix: &str, name: String) -> Result<Weight> {
    let part = |part: &str| format!("{prefix}.{part}");
    let (dims, kept, mask) = (part("shape"), part("compressed"), part("bitmask"));
    let tensor = of.tensor(&dims)?;
    let lengths: Vec<i64> =
        tensor.bytes().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    let shape = match lengths[..] {
        [rows, cols] => usize::try_from(rows).ok().zip(usize::try_from(cols).ok()),
        _ => None,
    };
    let Some((rows, cols)) = shape.filter(|(rows, cols)| rows.checked_mul(*cols).is_some()) else {
        return Err(Error::corruption(format!("lengths {lengths:?}")).in_tensor(dims));
    };
    let dtype = of.dtype(&kept).in_tensor(&kept)?;
    if !dtype.is_float() {
        let what =
            format!("{} elements without zeros, which stand for other weights", dtype.name());
        return Err(Error::unsupported(what).in_tensor(kept));
    }
    let inner =
        json!({"node": "dense.v1", "dtype": dtype.name(), "shape": [rows, cols], "kept": true});
    let tree = json!({"node": "masked.v1", "shape": [rows, cols], "inner": inner});
    let parts = vec![("mask", bytes_of(of, &mask)?), ("inner.values", stored(of, &kept)?)];
    Ok(Weight { name, tree: Some(tree), parts })
}
