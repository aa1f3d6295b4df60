//! How many tokens stay: of a layer, of each layer, of each head.

use serde::{Deserialize, Serialize};
use tensorpress_tensor::{Error, Result};

use crate::store::HeadSlots;

/// How much a layer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Budget {
    /// This share of the tokens seen, above 0 to 1; never less than one token and what a policy protects.
    Keep(f64),
    /// This many tokens per head.
    Tokens(usize),
    /// This many bytes of keys and values per layer.
    Bytes(u64),
}

impl Budget {
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Keep(keep) if !(keep > 0.0 && keep <= 1.0) => {
                Err(Error::invalid(format!("keep = {keep}: allowed are shares above 0 to 1")))
            }
            Self::Tokens(0) => Err(Error::invalid("tokens = 0: at least 1")),
            Self::Bytes(0) => Err(Error::invalid("bytes = 0: at least 1")),
            _ => Ok(()),
        }
    }
}

/// How the budget differs from layer to layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layers {
    /// Not at all.
    #[default]
    Uniform,
    /// Falls linearly from the first layer to the last (PyramidKV, Cai et al., 2024).
    Pyramid {
        /// Steepness, at least 1.
        beta: f64,
        /// Queries of the window, which every layer keeps.
        window: usize,
    },
}

/// Where a layer stands in its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerAt {
    /// Counted from 0.
    pub index: usize,
    /// Layers of the model.
    pub of: usize,
}

impl LayerAt {
    /// Whether there can be such a layer.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(self) -> Result<()> {
        let Self { index, of } = self;
        if index < of {
            return Ok(());
        }
        Err(Error::invalid(format!("layer {index} of {of}: counted from 0")))
    }
}

impl Layers {
    /// Tokens per head of a layer, where `tokens` were seen and the share `keep` of them shall stay on average.
    #[must_use]
    pub fn tokens(self, tokens: usize, keep: f64, layer: LayerAt) -> usize {
        let seen = tokens as f64;
        let Self::Pyramid { beta, window } = self else {
            return (seen * keep) as usize;
        };
        let (window, share) = (window as f64, seen * keep);
        let (mut least, mut most) = (share / beta, 2.0 * share - share / beta);
        if most >= seen - window {
            // The widest layer keeps all but the window, and the narrowest gives what is missing.
            most = seen - window;
            least = 2.0 * share - most;
        }
        let pyramid = seen >= most && most >= least && least >= window && layer.of > 1;
        let here = if pyramid {
            most - layer.index as f64 * (most - least) / (layer.of - 1) as f64
        } else {
            share
        };
        (here.round_ties_even() as usize).min(tokens)
    }
}

/// How the budget differs from head to head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Heads {
    /// Every head keeps as many tokens.
    #[default]
    Uniform,
    /// The layer's best tokens stay, whichever head they belong to (AdaKV, Feng et al., 2024).
    Adaptive {
        /// Share of the budget that every head keeps in any case, 0 to 1.
        floor: f64,
    },
}

/// The best slots by `scores` (heads of keys, slots): `tokens` per head on average.
pub(crate) fn select(scores: &[Vec<f32>], tokens: usize, heads: Heads) -> HeadSlots {
    // Slots of each head, best first; of equals the newer one.
    let ranked: Vec<Vec<usize>> = scores
        .iter()
        .map(|scores| {
            let mut slots: Vec<usize> = (0..scores.len()).collect();
            slots.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(b.cmp(a)));
            slots
        })
        .collect();
    let counts: Vec<usize> = match heads {
        Heads::Uniform => scores.iter().map(|s| s.len().min(tokens)).collect(),
        Heads::Adaptive { floor } => {
            let floor = (tokens as f64 * floor) as usize;
            let mut counts: Vec<usize> = scores.iter().map(|s| s.len().min(floor)).collect();
            let mut rest: Vec<(f32, usize, usize)> = Vec::new();
            for (h, ranked) in ranked.iter().enumerate() {
                rest.extend(ranked[counts[h]..].iter().map(|slot| (scores[h][*slot], *slot, h)));
            }
            let free = (tokens * scores.len()).saturating_sub(counts.iter().sum());
            rest.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
            rest.iter().take(free).for_each(|(_, _, h)| counts[*h] += 1);
            counts
        }
    };
    let keep = ranked.into_iter().zip(counts).map(|(mut slots, count)| {
        slots.truncate(count);
        slots.sort_unstable();
        slots
    });
    HeadSlots(keep.collect())
}
