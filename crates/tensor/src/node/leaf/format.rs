use std::fmt::Debug;
use std::ops::Range;

use super::{Leaf, Slot};
use crate::error::Result;
use crate::node::{Input, Json, Scratch, Symbols};

/// What the codes of a [`Leaf`] stand for: its parameters, what it needs beside the codes, and how a row is decoded.
///
/// ```
/// # use tensorpress_tensor::node::{Format, Json, Leaf, PackedPlane, Slot, Symbols, decode};
/// # use tensorpress_tensor::{Result, ndarray::array};
/// #[derive(Debug)]
/// struct Ternary;
///
/// impl Format for Ternary {
///     const ID: &'static str = "yours.ternary.v1";
///
///     fn read_from(_: &Json) -> Result<Self> {
///         Ok(Self)
///     }
/// #   fn describe(&self, _: &mut Json) {}
///     fn slots(&self, _: [usize; 2]) -> Vec<Slot> {
///         Vec::new()
///     }
/// #   fn check(&self, _: [usize; 2], _: u32) -> Result<()> {
/// #       Ok(())
/// #   }
///     fn decode_row(&self, _: usize, codes: Symbols<'_>, _: &[&[f32]], out: &mut [f32]) {
///         out.iter_mut().zip(codes.iter()).for_each(|(w, code)| *w = f32::from(code) - 1.0);
///     }
/// }
/// let codes = PackedPlane::pack(&[0u8, 1, 2, 2], 2, 2, 2)?;
/// let leaf = Leaf::new(Ternary, [2, 2], Box::new(codes), Vec::new())?;
/// assert_eq!(decode(&leaf)?, array![[-1.0, 0.0], [1.0, 1.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Format: Debug + Send + Sync + Sized + 'static {
    /// Wire id of leaves of this format.
    const ID: &'static str;

    /// Rows that share codes. Planes have a row for each band of so many; the codes of the last one are those of a whole band.
    const BAND: usize = 1;

    /// Reads the parameters from a description.
    ///
    /// # Errors
    /// `Corruption` for parameters that are missing or impossible.
    fn read_from(json: &Json) -> Result<Self>;

    /// Adds the parameters to a description.
    fn describe(&self, json: &mut Json);

    /// What a matrix `[rows, columns]` needs beside its codes, in the order in which it is stored.
    fn slots(&self, shape: [usize; 2]) -> Vec<Slot>;

    /// Codes of a row of `cols` weights, or of a band of them. Only leaves of a code a weight can be restricted to a support.
    fn codes(&self, cols: usize) -> usize {
        cols
    }

    /// Checks that it can decode a matrix whose codes lie below `alphabet`.
    ///
    /// # Errors
    /// `InvalidArgument`, saying what is allowed.
    fn check(&self, shape: [usize; 2], alphabet: u32) -> Result<()>;

    /// Decodes row `row` of a matrix of `out.len()` columns from its codes, all below the alphabet that was checked,
    /// and `beside`, the values of each slot. What lies outside a support may become anything. Where rows share codes, it is
    /// band `row` that is decoded, and `out` has all rows of a band, also where the matrix ends before.
    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]);

    /// Decodes a row straight from its stored form, where it has codes of its own, added to `out` where `add`; `false` where no kernel knows the form,
    /// as for all unless the format says otherwise. Bit for bit what [`Format::decode_row`] gives, and 0 outside a support.
    fn decode_stored(
        _: &Leaf<Self>,
        _row: usize,
        _beside: &[&[f32]],
        _out: &mut [f32],
        _add: bool,
        _scratch: &mut Scratch,
    ) -> bool {
        false
    }

    /// Calls `f` with the product over the stored form, where a kernel knows it.
    ///
    /// # Errors
    /// As [`crate::Node::decode_rows`].
    fn fused(_: &Leaf<Self>, _f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        Ok(())
    }

    /// The product over a form made for this machine.
    ///
    /// # Errors
    /// As [`crate::Node::decode_rows`].
    fn prepacked(_: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        Ok(None)
    }
}

/// Kernels over a stored form: a product that never expands the matrix, and parts of it.
pub trait Fused: Debug + Send + Sync {
    /// Y = X Wᵀ over some rows of W, or Y += X Wᵀ where `add`, for X `[tokens, in]` and Y `[tokens, rows.len()]`, row-major.
    /// Allocates nothing but in `scratch`.
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    );

    /// With more tokens than this, decoding tiles of rows once is faster.
    fn most_tokens(&self) -> usize {
        usize::MAX
    }

    /// Decodes some columns of some rows into `out`, row-major and without gaps, to the bits that whole rows have; `false`
    /// where that takes more than their share of the rows.
    fn decode_part(&self, _rows: Range<usize>, _columns: Range<usize>, _out: &mut [f32]) -> bool {
        false
    }
}
