//! Falcon, in its three shapes: 40B and 180B, 7B, RW.

use tensorpress_tensor::Result;

use super::phi::fused;
use super::plan::{BlockPlan, Fused, MixerPlan, Plan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["falcon"],
    biases: |keys| Ok([keys.or("bias", false)?; 3]),
    activation: "gelu",
    eps: 1e-5,
    tied: true,
    wide: true,
    kv_heads: |keys, heads| {
        Ok(match (keys.or("new_decoder_architecture", false)?, keys.or("multi_query", true)?) {
            (true, _) => keys.or("num_kv_heads", heads)?,
            (false, true) => 1,
            (false, false) => heads,
        })
    },
    plan: falcon,
    ..Row::DECODER
}];

fn falcon(draft: &Draft<'_>) -> Result<Plan> {
    let flag = |key, default| draft.keys.or(key, default);
    let new = flag("new_decoder_architecture", false)?;
    let parallel = new || flag("parallel_attn", true)?;
    let (alibi, many) = (flag("alibi", false)?, flag("multi_query", true)?);
    let two_norms = new && draft.keys.or("num_ln_in_parallel_attn", 2)? == 2;
    let order = if new || !many { Fused::Groups } else { Fused::Blocks };
    let block = |block: usize| {
        let prefix = format!("transformer.h.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["query_key_value", "dense"];
        let mut attention = fused(draft, block, &format!("{prefix}self_attention."), names, order);
        attention.alibi = alibi;
        if alibi {
            attention.rope = None;
        }
        let mlp = draft.plain(block, &format!("{prefix}mlp."), "dense_h_to_4h", "dense_4h_to_h");
        if parallel && !two_norms {
            return Ok(BlockPlan::side_by_side(&prefix, norm("input_layernorm"), attention, mlp));
        }
        let names = match two_norms {
            true => ["ln_attn", "ln_mlp"],
            false => ["input_layernorm", "post_attention_layernorm"],
        };
        let [first, second] = names.map(norm);
        let mut plan = BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp));
        plan.parallel = parallel;
        Ok(plan)
    };
    let mut plan = draft.decoder_in("transformer.", "h.", "word_embeddings", "ln_f", block)?;
    plan.prefixes = &["", "transformer."];
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    Ok(plan)
}
