//! Llama 4: attention in chunks, layers without positions whose queries grow, and a mixture that weighs its inputs.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, Role};

use super::gpt_oss::stacked;
use super::plan::{MixerPlan, MlpKind, MlpPlan, NormPlan, Plan, RopePlan, Rule, Score};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["llama4_text"],
    biases: super::llama::qwen3_biases,
    head_dim: Some(128),
    eps: 1e-5,
    plan: llama4,
    ..Row::DECODER
}];

fn llama4(draft: &Draft<'_>) -> Result<Plan> {
    let (keys, config) = (draft.keys, draft.config);
    let counts = draft.experts(&["num_local_experts"])?;
    let every = keys.or("no_rope_layer_interval", 4usize)?.max(1);
    let turned: Vec<usize> = match keys.get::<Vec<usize>>("no_rope_layers")? {
        Some(list) if list.len() == config.blocks => list,
        _ => (0..config.blocks).map(|b| usize::from((b + 1) % every != 0)).collect(),
    };
    let step = keys.or("interleave_moe_layer_step", 1usize)?.max(1);
    let mixed: Vec<usize> = match keys.get("moe_layers")? {
        Some(list) => list,
        None => (step - 1..config.blocks).step_by(step).collect(),
    };
    let chunk = keys.or("attention_chunk_size", 8192usize)?;
    let tuned = keys.or("attn_temperature_tuning", true)?;
    let floor = keys.positive("floor_scale", Some(8192.0))? as f32;
    let grows = keys.positive("attn_scale", Some(0.1))? as f32;
    let normed = keys.or("use_qk_norm", true)?;
    let dense = keys.size("intermediate_size_mlp", 1 << 28)?;
    draft.decoder(|block| {
        let (mut plan, prefix) = (draft.usual(block)?, draft.prefix(block));
        if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer {
            if turned[block] == 0 {
                attention.rope = None;
                attention.temperature = tuned.then_some((floor, grows));
            } else {
                attention.chunk = Some(chunk);
                attention.rope =
                    attention.rope.take().map(|rope| RopePlan { interleaved: true, ..rope });
                let norm = NormPlan {
                    weights: Vec::new(),
                    ..NormPlan::new("", config.head_dim, config.norm_eps)
                };
                attention.q_norm = normed.then(|| norm.clone());
                attention.k_norm = normed.then_some(norm);
                attention.norm_last = true;
            }
        }
        let prefix = format!("{prefix}feed_forward.");
        if !mixed.contains(&block) {
            plan.parts[1].mixer = MixerPlan::Mlp(draft.gated_in(&prefix, dense, None));
            return Ok(plan);
        }
        let inner = config.shape(block).intermediate;
        let counts = draft.experts_of(block, counts)?;
        let mut moe = draft.mixture(block, &prefix, counts, inner, false);
        moe.router = draft.router(&format!("{prefix}router"), counts.0);
        moe.rule = Rule { score: Score::Sigmoid, ..moe.rule };
        moe.weighs_input = true;
        let shared = format!("{prefix}shared_expert.");
        moe.shared = Some((draft.gated_in(&shared, inner, Some(Expert::Shared)), None));
        let expert = |index| {
            let inner = draft.expert_width(block, index, inner);
            let linear = |role, name: &str, shape| {
                stacked(role, &format!("{prefix}experts.{name}"), None, shape, index)
            };
            let both = linear(Role::GateUp, "gate_up_proj", [2 * inner, config.hidden]);
            MlpPlan {
                kind: MlpKind::Fused { both, alternating: false },
                down: linear(Role::Down, "down_proj", [config.hidden, inner]),
                activation: config.activation,
                clamp: None,
            }
        };
        moe.experts = (0..counts.0).map(expert).collect();
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok(plan)
    })
}
