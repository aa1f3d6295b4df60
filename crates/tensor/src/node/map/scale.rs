use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::json;

use super::{Channels, DecodeRows, Map, check_shapes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::node::plane::part_name;
use crate::node::registry::{NodeReader, field};
use crate::node::{Json, Scratch};
use crate::source::Tensor;
use crate::storage::{Part, PartKind, PartSink};

/// T = diag(values).
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    values: Vec<f32>,
    /// What weights are multiplied by and inputs are divided by: 1 / values.
    divisors: Vec<f32>,
    dtype: DType,
}

impl Scale {
    /// A diagonal of factors rounded to `dtype`.
    ///
    /// # Errors
    /// `Unsupported` if `dtype` is no float type, `Numerical` if a factor is 0 or not finite after rounding.
    pub fn new(mut values: Vec<f32>, dtype: DType) -> Result<Self> {
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
        let divisors = values.iter().map(|v| 1.0 / v).collect();
        Ok(Self { values, divisors, dtype })
    }

    /// The map 1 / `divisors` in f32, which multiplies weights by exactly the divisors and divides inputs by them: that of
    /// a scale that is folded into what stands before, and not stored.
    ///
    /// # Errors
    /// As [`Scale::new`].
    pub fn dividing(divisors: Vec<f32>) -> Result<Self> {
        let scale = Self::new(divisors.iter().map(|d| 1.0 / d).collect(), DType::F32)?;
        Ok(Self { divisors, ..scale })
    }

    /// The factors, one a channel, as stored.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        let channels = field::<usize>(json, "channels")?;
        let name = part_name(prefix, "transform");
        let part = reader.part(&name)?;
        let [rows, cols] = part.matrix_shape();
        super::check_entries(rows * cols, channels, &name)?;
        let corrupt = |e: Error| Error::corruption(e.message()).in_tensor(&name);
        let mut values = vec![0.0; channels];
        part.dtype().read_f32(part.bytes(), &mut values).map_err(corrupt)?;
        Ok(Arc::new(Self::new(values, part.dtype()).map_err(corrupt)?))
    }
}

fn times(factors: &[f32], from: ArrayView2<'_, f32>, mut to: ArrayViewMut2<'_, f32>) {
    for (mut to, from) in to.rows_mut().into_iter().zip(from.rows()) {
        to.iter_mut().zip(from).zip(factors).for_each(|((to, v), s)| *to = v * s);
    }
}

impl Map for Scale {
    fn inner(&self) -> usize {
        self.values.len()
    }

    fn outer(&self) -> usize {
        self.values.len()
    }

    fn apply(&self, inner: ArrayView2<'_, f32>, outer: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        times(&self.values, inner, outer);
    }

    fn reach(&self, outer: Range<usize>) -> Range<usize> {
        outer
    }

    fn apply_part(
        &self,
        inner: ArrayView2<'_, f32>,
        outer: Range<usize>,
        part: ArrayViewMut2<'_, f32>,
        _: &mut Scratch,
    ) {
        assert_eq!(inner.dim(), part.dim(), "a part of {outer:?}");
        times(&self.values[outer], inner, part);
    }

    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        times(&self.values, outer, inner);
    }

    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        times(&self.divisors, outer, inner);
    }

    fn channels(&self) -> Channels<'_> {
        Channels::Scaled(&self.divisors)
    }

    fn decode_out(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        decode(rows.clone(), out.view_mut(), scratch)?;
        for (mut row, s) in out.rows_mut().into_iter().zip(&self.values[rows]) {
            row *= *s;
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"kind": "scale", "channels": self.values.len(), "dtype": self.dtype})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let mut bytes = Vec::new();
        self.dtype.write_f32(&self.values, &mut bytes)?;
        sink.part(Part {
            name: part_name(prefix, "transform"),
            kind: PartKind::Transforms,
            dtype: self.dtype,
            shape: vec![self.values.len()],
            bytes: Cow::Owned(bytes),
        })
    }
}
