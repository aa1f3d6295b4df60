use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayViewMut2, s};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_matmul,
    check_same_shape, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = A above B above ...: consecutive rows (outputs) are those of one node after the other, each of any kind.
///
/// ```
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::{Dense, Stacked, decode};
/// use tensorpress_tensor::{DType, Node};
///
/// let rows = |values: [f32; 2], dtype| Dense::from_f32(array![values].view(), dtype).map(Node::boxed);
/// let node = Stacked::new(vec![rows([1.0, 2.0], DType::F16)?, rows([3.0, 4.0], DType::F32)?])?;
/// assert_eq!(decode(&node)?, array![[1.0, 2.0], [3.0, 4.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct Stacked {
    pieces: Vec<Box<dyn Node>>,
    /// The rows of each.
    places: Vec<Range<usize>>,
}

impl Stacked {
    /// The rows of at least one node, all of as many inputs.
    ///
    /// # Errors
    /// `InvalidArgument` without pieces, `ShapeMismatch` if their inputs differ.
    pub fn new(pieces: Vec<Box<dyn Node>>) -> Result<Self> {
        let Some(first) = pieces.first() else {
            return Err(Error::invalid("a stack of no pieces"));
        };
        let inp = first.shape()[1];
        for piece in &pieces {
            let [rows, own] = piece.shape();
            check_same_shape([rows, inp], [rows, own], "piece of a stack")?;
        }
        let places = places(&pieces.iter().map(|piece| piece.shape()[0]).collect::<Vec<_>>())
            .ok_or_else(|| Error::shape("a stack of more rows than can be counted"))?;
        Ok(Self { pieces, places })
    }

    /// The nodes, from the first rows on.
    #[must_use]
    pub fn pieces(&self) -> &[Box<dyn Node>] {
        &self.pieces
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let (rows, described) =
            (field::<Vec<usize>>(json, "rows")?, field::<Vec<Json>>(json, "pieces")?);
        let places = places(&rows).filter(|places| places.len() == described.len());
        let places =
            places.ok_or_else(|| Error::corruption(format!("a stack of rows {rows:?}")))?;
        let whole = places.last().map_or(0, |place| place.end);
        if reader.mask().is_some_and(|mask| mask.shape()[0] != whole) {
            return Err(Error::corruption(format!("a stack of {whole} rows under another mask")));
        }
        let mut pieces = Vec::with_capacity(described.len());
        for (i, (place, json)) in places.into_iter().zip(&described).enumerate() {
            let rows = place.len();
            let reader = match reader.mask() {
                Some(mask) => reader.under(Arc::new(mask.rows(place))),
                None => reader.clone(),
            };
            let piece = reader.node(json, &join(prefix, &i.to_string()))?;
            if piece.shape()[0] != rows {
                let message = format!("piece {i} is {:?}, not of {rows} rows", piece.shape());
                return Err(Error::corruption(message));
            }
            pieces.push(piece);
        }
        Ok(Box::new(Self::new(pieces).map_err(|e| Error::corruption(e.message()))?))
    }

    /// Each piece that has some of `rows`: which of its own, and where they stand among those asked for.
    fn within(
        &self,
        rows: Range<usize>,
    ) -> impl Iterator<Item = (&dyn Node, Range<usize>, Range<usize>)> {
        self.pieces.iter().zip(&self.places).filter_map(move |(piece, place)| {
            let (from, to) = (rows.start.max(place.start), rows.end.min(place.end));
            let own = || from - place.start..to - place.start;
            (from < to).then(|| (&**piece, own(), from - rows.start..to - rows.start))
        })
    }

    fn try_map(
        self,
        f: impl FnMut(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self {
            pieces: self.pieces.into_iter().map(f).collect::<Result<_>>()?,
            ..self
        }))
    }
}

/// Where pieces of so many rows stand; `None` if their sum is no number.
fn places(rows: &[usize]) -> Option<Vec<Range<usize>>> {
    let mut end = 0usize;
    let place = |rows: &usize| {
        let first = end;
        end = end.checked_add(*rows)?;
        Some(first..end)
    };
    rows.iter().map(place).collect()
}

impl Node for Stacked {
    fn shape(&self) -> [usize; 2] {
        [self.places.last().map_or(0, |place| place.end), self.pieces[0].shape()[1]]
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        assert!(rows.end <= self.shape()[0], "rows {rows:?} of {}", self.shape()[0]);
        assert_eq!(out.dim(), (rows.len(), self.shape()[1]), "output shape");
        for (piece, own, at) in self.within(rows) {
            piece.decode_rows(own, out.slice_mut(s![at, ..]), accum, scratch)?;
        }
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &rows, x, &y);
        for (piece, own, at) in self.within(rows) {
            piece.matmul_rows(own, x, y.slice_mut(s![.., at]), accum, scratch)?;
        }
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        let fused = self.pieces.iter().all(|piece| piece.multiply() == Multiply::Fused);
        if fused { Multiply::Fused } else { Multiply::Decode }
    }

    fn is_linear(&self) -> bool {
        self.pieces.iter().all(|piece| piece.is_linear())
    }

    fn zero_outside(&self) -> bool {
        self.pieces.iter().all(|piece| piece.zero_outside())
    }

    fn describe(&self) -> Json {
        let rows: Vec<usize> = self.places.iter().map(Range::len).collect();
        let pieces: Vec<Json> = self.pieces.iter().map(|piece| piece.describe()).collect();
        json!({"node": "stacked.v1", "rows": rows, "pieces": pieces})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (i, piece) in self.pieces.iter().enumerate() {
            piece.parts(&join(prefix, &i.to_string()), sink)?;
        }
        Ok(())
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|piece| piece.map_planes(f))
    }

    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        check_same_shape(self.shape(), mask.shape(), "mask")?;
        let mut places = self.places.clone().into_iter();
        self.try_map(|piece| {
            let place = places.next().expect("one a piece");
            piece.keep(&Arc::new(mask.rows(place)))
        })
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|piece| piece.prepack())
    }
}
