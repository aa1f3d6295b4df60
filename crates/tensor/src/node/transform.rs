use std::borrow::Cow;

use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use serde_json::json;

use super::Json;
use super::plane::part_name;
use super::registry::{NodeReader, field};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::linalg;
use crate::source::Tensor;
use crate::storage::{Part, PartKind, PartSink};

/// Side of the matrix a transform acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Columns: W = A T.
    In,
    /// Rows: W = Tᵀ A.
    Out,
}

/// A linear map on one side of a node. As a matrix T is `[inner, outer]`; a row vector v of the inner space
/// becomes v T of the outer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Transform {
    /// T = diag(values), stored as `dtype` (values are rounded to it).
    Scale {
        /// One factor a channel.
        values: Vec<f32>,
        /// Stored type.
        dtype: DType,
    },
    /// Inner channel j is outer channel `index[j]`; a permutation if `outer` equals the length, else the outer
    /// channels that are not named are 0 (removed channels).
    Index {
        /// Outer channel of each inner channel, all different.
        index: Vec<u32>,
        /// Number of outer channels.
        outer: usize,
    },
    /// Orthonormal Walsh-Hadamard matrices of size `block` along the diagonal, after a diagonal of signs.
    Hadamard {
        /// Number of channels, a multiple of `block`.
        size: usize,
        /// A power of two.
        block: usize,
        /// One bit a channel, set where the sign is -1; empty for none. Least significant bit first.
        signs: Vec<u8>,
    },
}

impl Transform {
    /// A diagonal of factors rounded to `dtype`.
    ///
    /// # Errors
    /// `Unsupported` if `dtype` is no float type, `Numerical` if a factor is 0 or not finite after rounding.
    pub fn scale(mut values: Vec<f32>, dtype: DType) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::unsupported(format!("scales stored as {dtype:?}")));
        }
        for (i, v) in values.iter_mut().enumerate() {
            let rounded = dtype.round(*v);
            if !rounded.is_finite() || rounded == 0.0 {
                return Err(Error::numerical(format!("scale {v} of channel {i} as {dtype:?}")));
            }
            *v = rounded;
        }
        Ok(Self::Scale { values, dtype })
    }

    /// An index map or permutation into `outer` channels.
    ///
    /// # Errors
    /// `InvalidArgument` if an index is out of range or named twice.
    pub fn index(index: Vec<u32>, outer: usize) -> Result<Self> {
        let mut seen = vec![false; outer];
        for &i in &index {
            match seen.get_mut(i as usize) {
                Some(s) if !*s => *s = true,
                Some(_) => return Err(Error::invalid(format!("channel {i} is named twice"))),
                None => return Err(Error::invalid(format!("channel {i} of {outer}"))),
            }
        }
        Ok(Self::Index { index, outer })
    }

    /// A block Walsh-Hadamard transform with optional random signs.
    ///
    /// # Errors
    /// `InvalidArgument` if `block` is no power of two that divides `size`, or the signs have another length.
    pub fn hadamard(size: usize, block: usize, signs: Vec<u8>) -> Result<Self> {
        if !block.is_power_of_two() || !size.is_multiple_of(block) {
            return Err(Error::invalid(format!("Hadamard block {block} for {size} channels")));
        }
        if !signs.is_empty() && signs.len() != size.div_ceil(8) {
            return Err(Error::invalid(format!("{} sign bytes for {size} channels", signs.len())));
        }
        Ok(Self::Hadamard { size, block, signs })
    }

    /// Channels of the inner node.
    #[must_use]
    pub fn inner(&self) -> usize {
        match self {
            Self::Scale { values, .. } => values.len(),
            Self::Index { index, .. } => index.len(),
            Self::Hadamard { size, .. } => *size,
        }
    }

    /// Channels seen from outside.
    #[must_use]
    pub fn outer(&self) -> usize {
        match self {
            Self::Index { outer, .. } => *outer,
            other => other.inner(),
        }
    }

    /// Rows of `inner` (`[n, inner]`) times T, into `outer` (`[n, outer]`).
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn apply(&self, inner: ArrayView2<'_, f32>, mut outer: ArrayViewMut2<'_, f32>) {
        assert_eq!(inner.ncols(), self.inner(), "inner channels");
        assert_eq!(outer.dim(), (inner.nrows(), self.outer()), "outer shape");
        match self {
            Self::Scale { values, .. } => {
                for (mut o, i) in outer.rows_mut().into_iter().zip(inner.rows()) {
                    o.iter_mut().zip(i).zip(values).for_each(|((o, i), s)| *o = i * s);
                }
            }
            Self::Index { index, .. } => {
                outer.fill(0.0);
                for (mut o, i) in outer.rows_mut().into_iter().zip(inner.rows()) {
                    i.iter().zip(index).for_each(|(v, at)| o[*at as usize] = *v);
                }
            }
            Self::Hadamard { block, signs, .. } => {
                outer.assign(&inner);
                for mut row in outer.rows_mut() {
                    flip(row.view_mut(), signs);
                    hadamard_row(row, *block);
                }
            }
        }
    }

    /// Rows of `outer` (`[n, outer]`) times Tᵀ, into `inner` (`[n, inner]`).
    ///
    /// # Panics
    /// If a shape does not fit.
    pub fn apply_transposed(&self, outer: ArrayView2<'_, f32>, mut inner: ArrayViewMut2<'_, f32>) {
        assert_eq!(outer.ncols(), self.outer(), "outer channels");
        assert_eq!(inner.dim(), (outer.nrows(), self.inner()), "inner shape");
        match self {
            Self::Scale { .. } => self.apply(outer, inner),
            Self::Index { index, .. } => {
                for (mut i, o) in inner.rows_mut().into_iter().zip(outer.rows()) {
                    i.iter_mut().zip(index).for_each(|(v, at)| *v = o[*at as usize]);
                }
            }
            Self::Hadamard { block, signs, .. } => {
                inner.assign(&outer);
                for mut row in inner.rows_mut() {
                    hadamard_row(row.view_mut(), *block);
                    flip(row, signs);
                }
            }
        }
    }

    pub(super) fn describe(&self) -> Json {
        match self {
            Self::Scale { values, dtype } => {
                json!({"kind": "scale", "channels": values.len(), "dtype": dtype})
            }
            Self::Index { index, outer } => {
                json!({"kind": "index", "channels": index.len(), "outer": outer})
            }
            Self::Hadamard { size, block, signs } => {
                json!({"kind": "hadamard", "channels": size, "block": block, "signs": !signs.is_empty()})
            }
        }
    }

    pub(super) fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let mut bytes = Vec::new();
        let (kind, dtype, shape) = match self {
            Self::Scale { values, dtype } => {
                dtype.write_f32(values, &mut bytes)?;
                (PartKind::Transforms, *dtype, values.len())
            }
            Self::Index { index, outer } => {
                let dtype = index_dtype(*outer);
                for i in index {
                    bytes.extend_from_slice(&i.to_le_bytes()[..dtype.size()]);
                }
                (PartKind::Indices, dtype, index.len())
            }
            Self::Hadamard { signs, .. } if signs.is_empty() => return Ok(()),
            Self::Hadamard { signs, .. } => {
                bytes.extend_from_slice(signs);
                (PartKind::Transforms, DType::U8, signs.len())
            }
        };
        sink.part(Part {
            name: part_name(prefix, "transform"),
            kind,
            dtype,
            shape: vec![shape],
            bytes: Cow::Owned(bytes),
        })
    }

    pub(super) fn read_from(reader: &NodeReader<'_>, json: &Json, prefix: &str) -> Result<Self> {
        let channels = field::<usize>(json, "channels")?;
        let name = part_name(prefix, "transform");
        let corrupt = |e: Error| Error::corruption(e.message()).in_tensor(&name);
        let check = |len: usize| {
            if len == channels {
                return Ok(());
            }
            Err(Error::corruption(format!("{len} entries for {channels} channels"))
                .in_tensor(&name))
        };
        match field::<String>(json, "kind")?.as_str() {
            "scale" => {
                let part = reader.part(&name)?;
                let [rows, cols] = part.matrix_shape();
                check(rows * cols)?;
                let mut values = vec![0.0; channels];
                part.dtype().read_f32(part.bytes(), &mut values).map_err(corrupt)?;
                Self::scale(values, part.dtype()).map_err(corrupt)
            }
            "index" => {
                let outer = field::<usize>(json, "outer")?;
                let dtype = index_dtype(outer);
                let bytes = reader.bytes(&name, dtype)?;
                check(bytes.len() / dtype.size())?;
                if outer / 64 > channels + 1024 {
                    return Err(Error::corruption(format!(
                        "{outer} outer channels for {channels}"
                    )));
                }
                let index = bytes.chunks_exact(dtype.size()).map(|b| {
                    let mut word = [0; 4];
                    word[..b.len()].copy_from_slice(b);
                    u32::from_le_bytes(word)
                });
                Self::index(index.collect(), outer).map_err(corrupt)
            }
            "hadamard" => {
                let signs = match field::<bool>(json, "signs")? {
                    true => reader.bytes(&name, DType::U8)?.to_vec(),
                    false => Vec::new(),
                };
                Self::hadamard(channels, field(json, "block")?, signs).map_err(corrupt)
            }
            other => Err(Error::version(format!("unknown transform `{other}`"))),
        }
    }
}

fn index_dtype(outer: usize) -> DType {
    if outer <= 1 << 16 { DType::U16 } else { DType::U32 }
}

fn flip(mut row: ArrayViewMut1<'_, f32>, signs: &[u8]) {
    if signs.is_empty() {
        return;
    }
    for (i, v) in row.iter_mut().enumerate() {
        if signs[i / 8] >> (i % 8) & 1 == 1 {
            *v = -*v;
        }
    }
}

fn hadamard_row(mut row: ArrayViewMut1<'_, f32>, block: usize) {
    for mut chunk in row.axis_chunks_iter_mut(Axis(0), block) {
        match chunk.as_slice_mut() {
            Some(slice) => linalg::hadamard(slice),
            None => {
                let mut owned = chunk.to_vec();
                linalg::hadamard(&mut owned);
                chunk.iter_mut().zip(owned).for_each(|(c, o)| *c = o);
            }
        }
    }
}
