//! What lies outside the blocks: embeddings, final norm, head.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::Source;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::{Calibration, Needs, Supply};
use tensorpress_tensor::{Context as _, Error, Group, Node, Result, Target};

use super::error::{self, Around};
use super::job::report;
use super::mix::{Measured, Tried, cannot, token_nanos};
use super::plan::Plan;
use super::shard::{self, Item};
use super::state::Unit;
use super::{Context, backward};

/// Names of the embedding and of the head, if there is one; where nothing is known but the tensors, all those of floats
/// that are in no block.
pub(super) fn names(source: &Source) -> Result<Vec<String>> {
    if source.unknown().is_some() {
        let checkpoint = source.checkpoint();
        let is_matrix = |name: &String| {
            let axes = checkpoint.shape(name).map_or(0, <[usize]>::len);
            axes >= 2 && checkpoint.dtype(name).is_ok_and(|dtype| dtype.is_float())
        };
        return Ok(source.extras().into_iter().filter(is_matrix).collect());
    }
    if !source.config().architecture.is_decoder() {
        let words = |name: &String| name.ends_with("embeddings.word_embeddings.weight");
        return Ok(source.extras().into_iter().filter(words).collect());
    }
    let mut names = vec![source.embedding()?.table().name().to_owned()];
    if !source.has_head() {
        return Ok(names);
    }
    let head = source.head()?.linear().name().to_owned();
    if !names.contains(&head) {
        names.push(head);
    }
    Ok(names)
}

/// The name of the head, if there is one; the table of embeddings may be the same.
pub(super) fn head(source: &Source) -> Result<Option<String>> {
    let known = source.unknown().is_none() && source.config().architecture.is_decoder();
    if !known || !source.has_head() {
        return Ok(None);
    }
    source.head().map(|head| Some(head.linear().name().to_owned()))
}

/// What the head takes and loses at each level of a mix.
pub(super) fn measure(context: &Context<'_>, timed: bool) -> Result<BTreeMap<String, Measured>> {
    let Some(name) = head(context.source)?.filter(|name| context.plan.index(name).is_some()) else {
        return Ok(BTreeMap::new());
    };
    let source = context.source;
    let located = |e| context.located(e, &name);
    let weight = decode(&*source.weight(&name)?).map_err(located)?;
    source.checkpoint().release();
    let seen = calibration(context, &name, weight.ncols())?;
    let costs = match &context.supplied {
        Some(by) => by.of_weights(Supply::OUTPUT_FISHER_DIAGONAL, &name)?,
        None => None,
    };
    let costs = costs.filter(|costs| costs.dim() == (1, weight.nrows()));
    let group = || Group {
        seed: context.seed_of(&name),
        par: Par::Rayon,
        ..Group::single(Target::new(&name, weight.view()), seen.clone())
    };
    let mut found = Measured { weights: weight.len() as u64, ..Measured::default() };
    for level in 0..context.plan.levels() {
        context.check_cancelled()?;
        // A model without a head predicts nothing, and one without embeddings reads nothing.
        if context.plan.drops(level) {
            continue;
        }
        let method = &context.plan.method(level).method;
        if context.has_steps(level) {
            let curve = method.rates_dyn(group()).map_err(located)?.into_iter().next();
            found.curves.extend(curve.map(|curve| (level, curve)));
            if context.plan.levels() == 1 && !timed {
                continue;
            }
        }
        let result = match method.compress_group_dyn(group()) {
            Ok(result) => result,
            Err(e) if cannot(e.kind()) => continue,
            Err(e) => return Err(located(e)),
        };
        let Some(layer) = result.layers.into_iter().next() else { continue };
        let bytes = match context.length_of(layer.node.as_ref()).in_tensor(&name) {
            Ok(bytes) => bytes,
            Err(e) if cannot(e.kind()) => continue,
            Err(e) => return Err(e),
        };
        let gram = seen.gram().ok().map(|gram| gram.view());
        let costs = costs.as_ref().map(|costs| costs.row(0));
        let loss = error::of_rows(weight.view(), layer.node.as_ref(), gram, costs)?;
        if loss.is_finite() {
            let nanos = timed.then(|| token_nanos(layer.node)).transpose().in_tensor(&name)?;
            found.tried.insert(level, Tried { bytes, loss, nanos });
        }
    }
    Ok(BTreeMap::from([(name, found)]))
}

/// Whether there is something to calibrate a table on: its inputs where it is the head, else what its rows cost, where that
/// is what a method needs.
pub(super) fn is_seen(source: &Source, name: &str, needs: &Needs) -> Result<bool> {
    if !source.config().architecture.is_decoder()
        || source.unknown().is_some()
        || !source.has_head()
    {
        return Ok(false);
    }
    let rows = [Supply::OUTPUT_FISHER, Supply::OUTPUT_FISHER_DIAGONAL];
    let by_rows = needs.of_caller().iter().any(|supply| rows.contains(supply));
    Ok(by_rows || source.head()?.linear().name() == name)
}

/// Tables whose methods are calibrated on what a backward pass meets.
pub(super) fn calibrated(source: &Source, plan: &Plan) -> Result<Vec<String>> {
    let mut tables = names(source)?;
    tables.retain(|name| {
        plan.index(name)
            .is_some_and(|index| plan.is_mixed() || !plan.method(index).method.needs().is_none())
    });
    Ok(tables)
}

/// What is known of a table: of the head what it reads in the model as it was, and of both how much their rows matter.
fn calibration(context: &Context<'_>, name: &str, channels: usize) -> Result<Calibration> {
    let none = Calibration::none(channels);
    let Some(by) = &context.supplied else { return Ok(none) };
    let seen = match by.of_weights(backward::INPUTS, name)? {
        Some(gram) if gram.dim() == (channels, channels) => Calibration::from_gram(gram, 1)?,
        _ => none,
    };
    Ok(seen.with_supplied(by.clone()))
}

/// Compresses what the recipe says and copies the rest.
pub(super) fn compress(context: &Context<'_>, path: &Path) -> Result<Unit> {
    let source = context.source;
    let mut items = Vec::new();
    let mut nodes: Vec<(String, Box<dyn Node>)> = Vec::new();
    let mut layers = Vec::new();
    // What is compressed already stays so, unless the recipe says otherwise.
    let is_part = |name: &str| {
        let of = |weight: &String| {
            name.strip_prefix(weight.as_str()).is_some_and(|r| r.starts_with('.'))
        };
        source.trees().keys().any(of)
    };
    let outside = |name: &String| source.block_of(name).is_none();
    for name in source.trees().keys().filter(|name| outside(name)) {
        if context.plan.index(name).is_none() {
            nodes.push((name.clone(), source.weight(name)?));
        }
    }
    let quantised = source.trees().keys().filter(|name| outside(name)).cloned();
    let quantised = quantised.filter(|name| context.plan.index(name).is_some());
    let stored = source.extras().into_iter().filter(|name| outside(name) && !is_part(name));
    for name in quantised.chain(stored) {
        let Some(index) = context.plan.index(&name) else {
            items.push(Item::Copied(name));
            continue;
        };
        let planned = context.plan.method(index);
        let located = |e| context.located(e, &name);
        let weight = decode(&*source.weight(&name)?).map_err(located)?;
        source.checkpoint().release();
        let group = Group {
            seed: context.seed_of(&name),
            par: Par::Rayon,
            ..Group::single(
                Target::new(&name, weight.view()).with_step(context.step_of(&name, index)),
                calibration(context, &name, weight.ncols())?,
            )
        };
        let result = planned.method.compress_group_dyn(group).map_err(located)?;
        let layer = result.layers.into_iter().next();
        let layer = layer.ok_or_else(|| Error::invalid("no result")).in_tensor(&name)?;
        layers.push(report(
            &name,
            &planned.text,
            weight.view(),
            &layer,
            Around::default(),
            None,
            Par::Rayon,
        )?);
        nodes.push((name, layer.node));
    }
    for (name, node) in &nodes {
        items.push(Item::Compressed { name: name.clone(), node: node.as_ref(), announced: None });
    }
    Ok(shard::write(path, source, &items)?.unit(layers))
}
