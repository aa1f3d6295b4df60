//! Cohere's Command R: one norm without bias for both branches, rotary pairs that are neighbours, scaled logits.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, NormPlan, Plan, RopePlan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["cohere"],
    biases: |keys| {
        let bias = keys.or("attention_bias", false)?;
        Ok([bias, bias, false])
    },
    eps: 1e-5,
    tied: true,
    plan: cohere,
    ..Row::DECODER
}];

fn cohere(draft: &Draft<'_>) -> Result<Plan> {
    let normed = draft.keys.or("use_qk_norm", false)?;
    let (dim, eps) = (draft.config.head_dim, draft.config.norm_eps);
    let mut plan = draft.decoder(|block| {
        let prefix = draft.prefix(block);
        let mut attention = draft.attention(block);
        attention.rope = attention.rope.map(|rope| RopePlan { interleaved: true, ..rope });
        if normed {
            let norm = |name: &str, heads: usize| {
                let norm = NormPlan::new(&format!("{prefix}self_attn.{name}"), dim, eps);
                Some(NormPlan { len: heads * dim, ..norm.layer(false) })
            };
            attention.q_norm = norm("q_norm", attention.heads);
            attention.k_norm = norm("k_norm", attention.kv_heads);
        }
        let norm = draft.norm(&format!("{prefix}input_layernorm")).layer(false);
        Ok(BlockPlan::side_by_side(&prefix, norm, attention, draft.gated(block)))
    })?;
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(false));
    plan.head.scale = draft.keys.positive("logit_scale", Some(0.0625))? as f32;
    Ok(plan)
}
