//! Feedback among rows: the other side of a sweep.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::{Damping, Factor};
use crate::error::{ErrorKind, Result};
use crate::linalg::{self, Par};
use crate::method::Target;
use crate::stats::{Calibration, Supply};
use crate::usable::Usable;

/// What bands of rows, one decided after another, take over from the errors of those before.
#[derive(Debug)]
pub struct RowFactor {
    rows: usize,
    band: usize,
    /// `[rows before, rows of the band]` each.
    bands: Vec<Array2<f32>>,
}

impl RowFactor {
    /// What a target asks for, in bands of so many rows; `None` if it does not, or nothing usable is known of its outputs
    /// (the target's [`RowFeedback`](crate::RowFeedback) says which).
    ///
    /// # Errors
    /// Those of what was supplied.
    pub fn of(
        target: &Target<'_>,
        calibration: &Calibration,
        band: usize,
        par: Par,
    ) -> Result<Option<Self>> {
        let Some(asked) = target.rows else { return Ok(None) };
        let supplied = match calibration.supplied(Supply::OUTPUT_FISHER, target, par) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            other => Usable::of(other)?,
        };
        let factor = supplied.and_then(|g| match g.is_square() {
            // A single output is its own diagonal.
            true => match Factor::of(WHAT, g.view(), 1.0, asked.damp(), Damping::Each, par) {
                Ok(factor) => Usable::Yes(factor),
                Err(e) => Usable::no(e.message()),
            },
            false => Usable::no(format!("only the diagonal of its {WHAT} is known")),
        });
        Ok(match factor {
            Usable::Yes(factor) => {
                asked.say(factor.note.clone());
                Some(Self::new(&factor, band))
            }
            Usable::No(reason) => {
                asked.say(Some(format!("{reason}: rows feed each other nothing")));
                None
            }
        })
    }

    /// Of a factor of G.
    ///
    /// # Panics
    /// If a band is to have no rows.
    #[must_use]
    pub fn new(factor: &Factor, band: usize) -> Self {
        let rows = factor.unit.nrows();
        let bands = (0..rows).step_by(band);
        let bands = bands.map(|from| factor.block(from, rows.min(from + band))).collect();
        Self { rows, band, bands }
    }

    /// Rows, and rows of a band; the last may have fewer.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.band)
    }

    /// What is to be taken off the targets of band `number`, `[rows of it, columns]`, for what the rows before were given
    /// beyond theirs, `[at least those rows, columns]`.
    ///
    /// # Panics
    /// If there is no such band, or sizes differ.
    pub fn before(
        &self,
        number: usize,
        given: ArrayView2<'_, f32>,
        before: ArrayViewMut2<'_, f32>,
        par: Par,
    ) {
        let first = number * self.band;
        let mut before = before;
        match first {
            0 => before.fill(0.0),
            _ => {
                let done = given.slice(s![..first, ..]);
                linalg::matmul_tn(self.bands[number].view(), done, before, false, par);
            }
        }
    }
}

const WHAT: &str = "output Fisher matrix";
