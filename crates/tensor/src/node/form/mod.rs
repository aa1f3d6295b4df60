//! The forms in which a support is stored.

mod bitmap;
mod blocks;
mod gaps;
mod n_of_m;

use std::fmt::Debug;
use std::sync::Arc;

pub use bitmap::Bitmap;
pub use blocks::Blocks;
pub use gaps::Gaps;
pub use n_of_m::NOfM;

use super::plane::bands;
use super::{Json, Mask, PackedPlane, Plane, SymbolsMut};
use crate::error::{Error, Result};
use crate::kernels::packed_len;

/// How a mask is written: as rows of symbols. Each form holds some masks only, and those exactly.
///
/// A form is a file like those of this module; its reader stands in a [`super::Registry`] under the name that
/// [`MaskForm::describe`] gives as `"form"` ([`super::Registry::add_mask_form`]). [`super::Masked::new`] takes the smallest of this
/// module's, [`super::Masked::in_form`] any.
pub trait MaskForm: Debug + Send + Sync {
    /// Whether masks of a shape can have this form.
    ///
    /// # Errors
    /// `Corruption` if they cannot.
    fn check(&self, shape: [usize; 2]) -> Result<()>;

    /// Rows of symbols, and symbols of each; called for shapes that passed the check.
    fn symbols(&self, shape: [usize; 2]) -> [usize; 2];

    /// Bits of a symbol as packed, 1 to 8.
    fn bits(&self) -> u8;

    /// The symbols of a mask, row after row.
    ///
    /// # Errors
    /// `InvalidArgument` if it is of another form.
    fn write(&self, mask: &Mask) -> Result<Vec<u8>>;

    /// Sets the bits of a mask of this shape that row `row` of symbols names, in `bits`: all zeros before, rows padded to
    /// bytes, least significant bit first.
    ///
    /// # Errors
    /// `Corruption` for symbols that are none.
    fn read(&self, row: usize, symbols: &[u8], shape: [usize; 2], bits: &mut [u8]) -> Result<()>;

    /// Its name under `"form"`, and parameters.
    fn describe(&self) -> Json;

    /// The symbols are the mask's own bytes.
    fn is_bitmap(&self) -> bool {
        false
    }
}

/// The form of this module that takes the fewest bytes; the first of equals.
pub(super) fn smallest(mask: &Mask) -> Arc<dyn MaskForm> {
    let shape @ [rows, cols] = mask.shape();
    let mut forms: Vec<Arc<dyn MaskForm>> = vec![Arc::new(Bitmap)];
    if rows * cols > 0 {
        if let Some([n, m]) = mask.every() {
            forms.push(Arc::new(NOfM::new(n, m)));
        }
        let [rows, cols] = mask.blocks(blocks::MOST_IN_BLOCK);
        forms.push(Arc::new(Blocks { rows, cols }));
    }
    forms.retain(|form| form.check(shape).is_ok());
    let smallest = forms.into_iter().min_by_key(|form| bytes(&**form, shape));
    smallest.unwrap_or_else(|| Arc::new(Bitmap))
}

/// Bytes that a mask takes.
fn bytes(form: &dyn MaskForm, shape: [usize; 2]) -> usize {
    let [rows, symbols] = form.symbols(shape);
    rows * packed_len(symbols, u32::from(form.bits()))
}

/// The symbols of a mask that has this form.
pub(super) fn plane(form: &dyn MaskForm, mask: &Mask) -> Result<Box<dyn Plane>> {
    form.check(mask.shape()).map_err(|e| Error::invalid(e.message()))?;
    let [rows, count] = form.symbols(mask.shape());
    Ok(Box::new(PackedPlane::pack(&form.write(mask)?, rows, count, form.bits())?))
}

/// The mask whose symbols a plane holds.
///
/// # Errors
/// `Corruption` if the plane does not fit the shape, or for symbols that are none.
pub(super) fn mask(form: &dyn MaskForm, shape: [usize; 2], plane: &dyn Plane) -> Result<Mask> {
    form.check(shape)?;
    let [rows, cols] = shape;
    let [height, count] = form.symbols(shape);
    let even = plane.support().is_none() && plane.rows() == height;
    if !even || plane.len(0..height) != height * count || plane.alphabet() > 256 {
        return Err(Error::corruption(format!("the plane of a {rows} x {cols} mask")));
    }
    let mut bits = vec![0u8; rows * cols.div_ceil(8)];
    let mut symbols = Vec::new();
    for range in bands(height, count) {
        symbols.resize(range.len() * count, 0u8);
        plane.read(range.clone(), SymbolsMut::U8(&mut symbols))?;
        for (row, symbols) in range.zip(symbols.chunks_exact(count.max(1))) {
            form.read(row, symbols, shape, &mut bits)?;
        }
    }
    Mask::new(rows, cols, bits.into())
}

/// An error for a shape that a form does not fit.
fn unfit(form: &dyn MaskForm, cols: usize) -> Error {
    Error::corruption(format!("{form:?} of {cols} columns"))
}
