use serde_json::{Value, json};
use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::BlockShape;

use super::MAX_SIZE;
use super::keys::Keys;

/// Reads the keys that every `config.json` has.
pub(super) fn read(keys: &Keys<'_>) -> Result<BlockShape> {
    let heads = keys.size("num_attention_heads", MAX_SIZE)?;
    let kv_heads =
        keys.check_size("num_key_value_heads", keys.or("num_key_value_heads", heads)?, MAX_SIZE)?;
    if heads % kv_heads != 0 {
        return Err(keys.bad(format!(
            "{} = {heads} is no multiple of {} = {kv_heads}",
            keys.name("num_attention_heads"),
            keys.name("num_key_value_heads")
        )));
    }
    Ok(BlockShape::new(heads, kv_heads, keys.size("intermediate_size", MAX_SIZE)?))
}

/// Reads `quantization_config.blocks`: the same keys once more for each block.
pub(super) fn read_all(keys: &Keys<'_>, blocks: usize) -> Result<Option<Vec<BlockShape>>> {
    let Some(ours) = keys.child("quantization_config")? else { return Ok(None) };
    let Some(each) = ours.children("blocks")? else { return Ok(None) };
    if each.len() != blocks {
        let message = format!("{} `quantization_config.blocks` for {blocks} layers", each.len());
        return Err(keys.bad(message));
    }
    each.iter().map(read).collect::<Result<_>>().map(Some)
}

/// The keys as they are written.
pub(crate) fn to_json(shape: BlockShape) -> Value {
    json!({
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
    })
}
