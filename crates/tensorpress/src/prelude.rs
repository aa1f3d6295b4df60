//! What most programs need: `use tensorpress::prelude::*;`

#[cfg(feature = "model")]
pub use crate::bill::Bill;
pub use crate::compose::Compose;
#[cfg(feature = "model")]
pub use crate::open_model;
#[cfg(feature = "model")]
pub use crate::pipeline::{Compressor, Report};
pub use crate::recipe::Recipe;
pub use crate::registry;
pub use tensorpress_entropy::{PackedFile, Packer, TileCoder};
pub use tensorpress_lowrank::{Rank, eora, svd, svd_llm};
#[cfg(feature = "model")]
pub use tensorpress_model::Source;
pub use tensorpress_prune::{DropBlocks, Flap, Pattern, SparseGpt, magnitude, wanda};
pub use tensorpress_quant::{Awq, Gptq, GridSpec, Rtn};
pub use tensorpress_tensor::{
    Checkpoint, Compress, DType, DynCompress, Error, ErrorKind, Group, Method, Node, Result,
    Rewrite, Select, Target,
};
