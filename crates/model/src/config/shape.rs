use tensorpress_tensor::Result;

use super::MAX_SIZE;
use super::keys::Keys;

/// What one block has; blocks of a pruned model may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub struct BlockShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
}

impl BlockShape {
    /// Reads the keys that every `config.json` has.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        let heads = keys.size("num_attention_heads", MAX_SIZE)?;
        let kv_heads = keys.check_size(
            "num_key_value_heads",
            keys.or("num_key_value_heads", heads)?,
            MAX_SIZE,
        )?;
        if heads % kv_heads != 0 {
            return Err(keys.bad(format!(
                "{} = {heads} is no multiple of {} = {kv_heads}",
                keys.name("num_attention_heads"),
                keys.name("num_key_value_heads")
            )));
        }
        Ok(Self { heads, kv_heads, intermediate: keys.size("intermediate_size", MAX_SIZE)? })
    }

    /// Reads `quantization_config.blocks`: the same keys once more for each block.
    pub(super) fn read_all(keys: &Keys<'_>, blocks: usize) -> Result<Option<Vec<Self>>> {
        let Some(ours) = keys.child("quantization_config")? else { return Ok(None) };
        let Some(each) = ours.children("blocks")? else { return Ok(None) };
        if each.len() != blocks {
            let message =
                format!("{} `quantization_config.blocks` for {blocks} layers", each.len());
            return Err(keys.bad(message));
        }
        each.iter().map(Self::read).collect::<Result<_>>().map(Some)
    }

    /// The keys as they are written.
    pub(crate) fn to_json(self) -> serde_json::Value {
        serde_json::json!({
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
        })
    }
}
