use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Module, Result, Shape, Tensor};
use tensorpress_model::Source;
use tensorpress_tensor::ndarray::ArrayViewMut2;
use tensorpress_tensor::{Accum, Context, Node};

use crate::error::{message, wrapped};
use crate::layout::{self, Float};
use crate::linear::check_device;
use crate::load;
use crate::workspace::{Buffers, Workspace};

/// A table `[vocabulary, width]`, which is any node, of which only the rows that are asked for are decoded.
///
/// Inputs are ids of u8, u32 or i64, of any shape `[..]`; outputs are `[.., width]` in f32, unless
/// [`with_dtype`](Embedding::with_dtype) says otherwise.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use tensorpress_candle::{Embedding, Linear};
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::{DType, Node, node::Dense};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let table = Dense::from_f32(array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]].view(), DType::BF16)?;
/// let head = Linear::new(table.boxed());
/// let embedding = Embedding::new(head.node().clone()); // one matrix for both
/// let x = embedding.forward(&Tensor::new(&[2u32, 0], &Device::Cpu)?)?;
/// assert_eq!(x.to_vec2::<f32>()?, [[5.0, 6.0], [1.0, 2.0]]);
/// assert_eq!(head.forward(&x)?.dims(), [2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Embedding {
    node: Arc<dyn Node>,
    name: Arc<str>,
    dtype: DType,
    workspace: Workspace,
}

impl Embedding {
    /// A table over a `Box<dyn Node>` or an `Arc<dyn Node>`.
    #[must_use]
    pub fn new(node: impl Into<Arc<dyn Node>>) -> Self {
        let workspace = Workspace::default();
        Self { node: node.into(), name: "embedding".into(), dtype: DType::F32, workspace }
    }

    /// The table of this name; it stays in the file.
    ///
    /// # Errors
    /// As [`Source::weight`], naming tensor and file.
    pub fn load(source: &Source, name: &str) -> Result<Self> {
        let (node, _) = load::layer(source, name).map_err(wrapped)?;
        Ok(Self { name: name.into(), ..Self::new(node) })
    }

    /// Outputs in this type.
    ///
    /// # Errors
    /// `Msg` unless it is F32, F16 or BF16.
    pub fn with_dtype(mut self, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            let name = &self.name;
            return Err(message(format!("{name}: values as {dtype:?}, not F32, F16 or BF16")));
        }
        self.dtype = dtype;
        Ok(self)
    }

    /// The table, to be shared.
    #[must_use]
    pub fn node(&self) -> &Arc<dyn Node> {
        &self.node
    }

    /// The rows of these ids.
    fn rows<T: Float>(&self, ids: &[usize]) -> Result<Vec<T>> {
        let width = self.node.shape()[1];
        let len = ids.len().checked_mul(width);
        let len = len.ok_or_else(|| message(format!("{}: too many values", self.name)))?;
        self.workspace.with(|Buffers { scratch, y, .. }| {
            T::collect(len, y, |y| {
                for (&id, row) in ids.iter().zip(y.chunks_exact_mut(width.max(1))) {
                    let row = ArrayViewMut2::from_shape((1, width), row).map_err(Error::wrap)?;
                    let done = self.node.decode_rows(id..id + 1, row, Accum::Replace, scratch);
                    done.in_tensor(&self.name).map_err(wrapped)?;
                }
                Ok(())
            })
        })
    }

    /// Ids that are rows of the table.
    fn ids<T: Copy + TryInto<usize> + std::fmt::Display>(
        &self,
        data: &[T],
        layout: &Layout,
    ) -> Result<Vec<usize>> {
        let vocabulary = self.node.shape()[0];
        let mut ids = Vec::new();
        layout::for_each_place(layout, |place| {
            let id = data[place];
            let known = id.try_into().ok().filter(|id| *id < vocabulary);
            let none = || {
                let name = &self.name;
                message(format!("{name}: token {id} in a vocabulary of {vocabulary}"))
            };
            ids.push(known.ok_or_else(none)?);
            Ok(())
        })?;
        Ok(ids)
    }
}

impl Module for Embedding {
    /// Rows `[.., width]` of ids `[..]`.
    ///
    /// # Errors
    /// `Msg` for an id outside the vocabulary, for values that are no ids, and for a device other than the CPU; those of
    /// decoding. Each names the table.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        check_device(&self.name, ids)?;
        ids.apply_op1_no_bwd(&Rows(self))
    }
}

struct Rows<'a>(&'a Embedding);

impl CustomOp1 for Rows<'_> {
    fn name(&self) -> &'static str {
        "tensorpress-embedding"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Self(table) = self;
        let ids = match storage {
            CpuStorage::U8(data) => table.ids(data, layout)?,
            CpuStorage::U32(data) => table.ids(data, layout)?,
            CpuStorage::I64(data) => table.ids(data, layout)?,
            other => {
                let (name, dtype) = (&table.name, other.dtype());
                return Err(message(format!("{name}: ids of {dtype:?}, not U8, U32 or I64")));
            }
        };
        let values = match table.dtype {
            DType::F16 => CpuStorage::F16(table.rows(&ids)?),
            DType::BF16 => CpuStorage::BF16(table.rows(&ids)?),
            _ => CpuStorage::F32(table.rows(&ids)?),
        };
        let mut dims = layout.dims().to_vec();
        dims.push(table.node.shape()[1]);
        Ok((values, dims.into()))
    }
}
