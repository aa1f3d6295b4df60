use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2};
use serde_json::json;

use super::{Channels, DecodeRows, Map, check_shapes, flip, in_place};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::linalg;
use crate::node::plane::part_name;
use crate::node::registry::{NodeReader, field};
use crate::node::{Json, Scratch};
use crate::storage::{Part, PartKind, PartSink};

/// Orthonormal Walsh-Hadamard matrices of size `block` along the diagonal, after a diagonal of signs.
///
/// The map of files from before [`super::Rotation`], which is faster on outputs, of any size, and what methods use. Here rows
/// of Tᵀ A are sums in the order of A's rows, b operations a weight, so that those files decode to the same bits for ever.
#[derive(Debug, Clone, PartialEq)]
pub struct Hadamard {
    size: usize,
    block: usize,
    /// One bit a channel, set where the sign is -1; empty for none. Least significant bit first.
    signs: Vec<u8>,
}

impl Hadamard {
    /// Blocks of `block` channels, a power of two, in `size`; a bit for each sign, or none.
    ///
    /// # Errors
    /// `InvalidArgument` if `block` is no power of two that divides `size`, or the signs have another length.
    pub fn new(size: usize, block: usize, signs: Vec<u8>) -> Result<Self> {
        if !block.is_power_of_two() || !size.is_multiple_of(block) {
            return Err(Error::invalid(format!("Hadamard block {block} for {size} channels")));
        }
        if !signs.is_empty() && signs.len() != size.div_ceil(8) {
            return Err(Error::invalid(format!("{} sign bytes for {size} channels", signs.len())));
        }
        Ok(Self { size, block, signs })
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        let channels = field::<usize>(json, "channels")?;
        let name = part_name(prefix, "transform");
        let signs = match field::<bool>(json, "signs")? {
            true => reader.bytes(&name, DType::U8)?.to_vec(),
            false => Vec::new(),
        };
        let corrupt = |e: Error| Error::corruption(e.message()).in_tensor(&name);
        Ok(Arc::new(Self::new(channels, field(json, "block")?, signs).map_err(corrupt)?))
    }

    /// (Tᵀ A)[row] = sum over i of T[i, row] A[i], in this order, of A's rows of one block.
    fn sum(&self, row: usize, inner: ArrayView2<'_, f32>, mut out: ArrayViewMut1<'_, f32>) {
        let first = row / self.block * self.block;
        let mut weights = vec![0.0; self.block];
        weights[row - first] = 1.0;
        linalg::hadamard(&mut weights);
        out.fill(0.0);
        for (i, (weight, inner)) in weights.iter().zip(inner.rows()).enumerate() {
            let negative = super::is_negative(&self.signs, first + i);
            out.scaled_add(if negative { -weight } else { *weight }, &inner);
        }
    }

    fn transform(&self, values: &mut [f32]) {
        values.chunks_exact_mut(self.block).for_each(linalg::hadamard);
    }
}

impl Map for Hadamard {
    fn inner(&self) -> usize {
        self.size
    }

    fn outer(&self) -> usize {
        self.size
    }

    fn apply(&self, inner: ArrayView2<'_, f32>, outer: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        in_place(inner, outer, |row| {
            flip(row, &self.signs);
            self.transform(row);
        });
    }

    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        in_place(outer, inner, |row| {
            self.transform(row);
            flip(row, &self.signs);
        });
    }

    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        self.apply_transposed(outer, inner);
    }

    fn channels(&self) -> Channels<'_> {
        Channels::Mixed
    }

    fn is_orthogonal(&self) -> bool {
        true
    }

    fn decode_out(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        let (block, cols) = (self.block, out.ncols());
        let mut at = rows.start;
        while at < rows.end {
            let first = at / block * block;
            let until = rows.end.min(first + block);
            scratch.with_matrix((block, cols), |mut inner, scratch| {
                decode(first..first + block, inner.view_mut(), scratch)?;
                for row in at..until {
                    self.sum(row, inner.view(), out.row_mut(row - rows.start));
                }
                Ok::<_, Error>(())
            })?;
            at = until;
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        let (channels, signs) = (self.size, !self.signs.is_empty());
        json!({"kind": "hadamard", "channels": channels, "block": self.block, "signs": signs})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        if self.signs.is_empty() {
            return Ok(());
        }
        sink.part(Part {
            name: part_name(prefix, "transform"),
            kind: PartKind::Transforms,
            dtype: DType::U8,
            shape: vec![self.signs.len()],
            bytes: Cow::Borrowed(&self.signs),
        })
    }
}
