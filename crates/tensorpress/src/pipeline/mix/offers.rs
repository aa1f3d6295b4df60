//! What each matrix may be, and what it then takes and loses: as measured, or as follows from what others lose.

use std::collections::{BTreeMap, BTreeSet};

use tensorpress_tensor::rate::{OCTAVE, RateCurve, common_step};
use tensorpress_tensor::{Error, Result};

use super::super::Context;
use super::measure::{Measured, Tried, kind};
use super::outline::Outline;

/// What a matrix may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) level: usize,
    /// In parts of an octave, for levels that have steps.
    pub(super) step: Option<i32>,
    pub(super) bytes: u64,
    pub(super) loss: f64,
    /// What a token takes in it; 0 where nobody asked.
    pub(super) nanos: u64,
}

/// Matrices that get one level together, as a rule one.
pub(super) struct Together {
    pub(super) names: Vec<String>,
    pub(super) weights: u64,
    pub(super) offers: Vec<Offer>,
    /// What the model loses without the sublayer whose output it makes, where that was found.
    pub(super) without: Option<f64>,
}

impl Together {
    /// Takes another matrix in, of [the same levels](same_levels).
    pub(super) fn join(&mut self, name: String, weights: u64, offers: &[Offer]) {
        for (offer, other) in self.offers.iter_mut().zip(offers) {
            offer.bytes += other.bytes;
            offer.loss += other.loss;
            offer.nanos += other.nanos;
        }
        self.weights += weights;
        self.without = None;
        self.names.push(name);
    }
}

/// Leaves to matrices that are one tensor of a file the levels that all of them can have; where there is none, all stay as
/// they are.
///
/// # Errors
/// `InvalidArgument` if nothing is left.
pub(super) fn same_levels(
    outline: &Outline,
    offers: &mut BTreeMap<String, (u64, Vec<Offer>)>,
) -> Result<()> {
    for (names, _) in outline.tensors.iter().filter(|(names, _)| names.len() > 1) {
        let levels = |name: &String| -> BTreeSet<usize> {
            let offers = offers.get(name).map_or(&[][..], |(_, offers)| offers);
            offers.iter().map(|offer| offer.level).collect()
        };
        let all = names.iter().map(levels).reduce(|all, levels| &all & &levels);
        for name in names {
            if let Some((_, offers)) = offers.get_mut(name) {
                offers.retain(|offer| all.as_ref().is_some_and(|all| all.contains(&offer.level)));
            }
        }
    }
    offers.retain(|_, (_, offers)| !offers.is_empty());
    match offers.is_empty() {
        true => Err(Error::invalid("no matrix can have any of the levels")),
        false => Ok(()),
    }
}

/// Steps are stored in eighths of an octave: finer ones are none.
const APART: i32 = OCTAVE / 8;

/// Bits a weight between which steps are offered.
const RANGE: (f64, f64) = (0.3, 12.0);

/// Levels whose bytes are not the same for all matrices of a shape.
pub(super) fn loose(
    context: &Context<'_>,
    measured: &BTreeMap<usize, BTreeMap<String, Measured>>,
) -> BTreeSet<usize> {
    let mut sizes: BTreeMap<(usize, Vec<usize>), BTreeSet<u64>> = BTreeMap::new();
    if context.outline.is_some() {
        // Blocks of a type are of one length.
        return BTreeSet::new();
    }
    for (name, measured) in measured.values().flatten() {
        let shape = context.source.checkpoint().shape(name).unwrap_or_default().to_vec();
        for (level, tried) in &measured.tried {
            sizes.entry((*level, shape.clone())).or_default().insert(tried.bytes);
        }
    }
    sizes.into_iter().filter(|(_, sizes)| sizes.len() > 1).map(|((level, _), _)| level).collect()
}

/// What every matrix may be.
pub(super) fn offers(
    context: &Context<'_>,
    measured: &BTreeMap<usize, BTreeMap<String, Measured>>,
) -> Result<BTreeMap<String, (u64, Vec<Offer>)>> {
    let law = Law::of(measured);
    let mut all = BTreeMap::new();
    for (name, found) in measured.values().flatten() {
        let mut offers = Vec::new();
        for level in 0..context.plan.levels() {
            match found.curves.get(&level) {
                Some(curve) => {
                    let (gain, nanos) =
                        (law.gain(name, level), law.nanos(name, level, found.weights));
                    offers.extend(steps(curve, level, gain, nanos));
                }
                None => offers.extend(law.offer(name, found, level)),
            }
        }
        if offers.is_empty() {
            // A table that no level is for stays as it is, and in files of blocks what blocks do not divide.
            if context.outline.is_some() || context.source.block_of(name).is_none() {
                continue;
            }
            return Err(Error::invalid("can have none of the levels").in_tensor(name));
        }
        all.insert(name.clone(), (found.weights, offers));
    }
    if all.is_empty() {
        return Err(Error::invalid("no matrix can have any of the levels"));
    }
    Ok(all)
}

/// The steps of a curve: on a grid with steps by the square roots of what errors cost, each weight loses step² / 24 (half of
/// the variance of a rounding error), whatever the matrix.
fn steps(curve: &RateCurve, level: usize, gain: f64, nanos: u64) -> Vec<Offer> {
    let weights = curve.weights() as f64;
    let at = |bits: f64| common_step(std::iter::once(curve), bits * weights).div_euclid(APART);
    let offer = |step: i32| {
        let size = (2.0 * f64::from(step) / f64::from(OCTAVE)).exp2();
        let bytes = (curve.bits(step) / 8.0).ceil() as u64;
        Offer { level, step: Some(step), bytes, loss: gain * weights * size / 24.0, nanos }
    };
    (at(RANGE.1)..=at(RANGE.0)).map(|eighth| offer(eighth * APART)).collect()
}

/// What follows from the matrices that were tried for those that were not.
struct Law {
    /// Means of ln(loss / loss by plain rounding), and how many; bytes a weight; by kind of matrix and level.
    losses: BTreeMap<(String, usize), (f64, f64)>,
    bytes: BTreeMap<(String, usize), (u64, u64)>,
    /// Means of ln(loss / what its step says).
    gains: BTreeMap<(String, usize), (f64, f64)>,
    /// The least that a token was seen to take, of each weight.
    nanos: BTreeMap<(String, usize), f64>,
}

/// No loss is less: logarithms stay finite.
const LEAST: f64 = 1e-300;

impl Law {
    fn of(measured: &BTreeMap<usize, BTreeMap<String, Measured>>) -> Self {
        let empty = BTreeMap::new;
        let mut law = Self {
            losses: empty(),
            bytes: BTreeMap::new(),
            gains: empty(),
            nanos: BTreeMap::new(),
        };
        let add = |to: &mut BTreeMap<(String, usize), (f64, f64)>, key, value: f64| {
            let (sum, count) = to.entry(key).or_insert((0.0, 0.0));
            *sum += value;
            *count += 1.0;
        };
        for (name, found) in measured.values().flatten() {
            for (level, Tried { bytes, loss, nanos }) in &found.tried {
                let key = (kind(name), *level);
                law.bytes.insert(key.clone(), (*bytes, found.weights));
                if let Some(nanos) = nanos {
                    let each = *nanos as f64 / found.weights.max(1) as f64;
                    let least = law.nanos.entry(key.clone()).or_insert(each);
                    *least = least.min(each);
                }
                if let Some(curve) = found.curves.get(level) {
                    let step = common_step(std::iter::once(curve), 8.0 * *bytes as f64);
                    let size = (2.0 * f64::from(step) / f64::from(OCTAVE)).exp2();
                    let says = found.weights as f64 * size / 24.0;
                    add(&mut law.gains, key, (loss.max(LEAST) / says.max(LEAST)).ln());
                } else if let Some(probe) = found.probe {
                    add(&mut law.losses, key, (loss.max(LEAST) / probe.max(LEAST)).ln());
                }
            }
        }
        law
    }

    /// By what factor matrices of this kind lose more than their steps say.
    fn gain(&self, name: &str, level: usize) -> f64 {
        let found = self.gains.get(&(kind(name), level));
        found.map_or(1.0, |(sum, count)| (sum / count).exp())
    }

    /// What a token takes in a matrix of this kind: as long a weight as in the one where nothing disturbed it.
    fn nanos(&self, name: &str, level: usize, weights: u64) -> u64 {
        let each = self.nanos.get(&(kind(name), level));
        each.map_or(0, |each| (each * weights as f64).ceil() as u64)
    }

    fn offer(&self, name: &str, found: &Measured, level: usize) -> Option<Offer> {
        let nanos = self.nanos(name, level, found.weights);
        if let Some(Tried { bytes, loss, .. }) = found.tried.get(&level) {
            return Some(Offer { level, step: None, bytes: *bytes, loss: *loss, nanos });
        }
        let key = (kind(name), level);
        let (sum, count) = self.losses.get(&key)?;
        let (bytes, weights) = self.bytes.get(&key)?;
        let bytes = (*bytes as f64 * found.weights as f64 / (*weights).max(1) as f64).round();
        let loss = found.probe?.max(LEAST) * (sum / count).exp();
        Some(Offer { level, step: None, bytes: bytes as u64, loss, nanos })
    }
}
