//! What an expert is worth.

use std::fmt::Debug;

use tensorpress_tensor::rewrite::{BlockView, Expert};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{ExpertActivity, ExpertSeen};
use tensorpress_tensor::{Result, Tensor as _};

/// A score for every expert of a block, from what it did with its tokens; the least go first.
pub trait ExpertScore: Debug + Send + Sync {
    /// Name of the method that prunes by it.
    fn id(&self) -> &'static str;

    /// One finite score an expert, of an activity that [is usable](ExpertActivity::is_usable).
    fn scores(&self, activity: &ExpertActivity) -> Vec<f64>;

    /// To how many experts a token goes where `kept` of `count` stay, 1 to `chosen`, to how many it went. Default: as many.
    fn chosen(&self, chosen: usize, kept: usize, count: usize) -> usize {
        let _ = (kept, count);
        chosen
    }

    /// Its parameters, beside the fraction.
    ///
    /// # Errors
    /// Those of the keys.
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let _ = keys;
        Ok(())
    }
}

/// Mean over the tokens of an expert of its factor times the norm of what it makes of them, g(x) ‖f(x)‖ (REAP: Lasby et
/// al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE compression", 2025, eq. 9). One that no token went to has 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reap;

impl ExpertScore for Reap {
    fn id(&self) -> &'static str {
        "reap"
    }

    fn scores(&self, activity: &ExpertActivity) -> Vec<f64> {
        let mean = |seen: &ExpertSeen| seen.weighted / seen.tokens.max(1) as f64;
        activity.seen().iter().map(mean).collect()
    }
}

/// Share of the tokens that go to an expert (ModuleFormer: Shen et al., "ModuleFormer: Learning Modular Large Language Models
/// From Uncurated Data", 2023, section 3: experts are pruned by how often a target set uses them).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage;

impl ExpertScore for Usage {
    fn id(&self) -> &'static str {
        "expert_usage"
    }

    fn scores(&self, activity: &ExpertActivity) -> Vec<f64> {
        frequencies(activity).collect()
    }
}

/// share x f + (1 - share) x s, where f is the part of the tokens that go to an expert and s the mean factor of these
/// (Chen, Xie, Yang et al.: "Collaborative Compression for Large-Scale MoE Deployment on Edge", 2025). A token goes to fewer
/// experts then, in the proportion in which they stay: ⌈chosen x kept / count⌉.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Collaborative {
    /// What the frequency counts, 0 to 1. Default 0.5.
    pub share: f64,
    /// A token goes to fewer experts, to match. Default true.
    pub fewer: bool,
}

impl Default for Collaborative {
    fn default() -> Self {
        Self { share: 0.5, fewer: true }
    }
}

impl Collaborative {
    /// Sets what the frequency counts.
    #[must_use]
    pub fn with_share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Sets whether a token goes to fewer experts.
    #[must_use]
    pub fn with_fewer(mut self, fewer: bool) -> Self {
        self.fewer = fewer;
        self
    }
}

impl ExpertScore for Collaborative {
    fn id(&self) -> &'static str {
        "collaborative"
    }

    fn scores(&self, activity: &ExpertActivity) -> Vec<f64> {
        let factors = activity.seen().iter().map(|seen| seen.factors / seen.tokens.max(1) as f64);
        let both = frequencies(activity).zip(factors);
        both.map(|(frequency, factor)| self.share * frequency + (1.0 - self.share) * factor)
            .collect()
    }

    fn chosen(&self, chosen: usize, kept: usize, count: usize) -> usize {
        match self.fewer {
            true => (chosen * kept).div_ceil(count.max(1)).clamp(1, chosen.max(1)),
            false => chosen,
        }
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("share", &mut self.share, 0.0..=1.0, "what frequency counts beside factors")?;
        keys.flag("fewer", &mut self.fewer, "a token goes to fewer experts, to match")
    }
}

fn frequencies(activity: &ExpertActivity) -> impl Iterator<Item = f64> + '_ {
    let all = activity.tokens().max(1) as f64;
    activity.seen().iter().map(move |seen| seen.tokens as f64 / all)
}

/// Sum of the squares of an expert's weights, for want of anything better.
pub(super) fn norms(block: &BlockView<'_>, experts: usize) -> Result<Vec<f64>> {
    let mut squares = vec![0.0; experts];
    for spec in &block.layout().linears {
        let Some(Expert::Routed(index)) = spec.expert else { continue };
        let (name, part) = match &spec.place {
            Some(place) => (&place.tensor, place.index),
            None => (&spec.name, None),
        };
        let tensor = block.tensor(name)?;
        let [rows, columns] = tensor.matrix_shape();
        let rows = part.map_or(0..rows, |index| index..index + 1);
        let mut values = vec![0.0_f32; rows.len() * columns];
        tensor.read_rows(rows, &mut values)?;
        squares[index] += values.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>();
    }
    // Weights that are not finite: their expert goes first.
    squares.iter_mut().filter(|sum| !sum.is_finite()).for_each(|sum| *sum = 0.0);
    Ok(squares)
}
