//! How much a unit matters.

use std::fmt::Debug;

use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Moments, Needs};
use tensorpress_tensor::{Result, Usable};

use super::{Module, Part, Track};
use crate::flap::{ChannelMetric, InputStatistics};

/// Puts the units of a module in the order in which they go.
pub trait Score: Debug + Send + Sync {
    /// Statistics of the reader's input that it uses. Default: none.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// What it judges. Default: heads and channels.
    fn modules(&self) -> &'static [Module] {
        &Module::ALL
    }

    /// Its own knobs; none by default.
    ///
    /// # Errors
    /// Those of `keys`.
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }

    /// Checks its parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The order, if what it is made of can be used.
    ///
    /// # Errors
    /// `Numerical` for weights that are not finite, naming the tensor; `MissingCalibration`.
    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>>;
}

/// The squared norm of all that a unit is made of: what is left to judge by where nothing is known of inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Norms;

impl Score for Norms {
    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let square = |v: &f32| f64::from(*v) * f64::from(*v);
        let scores: Vec<f64> =
            part.features()?.rows().into_iter().map(|unit| unit.iter().map(square).sum()).collect();
        Track::by_scores(&scores).map(Usable::Yes)
    }
}

/// FLAP's metrics as scores of units: the mean of a unit's columns.
impl Score for ChannelMetric {
    fn needs(&self) -> Needs {
        Needs::MOMENTS
    }

    fn track(&self, part: &Part<'_>) -> Result<Usable<Track>> {
        let weight = part.weight()?;
        Ok(match part.statistic::<Moments>()? {
            Usable::No(reason) => Usable::No(reason),
            Usable::Yes(moments) => {
                let scores = self.scores(weight.view(), &InputStatistics::from(moments))?.to_vec();
                let units = scores.chunks_exact(part.width);
                let means = units.map(|unit| unit.iter().sum::<f64>() / part.width as f64);
                Usable::Yes(Track::by_scores(&means.collect::<Vec<_>>())?)
            }
        })
    }
}
