//! Inputs rounded to a few bits before a product.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::json;

use super::plane::part_name;
use super::registry::field;
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_matmul, join,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::{Part, PartKind, PartSink};

/// How activations become integers: symmetric levels `scale * code` with codes from `-(2^(bits-1) - 1)` to
/// `2^(bits-1) - 1`, the nearest, half to even. The scale is the largest magnitude over the largest code: of each token
/// (dynamic), or one that calibration saw (static), beyond which inputs are clipped.
///
/// ```
/// use tensorpress_tensor::node::InputRounding;
///
/// let dynamic = InputRounding::by_token(8)?;
/// let scale = dynamic.scale(&[0.5, -1.27, 0.0]);
/// assert_eq!((scale, dynamic.code(0.5, scale), dynamic.code(-1.27, scale)), (0.01, 50, -127));
/// assert_eq!(InputRounding::fixed(8, 2.54)?.scale(&[9.0]), 0.02);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputRounding {
    bits: u8,
    range: Option<f32>,
}

impl InputRounding {
    /// A scale for each token.
    ///
    /// # Errors
    /// `InvalidArgument` unless `bits` is 2 to 8.
    pub fn by_token(bits: u8) -> Result<Self> {
        Self::new(bits, None)
    }

    /// One scale for all: that of inputs from `-range` to `range`.
    ///
    /// # Errors
    /// `InvalidArgument` unless `bits` is 2 to 8 and `range` finite and not negative.
    pub fn fixed(bits: u8, range: f32) -> Result<Self> {
        Self::new(bits, Some(range))
    }

    fn new(bits: u8, range: Option<f32>) -> Result<Self> {
        if !(2..=8).contains(&bits) {
            return Err(Error::invalid(format!("inputs of {bits} bits: allowed are 2 to 8")));
        }
        if let Some(range) = range.filter(|range| !(range.is_finite() && *range >= 0.0)) {
            return Err(Error::invalid(format!("inputs up to {range}: allowed are 0 and more")));
        }
        Ok(Self { bits, range })
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The largest magnitude, where it is the same for all tokens.
    #[must_use]
    pub fn range(&self) -> Option<f32> {
        self.range
    }

    fn most(&self) -> f32 {
        f32::from((1u8 << (self.bits - 1)) - 1)
    }

    /// Distance of two levels for a token; NaN for one with a NaN or an infinity that sets its own.
    #[must_use]
    pub fn scale(&self, token: &[f32]) -> f32 {
        let own = || {
            let all_finite = token.iter().all(|x| x.is_finite());
            let largest = token.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            if all_finite { largest } else { f32::NAN }
        };
        self.range.unwrap_or_else(own) / self.most()
    }

    /// The nearest code of a number; 0 where the scale is 0 or NaN, or the number is NaN.
    #[must_use]
    pub fn code(&self, x: f32, scale: f32) -> i8 {
        if scale > 0.0 {
            (x / scale).round_ties_even().clamp(-self.most(), self.most()) as i8
        } else {
            0
        }
    }

    /// Rounds the tokens X to their levels. What is NaN stays so, as do all of a token's whose scale is.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn round(&self, x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        assert_eq!(x.dim(), out.dim(), "rounded inputs");
        out.assign(&x);
        for mut token in out.rows_mut() {
            let scale = match token.as_slice() {
                Some(token) => self.scale(token),
                None => self.scale(&token.to_vec()),
            };
            let level = |x: f32| match x.is_nan() || scale.is_nan() {
                true => f32::NAN,
                false => f32::from(self.code(x, scale)) * scale,
            };
            token.mapv_inplace(level);
        }
    }
}

/// A matrix whose inputs are rounded before products: Y = round(X) Wᵀ. It decodes to W.
///
/// The product is that of the rounded numbers in floats: what integer arithmetic would give, but for its order of sums.
#[derive(Debug)]
pub struct RoundedInputs {
    rounding: InputRounding,
    inner: Box<dyn Node>,
}

impl RoundedInputs {
    /// `inner` behind inputs that are rounded.
    #[must_use]
    pub fn new(rounding: InputRounding, inner: Box<dyn Node>) -> Self {
        Self { rounding, inner }
    }

    /// How inputs are rounded.
    #[must_use]
    pub fn rounding(&self) -> InputRounding {
        self.rounding
    }

    /// The matrix.
    #[must_use]
    pub fn inner(&self) -> &dyn Node {
        &*self.inner
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let bits = field(json, "bits")?;
        let corrupt = |e: Error| Error::corruption(e.message());
        let range = match field::<bool>(json, "static")? {
            false => None,
            true => {
                let bytes = reader.bytes(&part_name(prefix, "range"), DType::F32)?;
                let bytes = <[u8; 4]>::try_from(&bytes[..]);
                let wrong = |_| Error::corruption("the range of inputs is not one number");
                Some(f32::from_le_bytes(bytes.map_err(wrong)?))
            }
        };
        let rounding = InputRounding::new(bits, range).map_err(corrupt)?;
        Ok(Box::new(Self::new(rounding, reader.child(json, "inner", prefix)?)))
    }

    fn try_map(
        self,
        f: impl FnOnce(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(Self { inner: f(self.inner)?, ..self }))
    }
}

impl Node for RoundedInputs {
    fn shape(&self) -> [usize; 2] {
        self.inner.shape()
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.inner.decode_rows(rows, out, accum, scratch)
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
        scratch.with_matrix(x.view().dim(), |mut rounded, scratch| {
            self.rounding.round(x.view(), rounded.view_mut());
            Input::with(rounded.view(), scratch, |rounded, scratch| {
                self.inner.matmul_rows(rows, rounded, y, accum, scratch)
            })
        })
    }

    fn multiply(&self) -> Multiply {
        self.inner.multiply()
    }

    fn is_linear(&self) -> bool {
        false
    }

    fn zero_outside(&self) -> bool {
        self.inner.zero_outside()
    }

    fn decode_part(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<bool> {
        self.inner.decode_part(rows, columns, out)
    }

    fn describe(&self) -> Json {
        let InputRounding { bits, range } = self.rounding;
        let inner = self.inner.describe();
        json!({"node": "rounded_inputs.v1", "bits": bits, "static": range.is_some(), "inner": inner})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        if let Some(range) = self.rounding.range {
            sink.part(Part {
                name: part_name(prefix, "range"),
                kind: PartKind::Scales,
                dtype: DType::F32,
                shape: vec![1],
                bytes: Cow::Owned(range.to_le_bytes().to_vec()),
            })?;
        }
        self.inner.parts(&join(prefix, "inner"), sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.map_planes(f))
    }

    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.keep(mask))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|inner| inner.prepack())
    }
}
