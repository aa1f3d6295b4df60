use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Module, Result, Shape, Tensor};
use tensorpress_model::Source;
use tensorpress_tensor::ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::{Accum, Context, Node, Scratch};

use crate::error::{message, wrapped};
use crate::layout::{self, Float};
use crate::load;
use crate::workspace::{Buffers, Workspace};

/// A linear layer Y = X Wᵀ + b, where W `[out, in]` is any node; it is multiplied by as it is, and never decoded as a whole
/// unless the node itself does so.
///
/// Inputs are `[.., in]` of any rank above 0, in f32, f16 or bf16, with any strides; outputs `[.., out]` have the type of
/// the inputs. All is computed in f32, on the CPU. Gradients do not go through: asking for them is an error.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use tensorpress_candle::Linear;
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::{DType, Node, node::Dense};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let weight = Dense::from_f32(array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]].view(), DType::F16)?;
/// let layer = Linear::new(weight.boxed()).with_bias(vec![0.0, 0.0, 1.0])?;
/// let y = layer.forward(&Tensor::new(&[1f32, 1.0], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec1::<f32>()?, [3.0, 7.0, 12.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    node: Arc<dyn Node>,
    bias: Option<Arc<[f32]>>,
    /// What errors call it.
    name: Arc<str>,
    workspace: Workspace,
}

impl Linear {
    /// A layer without a bias over a `Box<dyn Node>` or an `Arc<dyn Node>`, in the workspace of the process. One that
    /// multiplies fastest is over [`prepack`](Node::prepack) of the node.
    #[must_use]
    pub fn new(node: impl Into<Arc<dyn Node>>) -> Self {
        let name = "linear layer".into();
        Self { node: node.into(), bias: None, name, workspace: Workspace::default() }
    }

    /// The layer whose weight has this name, with its bias where one is stored (also one that compression added); the
    /// weight stays in the file, as it lies there.
    ///
    /// A layer that is stored as a part of a stack, or with rows for columns, comes as its own `[out, in]`: the names are
    /// those of [`Source::linears`], of the embedding and of the head.
    ///
    /// # Errors
    /// As [`Source::weight`], naming tensor and file.
    pub fn load(source: &Source, name: &str) -> Result<Self> {
        let (node, bias) = load::layer(source, name).map_err(wrapped)?;
        Self::of(node, bias, name)
    }

    /// [`Linear::load`], with the weight laid out anew for the fastest products on this machine: about as large as it is
    /// in the file, in memory.
    ///
    /// # Errors
    /// As there.
    pub fn load_prepacked(source: &Source, name: &str) -> Result<Self> {
        let (node, bias) = load::layer(source, name).map_err(wrapped)?;
        Self::of(node.prepack().in_tensor(name).map_err(wrapped)?, bias, name)
    }

    fn of(node: Box<dyn Node>, bias: Option<Vec<f32>>, name: &str) -> Result<Self> {
        let layer = Self::new(node).with_name(name);
        match bias {
            Some(bias) => layer.with_bias(bias),
            None => Ok(layer),
        }
    }

    /// Adds a bias to the outputs.
    ///
    /// # Errors
    /// `UnexpectedShape` unless there is one value an output.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Result<Self> {
        let [out, _] = self.node.shape();
        if bias.len() != out {
            let msg = format!("{}: a bias has one value an output", self.name);
            let (expected, got) = (out.into(), bias.len().into());
            return Err(Error::UnexpectedShape { msg, expected, got }.bt());
        }
        self.bias = Some(bias.into());
        Ok(self)
    }

    /// What errors call the layer.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Products run with the threads and the memory of this one.
    #[must_use]
    pub fn with_workspace(mut self, workspace: &Workspace) -> Self {
        self.workspace = workspace.clone();
        self
    }

    /// What errors call the layer: the weight's name, if it was loaded.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The weight, to be shared.
    #[must_use]
    pub fn node(&self) -> &Arc<dyn Node> {
        &self.node
    }

    /// The bias, one value an output.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The outputs for all rows of x `[tokens, in]`.
    fn product(
        &self,
        x: &[f32],
        y: &mut [f32],
        tokens: usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let [out, inp] = self.node.shape();
        if tokens == 0 || out == 0 {
            return Ok(());
        }
        if inp == 0 {
            y.fill(0.0);
        } else {
            let x = ArrayView2::from_shape((tokens, inp), x).map_err(Error::wrap)?;
            let y = ArrayViewMut2::from_shape((tokens, out), &mut *y).map_err(Error::wrap)?;
            let done = self.node.matmul(x, y, Accum::Replace, scratch);
            done.in_tensor(&self.name).map_err(wrapped)?;
        }
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(out) {
                row.iter_mut().zip(&**bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }

    /// The outputs for a tensor's values.
    fn outputs<T: Float>(&self, data: &[T], layout: &Layout, tokens: usize) -> Result<Vec<T>> {
        let len = tokens.checked_mul(self.node.shape()[0]);
        let len = len.ok_or_else(|| message(format!("{}: too many outputs", self.name)))?;
        self.workspace.with(|Buffers { scratch, x, y }| {
            T::collect(len, y, |y| {
                let x = layout::values(data, layout, x)?;
                self.product(x, y, tokens, scratch)
            })
        })
    }
}

impl Module for Linear {
    /// Outputs `[.., out]` of inputs `[.., in]`.
    ///
    /// # Errors
    /// `UnexpectedShape` for inputs of another width, naming both; `Msg` for a scalar, for values that are not f32, f16 or
    /// bf16, for a device other than the CPU, and where there is no memory; those of the node. Each names the layer.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_device(&self.name, x)?;
        x.apply_op1(Product(self.clone()))
    }
}

/// That a tensor lies where nodes compute.
pub(crate) fn check_device(name: &str, x: &Tensor) -> Result<()> {
    if x.device().is_cpu() {
        return Ok(());
    }
    let place = x.device().location();
    Err(message(format!("{name}: a tensor on {place:?}, nodes compute on the CPU alone")))
}

/// The layer as an operation of candle: gradients stop with an error here, not in silence.
struct Product(Linear);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "tensorpress-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Self(layer) = self;
        let [out, inp] = layer.node.shape();
        let Some((tokens, width)) = layout::rows(layout)? else {
            let name = &layer.name;
            return Err(message(format!("{name}: a scalar where rows of {inp} values are needed")));
        };
        let of_width = |width: usize| {
            let mut dims = layout.dims().to_vec();
            dims.pop();
            dims.push(width);
            Shape::from(dims)
        };
        if width != inp {
            let name = &layer.name;
            let msg = format!("{name}: rows of {width} values, the layer takes {inp}");
            let (expected, got) = (of_width(inp), layout.shape().clone());
            return Err(Error::UnexpectedShape { msg, expected, got }.bt());
        }
        let outputs = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(layer.outputs(data, layout, tokens)?),
            CpuStorage::F16(data) => CpuStorage::F16(layer.outputs(data, layout, tokens)?),
            CpuStorage::BF16(data) => CpuStorage::BF16(layer.outputs(data, layout, tokens)?),
            other => {
                let (name, dtype) = (&layer.name, other.dtype());
                return Err(message(format!("{name}: values of {dtype:?}, not F32, F16 or BF16")));
            }
        };
        Ok((outputs, of_width(out)))
    }
}
