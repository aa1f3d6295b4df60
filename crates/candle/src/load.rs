//! Layers of a model by the names of their weights.

use tensorpress_model::Source;
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::rewrite::{LinearSpec, Role};
use tensorpress_tensor::{Context, Error, Node, Result, Tensor};

/// A weight `[out, in]`, and its bias if there is one.
pub(crate) type Layer = (Box<dyn Node>, Option<Vec<f32>>);

/// The layer whose weight has this name.
pub(crate) fn layer(source: &Source, name: &str) -> Result<Layer> {
    let spec = spec(source, name).filter(|spec| spec.role != Role::Other);
    let Some(spec) = spec else {
        let node = source.weight(stored_name(source, name).unwrap_or(name))?;
        let bias = bias(source, name, node.shape()[0])?;
        return Ok((node, bias));
    };
    let node = match source.trees().contains_key(name) {
        true => source.weight(name)?,
        // Cut out of a stack, or turned, where it is stored otherwise.
        false => Dense::new(&source.stored(&spec)?).in_tensor(name)?.boxed(),
    };
    if node.shape() != spec.shape {
        let message =
            format!("stored as {:?}, but config.json implies {:?}", node.shape(), spec.shape);
        return Err(Error::shape(message).in_tensor(name));
    }
    let bias = source.stored_bias(&spec)?.map(|(_, values)| values);
    if bias.is_none() && spec.needs_bias {
        // Says which one is missing, and where.
        source.checkpoint().bytes(&spec.bias)?;
    }
    Ok((node, bias))
}

/// What the model knows of a layer, if it is one of a block.
fn spec(source: &Source, name: &str) -> Option<LinearSpec> {
    let blocks = match source.block_of(name) {
        Some(block) => block..block + 1,
        None => 0..0,
    };
    blocks.flat_map(|block| source.linears(block)).find(|spec| spec.name == name)
}

/// What is stored beside a weight as its bias, one value an output.
fn bias(source: &Source, name: &str, out: usize) -> Result<Option<Vec<f32>>> {
    let bias = format!("{}.bias", name.strip_suffix(".weight").unwrap_or(name));
    if bias == name || source.checkpoint().shape(&bias) != Some(&[out]) {
        return Ok(None);
    }
    let tensor = source.checkpoint().tensor(&bias)?;
    Ok(Some(tensor.to_matrix().in_tensor(&bias)?.into_raw_vec_and_offset().0))
}

/// The name under which a tensor lies, compressed or not: its own, or that of the one whose memory it shares. Parts of
/// compressed weights are no tensors of the model.
pub(crate) fn stored_name<'a>(source: &'a Source, name: &'a str) -> Option<&'a str> {
    let there = |name: &str| {
        let is_part =
            name.match_indices('.').any(|(dot, _)| source.trees().contains_key(&name[..dot]));
        source.trees().contains_key(name) || source.checkpoint().contains(name) && !is_part
    };
    if there(name) {
        return Some(name);
    }
    if let Some(other) = source.checkpoint().alias(name).filter(|other| there(other)) {
        return Some(other);
    }
    // One matrix for both may be stored under the head's name alone.
    let is_table = source.config().tied && name.ends_with("embed_tokens.weight");
    Some("lm_head.weight").filter(|head| is_table && there(head))
}
