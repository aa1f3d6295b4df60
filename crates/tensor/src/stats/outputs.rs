//! The Gram matrix of a layer's outputs.

use std::sync::Arc;

use ndarray::Array2;

use super::Gram;
use super::statistic::{Ask, Batch, Statistic, Stream, Via};
use crate::linalg::Par;
use crate::node::{Side, map};
use crate::usable::Usable;
use crate::{Error, Result};

/// YᵀY `[outputs, outputs]` of what a layer writes ([`Stream::Output`]), by the rules of [`Gram`].
#[derive(Debug, Clone, Default)]
pub struct OutputGram {
    /// There from the first outputs on, which tell their number.
    gram: Option<Gram>,
    missing: bool,
}

impl Statistic for OutputGram {
    type Value = Array2<f32>;
    const WHAT: &'static str = "the Gram matrix of the outputs";
    const STREAMS: &'static [Stream] = &[Stream::Output];

    fn begin(_: Ask) -> Self {
        Self::default()
    }

    fn update(&mut self, batch: &Batch<'_>, par: Par) {
        match batch.output {
            None => self.missing |= batch.input.nrows() > 0,
            Some(y) => self.gram.get_or_insert_with(|| Gram::new(y.ncols())).update(y, par),
        }
    }

    fn merge(&mut self, other: Self) {
        self.missing |= other.missing;
        match (&mut self.gram, other.gram) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, theirs) => *mine = theirs,
            (_, None) => {}
        }
    }

    fn finish(self) -> Result<Array2<f32>> {
        match self.gram.filter(|_| !self.missing) {
            Some(gram) => gram.into_matrix(),
            None => Err(Error::missing_calibration(format!("{} lacks outputs", Self::WHAT))),
        }
    }

    /// The node behind a map on the outputs writes Y T⁻¹.
    fn through(value: &Arc<Array2<f32>>, via: &Via<'_>) -> Usable<Arc<Array2<f32>>> {
        if via.side == Side::In {
            return Usable::Yes(value.clone());
        }
        if value.nrows() != via.map.outer() {
            return Usable::no(format!("{} is of other outputs than the map", Self::WHAT));
        }
        let invert = |gram: &Array2<f32>| {
            map::on_side(gram.view(), Side::In, via.map.inner(), via.par, |x, y| {
                via.map.invert(x, y)
            })
        };
        let right = invert(value);
        let mut both = invert(&right.t().as_standard_layout().into_owned());
        crate::linalg::mirror_lower(both.view_mut());
        Usable::Yes(Arc::new(both))
    }
}
