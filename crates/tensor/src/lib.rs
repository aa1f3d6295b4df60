//! What every room of tensorpress stands on: tensors, the algebra of compressed nodes, calibration statistics,
//! exact bit accounting, linear algebra, and the SIMD [`kernels`]. No compression method lives here.

pub mod bytes;
pub mod carry;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod cluster;
pub mod dtype;
pub mod error;
pub mod grid;
pub mod linalg;
pub mod method;
pub mod node;
#[cfg(feature = "faer")]
pub mod obs;
pub mod rate;
pub mod rewrite;
mod row_feedback;
pub mod source;
pub mod stage;
pub mod stats;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod usable;

pub use bytes::Bytes;
#[cfg(feature = "checkpoint")]
pub use checkpoint::Checkpoint;
pub use dtype::DType;
pub use error::{Context, Error, ErrorKind, Result};
pub use half;
pub use method::{
    Compress, Compressed, CompressedGroup, DynCompress, Fold, Group, Method, Recode, Select,
    Selection, Target,
};
pub use ndarray;
pub use node::{Accum, Node, Registry, Scratch};
pub use rewrite::Rewrite;
pub use row_feedback::RowFeedback;
pub use source::{Element, RawTensor, Tensor};
pub use storage::{Part, PartKind, PartSink, Storage};
pub use tensorpress_kernels as kernels;
pub use usable::Usable;
