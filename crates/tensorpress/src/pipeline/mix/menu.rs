//! What is chosen at once: a level for a matrix, or levels for all that a sublayer is made of.

use std::collections::BTreeMap;

use tensorpress_allocate::{Choice, Curve, Table, Unit};
use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, LinearSpec, SharedInput};

use super::offers::{Offer, Together};

/// Attention, a feed-forward network or one of several, a state-space layer: what adds one output to the hidden states.
/// Where that output is dropped, nothing else of it does anything.
pub(super) type Sublayer = (usize, Option<Expert>);

/// The sublayer of a matrix, and whether it makes the output.
pub(super) fn sublayer(spec: &LinearSpec) -> Option<(Sublayer, bool)> {
    let (kind, ends) = match spec.input {
        SharedInput::Attention | SharedInput::QueryLatent | SharedInput::KeyValueLatent => {
            (0, false)
        }
        SharedInput::AttentionOutput => (0, true),
        SharedInput::Mlp | SharedInput::Expert(_) => (1, false),
        SharedInput::MlpOutput | SharedInput::ExpertOutput(_) | SharedInput::SharedOutput => {
            (1, true)
        }
        SharedInput::Scan | SharedInput::ScanChannels | SharedInput::ScanStep => (2, false),
        SharedInput::ScanOutput => (2, true),
        _ => return None,
    };
    Some(((kind, spec.expert), ends))
}

/// A matrix on the menu: what it may be, and of which shard and sublayer it is, where that may go as a whole.
pub(super) struct Dish<'a> {
    pub(super) unit: &'a Together,
    pub(super) of: Option<(usize, Sublayer, bool)>,
}

/// All that may be chosen, in units of which each is chosen by itself.
pub(super) struct Menu {
    pub(super) table: Table,
    /// Of each unit the matrices.
    members: Vec<Vec<usize>>,
    /// Of each unit, by its choices, the offer that each of its matrices takes.
    picks: Vec<Vec<Vec<usize>>>,
}

/// Bytes that a nanosecond counts as, where what a sublayer may be is looked for: none; and where time counts, from little
/// beside the bytes that are read in it to so much that it decides.
const TIMES: [f64; 4] = [0.0, 1.0, 10.0, 1e6];

impl Menu {
    /// Of these matrices, an offer taking so many `bytes`; `dropped` is the level at which nothing is left of a matrix. `timed`:
    /// time counts too, so that of a sublayer what is fast is on the menu, whatever it loses.
    pub(super) fn new(
        dishes: &[Dish<'_>],
        dropped: Option<usize>,
        bytes: &dyn Fn(&Offer) -> f64,
        timed: bool,
    ) -> Result<Self> {
        let mut places: BTreeMap<(usize, Sublayer), usize> = BTreeMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (at, dish) in dishes.iter().enumerate() {
            match dish.of.filter(|_| dropped.is_some()) {
                None => members.push(vec![at]),
                Some((shard, sublayer, _)) => {
                    let unit = *places.entry((shard, sublayer)).or_insert(members.len());
                    match members.get_mut(unit) {
                        Some(members) => members.push(at),
                        None => members.push(vec![at]),
                    }
                }
            }
        }
        let (mut units, mut picks) = (Vec::new(), Vec::new());
        for members in &members {
            let own = |at: &usize| -> Vec<usize> {
                let Dish { unit, of } = &dishes[*at];
                // Of a sublayer nothing goes by itself.
                let stays = |offer: &Offer| of.is_none() || Some(offer.level) != dropped;
                (0..unit.offers.len()).filter(|offer| stays(&unit.offers[*offer])).collect()
            };
            let own: Vec<Vec<usize>> = members.iter().map(own).collect();
            let choice = |at: usize, offer: usize| {
                let offer = &dishes[at].unit.offers[offer];
                Choice::new(bytes(offer).ceil() as u64, offer.loss)
            };
            let mut found: Vec<(Choice, Vec<usize>)> = Vec::new();
            if let ([one], [offers]) = (members.as_slice(), own.as_slice()) {
                found.extend(offers.iter().map(|offer| (choice(*one, *offer), vec![*offer])));
            } else if own.iter().all(|offers| !offers.is_empty()) {
                for weight in if timed { &TIMES[..] } else { &TIMES[..1] } {
                    // Bytes that a nanosecond counts as.
                    let cost = |at: usize, offer: usize| {
                        let nanos = dishes[at].unit.offers[offer].nanos as f64;
                        (choice(at, offer).cost as f64 + weight * nanos).ceil() as u64
                    };
                    let alone = members.iter().zip(&own).map(|(at, offers)| {
                        let error = |offer: &usize| choice(*at, *offer).error;
                        let choices =
                            offers.iter().map(|it| Choice::new(cost(*at, *it), error(it)));
                        Unit::new(at.to_string(), choices.collect::<Vec<_>>())
                    });
                    let alone = Table::new(alone.collect::<Vec<_>>())?;
                    found.extend(Curve::new(&alone).map(|sum| {
                        let offers = own.iter().zip(&sum.choices).map(|(own, at)| own[*at]);
                        let offers: Vec<usize> = offers.collect();
                        let bytes =
                            members.iter().zip(&offers).map(|(at, it)| choice(*at, *it).cost);
                        (Choice::new(bytes.sum(), sum.error), offers)
                    }));
                }
            }
            if let Some((offers, lost)) = dropped.and_then(|level| whole(dishes, members, level)) {
                let cost = members.iter().zip(&offers).map(|(at, offer)| choice(*at, *offer).cost);
                found.push((Choice::new(cost.sum(), lost), offers));
            }
            let (choices, offers): (Vec<Choice>, Vec<Vec<usize>>) = found.into_iter().unzip();
            units.push(Unit::new(dishes[members[0]].unit.names[0].as_str(), choices));
            picks.push(offers);
        }
        Ok(Self { table: Table::new(units)?, members, picks })
    }

    /// The offer that each matrix takes where these are chosen.
    pub(super) fn offers(&self, choices: &[usize]) -> Vec<usize> {
        let mut offers = vec![0; self.members.iter().map(Vec::len).sum()];
        for ((members, picks), choice) in self.members.iter().zip(&self.picks).zip(choices) {
            for (at, offer) in members.iter().zip(&picks[*choice]) {
                offers[*at] = *offer;
            }
        }
        offers
    }

    /// What a token takes in each choice of each unit.
    pub(super) fn nanos(&self, dishes: &[Dish<'_>]) -> Vec<Vec<u64>> {
        let of_pick = |members: &[usize], pick: &[usize]| -> u64 {
            let nanos = |(at, offer): (&usize, &usize)| dishes[*at].unit.offers[*offer].nanos;
            members.iter().zip(pick).map(nanos).sum()
        };
        let units = self.members.iter().zip(&self.picks);
        units.map(|(all, picks)| picks.iter().map(|pick| of_pick(all, pick)).collect()).collect()
    }
}

/// A sublayer that goes: nothing is left of its matrices, and lost is what the model loses without its output, whatever the
/// others would lose.
fn whole(dishes: &[Dish<'_>], members: &[usize], level: usize) -> Option<(Vec<usize>, f64)> {
    let offer = |at: &usize| dishes[*at].unit.offers.iter().position(|it| it.level == level);
    let offers: Vec<usize> = members.iter().map(offer).collect::<Option<_>>()?;
    let ends = |at: &usize| dishes[*at].of.is_some_and(|(.., ends)| ends);
    let lost = members.iter().zip(&offers).filter(|(at, _)| ends(at));
    let lost: Vec<(Option<f64>, f64)> = lost
        .map(|(at, offer)| (dishes[*at].unit.without, dishes[*at].unit.offers[*offer].loss))
        .collect();
    let measured = lost.iter().find_map(|(without, _)| *without);
    let quadratic: f64 = lost.iter().map(|(_, loss)| loss).sum();
    (!lost.is_empty()).then_some((offers, measured.unwrap_or(quadratic)))
}

#[cfg(test)]
mod tests {
    use tensorpress_allocate::{Exact, Solver};
    use tensorpress_tensor::linalg::SplitMix;

    use super::*;

    /// Of all consistent choices of two sublayers and a matrix by itself, with convex levels, the best for each budget.
    #[test]
    fn sublayers_go_as_a_whole_where_that_is_best() {
        let mut random = SplitMix::new(5);
        let mut gone = 0;
        for round in 0..200 {
            let units: Vec<Together> = (0..5)
                .map(|at| {
                    let scale = 2.0 * random.next_f64() + 0.01;
                    // Everything of an output's energy goes with it; of the others as much or more.
                    let dropped = scale * (1.0 + 3.0 * random.next_f64());
                    let offer = |level: usize, bytes: u64, loss: f64| Offer {
                        level,
                        step: None,
                        bytes,
                        loss,
                        nanos: bytes,
                    };
                    let offers = vec![
                        offer(0, 40, 0.25 * scale),
                        offer(1, 20, 0.5 * scale),
                        offer(2, 0, dropped),
                    ];
                    Together {
                        names: vec![at.to_string()],
                        weights: 1,
                        offers,
                        without: (at == 3).then_some(0.4),
                    }
                })
                .collect();
            let of = |at: usize| match at {
                0 | 1 => Some((3, (0, None), at == 1)),
                2 | 3 => Some((3, (1, None), at == 3)),
                _ => None,
            };
            let dishes: Vec<Dish<'_>> =
                units.iter().enumerate().map(|(at, unit)| Dish { unit, of: of(at) }).collect();
            let menu =
                Menu::new(&dishes, Some(2), &|offer| offer.bytes as f64, false).expect("a menu");
            let budget = 20 * (round % 11);
            let found = Exact::new().solve(&menu.table, budget).expect("solved");
            let offers = menu.offers(&found.choices);
            let mut sum = |offers: &[usize]| -> (u64, f64) {
                let all = units.iter().zip(offers).map(|(unit, at)| unit.offers[*at]);
                let mut sums = all.fold((0, 0.0), |s, it| (s.0 + it.bytes, s.1 + it.loss));
                for (reads, ends) in [(0, 1), (2, 3)] {
                    if offers[reads] == 2 && offers[ends] == 2 {
                        sums.1 -= units[reads].offers[2].loss;
                        if let Some(without) = units[ends].without {
                            sums.1 += without - units[ends].offers[2].loss;
                        }
                        gone += 1;
                    }
                }
                sums
            };
            let (bytes, loss) = sum(&offers);
            assert!(bytes <= budget && (loss - found.error).abs() < 1e-9, "{loss} {}", found.error);
            let all = (0..3_usize.pow(5)).map(|n| (0..5).map(move |at| n / 3_usize.pow(at) % 3));
            let best = all
                .map(Iterator::collect::<Vec<_>>)
                .filter(|all| (all[0] == 2) == (all[1] == 2) && (all[2] == 2) == (all[3] == 2))
                .map(|offers| sum(&offers))
                .filter(|(bytes, _)| *bytes <= budget)
                .map(|(_, loss)| loss)
                .fold(f64::INFINITY, f64::min);
            // Within a sublayer only what lies on the hull of its sums is looked at.
            assert!(loss <= 1.25 * best + 1e-9, "{loss} of {best} within {budget}");
            let nanos = menu.nanos(&dishes);
            let spent: u64 = nanos.iter().zip(&found.choices).map(|(all, at)| all[*at]).sum();
            assert_eq!(spent, bytes);
        }
        assert!(gone > 100);
    }
    /// What is fast is on the menu where time counts, though another level is smaller and better.
    #[test]
    fn fast_levels_are_on_the_menu_where_time_counts() {
        let offer =
            |level: usize, bytes, loss, nanos| Offer { level, step: None, bytes, loss, nanos };
        let unit = |name: &str| Together {
            names: vec![name.to_owned()],
            weights: 1,
            offers: vec![offer(0, 30, 0.1, 1000), offer(1, 40, 0.2, 10), offer(2, 0, 5.0, 0)],
            without: None,
        };
        let units = [unit("read"), unit("write")];
        let of = |at: usize| Some((0, (0, None), at == 1));
        let dishes: Vec<Dish<'_>> =
            units.iter().enumerate().map(|(at, unit)| Dish { unit, of: of(at) }).collect();
        let fastest = |timed: bool| {
            let menu = Menu::new(&dishes, Some(2), &|offer| offer.bytes as f64, timed);
            let menu = menu.expect("a menu");
            let nanos = menu.nanos(&dishes);
            let stays = menu.table.units()[0].choices().iter().zip(&nanos[0]);
            stays.filter(|(choice, _)| choice.error < 5.0).map(|(_, nanos)| *nanos).min()
        };
        assert_eq!((fastest(false), fastest(true)), (Some(2000), Some(20)));
    }
}
