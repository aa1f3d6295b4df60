//! StableLM 1 and 2: layer norms before a gated network, partial rotary embeddings, a norm for each head.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, MixerPlan, NormPlan, Plan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["stablelm"],
    biases: |keys| Ok([keys.or("use_qkv_bias", false)?, false, false]),
    eps: 1e-5,
    plan: stablelm,
    ..Row::DECODER
}];

fn stablelm(draft: &Draft<'_>) -> Result<Plan> {
    let parallel = draft.keys.or("use_parallel_residual", false)?;
    let normed = draft.keys.or("qk_layernorm", false)?;
    let mut plan = draft.decoder(|block| {
        let prefix = draft.prefix(block);
        let mut attention = draft.attention(block);
        attention.rope = draft.partial_rope(&["partial_rotary_factor"], 0.25, false)?;
        let norms = |name: &str, heads: usize| {
            let (dim, eps) = (draft.config.head_dim, draft.config.norm_eps);
            let one = |h| format!("{prefix}self_attn.{name}.norms.{h}.weight");
            let weights = (0..heads).map(one).collect();
            let norm = NormPlan { weights, len: heads * dim, ..NormPlan::new("", dim, eps) };
            normed.then(|| norm.layer(false))
        };
        attention.q_norm = norms("q_layernorm", attention.heads);
        attention.k_norm = norms("k_layernorm", attention.kv_heads);
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let (first, mlp) = (norm("input_layernorm"), draft.gated(block));
        Ok(match parallel {
            true => BlockPlan::side_by_side(&prefix, first, attention, mlp),
            false => {
                let second = norm("post_attention_layernorm");
                BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp))
            }
        })
    })?;
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    Ok(plan)
}
