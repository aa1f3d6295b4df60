//! Ranks of all matrices of a model by one price, at which they take the bits asked for together ([`crate::LowRank::bits`]).

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rate::{OCTAVE, RateCurve};
use tensorpress_tensor::{Result, Usable};

use crate::levels::{Level, energy};
use crate::metric::Weighing;
use crate::outputs::Outputs;
use crate::project::{exponent, power_of_two, scaled};
use crate::spectrum::Spectrum;

/// What each rank of a matrix takes and loses.
#[derive(Debug)]
pub(crate) struct Offers {
    weights: u64,
    levels: Vec<Level<usize>>,
    /// Singular values in parts of the largest, where these are what counts.
    relative: Option<Vec<f64>>,
}

impl Offers {
    /// Of a matrix, a direction of which takes so many bytes, and all of it. Errors are in nats a token where it is known
    /// what those of outputs and inputs cost, else in parts of the outputs' mean energy; where `relative`, singular values
    /// in parts of the largest decide, whatever errors cost (WeLore: Jaiswal et al., 2024).
    pub(crate) fn of(
        weight: &Array2<f32>,
        weighing: &Weighing,
        outputs: Option<&Outputs>,
        relative: bool,
        [direction, whole]: [u64; 2],
        par: Par,
    ) -> Result<Usable<Self>> {
        let before = outputs.map(|outputs| outputs.before(weight.view(), par));
        let weight = before.as_ref().unwrap_or(weight);
        let exponents = [exponent(weight.iter()), weighing.root.exponent()];
        let usual = scaled(weight.view(), -exponents[0] - exponents[1]);
        let seen = weighing.root.apply(usual.view(), par)?;
        let values = match Usable::of(linalg::svd(seen.view()))? {
            Usable::Yes(svd) => svd.s.mapv(f64::from),
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let all = energy(seen.iter());
        let unit = match (outputs, weighing.tokens) {
            (Some(outputs), Some(tokens)) if tokens > 0 => {
                let scale = power_of_two(exponents[0] + exponents[1]);
                0.5 * outputs.unit * scale * scale / tokens as f64
            }
            _ if all > 0.0 => weight.nrows() as f64 / all,
            _ => 0.0,
        };
        let most = values.iter().copied().fold(0.0, f64::max);
        let part = |value: &f64| if most > 0.0 { value / most } else { 0.0 };
        let relative = relative.then(|| values.iter().map(part).collect());
        let spectrum = Spectrum::new([weight.nrows(), weight.ncols()], values.to_vec())?;
        let mut levels = spectrum.levels_of(direction, whole);
        levels.iter_mut().for_each(|level| level.error *= unit);
        Ok(Usable::Yes(Self { weights: weight.len() as u64, levels, relative }))
    }

    /// The rank at which what is lost and what bits cost are least together, step² being the price of a bit; the smallest
    /// of equals, and full rank for the matrix itself.
    pub(crate) fn rank(&self, step: f64) -> usize {
        self.at(step).choice
    }

    fn at(&self, step: f64) -> Level<usize> {
        let nothing = Level::new(0, 0, 0.0);
        if let Some(parts) = &self.relative {
            let above = parts.iter().filter(|part| **part > step.exp2()).count().max(1);
            let factored = (2 * above < parts.len()).then(|| self.levels.get(above - 1));
            return factored.flatten().or(self.levels.last()).copied().unwrap_or(nothing);
        }
        let price = 8.0 * (2.0 * step).exp2();
        let cost = |level: &Level<usize>| level.error + price * level.bytes as f64;
        let least = |a: Level<usize>, b: &Level<usize>| if cost(b) < cost(&a) { *b } else { a };
        let first = self.levels.first().copied().unwrap_or(nothing);
        self.levels.iter().fold(first, least)
    }

    /// Bits by the step.
    pub(crate) fn curve(&self) -> RateCurve {
        let bits = |step: i32| 8 * self.at(f64::from(step) / f64::from(OCTAVE)).bytes;
        // Where a bit costs more than all of the error, and far below.
        let most = self.levels.iter().map(|level| level.error).fold(0.0, f64::max);
        let dearest = match self.relative {
            None if most > 0.0 => (0.5 * most.log2()) as i32 + 1,
            _ => 0,
        };
        let steps = (dearest - OCTAVES) * OCTAVE..=dearest * OCTAVE;
        let points = steps.step_by(APART as usize).chain([-FARTHEST, FARTHEST]);
        RateCurve::new(self.weights, points.map(|step| (step, bits(step))).collect())
    }
}

/// What the curve is drawn of: steps an eighth of an octave apart, and the two ends of all steps.
const APART: i32 = OCTAVE / 8;
const OCTAVES: i32 = 40;
const FARTHEST: i32 = 100 * OCTAVE;
