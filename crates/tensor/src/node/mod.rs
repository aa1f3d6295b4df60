//! The algebra: a compressed weight is a tree of nodes, each of which can be decoded, multiplied by,
//! counted and written.
//!
//! W is `[out, in]`, row-major; products are Y = X Wᵀ with X `[tokens, in]` and Y `[tokens, out]`.

mod block_diagonal;
mod dense;
pub mod form;
mod input;
mod leaf;
pub mod map;
mod mask;
mod masked;
mod plane;
mod product;
pub mod registry;
mod rounded;
mod rows;
#[cfg(feature = "checkpoint")]
mod saved;
mod scratch;
mod signed;
mod split;
mod stacked;
mod sum;
mod tensor_train;
mod tiles;
mod transformed;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

pub use block_diagonal::BlockDiagonal;
pub use dense::Dense;
pub use form::MaskForm;
pub use input::Input;
pub use leaf::{
    Additive, AdditiveFormat, AffineFormat, Beside, BitshiftFormat, BitshiftTrellis, Blocks, Child,
    Encoding, Format, Fused, GroupedAffine, KnownLevels, KnownVectors, Leaf, LevelFormat,
    LevelTable, NestedAffine, NestedFormat, Pyramid, PyramidFormat, Slot, StepFormat, Steps,
    Tables,
};
pub use map::{Channels, Composed, Hadamard, Index, Map, Rotation, Scale, Side};
pub use mask::Mask;
pub use masked::Masked;
pub use plane::Trellis;
pub use plane::spread;
pub use plane::{
    KeptPlane, PackedPlane, Plane, PrefixedPlane, Symbol, SymbolBuf, Symbols, SymbolsMut,
};
pub use product::Product;
pub use registry::{NodeReader, PartSource, Registry};
pub use rounded::{InputRounding, RoundedInputs};
pub use rows::Rows;
#[cfg(feature = "checkpoint")]
pub use saved::{SAVED, bits_per_weight, from_bytes, load, read_from, save, to_bytes, write_to};
pub use scratch::Scratch;
pub use signed::Signed;
pub use split::SplitFloats;
pub use stacked::Stacked;
pub use sum::Sum;
pub use tensor_train::TensorTrain;
pub use tensorpress_kernels::Accum;
pub use tiles::matmul_by_tiles;
pub use transformed::Transformed;

use crate::error::{Error, Result};
use crate::storage::PartSink;

/// JSON description of a tree.
pub type Json = serde_json::Value;

/// How a node multiplies: a kernel over the stored form, or tile-wise decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Multiply {
    /// A kernel over the stored form; the dense matrix is never materialised.
    Fused,
    /// Row tiles are decoded and multiplied.
    Decode,
}

/// A maker of planes: entropy coding, masking ... applied to every integer plane of a tree.
pub type PlaneMap<'a> = dyn FnMut(Box<dyn Plane>) -> Result<Box<dyn Plane>> + 'a;

/// A compressed matrix.
///
/// ```
/// use tensorpress_tensor::ndarray::{Array2, array};
/// use tensorpress_tensor::node::{Dense, decode};
/// use tensorpress_tensor::{Accum, DType, Node, Scratch, Storage};
///
/// let weight = array![[1.0, 2.0], [3.0, 4.0]];
/// let node: Box<dyn Node> = Dense::from_f32(weight.view(), DType::F16)?.boxed();
/// assert_eq!(decode(&*node)?, weight);
/// let mut y = Array2::zeros((1, 2));
/// node.matmul(array![[1.0, 1.0]].view(), y.view_mut(), Accum::Replace, &mut Scratch::default())?;
/// assert_eq!(y, array![[3.0, 7.0]]);
/// assert_eq!(Storage::of(&*node)?.bits(), 4 * 16);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Node: Any + Debug + Send + Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// Decodes rows `rows` into `out` (`[rows.len(), in]`), or adds them to it.
    /// Any partition of the rows gives the same bits (law 4).
    ///
    /// # Errors
    /// `Corruption` if the stored form turns out to be invalid.
    ///
    /// # Panics
    /// If `rows` is out of bounds or `out` has another shape.
    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()>;

    /// Y = X Wᵀ (or Y += X Wᵀ) for X `[tokens, in]`, Y `[tokens, out]`.
    ///
    /// # Errors
    /// As [`Node::decode_rows`].
    ///
    /// # Panics
    /// If a shape does not fit.
    fn matmul(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let rows = 0..self.shape()[0];
        Input::with(x, scratch, |x, scratch| self.matmul_rows(rows, x, y, accum, scratch))
    }

    /// Rows `rows` of W alone: Y = X W\[rows\]ᵀ (or Y += ...) for X `[tokens, in]`, Y `[tokens, rows.len()]`. An engine
    /// shares a product among threads of its own this way, and inputs among matrices. Equal to those rows of
    /// [`Node::matmul`] to rounding; kernels over stored forms give the same bits.
    ///
    /// # Errors
    /// As [`Node::decode_rows`].
    ///
    /// # Panics
    /// If a shape does not fit.
    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        matmul_by_tiles(self, rows, x, y, accum, scratch)
    }

    /// How [`Node::matmul_rows`] works here, so that nobody claims speed from the default.
    fn multiply(&self) -> Multiply {
        Multiply::Decode
    }

    /// Whether products are those of the decoded matrix. True by default; not where inputs are rounded first.
    fn is_linear(&self) -> bool {
        true
    }

    /// The tree: wire ids (`"node"`), parameters and children, enough to read the parts back.
    fn describe(&self) -> Json;

    /// Hands every part to `sink`; names are `prefix` + path + part.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;

    /// Rebuilds the node with every innermost integer plane replaced by what `f` makes of it.
    ///
    /// # Errors
    /// Those of `f`.
    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>>;

    /// The same node, storing only the entries in `mask`; the others decode to anything ([`Masked`] zeroes them),
    /// unless [`Node::zero_outside`].
    ///
    /// # Errors
    /// `ShapeMismatch`, or `Unsupported` if the node holds something that cannot be restricted.
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>>;

    /// Whether entries outside the support that [`Node::keep`] restricted this node to decode to exactly 0 and take no
    /// part in products, so that [`Masked`] has nothing left to do.
    fn zero_outside(&self) -> bool {
        false
    }

    /// Decodes some columns of some rows into `out`, row-major and without gaps, to the bits that whole rows have; `false`
    /// where that takes more than their share of the rows, as for all nodes unless they say otherwise.
    ///
    /// # Errors
    /// As [`Node::decode_rows`].
    ///
    /// # Panics
    /// As [`Node::decode_rows`].
    fn decode_part(
        &self,
        _rows: Range<usize>,
        _columns: Range<usize>,
        _out: &mut [f32],
    ) -> Result<bool> {
        Ok(false)
    }

    /// A form of the same node that multiplies fastest on this machine; writes the same bytes.
    ///
    /// # Errors
    /// As [`Node::decode_rows`].
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>>;

    /// The node behind a pointer, its type forgotten.
    fn boxed(self) -> Box<dyn Node>
    where
        Self: Sized + 'static,
    {
        Box::new(self)
    }
}

/// A boxed node is a node: what methods return whose tree depends on the input.
impl Node for Box<dyn Node> {
    fn shape(&self) -> [usize; 2] {
        (**self).shape()
    }
    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        (**self).decode_rows(rows, out, accum, scratch)
    }
    fn matmul(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        (**self).matmul(x, y, accum, scratch)
    }
    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        (**self).matmul_rows(rows, x, y, accum, scratch)
    }
    fn multiply(&self) -> Multiply {
        (**self).multiply()
    }
    fn is_linear(&self) -> bool {
        (**self).is_linear()
    }
    fn describe(&self) -> Json {
        (**self).describe()
    }
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        (**self).parts(prefix, sink)
    }
    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        (*self).map_planes(f)
    }
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        (*self).keep(mask)
    }
    fn zero_outside(&self) -> bool {
        (**self).zero_outside()
    }
    fn decode_part(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<bool> {
        (**self).decode_part(rows, columns, out)
    }
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        (*self).prepack()
    }
    fn boxed(self) -> Box<dyn Node> {
        self
    }
}

/// The node as one of this type, if it is; behind any number of boxes.
///
/// ```
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::{Dense, GroupedAffine, as_node};
/// use tensorpress_tensor::{DType, Node};
///
/// let node: Box<dyn Node> = Dense::from_f32(array![[1.0]].view(), DType::F16)?.boxed();
/// assert!(as_node::<Dense>(&*node).is_some_and(|dense| dense.dtype() == DType::F16));
/// assert!(as_node::<GroupedAffine>(&node).is_none());
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn as_node<T: Node>(node: &dyn Node) -> Option<&T> {
    let any: &dyn Any = node;
    match any.downcast_ref::<Box<dyn Node>>() {
        Some(boxed) => as_node(&**boxed),
        None => any.downcast_ref(),
    }
}

/// Decodes a whole node.
///
/// # Errors
/// As [`Node::decode_rows`].
pub fn decode(node: &dyn Node) -> Result<Array2<f32>> {
    let [out, inp] = node.shape();
    let mut w = Array2::zeros((out, inp));
    node.decode_rows(0..out, w.view_mut(), Accum::Replace, &mut Scratch::default())?;
    Ok(w)
}

/// Panics unless a product of inputs with some rows of a matrix `[out, in]` has these sizes.
///
/// # Panics
/// If it has not.
pub fn check_matmul(
    [out, inp]: [usize; 2],
    rows: &Range<usize>,
    x: &Input<'_>,
    y: &ArrayViewMut2<'_, f32>,
) {
    assert!(rows.start <= rows.end && rows.end <= out, "rows {rows:?} of {out}");
    assert_eq!(x.view().ncols(), inp, "input width");
    assert_eq!(y.dim(), (x.tokens(), rows.len()), "tokens and output width");
}

/// Joins two path elements of a part name.
#[must_use]
pub fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

pub(crate) fn check_same_shape(expected: [usize; 2], got: [usize; 2], what: &str) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::shape(format!("{what} is {got:?}, expected {expected:?}")))
}
