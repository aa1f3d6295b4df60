use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Error, Result, Usable};

use crate::aim::{Aimed, Ask};
use crate::metric::Weighing;
use crate::outputs::{Outputs, alike};
use crate::project::{Projection, project_noting};

/// What comes of a decomposition.
pub(crate) struct Made {
    /// W' where it is not W.
    pub(crate) moved: Option<Array2<f32>>,
    pub(crate) factors: Projection,
    /// What was done in the place of what was asked, if something was.
    pub(crate) note: Option<String>,
}

impl Made {
    /// The factors that lose least by what errors cost, of the inputs and, where that is known, of the outputs.
    pub(crate) fn of(
        weight: &Array2<f32>,
        weighing: &Weighing,
        outputs: Option<&Outputs>,
        ask: Ask,
    ) -> Result<Usable<Self>> {
        let Some(outputs) = outputs else { return Self::one_sided(weight, weighing, ask) };
        let reason = match Self::two_sided(weight, weighing, outputs, ask)? {
            Usable::No(reason) => alike(&reason),
            made => return Ok(made),
        };
        let made = Self::one_sided(weight, weighing, ask)?;
        Ok(made.map(|made| {
            let notes = [made.note, Some(reason)].into_iter().flatten().collect::<Vec<_>>();
            Self { note: Some(notes.join("; ")), ..made }
        }))
    }

    /// The factors of W' by the directions that the aim says.
    fn one_sided(weight: &Array2<f32>, weighing: &Weighing, ask: Ask) -> Result<Usable<Self>> {
        let (moved, seen, rank) = match weighing.aim.at(weight, &weighing.root, ask)? {
            Usable::Yes(Aimed { weight, seen, rank }) => (weight, seen, rank),
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let (weight, ask) = (moved.as_ref().unwrap_or(weight), Ask { rank, ..ask });
        let made = project_noting(weight.view(), &weighing.root, seen.as_ref(), ask);
        Ok(Usable::of(made)?.map(|(factors, note)| Self { moved, factors, note }))
    }

    /// The same of Tᵀ W, taken back.
    fn two_sided(
        weight: &Array2<f32>,
        weighing: &Weighing,
        outputs: &Outputs,
        ask: Ask,
    ) -> Result<Usable<Self>> {
        let seen = outputs.before(weight.view(), ask.par);
        let back = |m: &Array2<f32>| outputs.back(m.view(), ask.par);
        let taken_back = |Self { moved, factors: Projection { left, right }, note }| {
            let factors = Projection { left: back(&left)?, right }.balanced();
            match factors.can_be_scaled() {
                true => Ok(Self { moved: moved.as_ref().map(back).transpose()?, factors, note }),
                false => Err(Error::numerical("its factors are beyond f32")),
            }
        };
        match Self::one_sided(&seen, weighing, ask)? {
            Usable::Yes(made) => Usable::of(taken_back(made)),
            Usable::No(reason) => Ok(Usable::No(reason)),
        }
    }
}
