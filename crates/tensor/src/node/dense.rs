use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde_json::json;

use super::plane::part_name;
use super::registry::{field, shape_field};
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, SplitFloats,
    check_matmul, check_same_shape, matmul_by_tiles, scratch::with_slice,
};
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{self, BlockInputs, StoredRows};
use crate::source::{RawTensor, Tensor};
use crate::storage::{Part, PartKind, PartSink};

/// A leaf of float values in their stored type, all of them or only those of a support.
#[derive(Debug, Clone)]
pub struct Dense {
    dtype: DType,
    shape: [usize; 2],
    values: Bytes,
    /// If set, `values` holds only the kept entries, in order.
    support: Option<Arc<Mask>>,
    /// Of a support in blocks, made by the first product.
    inputs: OnceLock<Arc<BlockInputs>>,
}

impl Dense {
    /// A matrix over a tensor's bytes; nothing is copied.
    ///
    /// # Errors
    /// `Unsupported` if the tensor does not hold floats.
    pub fn new(tensor: &RawTensor) -> Result<Self> {
        if !tensor.dtype().is_float() {
            return Err(Error::unsupported(format!("{:?} as a dense node", tensor.dtype())));
        }
        Ok(Self {
            dtype: tensor.dtype(),
            shape: tensor.matrix_shape(),
            values: tensor.bytes().clone(),
            support: None,
            inputs: OnceLock::new(),
        })
    }

    /// A matrix of f32 values rounded to `dtype`.
    ///
    /// # Errors
    /// `Unsupported` if `dtype` is no float type.
    pub fn from_f32(values: ArrayView2<'_, f32>, dtype: DType) -> Result<Self> {
        Self::new(&RawTensor::from_f32(values.into_dyn(), dtype)?)
    }

    /// A matrix over stored bytes; with a support, of the kept entries alone.
    pub(super) fn from_parts(
        dtype: DType,
        shape: [usize; 2],
        values: Bytes,
        support: Option<Arc<Mask>>,
    ) -> Self {
        Self { dtype, shape, values, support, inputs: OnceLock::new() }
    }

    /// The bytes of the values.
    pub(super) fn stored(&self) -> &[u8] {
        &self.values
    }

    /// The entries that are stored, if not all are.
    pub(super) fn support(&self) -> Option<&Arc<Mask>> {
        self.support.as_ref()
    }

    /// Whether only the entries of a support are stored.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.support.is_some()
    }

    /// Stored type of the values.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let dtype = field::<DType>(json, "dtype")?;
        let shape = shape_field(json)?;
        if !dtype.is_float() {
            return Err(Error::corruption(format!("dense node of {dtype:?}")));
        }
        let values = reader.bytes(&part_name(prefix, "values"), dtype)?;
        let support = match json.get("kept").and_then(Json::as_bool) {
            Some(true) => Some(
                reader
                    .mask()
                    .ok_or_else(|| Error::corruption("kept values outside a masked node"))?
                    .clone(),
            ),
            _ => None,
        };
        let count = match &support {
            Some(mask) => {
                check_same_shape(mask.shape(), shape, "dense node")?;
                mask.kept_before(shape[0])
            }
            None => shape[0] * shape[1],
        };
        if count.checked_mul(dtype.size()) != Some(values.len()) {
            return Err(Error::corruption(format!(
                "{} bytes of values for {count} {dtype:?} values",
                values.len()
            )));
        }
        Ok(Box::new(Self { dtype, shape, values, support, inputs: OnceLock::new() }))
    }

    /// The matrix as the kernels take it, for products with [some of its rows](kernels::picked_matmul) or, stored
    /// `[in, out]`, with [some of its inputs](kernels::picked_sum); none of f64, which they do not know.
    #[must_use]
    pub fn stored_rows(&self) -> Option<StoredRows<'_>> {
        let format = self.dtype.float_type()?;
        let [rows, cols] = self.shape;
        let support = self.support.as_ref().map(|mask| mask.support());
        Some(StoredRows { values: &self.values, format, rows, cols, support })
    }

    fn block_inputs(&self, stored: &StoredRows<'_>) -> &BlockInputs {
        self.inputs.get_or_init(|| Arc::new(BlockInputs::new(stored)))
    }

    fn read_values(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let size = self.dtype.size();
        self.dtype.read_f32(&self.values[range.start * size..range.end * size], out)
    }
}

/// Up to so many tokens, stored numbers are multiplied as they lie there.
const FEW: usize = 8;
/// And up to so many whose activations stay in the second cache: then tiles of decoded rows are faster.
const SEVERAL: usize = 32;
const ACTIVATIONS: usize = 256 * 1024;

impl Node for Dense {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let cols = self.shape[1];
        assert_eq!(out.dim(), (rows.len(), cols), "output shape");
        if let (None, Accum::Replace, Some(out)) = (&self.support, accum, out.as_slice_mut()) {
            return self.read_values(rows.start * cols..rows.end * cols, out);
        }
        let stored = self.stored_rows();
        let mut buffer = scratch.take(cols);
        for (row, mut out) in rows.zip(out.rows_mut()) {
            if let (Some(stored), Some(out)) = (&stored, out.as_slice_mut()) {
                kernels::stored_decode(stored, row, out, accum == Accum::Add, scratch.work());
                continue;
            }
            match &self.support {
                None => {
                    self.read_values(row * cols..(row + 1) * cols, &mut buffer)?;
                    if accum == Accum::Add {
                        out.iter_mut().zip(&buffer).for_each(|(o, v)| *o += v);
                    } else {
                        out.iter_mut().zip(&buffer).for_each(|(o, v)| *o = *v);
                    }
                }
                Some(mask) => {
                    if accum == Accum::Replace {
                        out.fill(0.0);
                    }
                    let start = mask.kept_before(row);
                    let kept = &mut buffer[..mask.kept(row..row + 1)];
                    self.read_values(start..start + kept.len(), kept)?;
                    let mut values = kept.iter();
                    mask.for_each_kept(row, |c| {
                        let value = values.next().expect("as many as kept");
                        // Not added to 0, which would lose the sign of -0.
                        out[c] = if accum == Accum::Add { out[c] + value } else { *value };
                    });
                }
            }
        }
        scratch.put(buffer);
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
        check_matmul(self.shape, &rows, x, &y);
        let few = x.tokens() <= FEW
            || (x.tokens() <= SEVERAL && x.tokens() * self.shape[1] <= ACTIVATIONS);
        let Some(stored) = self.stored_rows().filter(|stored| few || stored.in_blocks()) else {
            return matmul_by_tiles(self, rows, x, y, accum, scratch);
        };
        with_slice(y, accum, scratch, |y, add, scratch| {
            let (t, x, work) = (x.tokens(), x.as_slice(), scratch.work());
            if stored.in_blocks() {
                let inputs = self.block_inputs(&stored);
                kernels::block_matmul(&stored, inputs, rows, x, t, y, add, work);
            } else {
                kernels::stored_matmul(&stored, rows, x, t, y, add, work);
            }
        });
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        if self.stored_rows().is_some() { Multiply::Fused } else { Multiply::Decode }
    }

    fn zero_outside(&self) -> bool {
        self.support.is_some()
    }

    fn describe(&self) -> Json {
        let mut json = json!({"node": "dense.v1", "dtype": self.dtype, "shape": self.shape});
        if self.support.is_some() {
            json["kept"] = true.into();
        }
        json
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let shape = match &self.support {
            None => self.shape.to_vec(),
            Some(mask) => vec![mask.kept_before(self.shape[0])],
        };
        sink.part(Part {
            name: part_name(prefix, "values"),
            kind: PartKind::Values,
            dtype: self.dtype,
            shape,
            bytes: Cow::Borrowed(&self.values),
        })
    }

    /// Hands over the bytes of the values, plane by plane; stays as it is where none of them changes.
    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        if self.values.is_empty() {
            return Ok(self);
        }
        let split = SplitFloats::of(&self)?.map(f)?;
        if split.is_plain() { Ok(self) } else { Ok(Box::new(split)) }
    }

    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        check_same_shape(self.shape, mask.shape(), "mask")?;
        if self.support.is_some() {
            return Err(Error::unsupported("a mask over values that are masked already"));
        }
        let (size, cols) = (self.dtype.size(), self.shape[1]);
        let mut values = Vec::with_capacity(mask.kept_before(self.shape[0]) * size);
        for row in 0..self.shape[0] {
            mask.for_each_kept(row, |c| {
                let at = (row * cols + c) * size;
                values.extend_from_slice(&self.values[at..at + size]);
            });
        }
        Ok(Box::new(Self {
            values: values.into(),
            support: Some(mask.clone()),
            inputs: OnceLock::new(),
            ..*self
        }))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        if let Some(stored) = self.stored_rows().filter(StoredRows::in_blocks) {
            self.block_inputs(&stored);
        }
        Ok(self)
    }
}

impl From<Array2<f32>> for Dense {
    fn from(values: Array2<f32>) -> Self {
        Self::from_f32(values.view(), DType::F32).expect("f32 is a float type")
    }
}
