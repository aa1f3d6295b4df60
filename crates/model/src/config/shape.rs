use serde_json::{Value, json};
use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::BlockShape;

use super::MAX_SIZE;
use super::keys::Keys;
use crate::architecture::Row;

const HEADS: [&str; 4] = ["num_attention_heads", "n_head", "n_heads", "num_heads"];
const WIDTH: [&str; 6] =
    ["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim", "d_ff"];

/// The experts of a block that has a number of its own, to how many of them a token goes, and how wide they are.
pub(crate) const EXPERTS: &str = "num_experts";
pub(crate) const CHOSEN: &str = "num_experts_per_tok";
const EXPERT_WIDTHS: &str = "expert_widths";

/// Reads the keys that every `config.json` has.
pub(super) fn read(keys: &Keys<'_>, row: &Row, hidden: usize) -> Result<BlockShape> {
    if let Some(inner) = row.inner {
        let intermediate = keys.check_size("intermediate_size", inner(keys, hidden)?, MAX_SIZE)?;
        return Ok(BlockShape::new(0, 0, intermediate));
    }
    let heads = keys.size(keys.known(&HEADS), MAX_SIZE)?;
    let kv_heads =
        keys.check_size("num_key_value_heads", (row.kv_heads)(keys, heads)?, MAX_SIZE)?;
    if heads % kv_heads != 0 {
        return Err(keys.bad(format!(
            "{} = {heads} is no multiple of {} = {kv_heads}",
            keys.name("num_attention_heads"),
            keys.name("num_key_value_heads")
        )));
    }
    let width = keys.known(&WIDTH);
    let intermediate = match keys.present(width).is_none() && row.wide {
        true => 4 * hidden,
        false => keys.size(width, MAX_SIZE)?,
    };
    Ok(BlockShape::new(heads, kv_heads, intermediate))
}

/// Reads `quantization_config.blocks`: the same keys once more for each block.
pub(super) fn read_all(
    keys: &Keys<'_>,
    row: &Row,
    blocks: usize,
    hidden: usize,
) -> Result<Option<Vec<BlockShape>>> {
    let Some(ours) = keys.child("quantization_config")? else { return Ok(None) };
    let Some(each) = ours.children("blocks")? else { return Ok(None) };
    if each.len() != blocks {
        let message = format!("{} `quantization_config.blocks` for {blocks} layers", each.len());
        return Err(keys.bad(message));
    }
    let read = |own: &Keys<'_>| -> Result<BlockShape> {
        Ok(read(own, row, hidden)?
            .with_experts(own.or(EXPERTS, 0)?)
            .with_chosen(own.or(CHOSEN, 0)?)
            .with_expert_widths(own.or(EXPERT_WIDTHS, Vec::new())?))
    };
    each.iter().map(read).collect::<Result<_>>().map(Some)
}

/// The keys as they are written.
pub(crate) fn to_json(shape: &BlockShape) -> Value {
    let mut written = json!({
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
    });
    for (key, number) in [(EXPERTS, shape.experts), (CHOSEN, shape.chosen)] {
        if number > 0 {
            written[key] = json!(number);
        }
    }
    if !shape.expert_widths.is_empty() {
        written[EXPERT_WIDTHS] = json!(shape.expert_widths);
    }
    written
}
