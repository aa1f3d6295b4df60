use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;
use serde_json::json;

use super::plane::is_even;
use super::{
    Accum, Json, Mask, Node, NodeReader, PackedPlane, Plane, PlaneMap, Scratch, SymbolBuf, join,
};
use crate::error::{Error, Result};
use crate::storage::{PartKind, PartSink};

/// W = S ∘ A: a sign for each entry (1 in the plane: as it is; 0: turned), and any node A, whose entries are magnitudes.
///
/// A low-rank A makes what only a full matrix holds: signs have full rank.
///
/// ```
/// use tensorpress_tensor::node::{Dense, Signed, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// let inner = Dense::from_f32(array![[1.0, 2.0]].view(), DType::F16)?.boxed();
/// assert_eq!(decode(&Signed::pack(&[1, 0], inner)?)?, array![[1.0, -2.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct Signed {
    signs: Box<dyn Plane>,
    inner: Box<dyn Node>,
}

impl Signed {
    /// Signs, a symbol below 2 for each entry, before a node.
    ///
    /// # Errors
    /// `ShapeMismatch` if the plane does not fill the matrix, `InvalidArgument` for other symbols.
    pub fn new(signs: Box<dyn Plane>, inner: Box<dyn Node>) -> Result<Self> {
        let [rows, cols] = inner.shape();
        if !is_even(&*signs, rows, cols) {
            return Err(Error::shape(format!("signs do not fill {rows} x {cols}")));
        }
        if signs.alphabet() > 2 {
            let alphabet = signs.alphabet();
            return Err(Error::invalid(format!("signs below {alphabet}: allowed are 0 and 1")));
        }
        Ok(Self { signs, inner })
    }

    /// Signs (row-major, 1: as it is; 0: turned) before a node.
    ///
    /// # Errors
    /// As [`Signed::new`].
    pub fn pack(signs: &[u8], inner: Box<dyn Node>) -> Result<Self> {
        let [rows, cols] = inner.shape();
        Self::new(Box::new(PackedPlane::pack(signs, rows, cols, 1)?), inner)
    }

    /// The magnitudes.
    #[must_use]
    pub fn inner(&self) -> &dyn Node {
        &*self.inner
    }

    /// The signs.
    #[must_use]
    pub fn signs(&self) -> &dyn Plane {
        &*self.signs
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let inner = reader.child(json, "inner", prefix)?;
        let signs = reader.plane(json, "signs", &join(prefix, "signs"))?;
        Ok(Box::new(Self::new(signs, inner).map_err(|e| Error::corruption(e.message()))?))
    }
}

impl Node for Signed {
    fn shape(&self) -> [usize; 2] {
        self.inner.shape()
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let cols = self.shape()[1];
        assert_eq!(out.dim(), (rows.len(), cols), "output shape");
        let mut signs = SymbolBuf::of(&*self.signs);
        let signs = signs.read(&*self.signs, rows.clone())?;
        scratch.with_matrix((rows.len(), cols), |mut values, scratch| {
            self.inner.decode_rows(rows, values.view_mut(), Accum::Replace, scratch)?;
            for ((out, value), sign) in out.iter_mut().zip(&values).zip(signs.iter()) {
                let value = if sign == 0 { -value } else { *value };
                *out = if accum == Accum::Add { *out + value } else { value };
            }
            Ok(())
        })
    }

    fn zero_outside(&self) -> bool {
        self.inner.zero_outside()
    }

    fn describe(&self) -> Json {
        let (signs, inner) = (self.signs.describe(), self.inner.describe());
        json!({"node": "signed.v1", "signs": signs, "inner": inner})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.signs.parts(&join(prefix, "signs"), PartKind::Codes, sink)?;
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        let (signs, inner) = (self.signs.map_inner(f)?, self.inner.map_planes(f)?);
        Ok(Box::new(Self { signs, inner }))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over signs: mask what they stand before"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { signs: self.signs, inner: self.inner.prepack()? }))
    }
}
