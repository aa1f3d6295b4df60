//! The smallest model that keeps a divergence: a few runs, each judged, their sizes by what the runs before have lost.

use serde::{Deserialize, Serialize};
use tensorpress_model::{Source, compare};
use tensorpress_tensor::{Error, Result};

use super::super::Context;
use super::super::folder::Work;
use super::super::progress::Event;
use super::share::Limit;
use super::{Aim, Budget, Mix, Sharing};

/// A run that was judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::pipeline) struct Attempt {
    /// Bytes that it was allowed, and that it took.
    pub(in crate::pipeline) bytes: u64,
    #[serde(default)]
    pub(in crate::pipeline) took: u64,
    /// Bits a weight of its matrices.
    #[serde(default)]
    pub(in crate::pipeline) bits: f64,
    pub(in crate::pipeline) divergence: f64,
    /// What was lost before any matrix was compressed, by changes of whole blocks.
    #[serde(default)]
    pub(in crate::pipeline) before: f64,
}

/// Runs at most.
const RUNS: usize = 6;

/// How much of the limit is to be used: what is not found there in [`RUNS`] is done with.
const USED: f64 = 0.93;

/// What is aimed at, of the limit.
const AIM: f64 = 0.965;

/// Sizes that differ by less than this part of them are one.
const NEAR: u64 = 200;

/// About what the default loses at b bits is this times 4^-b.
const FRONTIER: f64 = 8.0;

/// Weights of the original are decoded once, up to so many bytes of f32.
const DECODED: u64 = 1 << 31;

/// What follows a number of attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Next {
    /// The last is the result.
    Done,
    Try(u64),
    /// No attempt keeps the limit.
    Beyond,
}

/// About how many bits a weight a model has that keeps a limit.
pub(super) fn first_bits(limit: f64) -> f64 {
    ((FRONTIER / limit).log2() / 2.0).clamp(1.0, 9.0)
}

/// All token ids, and where segments end.
pub(super) fn bytes(segments: &[Vec<u32>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        bytes.extend((segment.len() as u64).to_le_bytes());
        bytes.extend(segment.iter().flat_map(|id| id.to_le_bytes()));
    }
    bytes
}

/// The next attempt, of a model of so many weights behind so many bytes that stay as they are: along the line through the
/// logarithms of the last two divergences by bits, or one bit for a factor of four; but between what was too small and what
/// was large enough. Where there is no time left, the best is taken.
fn next(attempts: &[Attempt], limit: f64, (weights, fixed): (f64, f64), late: bool) -> Next {
    let bits = |bytes: u64| 8.0 * (bytes as f64 - fixed) / weights;
    let bytes = |bits: f64| (fixed + bits * weights / 8.0).round().max(1.0) as u64;
    let Some(last) = attempts.last() else { return Next::Try(bytes(first_bits(limit))) };
    let keeps = |attempt: &&Attempt| attempt.divergence <= limit;
    if keeps(&last) && (last.divergence >= USED * limit || attempts.len() > RUNS) {
        return Next::Done;
    }
    let best = attempts.iter().filter(keeps).min_by_key(|attempt| attempt.bytes);
    let end = || match best {
        Some(best) if best.bytes == last.bytes && keeps(&last) => Next::Done,
        Some(best) if attempts.len() < RUNS + 2 => Next::Try(best.bytes),
        Some(_) => Next::Beyond,
        None => Next::Beyond,
    };
    if attempts.len() >= RUNS || late {
        return end();
    }
    if last.before >= limit {
        return Next::Beyond;
    }
    // What no bits give back is no part of it.
    let above = |divergence: f64| (divergence - last.before).max(1e-12).log2() / 2.0;
    let loss = |attempt: &Attempt| above(attempt.divergence);
    let slope = match attempts {
        [.., before, last] if before.bytes != last.bytes => {
            (loss(last) - loss(before)) / (bits(last.bytes) - bits(before.bytes))
        }
        _ => -1.0,
    };
    let slope = if slope.is_finite() { slope.clamp(-2.0, -0.4) } else { -1.0 };
    let goal = above(last.before + AIM * (limit - last.before));
    let to = bytes((bits(last.bytes) + (goal - loss(last)) / slope).clamp(0.3, 16.0));
    // What is known to be too small, and to be large enough.
    let small =
        attempts.iter().filter(|attempt| !keeps(attempt)).map(|attempt| attempt.bytes).max();
    let to = match (small, best.map(|best| best.bytes)) {
        (Some(small), Some(best)) if best <= small + best / NEAR => return end(),
        (Some(small), Some(best)) if !(small < to && to < best) => small.midpoint(best),
        _ => to,
    };
    // There is no smaller one, or no larger.
    if attempts.iter().any(|attempt| attempt.bytes == to) { end() } else { Next::Try(to) }
}

impl Mix {
    /// What the run that is next may take.
    pub(super) fn limit(&self, work: &Work, sharing: &Sharing) -> Result<Limit> {
        match self.aim {
            Aim::Budget(Budget::FileBytes(bytes)) => return Ok(Limit::Bytes(bytes)),
            Aim::Budget(Budget::BitsPerWeight(bits)) => return Ok(Limit::Bits(bits)),
            Aim::Budget(Budget::Divergence(_)) | Aim::Points(_) => {}
        }
        let last = || work.attempts().last().map_or(0, |last| last.bytes);
        Ok(Limit::About(match work.size() {
            // What was settled before is not asked for again.
            _ if work.is_settled() => last(),
            // Shards that are made already are of it, whatever the clock said then.
            Some(bytes) => bytes,
            None => match self.next(work.attempts(), sharing, false) {
                Next::Try(bytes) => bytes,
                Next::Done => last(),
                Next::Beyond => return Err(self.beyond(work.attempts(), false)),
            },
        }))
    }

    /// What follows a number of attempts, where time is over or not.
    fn next(&self, attempts: &[Attempt], sharing: &Sharing, late: bool) -> Next {
        match &self.aim {
            Aim::Points(points) => points.next(attempts, sharing, late),
            Aim::Budget(Budget::Divergence(limit)) => next(attempts, *limit, sharing.scale(), late),
            Aim::Budget(_) => Next::Done,
        }
    }

    /// Judges what is made, and notes it. Whether it is what was asked for: if not, all shards are to be made again.
    ///
    /// # Errors
    /// `InvalidArgument` where no run keeps the limit; those of reading what was made.
    pub(in crate::pipeline) fn judge(
        &self,
        context: &Context<'_>,
        segments: &[Vec<u32>],
        sharing: &Sharing,
        work: &mut Work,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool> {
        let Limit::About(bytes) = sharing.limit() else { return Ok(true) };
        if work.is_settled() {
            return Ok(true);
        }
        context.check_cancelled()?;
        let made = Source::open_any(work.folder(), &context.registry)?;
        let read = |source: &Source| source.decoder()?.materialise_within(DECODED);
        let original = read(context.original)?;
        let lost = |model: &Source| -> Result<f64> {
            let judged = compare(&original, &read(model)?, segments, &|_, _| {})?;
            Ok(judged.kld_mean.unwrap_or(f64::NAN))
        };
        let divergence = lost(&made)?;
        let before = match (work.attempts().last(), context.rewritten) {
            (Some(last), _) => last.before,
            (None, Some(_)) => lost(context.source)?,
            (None, None) => 0.0,
        };
        if !divergence.is_finite() {
            return Err(Error::numerical("the divergence of what was made is not finite"));
        }
        let took = sharing.in_file().unwrap_or(made.checkpoint().file_bytes());
        let attempt = Attempt { bytes, took, bits: sharing.bits(), divergence, before };
        let attempts = [work.attempts(), &[attempt]].concat();
        tell(Event::Tried { bytes: took, divergence });
        drop(made);
        let late = self.is_late();
        let next = self.next(&attempts, sharing, late);
        let size = match next {
            Next::Try(bytes) => Some(bytes),
            Next::Done | Next::Beyond => None,
        };
        work.tried(attempt, next == Next::Done, size)?;
        match next {
            Next::Done => Ok(true),
            Next::Try(_) => Ok(false),
            Next::Beyond => Err(self.beyond(&attempts, late)),
        }
    }

    fn beyond(&self, attempts: &[Attempt], late: bool) -> Error {
        let least = attempts.iter().map(|a| a.divergence).fold(f64::INFINITY, f64::min);
        let Aim::Budget(Budget::Divergence(limit)) = self.aim else {
            return Error::invalid("no size is left to be looked at");
        };
        if attempts.len() < RUNS && late {
            return Error::interrupted(format!(
                "the time is over, and no run kept a divergence of {limit} yet: the least that was reached is \
                 {least:.6}; the same call goes on"
            ));
        }
        let before = attempts.last().map_or(0.0, |last| last.before);
        if before >= limit {
            return Error::invalid(format!(
                "a divergence of {limit} cannot be kept: changes of whole blocks alone lose {before:.6}"
            ));
        }
        Error::invalid(format!(
            "a divergence of {limit} cannot be kept: the least that was reached is {least:.6}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a search ends with where losses follow a law, and how many runs it took.
    fn search(limit: f64, law: impl Fn(f64) -> f64) -> (Vec<Attempt>, Next) {
        let (weights, fixed) = (1e8, 5e6);
        let mut attempts = Vec::new();
        loop {
            match next(&attempts, limit, (weights, fixed), false) {
                Next::Try(bytes) => {
                    let bits = 8.0 * (bytes as f64 - fixed) / weights;
                    attempts.push(Attempt { bytes, divergence: law(bits), ..Attempt::default() });
                }
                end => return (attempts, end),
            }
        }
    }

    #[test]
    fn limits_are_kept_and_used() {
        for limit in [0.001, 0.02, 0.05, 0.2, 1.0] {
            for (scale, slope) in [(6.0, 1.0), (40.0, 0.9), (1.5, 1.15), (300.0, 0.8)] {
                let (attempts, end) = search(limit, |bits| scale * (-2.0 * slope * bits).exp2());
                let last = attempts.last().expect("one");
                assert_eq!(end, Next::Done);
                assert!(last.divergence <= limit && last.divergence > 0.9 * limit, "{attempts:?}");
                assert!(attempts.len() <= 4, "{} runs", attempts.len());
            }
        }
    }

    #[test]
    fn what_jumps_ends_with_the_best_there_is() {
        // Whole bits alone: at 4 the limit is kept, at 3 not.
        let (attempts, end) = search(0.05, |bits| 6.0 * (-2.0 * bits.floor()).exp2());
        let last = attempts.last().expect("one");
        assert!(end == Next::Done && last.divergence <= 0.05 && attempts.len() <= RUNS + 1);
        let least = attempts.iter().filter(|a| a.divergence <= 0.05).map(|a| a.bytes).min();
        assert_eq!(Some(last.bytes), least);
        // Where time is over: the best is made again, unless it is there; and what was made again is no better than it is.
        let made = |bytes, divergence| Attempt { bytes, divergence, ..Attempt::default() };
        let (large, small) = (made(90_000_000, 0.03), made(70_000_000, 0.06));
        let late = |attempts: &[Attempt]| next(attempts, 0.05, (1e8, 5e6), true);
        assert_eq!(late(&[large]), Next::Done);
        assert_eq!(late(&[small]), Next::Beyond);
        assert_eq!(late(&[large, small]), Next::Try(large.bytes));
        assert_eq!(late(&[large, small, made(large.bytes, 0.06)]), Next::Try(large.bytes));
        let (attempts, end) = search(0.05, |_| 0.06);
        assert!(end == Next::Beyond && attempts.len() == RUNS);
    }
}
