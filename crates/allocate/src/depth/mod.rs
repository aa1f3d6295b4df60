//! Fewer layers: which activations of a chain of convolutions stay, and which convolutions become one.
//!
//! Layer l is between boundaries l - 1 and l; tables over [`Spans`] of layers go in, boundaries come out. To merge the
//! convolutions themselves is not done here.
//!
//! | programme | chooses | of |
//! |---|---|---|
//! | [`two_stage`] | activations that stay, and ends of merged convolutions, independently | Depth Compression |
//! | [`layer_merge`] | spans that become one convolution, and its kernel | LayerMerge |
//! | [`kept_layers`] | the convolutions of such a span that are composed | LayerMerge |

mod merge;
mod spans;
mod two_stage;

pub use merge::{Conv, Kernel, Merge, kept_layers, layer_merge};
pub use spans::Spans;
pub use two_stage::{Depth, Importance, fastest, two_stage};
