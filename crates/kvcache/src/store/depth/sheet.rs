use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use ndarray::{Array3, ArrayViewMut2};
use serde::Serialize;
use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartSink, Result, ndarray};

use crate::store::coded::{Stream, put_floats};
use crate::store::int::Role;
use crate::store::{JointPage, bytes_part, count, read_bytes};

/// What the arrays of a page mean.
pub(super) trait Layout: Debug + Send + Sync + 'static {
    /// Each array: its name and how many bytes it has.
    fn arrays(&self) -> Vec<(Stream, usize)>;

    /// Keys or values of a member's head, whose width is right.
    fn decode(&self, arrays: &[Vec<u8>], at: (usize, Role, usize), out: ArrayViewMut2<'_, f32>);

    fn size(&self) -> Size;
}

/// A chunk of a group of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) members: usize,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
}

impl Size {
    pub(super) fn of(keys: &[Array3<f32>], values: &[Array3<f32>]) -> Self {
        let (tokens, heads, key_dim) = keys[0].dim();
        Self { members: keys.len(), tokens, heads, key_dim, value_dim: values[0].dim().2 }
    }

    pub(super) fn read(group: &Range<usize>, json: &Json) -> Result<Self> {
        let [tokens, heads, key_dim, value_dim] =
            ["tokens", "heads", "key_dim", "value_dim"].map(|key| count(json, key));
        let size = Self {
            members: group.len(),
            tokens: tokens?,
            heads: heads?,
            key_dim: key_dim?,
            value_dim: value_dim?,
        };
        let limits = [(size.tokens, 1 << 12), (size.heads, 1 << 12)];
        let dims = [(size.key_dim, 1 << 15), (size.value_dim, 1 << 15)];
        if limits.iter().chain(&dims).any(|(count, most)| !(1..=*most).contains(count)) {
            return Err(Error::corruption(format!("KV cache description: a page of {size:?}")));
        }
        Ok(size)
    }

    pub(super) fn dim(&self, role: Role) -> usize {
        if role == Role::Keys { self.key_dim } else { self.value_dim }
    }
}

/// A page of arrays.
#[derive(Debug)]
pub(super) struct Sheet<L> {
    pub(super) layout: L,
    pub(super) arrays: Vec<Vec<u8>>,
}

impl<L: Layout> Sheet<L> {
    pub(super) fn read(layout: L, prefix: &str, source: &dyn PartSource) -> Result<Self> {
        let read = |((name, _), bytes): &(Stream, usize)| {
            Ok(read_bytes(source, prefix, name, *bytes)?.to_vec())
        };
        let arrays = layout.arrays().iter().map(read).collect::<Result<_>>()?;
        Ok(Self { layout, arrays })
    }
}

impl<L: Layout> JointPage for Sheet<L> {
    fn tokens(&self) -> usize {
        self.layout.size().tokens
    }

    fn decode(&self, member: usize, role: Role, head: usize, mut out: ArrayViewMut2<'_, f32>) {
        let size = self.layout.size();
        // A page of a damaged file may be of another shape than its layers.
        if member < size.members && head < size.heads && out.dim() == (size.tokens, size.dim(role))
        {
            self.layout.decode(&self.arrays, (member, role, head), out);
        } else {
            out.fill(0.0);
        }
    }

    fn bytes(&self) -> u64 {
        self.arrays.iter().map(|array| array.len() as u64).sum()
    }

    fn describe(&self) -> Json {
        let Size { tokens, heads, key_dim, value_dim, .. } = self.layout.size();
        json!({ "tokens": tokens, "heads": heads, "key_dim": key_dim, "value_dim": value_dim })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (((name, kind), _), bytes) in self.layout.arrays().iter().zip(&self.arrays) {
            bytes_part(sink, prefix, name, *kind, bytes)?;
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `id` beside the parameters.
pub(super) fn described(id: &str, parameters: &impl Serialize) -> Json {
    let mut json = serde_json::to_value(parameters).unwrap_or_default();
    json["id"] = id.into();
    json
}

/// Appends numbers in f16, the largest of it for what is beyond.
pub(super) fn put_half(values: impl Iterator<Item = f32>, to: &mut Vec<u8>) {
    let values: Vec<f32> = values.map(|x| x.clamp(-65504.0, 65504.0)).collect();
    put_floats(DType::F16, &values, to);
}
