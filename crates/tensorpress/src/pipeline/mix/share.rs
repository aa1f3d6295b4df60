//! Levels for the matrices of a block, within what is left of the budget.

use std::collections::{BTreeMap, BTreeSet};

use tensorpress_allocate::{Choice, Exact, Solver, Table, Unit as Alternatives};
use tensorpress_tensor::rate::{OCTAVE, RateCurve, common_step};
use tensorpress_tensor::{Error, Result};

use super::super::Context;
use super::super::folder::Work;
use super::super::state::Unit;
use super::measure::{Measured, kind};
use super::{Budget, Mix};

/// What a matrix may be.
#[derive(Debug, Clone, Copy)]
struct Offer {
    level: usize,
    /// In parts of an octave, for levels that have steps.
    step: Option<i32>,
    bytes: u64,
    loss: f64,
}

/// What is chosen for a matrix.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct Chosen {
    pub(in crate::pipeline) name: String,
    pub(in crate::pipeline) level: usize,
    /// log2 of its step.
    pub(in crate::pipeline) step: Option<f64>,
}

/// Steps are stored in eighths of an octave: finer ones are none.
const APART: i32 = OCTAVE / 8;

/// Bits a weight between which steps are offered.
const RANGE: (f64, f64) = (0.3, 12.0);

/// Bytes of the header of a shard that are no tensor's, and of one tensor in it beside its name; of a compressed matrix in
/// it, with its description, until it is seen what they take.
const SHARD: u64 = 192;
const TENSOR: u64 = 96;
const DESCRIPTION: f64 = 900.0;

/// Shards whose sizes are taken for right, beside those that are done, when their error is judged.
const TRUSTED: f64 = 1.0;

/// What is left for whom: shard 0 is what lies outside the blocks.
pub(in crate::pipeline) struct Sharing {
    budget: Budget,
    /// Matrices of each shard.
    units: Vec<BTreeMap<String, (u64, Vec<Offer>)>>,
    /// Levels whose sizes depend on what is compressed.
    loose: BTreeSet<usize>,
    /// Bytes of each shard that are as they were.
    fixed: Vec<u64>,
    /// What those that are done were expected to take and took, in bytes.
    expected: f64,
    spent: f64,
    /// The bits in the budget that matrices took.
    bits: f64,
    /// Matrices that are done, and the bytes around them.
    described: (f64, f64),
    /// What was chosen for the shard that is worked on, and by what it turned out too large.
    chosen: f64,
    excess: f64,
    /// Bytes by which sizes are taken for right.
    trusted: f64,
}

impl Sharing {
    /// Nothing is spent yet.
    ///
    /// # Errors
    /// `InvalidArgument` if the budget is less than the least, saying about what that is; if a matrix can have none of the
    /// levels, naming it.
    pub(in crate::pipeline) fn new(
        context: &mut Context<'_>,
        mix: &Mix,
        work: &Work,
    ) -> Result<Self> {
        let source = context.source;
        let shards = source.blocks() + 1;
        let offers = offers(context, work.measured())?;
        let loose = loose(context, work.measured());
        let mut units = vec![BTreeMap::new(); shards];
        for (name, offer) in offers {
            let shard = source.block_of(&name).map_or(0, |block| block + 1);
            units[shard].insert(name, offer);
        }
        context.plan.retain(|name| units.iter().any(|units| units.contains_key(name)));
        let mut fixed = vec![SHARD; shards];
        let stored = source.checkpoint();
        for name in stored.names() {
            let shard = source.block_of(name).map_or(0, |block| block + 1);
            if !units[shard].contains_key(name) {
                let bytes = stored.stored_bytes(name).unwrap_or(0);
                fixed[shard] += bytes + name.len() as u64 + TENSOR;
            }
        }
        let mut sharing = Self {
            budget: mix.budget,
            units,
            loose,
            fixed,
            expected: 0.0,
            spent: 0.0,
            bits: 0.0,
            described: (0.0, 0.0),
            chosen: 0.0,
            excess: 1.0,
            trusted: 0.0,
        };
        sharing.trusted = TRUSTED * sharing.left(0).max(0.0) / shards as f64;
        sharing.check()?;
        Ok(sharing)
    }

    /// That the budget is more than the least.
    fn check(&self) -> Result<()> {
        let least = self.least(0);
        if self.left(0) >= least {
            return Ok(());
        }
        let matrices: u64 = self.units.iter().flatten().map(|(_, (weights, _))| weights).sum();
        let fixed: u64 = self.fixed.iter().sum();
        Err(Error::invalid(match self.budget {
            Budget::FileBytes(bytes) => format!(
                "a target of {bytes} bytes is too small: the least that these levels make of the model is about {:.0}",
                fixed as f64 + least
            ),
            Budget::BitsPerWeight(bits) => format!(
                "{bits} bits a weight are too few: the least that these levels have are about {:.3}",
                8.0 * least / matrices.max(1) as f64
            ),
        }))
    }

    /// Bytes that the matrices from a shard on may take.
    fn left(&self, shard: usize) -> f64 {
        match self.budget {
            Budget::FileBytes(bytes) => {
                bytes as f64 - self.spent - self.fixed[shard..].iter().sum::<u64>() as f64
            }
            Budget::BitsPerWeight(bits) => {
                let all = self.units.iter().flatten().map(|(_, (weights, _))| weights);
                (bits * all.sum::<u64>() as f64 - self.bits) / 8.0
            }
        }
    }

    /// Bytes of an offer of a shard, as far as is known by now.
    fn bytes(&self, shard: usize, offer: &Offer, current: usize) -> f64 {
        let ratio = match self.loose.contains(&offer.level) || offer.step.is_some() {
            false => 1.0,
            // What is worked on is known better, once it was tried.
            true if shard == current => self.ratio() * self.excess,
            true => self.ratio(),
        };
        let around = match self.budget {
            Budget::BitsPerWeight(_) => 0.0,
            Budget::FileBytes(_) => {
                (self.described.1 + TRUSTED * DESCRIPTION) / (self.described.0 + TRUSTED)
            }
        };
        offer.bytes as f64 * ratio + around
    }

    /// By what factor matrices of no fixed size have turned out larger than expected.
    fn ratio(&self) -> f64 {
        let trusted = self.trusted.max(1.0);
        (self.bits / 8.0 + trusted) / (self.expected + trusted)
    }

    /// The least that the matrices from a shard on can take.
    fn least(&self, shard: usize) -> f64 {
        let of = |(at, units): (usize, &BTreeMap<String, (u64, Vec<Offer>)>)| -> f64 {
            let least = |(_, offers): &(u64, Vec<Offer>)| {
                let bytes = offers.iter().map(|offer| self.bytes(at, offer, shard));
                bytes.fold(f64::INFINITY, f64::min)
            };
            units.values().map(least).sum()
        };
        self.units.iter().enumerate().skip(shard).map(of).sum()
    }

    /// Levels of the matrices of a shard.
    pub(in crate::pipeline) fn choose(&mut self, shard: usize) -> Result<Vec<Chosen>> {
        let later: Vec<(usize, &String, &Vec<Offer>)> = (shard..self.units.len())
            .flat_map(|at| self.units[at].iter().map(move |(name, (_, offers))| (at, name, offers)))
            .collect();
        let units = later.iter().map(|(at, name, offers)| {
            let choice = |offer: &Offer| {
                Choice::new(self.bytes(*at, offer, shard).ceil() as u64, offer.loss)
            };
            Alternatives::new(name.as_str(), offers.iter().map(choice).collect::<Vec<_>>())
        });
        let table = Table::new(units.collect::<Vec<_>>())?;
        let left = (self.left(shard).max(0.0) as u64).max(table.least_cost());
        let found = Exact::new().solve(&table, left)?;
        let mut chosen = Vec::new();
        let mut bytes = 0.0;
        for ((_, name, offers), choice) in
            later.iter().zip(&found.choices).take_while(|((at, ..), _)| *at == shard)
        {
            let offer = offers[*choice];
            bytes += offer.bytes as f64;
            chosen.push(Chosen {
                name: (*name).clone(),
                level: offer.level,
                step: offer.step.map(|step| f64::from(step) / f64::from(OCTAVE)),
            });
        }
        // A run that is taken up again makes no second choice, and is to come to the same ratio.
        if self.excess == 1.0 {
            self.chosen = bytes;
        }
        Ok(chosen)
    }

    /// Whether a shard that was made takes so much that the others have less than the least; another choice then takes less,
    /// if there is any.
    pub(in crate::pipeline) fn exceeds(&mut self, shard: usize, unit: &Unit) -> bool {
        let (took, bits) = self.of(shard, unit);
        let left = match self.budget {
            Budget::FileBytes(_) => self.left(shard + 1) - took,
            Budget::BitsPerWeight(_) => self.left(shard + 1) - bits / 8.0,
        };
        let least = self.least(shard + 1);
        if left >= least || self.units[shard].is_empty() {
            return false;
        }
        // Smaller by what it was too large, and a little more.
        let over = (least - left) / (bits / 8.0).max(1.0);
        self.excess *= 1.0 + over + 1e-3;
        true
    }

    /// A shard is done, just now or by an earlier run, and its choice made in either.
    pub(in crate::pipeline) fn done(&mut self, shard: usize, unit: &Unit) {
        let (took, bits) = self.of(shard, unit);
        self.spent += took;
        self.bits += bits;
        self.expected += self.chosen;
        let matrices = self.units[shard].len() as f64;
        let around = took - bits / 8.0 - self.fixed[shard] as f64;
        self.described.0 += matrices;
        self.described.1 += around.max(0.0);
        self.excess = 1.0;
    }

    /// Bytes of a shard, and bits of its matrices.
    fn of(&self, shard: usize, unit: &Unit) -> (f64, f64) {
        let bits = unit.layers.iter().filter_map(|layer| {
            let (weights, _) = self.units[shard].get(&layer.name)?;
            Some((layer.bits_per_weight * *weights as f64).round())
        });
        (unit.bytes as f64, bits.sum())
    }
}

/// Levels whose bytes are not the same for all matrices of a shape.
fn loose(
    context: &Context<'_>,
    measured: &BTreeMap<usize, BTreeMap<String, Measured>>,
) -> BTreeSet<usize> {
    let mut sizes: BTreeMap<(usize, Vec<usize>), BTreeSet<u64>> = BTreeMap::new();
    for (name, measured) in measured.values().flatten() {
        let shape = context.source.checkpoint().shape(name).unwrap_or_default().to_vec();
        for (level, (bytes, _)) in &measured.tried {
            sizes.entry((*level, shape.clone())).or_default().insert(*bytes);
        }
    }
    sizes.into_iter().filter(|(_, sizes)| sizes.len() > 1).map(|((level, _), _)| level).collect()
}

/// What every matrix may be.
fn offers(
    context: &Context<'_>,
    measured: &BTreeMap<usize, BTreeMap<String, Measured>>,
) -> Result<BTreeMap<String, (u64, Vec<Offer>)>> {
    let law = Law::of(measured);
    let mut all = BTreeMap::new();
    for (name, found) in measured.values().flatten() {
        let mut offers = Vec::new();
        for level in 0..context.plan.levels() {
            match found.curves.get(&level) {
                Some(curve) => offers.extend(steps(curve, level, law.gain(name, level))),
                None => offers.extend(law.offer(name, found, level)),
            }
        }
        if offers.is_empty() {
            // A table that no level is for stays as it is.
            if context.source.block_of(name).is_none() {
                continue;
            }
            return Err(Error::invalid("can have none of the levels").in_tensor(name));
        }
        all.insert(name.clone(), (found.weights, offers));
    }
    Ok(all)
}

/// The steps of a curve: on a grid with steps by the square roots of what errors cost, each weight loses step² / 24 (half of
/// the variance of a rounding error), whatever the matrix.
fn steps(curve: &RateCurve, level: usize, gain: f64) -> Vec<Offer> {
    let weights = curve.weights() as f64;
    let at = |bits: f64| common_step(std::iter::once(curve), bits * weights).div_euclid(APART);
    let offer = |step: i32| {
        let size = (2.0 * f64::from(step) / f64::from(OCTAVE)).exp2();
        let bytes = (curve.bits(step) / 8.0).ceil() as u64;
        Offer { level, step: Some(step), bytes, loss: gain * weights * size / 24.0 }
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
}

/// No loss is less: logarithms stay finite.
const LEAST: f64 = 1e-300;

impl Law {
    fn of(measured: &BTreeMap<usize, BTreeMap<String, Measured>>) -> Self {
        let mut law =
            Self { losses: BTreeMap::new(), bytes: BTreeMap::new(), gains: BTreeMap::new() };
        let add = |to: &mut BTreeMap<(String, usize), (f64, f64)>, key, value: f64| {
            let (sum, count) = to.entry(key).or_insert((0.0, 0.0));
            *sum += value;
            *count += 1.0;
        };
        for (name, found) in measured.values().flatten() {
            for (level, (bytes, loss)) in &found.tried {
                let key = (kind(name), *level);
                law.bytes.insert(key.clone(), (*bytes, found.weights));
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

    fn offer(&self, name: &str, found: &Measured, level: usize) -> Option<Offer> {
        if let Some((bytes, loss)) = found.tried.get(&level) {
            return Some(Offer { level, step: None, bytes: *bytes, loss: *loss });
        }
        let key = (kind(name), level);
        let (sum, count) = self.losses.get(&key)?;
        let (bytes, weights) = self.bytes.get(&key)?;
        let bytes = (*bytes as f64 * found.weights as f64 / (*weights).max(1) as f64).round();
        let loss = found.probe?.max(LEAST) * (sum / count).exp();
        Some(Offer { level, step: None, bytes: bytes as u64, loss })
    }
}
