use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde_json::json;

use super::{Channels, DecodeRows, Map, check_shapes};
use crate::error::{Error, Result};
use crate::node::registry::{NodeReader, field};
use crate::node::{Json, Scratch, join};
use crate::storage::PartSink;

/// Maps one after another, from the inner node outwards: T = T₁ T₂ ...
#[derive(Debug, Clone)]
pub struct Composed {
    maps: Vec<Arc<dyn Map>>,
}

impl Composed {
    /// T₁ T₂ ...
    ///
    /// # Errors
    /// `InvalidArgument` if there are none, `ShapeMismatch` if the channels differ.
    pub fn new(maps: Vec<Arc<dyn Map>>) -> Result<Self> {
        if maps.is_empty() {
            return Err(Error::invalid("a composition of no maps"));
        }
        for pair in maps.windows(2) {
            if pair[0].outer() != pair[1].inner() {
                let [outer, inner] = [pair[0].outer(), pair[1].inner()];
                return Err(Error::shape(format!("a map of {inner} channels after {outer}")));
            }
        }
        Ok(Self { maps })
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        let described = field::<Vec<Json>>(json, "maps")?;
        let read =
            |(i, json): (usize, &Json)| reader.map(json, &join(prefix, &format!("transform.{i}")));
        let maps = described.iter().enumerate().map(read).collect::<Result<_>>()?;
        Ok(Arc::new(Self::new(maps).map_err(|e| Error::corruption(e.message()))?))
    }

    fn first(&self) -> &dyn Map {
        &*self.maps[0]
    }

    /// Through `maps`, each of which makes rows of a number of channels.
    fn chain<'m>(
        from: ArrayView2<'_, f32>,
        mut to: ArrayViewMut2<'_, f32>,
        maps: impl DoubleEndedIterator<Item = &'m Arc<dyn Map>>,
        channels: fn(&dyn Map) -> usize,
        apply: fn(&dyn Map, ArrayView2<'_, f32>, ArrayViewMut2<'_, f32>),
    ) {
        let mut now = from.to_owned();
        for map in maps {
            let mut next = Array2::zeros((now.nrows(), channels(&**map)));
            apply(&**map, now.view(), next.view_mut());
            now = next;
        }
        to.assign(&now);
    }
}

impl Map for Composed {
    fn inner(&self) -> usize {
        self.first().inner()
    }

    fn outer(&self) -> usize {
        self.maps.last().map_or(0, |map| map.outer())
    }

    fn apply(&self, inner: ArrayView2<'_, f32>, outer: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        let apply =
            |map: &dyn Map, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>| map.apply(x, y);
        Self::chain(inner, outer, self.maps.iter(), |map| map.outer(), apply);
    }

    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        let apply = |map: &dyn Map, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>| {
            map.apply_transposed(x, y)
        };
        Self::chain(outer, inner, self.maps.iter().rev(), |map| map.inner(), apply);
    }

    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        let apply =
            |map: &dyn Map, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>| map.invert(x, y);
        Self::chain(outer, inner, self.maps.iter().rev(), |map| map.inner(), apply);
    }

    fn channels(&self) -> Channels<'_> {
        match self.maps.as_slice() {
            [one] => one.channels(),
            _ => Channels::Mixed,
        }
    }

    fn is_orthogonal(&self) -> bool {
        self.maps.iter().all(|map| map.is_orthogonal())
    }

    fn decode_out(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        decode_through(&self.maps, rows, out, scratch, decode)
    }

    fn describe(&self) -> Json {
        let maps: Vec<Json> = self.maps.iter().map(|map| map.describe()).collect();
        json!({"kind": "composed", "maps": maps})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let mut maps = self.maps.iter().enumerate();
        maps.try_for_each(|(i, map)| map.parts(&join(prefix, &format!("transform.{i}")), sink))
    }
}

/// T₂ᵀ (T₁ᵀ A): the outermost map asks for rows of what the others make.
fn decode_through(
    maps: &[Arc<dyn Map>],
    rows: Range<usize>,
    out: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
    decode: &mut DecodeRows<'_>,
) -> Result<()> {
    let Some((last, others)) = maps.split_last() else { return decode(rows, out, scratch) };
    last.decode_out(rows, out, scratch, &mut |rows, out, scratch| {
        decode_through(others, rows, out, scratch, decode)
    })
}
