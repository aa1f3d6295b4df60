//! GLM-4: four norms, fused gate and up, partial rotary pairs that are neighbours.

use tensorpress_tensor::Result;

use super::phi::fused_gate;
use super::plan::{BlockPlan, MixerPlan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["glm4"],
    biases: |keys| Ok([keys.or("attention_bias", false)?, false, false]),
    head_dim: Some(128),
    eps: 1.5625e-7,
    plan: |draft| draft.decoder(|block| glm4(draft, block)),
    ..Row::DECODER
}];

fn glm4(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let prefix = draft.prefix(block);
    let norm = |name: &str| draft.norm(&format!("{prefix}{name}"));
    let mut attention = draft.attention(block);
    attention.rope = draft.partial_rope(&["partial_rotary_factor"], 0.5, true)?;
    let mut plan = BlockPlan::pre_norm(
        &prefix,
        norm("input_layernorm"),
        attention,
        norm("post_attention_layernorm"),
        MixerPlan::Mlp(fused_gate(draft, block)),
    );
    plan.parts[0].after = Some(norm("post_self_attn_layernorm"));
    plan.parts[1].after = Some(norm("post_mlp_layernorm"));
    Ok(plan)
}
