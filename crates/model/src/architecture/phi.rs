//! Phi 1 to 3.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{LinearSpec, Role};

use super::plan::{
    AttentionPlan, BlockPlan, Fused, MixerPlan, MlpKind, MlpPlan, NormPlan, Plan, Project,
};
use super::row::{Draft, Row, everywhere};

pub(super) const ROWS: &[Row] = &[
    // Phi 1, 1.5 and 2: one norm for attention and feed-forward network side by side.
    Row {
        kinds: &["phi"],
        biases: |_| Ok([true; 3]),
        activation: "gelu_new",
        eps: 1e-5,
        plan: phi,
        ..Row::DECODER
    },
    // Phi 3 and 4: fused matrices, long factors.
    Row { kinds: &["phi3"], windows: everywhere, eps: 1e-5, plan: phi3, ..Row::DECODER },
];

fn phi(draft: &Draft<'_>) -> Result<Plan> {
    let norms = draft.keys.or("qk_layernorm", false)?;
    let block = |block| {
        let prefix = draft.prefix(block);
        let names = ["q_proj", "k_proj", "v_proj", "dense"];
        let mut attention = draft.attention_in(block, &format!("{prefix}self_attn."), names);
        attention.rope = draft.partial_rope(&["partial_rotary_factor"], 0.5, false)?;
        let norm = |name: &str| {
            let (dim, eps) = (draft.config.head_dim, draft.config.norm_eps);
            norms.then(|| NormPlan::new(&format!("{prefix}self_attn.{name}"), dim, eps).layer(true))
        };
        attention.q_norm = norm("q_layernorm");
        attention.k_norm = norm("k_layernorm");
        let mlp = draft.plain(block, &format!("{prefix}mlp."), "fc1", "fc2");
        let norm = draft.norm(&format!("{prefix}input_layernorm")).layer(true);
        Ok(BlockPlan::side_by_side(&prefix, norm, attention, mlp))
    };
    let mut plan =
        draft.decoder_in("model.", "layers.", "embed_tokens", "final_layernorm", block)?;
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    plan.head.bias = Some("lm_head.bias".to_owned());
    Ok(plan)
}

/// Attention whose q, k and v are one matrix.
pub(super) fn fused(
    draft: &Draft<'_>,
    block: usize,
    prefix: &str,
    [qkv, o]: [&str; 2],
    order: Fused,
) -> AttentionPlan {
    let mut plan = draft.attention_in(block, prefix, ["q", "k", "v", o]);
    let rows = (plan.heads + 2 * plan.kv_heads) * plan.head_dim;
    let name = format!("{prefix}{qkv}.weight");
    let spec = LinearSpec::new(Role::Qkv, name, [rows, draft.config.hidden]);
    plan.project = Project::Fused { qkv: spec.with_bias(draft.config.qkv_bias), order };
    plan
}

/// A feed-forward network whose gate and up are one matrix.
pub(super) fn fused_gate(draft: &Draft<'_>, block: usize) -> MlpPlan {
    let mut plan = draft.gated(block);
    let inner = draft.config.shape(block).intermediate;
    let name = format!("{}mlp.gate_up_proj.weight", draft.prefix(block));
    let both = LinearSpec::new(Role::GateUp, name, [2 * inner, draft.config.hidden]);
    plan.kind = MlpKind::Fused { both, alternating: false };
    plan
}

fn phi3(draft: &Draft<'_>) -> Result<Plan> {
    draft.decoder(|block| {
        let prefix = draft.prefix(block);
        let names = ["qkv_proj", "o_proj"];
        let mut attention =
            fused(draft, block, &format!("{prefix}self_attn."), names, Fused::Blocks);
        attention.rope = draft.partial_rope(&["partial_rotary_factor"], 1.0, false)?;
        Ok(BlockPlan::pre_norm(
            &prefix,
            draft.norm(&format!("{prefix}input_layernorm")),
            attention,
            draft.norm(&format!("{prefix}post_attention_layernorm")),
            MixerPlan::Mlp(fused_gate(draft, block)),
        ))
    })
}
