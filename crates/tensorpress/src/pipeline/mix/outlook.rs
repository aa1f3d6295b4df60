//! What a mix chose among, and what it expected of that.

use serde::{Deserialize, Serialize};
use tensorpress_allocate::{Lagrange, Solver as _};
use tensorpress_tensor::Result;

use super::super::Context;
use super::divergence::Attempt;
use super::offers::Offer;
use super::share::Sharing;

/// A size along a frontier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Point {
    /// Bytes of all files that hold weights.
    pub bytes: u64,
    /// Bits a weight of the matrices that are compressed.
    pub bits_per_weight: f64,
    /// Mean KL divergence from the source that is expected there, in nats a prediction: the sum of what matrices lose,
    /// corrected by what models lost that were made; of those what they lost.
    pub expected: f64,
    /// What a model of this size lost, where one was made.
    pub divergence: Option<f64>,
}

/// One level for all matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Uniform {
    /// The level.
    pub level: String,
    /// Where it is expected to lie.
    pub point: Point,
}

/// What was chosen for a matrix, or for several that are one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// Names of the weights.
    pub names: Vec<String>,
    /// The level, by its place among those of the mix.
    pub level: usize,
    /// Bytes that it was expected to take.
    pub bytes: u64,
    /// What the model was expected to lose by it, in nats a prediction where gradients are known.
    pub expected: f64,
    /// Of the better ones the one that gains most for its bytes: bytes more, and what would be lost less; nothing at the
    /// best.
    pub better: Option<(u64, f64)>,
    /// Of the smaller ones the one that loses least for its bytes: bytes less, and what would be lost more; nothing at the
    /// smallest.
    pub smaller: Option<(u64, f64)>,
    /// Nanoseconds that a token takes in it, as was measured where a limit was set ([`Mix::with_token_time`](super::Mix)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_nanos: Option<u64>,
}

/// What a mix chose among, and what it expected of that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outlook {
    /// The sizes that were asked for, of a frontier; a [`Frontier`](crate::pipeline::Frontier) has them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// The best mixes, by size; those that were made and judged among them.
    pub frontier: Vec<Point>,
    /// One level for all, where that has one size.
    pub uniform: Vec<Uniform>,
    /// What was chosen, in the order of the work.
    pub decisions: Vec<Decision>,
}

impl Decision {
    pub(super) fn of(names: &[String], chosen: &Offer, offers: &[Offer]) -> Self {
        let gain = |other: &&Offer| (other.loss - chosen.loss).abs();
        let by_price = |a: &&Offer, b: &&Offer| {
            let price = |it: &&Offer| gain(it) / it.bytes.abs_diff(chosen.bytes).max(1) as f64;
            price(a).total_cmp(&price(b))
        };
        let better = offers.iter().filter(|it| it.bytes > chosen.bytes && it.loss < chosen.loss);
        let smaller = offers.iter().filter(|it| it.bytes < chosen.bytes && it.loss > chosen.loss);
        let step = |it: &Offer| (it.bytes.abs_diff(chosen.bytes), gain(&it));
        Self {
            names: names.to_vec(),
            level: chosen.level,
            bytes: chosen.bytes,
            expected: chosen.loss,
            better: better.max_by(by_price).map(step),
            smaller: smaller.min_by(by_price).map(step),
            token_nanos: (chosen.nanos > 0).then_some(chosen.nanos),
        }
    }
}

/// Sizes of a frontier that are looked at without making them.
const SIZES: usize = 48;

/// Least and most bits a weight of those, as far as levels go.
const BITS: (f64, f64) = (1.5, 9.0);

impl Outlook {
    /// Of all matrices, none of which is done yet; `judged` are the models that were made.
    pub(in crate::pipeline) fn of(
        context: &Context<'_>,
        sharing: &Sharing,
        judged: &[Attempt],
    ) -> Result<Self> {
        let (weights, fixed) = sharing.scale();
        let menu = sharing.menu(0)?;
        let solve = |bytes: f64| {
            let budget = (bytes - fixed).max(menu.table.least_cost() as f64) as u64;
            Lagrange::new().solve(&menu.table, budget)
        };
        // What was expected at those sizes before anything was made: what a run chose was after it knew more.
        let known = judged.iter().map(|it| Ok((solve(it.took as f64)?.error, it.divergence)));
        let law = Law::of(&known.collect::<Result<Vec<_>>>()?);
        let point = |bytes: f64, bits: f64, loss: f64| Point {
            bytes: bytes.round() as u64,
            bits_per_weight: bits / weights.max(1.0),
            expected: law.expected(loss),
            divergence: None,
        };
        let best = |bytes: f64| {
            let found = solve(bytes)?;
            let bits = sharing.bits_of(&menu.offers(&found.choices));
            Ok(point(fixed + found.cost as f64, bits, found.error))
        };
        let along = (0..SIZES).map(|at| {
            let share = at as f64 / (SIZES - 1) as f64;
            fixed + BITS.0 * (BITS.1 / BITS.0).powf(share) * weights / 8.0
        });
        let mut frontier = along.map(best).collect::<Result<Vec<Point>>>()?;
        // Beyond the least and the most there is nothing more.
        frontier.dedup_by_key(|point| point.bytes);
        let made = |judged: &Attempt| Point {
            bytes: judged.took,
            bits_per_weight: judged.bits,
            expected: judged.divergence,
            divergence: Some(judged.divergence),
        };
        frontier.extend(judged.iter().map(made));
        frontier.sort_by_key(|point| point.bytes);
        let asked = sharing.sizes().iter().map(|size| {
            let made = judged.iter().find(|judged| judged.bytes == *size).map(made);
            made.map_or_else(|| best(*size as f64), Ok)
        });
        let points = asked.collect::<Result<_>>()?;
        let uniform = (0..context.plan.levels()).filter_map(|level| {
            let (bytes, bits, loss) = sharing.uniform(level)?;
            let level = context.plan.method(level).text.clone();
            Some(Uniform { level, point: point(fixed + bytes, bits, loss) })
        });
        Ok(Self { points, frontier, uniform: uniform.collect(), decisions: Vec::new() })
    }
}

/// How divergences follow from sums of losses: along lines between the logarithms of those that were judged.
struct Law {
    /// Logarithms of losses and divergences, ascending.
    known: Vec<(f64, f64)>,
}

impl Law {
    /// Of what was expected, and then judged.
    fn of(judged: &[(f64, f64)]) -> Self {
        let known = judged.iter().filter(|(expected, is)| *expected > 0.0 && *is > 0.0);
        let mut known: Vec<_> = known.map(|(expected, is)| (expected.ln(), is.ln())).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        known.dedup_by_key(|pair| pair.0);
        Self { known }
    }

    fn expected(&self, loss: f64) -> f64 {
        if loss.is_nan() || loss <= 0.0 {
            return 0.0;
        }
        let x = loss.ln();
        let (first, last) = match (self.known.first(), self.known.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => return loss,
        };
        // Outside of what was judged in proportion.
        let y = match self.known.windows(2).find(|pair| pair[0].0 <= x && x <= pair[1].0) {
            Some(pair) => {
                let share = (x - pair[0].0) / (pair[1].0 - pair[0].0);
                pair[0].1 + share * (pair[1].1 - pair[0].1)
            }
            None if x < first.0 => x + first.1 - first.0,
            None => x + last.1 - last.0,
        };
        y.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_go_through_what_was_judged() {
        let law = Law::of(&[(0.1, 0.3), (0.01, 0.02), (0.0, 1.0)]);
        for (loss, is) in [(0.1, 0.3), (0.01, 0.02), (0.2, 0.6), (0.001, 0.002), (0.0, 0.0)] {
            assert!((law.expected(loss) - is).abs() < 1e-12, "{loss}: {}", law.expected(loss));
        }
        let between = law.expected(0.03);
        assert!(between > 0.02 && between < 0.3);
        assert!((Law::of(&[]).expected(0.5) - 0.5).abs() < 1e-12);
    }
}
