use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_matmul, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = U V with U `[out, rank]` and V `[rank, in]`, each any node.
#[derive(Debug)]
pub struct Product {
    left: Box<dyn Node>,
    right: Box<dyn Node>,
}

impl Product {
    /// The product of two nodes.
    ///
    /// # Errors
    /// `ShapeMismatch` if the inner sizes differ.
    pub fn new(left: Box<dyn Node>, right: Box<dyn Node>) -> Result<Self> {
        if left.shape()[1] != right.shape()[0] {
            return Err(Error::shape(format!(
                "product of {:?} and {:?}",
                left.shape(),
                right.shape()
            )));
        }
        Ok(Self { left, right })
    }

    /// The inner size.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.left.shape()[1]
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let left = reader.child(json, "left", prefix)?;
        let right = reader.child(json, "right", prefix)?;
        Ok(Box::new(Self::new(left, right).map_err(|e| Error::corruption(e.message()))?))
    }
}

impl Node for Product {
    fn shape(&self) -> [usize; 2] {
        [self.left.shape()[0], self.right.shape()[1]]
    }

    /// Decodes the whole right factor: cheap where the rank is low, and the reason why `matmul` does not decode.
    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let ([_, rank], [_, inp]) = (self.left.shape(), self.right.shape());
        let (mut u, mut v) = (scratch.take(rows.len() * rank), scratch.take(rank * inp));
        let mut u_view = ArrayViewMut2::from_shape((rows.len(), rank), &mut u).expect("length");
        let mut v_view = ArrayViewMut2::from_shape((rank, inp), &mut v).expect("length");
        self.left.decode_rows(rows, u_view.view_mut(), Accum::Replace, scratch)?;
        self.right.decode_rows(0..rank, v_view.view_mut(), Accum::Replace, scratch)?;
        // Row by row, so that any partition of the rows gives the same bits.
        for (u_row, mut out_row) in u_view.rows().into_iter().zip(out.rows_mut()) {
            if accum == Accum::Replace {
                out_row.fill(0.0);
            }
            for (a, v_row) in u_row.iter().zip(v_view.rows()) {
                out_row.scaled_add(*a, &v_row);
            }
        }
        scratch.put(u);
        scratch.put(v);
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &rows, x, &y);
        let inner = 0..self.rank();
        scratch.with_matrix((x.tokens(), self.rank()), |mut z, scratch| {
            self.right.matmul_rows(inner, x, z.view_mut(), Accum::Replace, scratch)?;
            Input::with(z.view(), scratch, |z, scratch| {
                self.left.matmul_rows(rows, z, y, accum, scratch)
            })
        })
    }

    fn multiply(&self) -> Multiply {
        // Two thin products never build the dense matrix, however the factors are stored.
        Multiply::Fused
    }

    fn is_linear(&self) -> bool {
        self.left.is_linear() && self.right.is_linear()
    }

    fn describe(&self) -> Json {
        json!({"node": "product.v1", "left": self.left.describe(), "right": self.right.describe()})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.left.parts(&join(prefix, "left"), sink)?;
        self.right.parts(&join(prefix, "right"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        let (left, right) = (self.left.map_planes(f)?, self.right.map_planes(f)?);
        Ok(Box::new(Self { left, right }))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a product: mask its factors instead"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { left: self.left.prepack()?, right: self.right.prepack()? }))
    }
}
