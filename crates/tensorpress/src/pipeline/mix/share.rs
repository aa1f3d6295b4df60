//! Levels for the matrices of a block, within what is left of the budget.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use tensorpress_tensor::rate::OCTAVE;
use tensorpress_tensor::{Error, Result};

use super::super::Context;
use super::super::folder::Work;
use super::super::state::Unit;
use super::menu::{Dish, Menu, Sublayer, sublayer};
use super::offers::{Offer, Together, loose, offers, same_levels};
use super::token::{self, TokenTime};
use super::{Decision, Mix, Outline};

/// What is chosen for a matrix.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct Chosen {
    pub(in crate::pipeline) name: String,
    pub(in crate::pipeline) level: usize,
    /// log2 of its step.
    pub(in crate::pipeline) step: Option<f64>,
}

/// Bytes of the header of a shard that are no tensor's, and of one tensor in it beside its name; of a compressed matrix in
/// it, with its description, until it is seen what they take.
const SHARD: u64 = 192;
const TENSOR: u64 = 96;
const DESCRIPTION: f64 = 900.0;

/// Shards whose sizes are taken for right, beside those that are done, when their error is judged.
const TRUSTED: f64 = 1.0;

/// What a run may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// Bytes of all files.
    Bytes(u64),
    /// The same, but whoever looks for a size may come to another.
    About(u64),
    /// Bits a weight of the matrices.
    Bits(f64),
}

/// What is left for whom: shard 0 is what lies outside the blocks.
pub(in crate::pipeline) struct Sharing {
    limit: Limit,
    /// Matrices of each shard, by their first name.
    units: Vec<BTreeMap<String, Together>>,
    /// Sublayers that may go as a whole: that of each matrix, and whether it makes the output.
    sublayers: BTreeMap<String, (Sublayer, bool)>,
    /// The level at which nothing is left of a matrix.
    dropped: Option<usize>,
    /// The result becomes one file, and what is around its matrices is known.
    in_file: bool,
    /// What there is to say.
    notes: Vec<String>,
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
    /// Bytes that were chosen for the shard that is worked on, and those by which it turned out too large.
    chosen: f64,
    over: f64,
    /// Bytes by which sizes are taken for right.
    trusted: f64,
    /// What was chosen for the shard that is worked on.
    pending: Vec<Decision>,
    /// How long a token may take.
    time: Option<TokenTime>,
    /// Sizes of a frontier, by what was known when nothing was done.
    sizes: Vec<u64>,
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
        let mut offers = offers(context, work.measured())?;
        let loose = loose(context, work.measured());
        let mut units: Vec<BTreeMap<String, Together>> =
            (0..shards).map(|_| BTreeMap::new()).collect();
        if let Some(outline) = &context.outline {
            same_levels(outline, &mut offers)?;
        }
        let all = work.measured().values().flat_map(BTreeMap::keys);
        let kept: Vec<&str> =
            all.filter(|name| !offers.contains_key(*name)).map(String::as_str).collect();
        let mut notes = Vec::new();
        if !kept.is_empty() {
            let names = kept.join(", ");
            notes.push(format!("left as they are, as they can have no level: {names}"));
        }
        context.plan.retain(|name| offers.contains_key(name));
        let firsts = context.outline.as_ref().map(Outline::firsts).unwrap_or_default();
        let beside = context.outline.as_ref().map(|all| all.beside(|it| offers.contains_key(it)));
        let names: BTreeSet<String> = offers.keys().cloned().collect();
        for (name, (weights, offers)) in offers {
            let shard = source.block_of(&name).map_or(0, |block| block + 1);
            let first = firsts.get(name.as_str()).map_or(name.clone(), |first| (*first).to_owned());
            match units[shard].entry(first) {
                Entry::Vacant(entry) => {
                    let without = work.measured().values().find_map(|all| all.get(&name)?.without);
                    entry.insert(Together { names: vec![name], weights, offers, without });
                }
                Entry::Occupied(mut entry) => entry.get_mut().join(name, weights, &offers),
            }
        }
        // Of a stack of matrices all are, each by itself.
        let linears = (0..source.blocks()).flat_map(|block| source.linears(block));
        let stacks: BTreeSet<String> =
            linears.filter_map(|spec| spec.place.map(|place| place.tensor)).collect();
        let mut fixed = vec![SHARD; shards];
        let stored = source.checkpoint();
        for name in stored.names() {
            let shard = source.block_of(name).map_or(0, |block| block + 1);
            if !names.contains(name) && !stacks.contains(name) {
                let bytes = stored.stored_bytes(name).unwrap_or(0);
                fixed[shard] += bytes + name.len() as u64 + TENSOR;
            }
        }
        if let Some(beside) = beside {
            fixed = vec![0; shards];
            fixed[0] = beside;
        }
        let specs = (0..source.blocks()).flat_map(|block| source.linears(block));
        let mut sharing = Self {
            limit: Limit::About(u64::MAX),
            units,
            sublayers: specs
                .filter_map(|spec| Some((spec.name.clone(), sublayer(&spec)?)))
                .collect(),
            dropped: (0..context.plan.levels()).find(|level| context.plan.drops(*level)),
            in_file: beside.is_some(),
            notes,
            loose,
            fixed,
            expected: 0.0,
            spent: 0.0,
            bits: 0.0,
            described: (0.0, 0.0),
            chosen: 0.0,
            over: 0.0,
            trusted: 0.0,
            pending: Vec::new(),
            time: mix.token_time.map(TokenTime::new),
            sizes: Vec::new(),
        };
        let (sizes, note) = mix.sizes(&sharing);
        sharing.sizes = sizes;
        sharing.notes.extend(note);
        sharing.limit = mix.limit(work, &sharing)?;
        sharing.trusted = TRUSTED * sharing.left(0).max(0.0) / shards as f64;
        sharing.check()?;
        Ok(sharing)
    }

    /// Weights of all matrices, and bytes of what stays as it is.
    pub(in crate::pipeline) fn scale(&self) -> (f64, f64) {
        let weights: u64 = self.all().map(|unit| unit.weights).sum();
        (weights as f64, self.fixed.iter().sum::<u64>() as f64)
    }

    /// Sizes of a frontier, ascending.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// What this run may take.
    pub(super) fn limit(&self) -> Limit {
        self.limit
    }

    /// All matrices.
    fn all(&self) -> impl Iterator<Item = &Together> {
        self.units.iter().flat_map(BTreeMap::values)
    }

    /// What there is to say of matrices that stay as they are, and of sizes out of reach.
    pub(in crate::pipeline) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Takes an offer away that a matrix turned out not to be able to have; nothing if there is no other.
    pub(super) fn strike(&mut self, shard: usize, name: &str) -> Option<()> {
        let is_it = |unit: &&mut Together| unit.names.iter().any(|it| it == name);
        let unit = self.units[shard].values_mut().find(is_it)?;
        let first = unit.names.first()?;
        let chosen = self.pending.iter().find(|it| it.names.first() == Some(first))?.level;
        let others = unit.offers.iter().filter(|offer| offer.level != chosen).count();
        (self.in_file && others > 0).then(|| unit.offers.retain(|offer| offer.level != chosen))
    }

    /// What the file takes that the result becomes, as far as shards are done.
    pub(super) fn in_file(&self) -> Option<u64> {
        self.in_file.then_some(self.spent as u64)
    }

    /// That the budget is more than the least.
    fn check(&self) -> Result<()> {
        let least = self.least(0);
        if self.left(0) >= least {
            return Ok(());
        }
        let (weights, fixed) = self.scale();
        Err(Error::invalid(match self.limit {
            Limit::Bytes(bytes) => format!(
                "a target of {bytes} bytes is too small: the least that these levels make of the model is about {:.0}",
                fixed + least
            ),
            Limit::Bits(bits) => format!(
                "{bits} bits a weight are too few: the least that these levels have are about {:.3}",
                8.0 * least / weights.max(1.0)
            ),
            // Whoever looks for a size may come to the least.
            Limit::About(_) => return Ok(()),
        }))
    }

    /// Bytes that the matrices from a shard on may take.
    fn left(&self, shard: usize) -> f64 {
        match self.limit {
            Limit::Bytes(bytes) | Limit::About(bytes) => {
                bytes as f64 - self.spent - self.fixed[shard..].iter().sum::<u64>() as f64
            }
            Limit::Bits(bits) => {
                let all = self.all().map(|unit| unit.weights);
                (bits * all.sum::<u64>() as f64 - self.bits) / 8.0
            }
        }
    }

    /// Bytes of an offer, as far as is known by now.
    fn bytes(&self, offer: &Offer) -> f64 {
        let loose = self.loose.contains(&offer.level) || offer.step.is_some();
        let ratio = if loose { self.ratio() } else { 1.0 };
        let around = match self.limit {
            Limit::Bits(_) => 0.0,
            _ if self.in_file => 0.0,
            Limit::Bytes(_) | Limit::About(_) => {
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
    pub(super) fn least(&self, shard: usize) -> f64 {
        let least = |unit: &Together| {
            unit.offers.iter().map(|offer| self.bytes(offer)).fold(f64::INFINITY, f64::min)
        };
        self.units.iter().skip(shard).flat_map(BTreeMap::values).map(least).sum()
    }

    /// The most that all matrices can take.
    pub(super) fn most(&self) -> f64 {
        let most =
            |unit: &Together| unit.offers.iter().map(|offer| self.bytes(offer)).fold(0.0, f64::max);
        self.all().map(most).sum()
    }

    /// Levels of the matrices of a shard.
    pub(in crate::pipeline) fn choose(&mut self, shard: usize) -> Result<Vec<Chosen>> {
        let menu = self.menu(shard)?;
        let left = ((self.left(shard) - self.over).max(0.0) as u64).max(menu.table.least_cost());
        let nanos = || menu.nanos(&self.dishes(shard));
        let found = token::solve(self.time, &menu.table, nanos, left)?;
        let mut chosen = Vec::new();
        let mut decisions = Vec::new();
        let mut bytes = 0.0;
        for (unit, choice) in self.units[shard].values().zip(menu.offers(&found.choices)) {
            let mut offer = unit.offers[choice];
            // Of a sublayer nothing goes by itself.
            let mut others = unit.offers.clone();
            if let Some((_, ends)) = self.sublayers.get(&unit.names[0]) {
                others.retain(|other| Some(other.level) != self.dropped);
                if Some(offer.level) == self.dropped {
                    let lost = unit.without.unwrap_or(offer.loss);
                    offer.loss = if *ends { lost } else { 0.0 };
                    others.clear();
                }
            }
            bytes += offer.bytes as f64;
            decisions.push(Decision::of(&unit.names, &offer, &others));
            chosen.extend(unit.names.iter().map(|name| Chosen {
                name: name.clone(),
                level: offer.level,
                step: offer.step.map(|step| f64::from(step) / f64::from(OCTAVE)),
            }));
        }
        // A run that is taken up again makes no second choice, and is to come to the same ratio.
        if self.over == 0.0 {
            self.chosen = bytes;
        }
        self.pending = decisions;
        Ok(chosen)
    }

    /// The matrices from a shard on.
    fn dishes(&self, shard: usize) -> Vec<Dish<'_>> {
        let of = |at: usize, unit: &Together| {
            let (sublayer, ends) = *self.sublayers.get(&unit.names[0])?;
            Some((at, sublayer, ends))
        };
        let shards = self.units.iter().enumerate().skip(shard);
        shards
            .flat_map(|(at, units)| units.values().map(move |unit| (at, unit)))
            .map(|(at, unit)| Dish { unit, of: of(at, unit) })
            .collect()
    }

    /// What the matrices from a shard on may take and lose.
    pub(super) fn menu(&self, shard: usize) -> Result<Menu> {
        let bytes = |offer: &Offer| self.bytes(offer);
        Menu::new(&self.dishes(shard), self.dropped, &bytes, self.time.is_some())
    }

    /// Bits of all matrices alone, of one offer each.
    pub(super) fn bits_of(&self, offers: &[usize]) -> f64 {
        let chosen = self.all().zip(offers).map(|(unit, offer)| unit.offers[*offer].bytes);
        8.0 * chosen.sum::<u64>() as f64
    }

    /// Bytes, bits of the matrices alone, and loss where all have one level; nothing if some cannot, each has its own step of
    /// it, or it leaves nothing.
    pub(super) fn uniform(&self, level: usize) -> Option<(f64, f64, f64)> {
        if Some(level) == self.dropped {
            return None;
        }
        let mut sums = (0.0, 0.0, 0.0);
        for unit in self.all() {
            let offer = unit.offers.iter().find(|offer| offer.level == level)?;
            if offer.step.is_some() {
                return None;
            }
            let bits = 8.0 * offer.bytes as f64;
            sums = (sums.0 + self.bytes(offer), sums.1 + bits, sums.2 + offer.loss);
        }
        Some(sums)
    }

    /// What was chosen for the shard that is worked on.
    pub(super) fn decisions(&self) -> &[Decision] {
        &self.pending
    }

    /// Bits a weight of what is done.
    pub(super) fn bits(&self) -> f64 {
        self.bits / self.scale().0.max(1.0)
    }

    /// Whether a shard that was made takes so much that the others have less than the least; another choice then takes less,
    /// if there is any.
    pub(in crate::pipeline) fn exceeds(&mut self, shard: usize, unit: &Unit) -> bool {
        let (took, bits) = self.of(shard, unit);
        let left = match self.limit {
            // Where a size is looked for, this one is only a guess.
            Limit::About(_) => return false,
            Limit::Bytes(_) => self.left(shard + 1) - took,
            Limit::Bits(_) => self.left(shard + 1) - bits / 8.0,
        };
        let least = self.least(shard + 1);
        if left >= least || self.units[shard].is_empty() {
            return false;
        }
        // Smaller by what it was too large, and more if that was not enough.
        self.over = 2.0 * self.over + (least - left) + 1.0;
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
        self.over = 0.0;
        if let Some(time) = &mut self.time {
            // Those it was made by: a run that is taken up again makes no second choice where the first was too large.
            time.spend(unit.decisions.iter().filter_map(|decision| decision.token_nanos).sum());
        }
    }

    /// Bytes of a shard, and bits of its matrices.
    fn of(&self, shard: usize, unit: &Unit) -> (f64, f64) {
        if let Some(bytes) = unit.in_file {
            return ((self.fixed[shard] + bytes) as f64, 8.0 * bytes as f64);
        }
        let bits = unit.layers.iter().filter_map(|layer| {
            let weights = self.units[shard].get(&layer.name)?.weights;
            Some((layer.bits_per_weight * weights as f64).round())
        });
        (unit.bytes as f64, bits.sum())
    }
}
