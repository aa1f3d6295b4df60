//! What a model loses without a sublayer: found by running it without. Half the curvature times the square of a whole
//! output is far from that, as all its channels change together.

use std::collections::BTreeMap;

use tensorpress_model::{Decoder, Head, Reference};
use tensorpress_prune::DropMatrix;
use tensorpress_tensor::rewrite::{Expert, LinearSpec};
use tensorpress_tensor::{Context as _, Node, Result};

use super::super::Context;
use super::super::calibration::Samples;
use super::measure::Measured;
use super::menu::{Sublayer, sublayer};

/// Tokens that are run without each sublayer.
const TOKENS: usize = 1024;

/// Experts of a block that are tried; the others lose in proportion.
const EXPERTS: usize = 4;

/// A model that is run without parts of it, and what it predicts with all.
pub(super) struct Whole {
    pub(super) model: Decoder,
    pub(super) head: Head,
    pub(super) segments: Vec<Vec<u32>>,
}

impl Whole {
    /// Nothing where no level drops anything, for models that predict nothing, and where it is not known what errors of
    /// outputs cost: there other losses are no divergences either.
    pub(super) fn of(context: &Context<'_>, samples: &Samples) -> Result<Option<Self>> {
        let drops = (0..context.plan.levels()).any(|level| context.plan.drops(level));
        let source = context.source;
        let predicts = source.config().architecture.is_decoder() && source.has_head();
        if !drops || !predicts || samples.images.is_some() || context.supplied.is_none() {
            return Ok(None);
        }
        let mut segments: Vec<Vec<u32>> = Vec::new();
        let mut tokens = 0;
        for window in samples.windows.iter().filter(|window| window.len() > 1) {
            if tokens >= TOKENS {
                break;
            }
            tokens += window.len();
            segments.push(window.clone());
        }
        if segments.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { model: source.decoder()?, head: source.head()?, segments }))
    }
}

/// Adds what the model loses without each sublayer of a block to what is known of the matrices that make its output.
pub(super) fn find(
    context: &Context<'_>,
    reference: &Reference<'_>,
    model: &mut Decoder,
    index: usize,
    found: &mut BTreeMap<String, Measured>,
    dropped: usize,
) -> Result<()> {
    let source = context.source;
    let mut ends: BTreeMap<Sublayer, Vec<LinearSpec>> = BTreeMap::new();
    for spec in source.linears(index) {
        if let Some((of, true)) = sublayer(&spec) {
            ends.entry(of).or_default().push(spec);
        }
    }
    let routed = |of: &Sublayer| matches!(of.1, Some(Expert::Routed(_)));
    let experts = ends.keys().filter(|of| routed(of)).count();
    let step = experts.div_ceil(EXPERTS).max(1);
    let mut ratios: Vec<f64> = Vec::new();
    let mut left = Vec::new();
    let mut at = 0;
    for (of, specs) in &ends {
        // Losses of several ends are those of the first: they go together.
        let first = &specs[0].name;
        let quadratic: f64 = specs
            .iter()
            .filter_map(|spec| Some(found.get(&spec.name)?.tried.get(&dropped)?.loss))
            .sum();
        if routed(of) {
            at += 1;
            if (at - 1) % step != 0 {
                left.push((first.clone(), quadratic));
                continue;
            }
        }
        context.check_cancelled()?;
        for spec in specs {
            let node = DropMatrix::zeros(spec.shape, source.dtype_of(spec)?)?;
            model.blocks_mut()[index].replace(&spec.name, node.boxed()).in_tensor(&spec.name)?;
        }
        let lost = reference.judge(model, &|_, _| {})?.kld_mean.unwrap_or(f64::NAN);
        model.blocks_mut()[index] = source.block(index)?;
        source.checkpoint().release();
        if routed(of) && lost <= 0.0 {
            // None of these tokens went there.
            left.push((first.clone(), quadratic));
        } else if lost.is_finite() {
            found.entry(first.clone()).or_default().without = Some(lost.max(0.0));
            if routed(of) && quadratic > 0.0 {
                ratios.push((lost / quadratic).ln());
            }
        }
    }
    let ratio = (ratios.iter().sum::<f64>() / ratios.len().max(1) as f64).exp();
    for (name, quadratic) in left {
        found.entry(name).or_default().without = Some(ratio * quadratic);
    }
    Ok(())
}
