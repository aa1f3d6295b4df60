//! A weight of ours over stored tensors of others: a tree, and where its parts come from.

use std::sync::Arc;

use serde_json::json;
use tensorpress_tensor::checkpoint::{Content, Made};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Bytes, Checkpoint, DType, Error, Result};

/// A weight as a view of it says.
#[derive(Debug)]
pub(super) struct Weight {
    /// Name of the weight.
    pub(super) name: String,
    /// Its tree; none: it is one tensor of its own.
    pub(super) tree: Option<Json>,
    /// Names behind that of the weight, and what gives them.
    pub(super) parts: Vec<(&'static str, Made)>,
}

/// What makes bytes of stored tensors.
type Make = dyn Fn(&Checkpoint) -> Result<Bytes> + Send + Sync;

/// Bytes that are made of a checkpoint's tensors when they are asked for.
struct Lazy {
    of: Checkpoint,
    make: Box<Make>,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").finish_non_exhaustive()
    }
}

impl Content for Lazy {
    fn bytes(&self) -> Result<Bytes> {
        (self.make)(&self.of)
    }
}

/// The stored tensor of this name as it lies there, under its own type.
pub(super) fn stored(of: &Checkpoint, name: &str) -> Result<Made> {
    let (Some(shape), Some(len), Some(dtype)) =
        (of.shape(name), of.stored_bytes(name), of.dtype_name(name))
    else {
        return Err(of.bytes(name).err().unwrap_or_else(|| Error::insufficient("no such tensor")));
    };
    let (dtype, shape, name) = (dtype.to_owned(), shape.to_vec(), name.to_owned());
    let make = Box::new(move |of: &Checkpoint| of.bytes(&name));
    Ok(Made { dtype, shape, len, content: Arc::new(Lazy { of: of.clone(), make }) })
}

/// The bytes of a stored tensor, as bytes.
pub(super) fn bytes_of(of: &Checkpoint, name: &str) -> Result<Made> {
    let made = stored(of, name)?;
    Ok(Made { dtype: DType::U8.name().into(), shape: vec![made.len as usize], ..made })
}

/// A tensor of this type and shape that is made of others.
pub(super) fn made(
    of: &Checkpoint,
    dtype: DType,
    shape: Vec<usize>,
    make: impl Fn(&Checkpoint) -> Result<Bytes> + Send + Sync + 'static,
) -> Result<Made> {
    let len = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    let len = len.ok_or_else(|| Error::shape(format!("shape {shape:?} overflows")))? as u64;
    let content = Arc::new(Lazy { of: of.clone(), make: Box::new(make) });
    Ok(Made { dtype: dtype.name().into(), shape, len, content })
}

/// A stored matrix of floats, its rows for columns.
pub(super) fn transposed(of: &Checkpoint, name: &str) -> Result<Made> {
    let (dtype, shape) = (of.dtype(name)?, of.shape(name).unwrap_or_default());
    let &[rows, cols] = shape else {
        return Err(Error::shape(format!("{shape:?} where a matrix is needed")).in_tensor(name));
    };
    let (name, size) = (name.to_owned(), dtype.size());
    made(of, dtype, vec![cols, rows], move |of| {
        let stored = of.bytes(&name)?;
        let mut bytes = Vec::with_capacity(stored.len());
        for col in 0..cols {
            for row in 0..rows {
                let at = (row * cols + col) * size;
                bytes.extend_from_slice(&stored[at..at + size]);
            }
        }
        Ok(bytes.into())
    })
}

/// Tree of integers on grids: `zero` is one code for all groups, or the description of a plane of them.
pub(super) fn affine(shape: [usize; 2], group: usize, codes: Json, zero: Zero) -> Json {
    let mut json =
        json!({"node": "grouped_affine.v1", "shape": shape, "group": group, "codes": codes});
    match zero {
        Zero::One(zero) => json["zero"] = zero.into(),
        Zero::Plane(plane) => json["zeros"] = plane,
    }
    json
}

/// Zero points of grids.
pub(super) enum Zero {
    One(u16),
    Plane(Json),
}

/// Description of codes that are packed as ours are.
pub(super) fn packed([rows, cols]: [usize; 2], bits: u8) -> Json {
    json!({"plane": "packed.v1", "bits": bits, "shape": [rows, cols]})
}

/// Description of a matrix of floats.
pub(super) fn dense(dtype: &str, shape: [usize; 2]) -> Json {
    json!({"node": "dense.v1", "dtype": dtype, "shape": shape})
}

/// The two lengths of a stored matrix.
pub(super) fn matrix(of: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    match of.shape(name) {
        // Lengths of an empty matrix are backed by nothing.
        Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok([rows, cols]),
        Some(shape) => {
            Err(Error::shape(format!("shape {shape:?}, where a matrix belongs")).in_tensor(name))
        }
        None => Err(of.bytes(name).err().unwrap_or_else(|| Error::insufficient("is missing"))),
    }
}
