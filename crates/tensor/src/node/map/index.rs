use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde_json::json;

use super::{Channels, DecodeRows, Map, check_shapes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::node::plane::part_name;
use crate::node::registry::{NodeReader, field};
use crate::node::{Json, Scratch};
use crate::storage::{Part, PartKind, PartSink};

/// Inner channel j is outer channel `index[j]`; a permutation if there are as many outer ones, else those that are not
/// named are 0 (removed channels).
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    index: Vec<u32>,
    /// Inner channel of each outer one; `GONE` if it has none.
    back: Vec<u32>,
}

const GONE: u32 = u32::MAX;

impl Index {
    /// An index map or permutation into `outer` channels.
    ///
    /// # Errors
    /// `InvalidArgument` if an index is out of range or named twice.
    pub fn new(index: Vec<u32>, outer: usize) -> Result<Self> {
        let mut back = vec![GONE; outer];
        for (inner, &i) in index.iter().enumerate() {
            match back.get_mut(i as usize) {
                Some(b) if *b == GONE => *b = inner as u32,
                Some(_) => return Err(Error::invalid(format!("channel {i} is named twice"))),
                None => return Err(Error::invalid(format!("channel {i} of {outer}"))),
            }
        }
        Ok(Self { index, back })
    }

    /// The outer channel of each inner one.
    #[must_use]
    pub fn index(&self) -> &[u32] {
        &self.index
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        let channels = field::<usize>(json, "channels")?;
        let name = part_name(prefix, "transform");
        let outer = field::<usize>(json, "outer")?;
        let dtype = dtype_for(outer);
        let bytes = reader.bytes(&name, dtype)?;
        super::check_entries(bytes.len() / dtype.size(), channels, &name)?;
        if outer / 64 > channels + 1024 {
            return Err(Error::corruption(format!("{outer} outer channels for {channels}")));
        }
        let index = bytes.chunks_exact(dtype.size()).map(|b| {
            let mut word = [0; 4];
            word[..b.len()].copy_from_slice(b);
            u32::from_le_bytes(word)
        });
        let corrupt = |e: Error| Error::corruption(e.message()).in_tensor(&name);
        Ok(Arc::new(Self::new(index.collect(), outer).map_err(corrupt)?))
    }
}

fn dtype_for(outer: usize) -> DType {
    if outer <= 1 << 16 { DType::U16 } else { DType::U32 }
}

impl Map for Index {
    fn inner(&self) -> usize {
        self.index.len()
    }

    fn outer(&self) -> usize {
        self.back.len()
    }

    fn apply(&self, inner: ArrayView2<'_, f32>, mut outer: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        outer.fill(0.0);
        for (mut o, i) in outer.rows_mut().into_iter().zip(inner.rows()) {
            i.iter().zip(&self.index).for_each(|(v, at)| o[*at as usize] = *v);
        }
    }

    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, mut inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        for (mut i, o) in inner.rows_mut().into_iter().zip(outer.rows()) {
            i.iter_mut().zip(&self.index).for_each(|(v, at)| *v = o[*at as usize]);
        }
    }

    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        self.apply_transposed(outer, inner);
    }

    fn channels(&self) -> Channels<'_> {
        Channels::Moved(&self.index)
    }

    fn is_orthogonal(&self) -> bool {
        self.inner() == self.outer()
    }

    fn decode_out(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        let mut at = 0;
        let back = &self.back[rows];
        while at < back.len() {
            // Rows that stay neighbours are decoded together.
            let first = back[at];
            let follows = |(i, b): (usize, &u32)| match first {
                GONE => *b == GONE,
                first => u64::from(*b) == u64::from(first) + i as u64,
            };
            let run = back[at..].iter().enumerate().take_while(|pair| follows(*pair)).count();
            let mut here = out.slice_mut(s![at..at + run, ..]);
            match first {
                GONE => here.fill(0.0),
                first => decode(first as usize..first as usize + run, here, scratch)?,
            }
            at += run;
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"kind": "index", "channels": self.inner(), "outer": self.outer()})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let dtype = dtype_for(self.outer());
        let mut bytes = Vec::with_capacity(self.index.len() * dtype.size());
        for i in &self.index {
            bytes.extend_from_slice(&i.to_le_bytes()[..dtype.size()]);
        }
        sink.part(Part {
            name: part_name(prefix, "transform"),
            kind: PartKind::Indices,
            dtype,
            shape: vec![self.index.len()],
            bytes: Cow::Owned(bytes),
        })
    }
}
