//! What lies outside the blocks: embeddings, final norm, head.

use std::path::Path;

use tensorpress_model::Source;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Context as _, Error, Group, Node, Result, Target};

use super::Context;
use super::error::Around;
use super::job::report;
use super::shard::{self, Item};
use super::state::Unit;

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
            ..Group::single(Target::new(&name, weight.view()), Calibration::none(weight.ncols()))
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
