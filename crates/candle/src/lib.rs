//! Compressed weights of tensorpress in candle.
//!
//! - [`Linear`] is a candle [`Module`](candle_core::Module) over any node: it multiplies by the compressed matrix as it is.
//! - [`Embedding`] is one too: it decodes the rows of the tokens that are asked for, and can share its matrix with a head.
//! - [`var_builder`] makes any model that tensorpress opens (folders, compressed or not, packed files, GGUF, GPTQ, AWQ,
//!   compressed-tensors, bitsandbytes) a [`VarBuilder`](candle_nn::VarBuilder) of decoded tensors, under the names of the
//!   Hugging Face folder: the models of candle load from it.
//!
//! Everything computes on the CPU, in f32; tensors of f32, f16 and bf16 come in and go out.
//!
//! ```
//! use candle_core::{D, DType, Device, Module, Tensor};
//! use tensorpress::{compress, registry, tensor::stats::Calibration};
//! use tensorpress_candle::{Linear, var_builder};
//! # use tensorpress::model::Source;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let open_model = |_: &str| Source::demo(&registry());
//! let source = open_model("model.gguf")?; // tensorpress::open_model
//! let layer = Linear::load(&source, "model.layers.0.mlp.up_proj.weight")?;
//! let x = Tensor::rand(-1f32, 1.0, (2, 3, 128), &Device::Cpu)?;
//! let y = layer.forward(&x)?;
//! assert_eq!(y.dims(), [2, 3, 384]);
//!
//! // The same from decoded weights, by candle alone.
//! let vars = var_builder(&source, DType::F32, &Device::Cpu).pp("model.layers.0.mlp");
//! let plain = candle_nn::linear_no_bias(128, 384, vars.pp("up_proj"))?.forward(&x)?;
//! assert!((y - plain)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
//!
//! // Any node will do.
//! let values = vec![vec![0.5f32; 64]; 32].concat();
//! let weight = tensorpress::tensor::ndarray::Array2::from_shape_vec((32, 64), values)?;
//! let four = compress(&weight, "rtn(bits=4, group=32)", &Calibration::none(64))?;
//! let layer = Linear::new(four.node.prepack()?).with_bias(vec![1.0; 32])?;
//! let y = layer.forward(&Tensor::ones((1, 64), DType::BF16, &Device::Cpu)?)?;
//! assert_eq!((y.dtype(), y.dim(D::Minus1)?), (DType::BF16, 32));
//! # Ok(())
//! # }
//! ```

mod embedding;
mod error;
mod layout;
mod linear;
mod load;
mod vars;
mod workspace;

pub use embedding::Embedding;
pub use linear::Linear;
pub use tensorpress_tensor::linalg::Par;
pub use vars::var_builder;
pub use workspace::Workspace;
