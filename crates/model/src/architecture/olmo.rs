//! OLMo 2: norms behind the branches, and norms of q and k over all heads together.

use tensorpress_tensor::Result;

use super::plan::{AttentionPlan, Before, BlockPlan, MixerPlan, NormPlan, PartPlan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["olmo2"],
    biases: super::llama::qwen3_biases,
    eps: 1e-5,
    plan: |draft| draft.decoder(|block| olmo2(draft, block)),
    ..Row::DECODER
}];

/// Attention with norms over the whole width of q and of k.
pub(super) fn wide_norms(draft: &Draft<'_>, block: usize) -> AttentionPlan {
    let (prefix, mut plan) = (draft.prefix(block), draft.attention(block));
    let norm = |name: &str, heads: usize| {
        let width = heads * draft.config.head_dim;
        Some(NormPlan::new(&format!("{prefix}self_attn.{name}"), width, draft.config.norm_eps))
    };
    plan.q_norm = norm("q_norm", plan.heads);
    plan.k_norm = norm("k_norm", plan.kv_heads);
    plan
}

fn olmo2(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let prefix = draft.prefix(block);
    let part = |mixer, after: &str| PartPlan {
        after: Some(draft.norm(&format!("{prefix}{after}"))),
        ..PartPlan::new(Before::Nothing, mixer)
    };
    let attention = MixerPlan::Attention(Box::new(wide_norms(draft, block)));
    let parts = vec![
        part(attention, "post_attention_layernorm"),
        part(MixerPlan::Mlp(draft.gated(block)), "post_feedforward_layernorm"),
    ];
    Ok(BlockPlan { prefix: prefix.clone(), parts, parallel: false })
}
