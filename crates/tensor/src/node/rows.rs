use std::ops::Range;
use std::sync::Arc;

use super::registry::field;
use super::{Json, Mask, NodeReader};
use crate::error::{Error, Result};

/// How long the rows of a plane are.
#[derive(Debug, Clone)]
pub enum Rows {
    /// All equally long.
    Even {
        /// Number of rows.
        rows: usize,
        /// Symbols of each.
        cols: usize,
    },
    /// Each as long as the kept entries of the mask's row.
    Ragged(Arc<Mask>),
}

impl Rows {
    /// Number of rows.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Even { rows, .. } => *rows,
            Self::Ragged(mask) => mask.shape()[0],
        }
    }

    /// Symbols in some rows.
    #[must_use]
    pub fn len(&self, rows: Range<usize>) -> usize {
        match self {
            Self::Even { cols, .. } => rows.len() * cols,
            Self::Ragged(mask) => mask.kept(rows),
        }
    }

    /// Whether there are no symbols at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len(0..self.count()) == 0
    }

    /// The mask, of ragged rows.
    #[must_use]
    pub fn support(&self) -> Option<&Arc<Mask>> {
        match self {
            Self::Even { .. } => None,
            Self::Ragged(mask) => Some(mask),
        }
    }

    /// Adds `shape`, or `ragged`, to the description of a plane.
    pub fn describe(&self, json: &mut Json) {
        match self {
            Self::Even { rows, cols } => json["shape"] = serde_json::json!([rows, cols]),
            Self::Ragged(_) => json["ragged"] = true.into(),
        }
    }

    /// Reads what [`Rows::describe`] wrote; ragged rows are those of the enclosing mask. The number of symbols fits a
    /// `usize`; the caller holds it against the bytes that are there.
    ///
    /// # Errors
    /// `Corruption`.
    pub fn read_from(reader: &NodeReader<'_>, json: &Json) -> Result<Self> {
        if json.get("ragged").and_then(Json::as_bool) == Some(true) {
            let mask = reader.mask();
            let mask =
                mask.ok_or_else(|| Error::corruption("a ragged plane outside a masked node"))?;
            return Ok(Self::Ragged(mask.clone()));
        }
        let [rows, cols] = field::<[usize; 2]>(json, "shape")?;
        match rows.checked_mul(cols) {
            Some(_) => Ok(Self::Even { rows, cols }),
            None => Err(Error::corruption(format!("declared shape [{rows}, {cols}]"))),
        }
    }
}
