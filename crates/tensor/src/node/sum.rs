use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_same_shape, join,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// W = A + B + ...: each term holds what those before it left over.
#[derive(Debug)]
pub struct Sum {
    terms: Vec<Box<dyn Node>>,
}

impl Sum {
    /// The sum of at least one node, all of one shape.
    ///
    /// # Errors
    /// `InvalidArgument` without terms, `ShapeMismatch` if they differ.
    pub fn new(terms: Vec<Box<dyn Node>>) -> Result<Self> {
        let Some(first) = terms.first() else {
            return Err(Error::invalid("a sum of no terms"));
        };
        let shape = first.shape();
        for term in &terms {
            check_same_shape(shape, term.shape(), "term of a sum")?;
        }
        Ok(Self { terms })
    }

    /// The terms.
    #[must_use]
    pub fn terms(&self) -> &[Box<dyn Node>] {
        &self.terms
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let terms = field::<Vec<Json>>(json, "terms")?;
        let terms = terms
            .iter()
            .enumerate()
            .map(|(i, term)| reader.node(term, &join(prefix, &i.to_string())))
            .collect::<Result<_>>()?;
        Ok(Box::new(Self::new(terms).map_err(|e| Error::corruption(e.message()))?))
    }

    fn try_map(
        self,
        mut f: impl FnMut(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { terms: self.terms.into_iter().map(&mut f).collect::<Result<_>>()? }))
    }
}

impl Node for Sum {
    fn shape(&self) -> [usize; 2] {
        self.terms[0].shape()
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        mut accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        for term in &self.terms {
            term.decode_rows(rows.clone(), out.view_mut(), accum, scratch)?;
            accum = Accum::Add;
        }
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        mut accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        for term in &self.terms {
            term.matmul_rows(rows.clone(), x, y.view_mut(), accum, scratch)?;
            accum = Accum::Add;
        }
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        let fused = self.terms.iter().all(|t| t.multiply() == Multiply::Fused);
        if fused { Multiply::Fused } else { Multiply::Decode }
    }

    fn is_linear(&self) -> bool {
        self.terms.iter().all(|t| t.is_linear())
    }

    fn zero_outside(&self) -> bool {
        self.terms.iter().all(|t| t.zero_outside())
    }

    fn describe(&self) -> Json {
        let terms: Vec<Json> = self.terms.iter().map(|t| t.describe()).collect();
        json!({"node": "sum.v1", "terms": terms})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (i, term) in self.terms.iter().enumerate() {
            term.parts(&join(prefix, &i.to_string()), sink)?;
        }
        Ok(())
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|t| t.map_planes(f))
    }

    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        self.try_map(|t| t.keep(mask))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|t| t.prepack())
    }
}
