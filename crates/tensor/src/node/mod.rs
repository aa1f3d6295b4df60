//! The algebra: a compressed weight is a tree of nodes, each of which can be decoded, multiplied by,
//! counted and written.
//!
//! W is `[out, in]`, row-major; products are Y = X Wᵀ with X `[tokens, in]` and Y `[tokens, out]`.

mod dense;
pub mod form;
mod leaf;
pub mod map;
mod mask;
mod masked;
mod plane;
mod product;
pub mod registry;
mod rows;
#[cfg(feature = "checkpoint")]
mod saved;
mod scratch;
mod split;
mod sum;
mod transformed;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

pub use dense::Dense;
pub use form::MaskForm;
pub use leaf::{
    AffineFormat, Blocks, Child, Format, Fused, GroupedAffine, KnownLevels, Leaf, LevelFormat,
    LevelTable, Slot, Stored,
};
pub use map::{Channels, Composed, Hadamard, Index, Map, Rotation, Scale, Side};
pub use mask::Mask;
pub use masked::Masked;
pub use plane::{KeptPlane, PackedPlane, Plane, Symbol, SymbolBuf, Symbols, SymbolsMut};
pub use product::Product;
pub use registry::{NodeReader, PartSource, Registry};
pub use rows::Rows;
#[cfg(feature = "checkpoint")]
pub use saved::{SAVED, bits_per_weight, from_bytes, load, read_from, save, to_bytes, write_to};
pub use scratch::Scratch;
pub use split::SplitFloats;
pub use sum::Sum;
pub use tensorpress_kernels::Accum;
pub use transformed::Transformed;

use crate::error::{Error, Result};
use crate::linalg;
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
pub trait Node: Debug + Send + Sync {
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
        matmul_by_tiles(self, x, y, accum, scratch)
    }

    /// How [`Node::matmul`] works here, so that nobody claims speed from the default.
    fn multiply(&self) -> Multiply {
        Multiply::Decode
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

    /// The kernels over the form in which it is stored, where there are any.
    ///
    /// # Errors
    /// As [`Node::decode_rows`].
    fn stored(&self) -> Result<Option<Box<dyn Fused + '_>>> {
        Ok(None)
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
    fn multiply(&self) -> Multiply {
        (**self).multiply()
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
    fn stored(&self) -> Result<Option<Box<dyn Fused + '_>>> {
        (**self).stored()
    }
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        (*self).prepack()
    }
    fn boxed(self) -> Box<dyn Node> {
        self
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

/// Up to this many tokens the fused kernels win over decoding tiles for a matrix product.
pub const FUSED_TOKENS: usize = 8;

/// Rows decoded at a time by the default multiplication: enough for a good matrix product, small enough for L2.
const TILE_VALUES: usize = 64 * 1024;

/// The default multiplication: row tiles are decoded and multiplied.
///
/// # Errors
/// As [`Node::decode_rows`].
///
/// # Panics
/// If a shape does not fit.
pub fn matmul_by_tiles<N: Node + ?Sized>(
    node: &N,
    x: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
    accum: Accum,
    scratch: &mut Scratch,
) -> Result<()> {
    let [out, inp] = node.shape();
    check_matmul([out, inp], &x, &y);
    let tile = (TILE_VALUES / inp.max(1)).clamp(8, 1024).min(out.max(1));
    let mut buffer = scratch.take(tile * inp);
    for start in (0..out).step_by(tile) {
        let rows = start..(start + tile).min(out);
        let w = &mut buffer[..rows.len() * inp];
        let mut w = ArrayViewMut2::from_shape((rows.len(), inp), w).expect("tile shape");
        node.decode_rows(rows.clone(), w.view_mut(), Accum::Replace, scratch)?;
        let y_tile = y.slice_mut(ndarray::s![.., rows]);
        linalg::matmul_nt(x, w.view(), y_tile, accum == Accum::Add, scratch.par());
    }
    scratch.put(buffer);
    Ok(())
}

/// Calls `f(x, y, tokens)` with contiguous slices, as kernels take them, copying where the views are not.
pub fn with_slices(
    x: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
    f: impl FnOnce(&[f32], &mut [f32], usize),
) {
    let x = x.as_standard_layout();
    let x_slice = x.as_slice().expect("standard layout");
    if let Some(y) = y.as_slice_mut() {
        f(x_slice, y, x.nrows());
    } else {
        let mut owned = y.as_standard_layout().into_owned();
        f(x_slice, owned.as_slice_mut().expect("standard layout"), x.nrows());
        y.assign(&owned);
    }
}

/// Panics unless X `[tokens, in]` and Y `[tokens, out]` fit a matrix `[out, in]`.
///
/// # Panics
/// If they do not.
pub fn check_matmul(shape: [usize; 2], x: &ArrayView2<'_, f32>, y: &ArrayViewMut2<'_, f32>) {
    assert_eq!(x.ncols(), shape[1], "input width");
    assert_eq!(y.ncols(), shape[0], "output width");
    assert_eq!(x.nrows(), y.nrows(), "tokens");
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
