//! Ranks of all matrices of a model by one price, at which they take the bits asked for together ([`crate::LowRank::bits`]).

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rate::{OCTAVE, RateCurve};
use tensorpress_tensor::{DType, Error, Group, Result, Target, Usable};

use crate::levels::{Level, energy};
use crate::lowrank::LowRank;
use crate::metric::Weighing;
use crate::outputs::Outputs;
use crate::project::{exponent, power_of_two, scaled};
use crate::rank::Rank;
use crate::spectrum::Spectrum;

impl<M> LowRank<M> {
    /// Checks the parameters.
    pub(crate) fn check(&self) -> Result<()> {
        self.rank.check()?;
        let Some(bits) = self.bits else {
            return match self.relative {
                true => Err(Error::invalid("relative = true: is for `bits`, which is not given")),
                false => Ok(()),
            };
        };
        if !(bits > 0.0 && bits.is_finite()) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are positive numbers")));
        }
        match self.factors.value_bytes(DType::F32) {
            Some(_) => Ok(()),
            None => {
                let allowed = "allowed are a ratio, a rank and an energy";
                Err(Error::invalid(format!(
                    "bits = {bits} with factors that are no floats: {allowed}"
                )))
            }
        }
    }

    /// The rank that is meant of a matrix.
    pub(crate) fn rank_of(
        &self,
        target: &Target<'_>,
        weight: &Array2<f32>,
        weighing: &Weighing,
        outputs: Option<&Outputs>,
        par: Par,
    ) -> Result<Rank> {
        let (out, inp) = weight.dim();
        let Some(bits) = self.bits else { return Ok(self.factors.rank(self.rank, [out, inp])) };
        if let Some(step) = target.step
            && let Usable::Yes(offers) = self.offers(target, weight, weighing, outputs, par)?
        {
            return Ok(Rank::Number(offers.rank(step)));
        }
        let size = self.factors.value_bytes(target.dtype).unwrap_or(target.dtype.size());
        Ok(Rank::Ratio((1.0 - bits / (8 * size) as f64).max(0.0)))
    }

    /// What the ranks of a matrix take and lose.
    fn offers(
        &self,
        target: &Target<'_>,
        weight: &Array2<f32>,
        weighing: &Weighing,
        outputs: Option<&Outputs>,
        par: Par,
    ) -> Result<Usable<Offers>> {
        let (out, inp) = weight.dim();
        let size = self.factors.value_bytes(target.dtype).unwrap_or(target.dtype.size());
        let bytes = [((out + inp) * size) as u64, (out * inp * target.dtype.size()) as u64];
        Offers::of(weight, weighing, outputs, self.relative, bytes, par)
    }

    /// Bits of a matrix by the step.
    pub(crate) fn curve(
        &self,
        target: &Target<'_>,
        weighing: &Weighing,
        group: &Group<'_>,
    ) -> Result<RateCurve> {
        target.check_finite()?;
        let weight = target.kept_weight().into_owned();
        let outputs = Outputs::of(target, &group.calibration, group.par)?;
        let by = |weighing| self.offers(target, &weight, weighing, outputs.as_ref(), group.par);
        let offers = match by(weighing)? {
            Usable::No(_) => by(&Weighing::plain())?,
            offers => offers,
        };
        match offers {
            Usable::Yes(offers) => Ok(offers.curve()),
            Usable::No(reason) => Err(Error::numerical(reason)),
        }
    }
}

/// What each rank of a matrix takes and loses.
#[derive(Debug)]
struct Offers {
    weights: u64,
    levels: Vec<Level<usize>>,
    /// Singular values in parts of the largest, where these are what counts.
    relative: Option<Vec<f64>>,
}

impl Offers {
    /// Of a matrix, a direction of which takes so many bytes, and all of it. Errors are in nats a token where it is known
    /// what those of outputs and inputs cost, else in parts of the outputs' mean energy; where `relative`, singular values
    /// in parts of the largest decide, whatever errors cost (WeLore: Jaiswal et al., 2024).
    fn of(
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
    fn rank(&self, step: f64) -> usize {
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
    fn curve(&self) -> RateCurve {
        let bits = |step: i32| 8 * self.at(f64::from(step) / f64::from(OCTAVE)).bytes;
        // Where a bit costs more than all of the error, and far below.
        let most = self.levels.iter().map(|level| level.error).fold(0.0, f64::max);
        let dearest = match self.relative {
            None if most > 0.0 => (0.5 * most.log2()) as i32 + 1,
            _ => 0,
        };
        let mut points = vec![(-FARTHEST, bits(-FARTHEST)), (FARTHEST, bits(FARTHEST))];
        // Bits fall in stairs, of which both ends are points: half of a matrix goes at once where it is factored at all.
        let mut before = bits((dearest - OCTAVES) * OCTAVE);
        for step in (dearest - OCTAVES) * OCTAVE..=dearest * OCTAVE {
            let now = bits(step);
            if now != before {
                points.extend([(step - 1, before), (step, now)]);
            }
            before = now;
        }
        RateCurve::new(self.weights, points)
    }
}

/// How far down the curve is drawn, and the two ends of all steps.
const OCTAVES: i32 = 40;
const FARTHEST: i32 = 100 * OCTAVE;
