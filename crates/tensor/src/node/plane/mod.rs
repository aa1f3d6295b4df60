//! Integer planes: the codes inside nodes, behind a trait so that they can be packed, restricted to a support,
//! or entropy-coded without the node knowing.

mod kept;
mod packed;
mod prefixed;
pub mod spread;
mod symbols;
mod trellis;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub use kept::KeptPlane;
pub use packed::PackedPlane;
pub use prefixed::PrefixedPlane;
pub use symbols::{Symbol, SymbolBuf, Symbols, SymbolsMut};
pub(crate) use symbols::{bands, bits_of};
pub use trellis::Trellis;

use super::{Json, Mask, PlaneMap, join};
use crate::error::Result;
use crate::storage::{PartKind, PartSink};

/// Rows of unsigned integers below `alphabet()`.
///
/// ```
/// use tensorpress_tensor::node::{PackedPlane, Plane, SymbolBuf};
///
/// let plane: Box<dyn Plane> = Box::new(PackedPlane::pack(&[1u8, 5, 7, 0], 2, 2, 3)?);
/// let mut buffer = SymbolBuf::of(&*plane);
/// let row = buffer.read(&*plane, 1..2)?;
/// assert_eq!((plane.alphabet(), row.iter().collect::<Vec<_>>()), (8, vec![7, 0]));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Plane: Debug + Send + Sync {
    /// Codes lie in `0..alphabet()`, which is at most 65536; symbols are bytes up to 256, else 16 bits wide.
    fn alphabet(&self) -> u32;
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Symbols in `rows` (rows may be ragged).
    fn len(&self, rows: Range<usize>) -> usize;
    /// Whether there are no symbols at all.
    fn is_empty(&self) -> bool {
        self.len(0..self.rows()) == 0
    }
    /// Reads the symbols of `rows`. [`SymbolBuf`] is a buffer of the right width.
    ///
    /// # Errors
    /// `Corruption` if the stored form turns out to be invalid.
    ///
    /// # Panics
    /// If `rows` is out of bounds, or `out` is not `len(rows)` long and of the width of the alphabet.
    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()>;
    /// Wire id and parameters.
    fn describe(&self) -> Json;
    /// Hands over the stored parts.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()>;
    /// Replaces the innermost plane.
    ///
    /// # Errors
    /// Those of `f`.
    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>>;
    /// The packed form, where this is one: the fast path of kernels.
    fn as_packed(&self) -> Option<&PackedPlane> {
        None
    }
    /// The restricted form, where this is one.
    fn as_kept(&self) -> Option<&KeptPlane> {
        None
    }
    /// The support whose kept entries are the symbols, where rows are ragged.
    fn support(&self) -> Option<&Arc<Mask>> {
        None
    }
}

/// Whether a plane has `rows` rows of `cols` symbols each.
pub(crate) fn is_even(plane: &dyn Plane, rows: usize, cols: usize) -> bool {
    plane.rows() == rows && (0..rows).all(|row| plane.len(row..row + 1) == cols)
}

pub(super) fn part_name(prefix: &str, name: &str) -> String {
    join(prefix, name)
}
