//! What every room of tensorpress stands on: tensors, the algebra of compressed nodes, calibration statistics,
//! exact bit accounting, linear algebra and SIMD kernels. No compression method lives here.

pub mod bytes;
pub mod carry;
pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod grid;
pub mod kernels;
pub mod linalg;
pub mod method;
pub mod node;
pub mod obs;
pub mod source;
pub mod stats;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod usable;

pub use bytes::Bytes;
pub use checkpoint::Checkpoint;
pub use dtype::DType;
pub use error::{Context, Error, ErrorKind, Result};
pub use half;
pub use method::{
    Compress, Compressed, CompressedGroup, DynCompress, Fold, Group, Method, Select, Selection,
    Target,
};
pub use ndarray;
pub use node::{Accum, Node, Registry, Scratch};
pub use source::{Element, RawTensor, Tensor};
pub use storage::{Part, PartKind, PartSink, Storage};
pub use usable::Usable;
