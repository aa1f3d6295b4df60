//! gpt-oss: a learned logit a head that takes attention away, alternating windows, experts in stacks with biases.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, LinearSpec, Place, Role};

use super::llama::every_other;
use super::plan::{Clamp, MixerPlan, MlpKind, MlpPlan, Plan, Rule, Score};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["gpt_oss"],
    biases: |keys| {
        let bias = keys.or("attention_bias", true)?;
        Ok([bias, bias, true])
    },
    head_dim: Some(64),
    eps: 1e-5,
    windows: |keys, blocks| every_other(keys, blocks, 128),
    plan: gpt_oss,
    ..Row::DECODER
}];

/// A matrix of a stack `[expert, in, out]`.
pub(super) fn stacked(
    role: Role,
    tensor: &str,
    bias: Option<&str>,
    shape: [usize; 2],
    index: usize,
) -> LinearSpec {
    let place = Place {
        tensor: tensor.to_owned(),
        bias: bias.map(str::to_owned),
        index: Some(index),
        transposed: true,
    };
    LinearSpec::new(role, format!("{tensor}.{index}.weight"), shape)
        .with_bias(bias.is_some())
        .with_expert(Expert::Routed(index))
        .with_place(place)
}

fn gpt_oss(draft: &Draft<'_>) -> Result<Plan> {
    let counts = draft.experts(&["num_local_experts"])?;
    let limit = draft.keys.positive("swiglu_limit", Some(7.0))? as f32;
    let alpha = draft.keys.or("swiglu_alpha", 1.702f64)?;
    if alpha != 1.702 {
        return Err(draft.keys.unsupported(format!("`swiglu_alpha` = {alpha}")));
    }
    let rule = Rule {
        score: Score::SoftmaxOfChosen,
        chosen: counts.1,
        renormalised: false,
        scale: 1.0,
        groups: None,
    };
    draft.decoder(|block| {
        let (mut plan, prefix) = (draft.usual(block)?, draft.prefix(block));
        if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer {
            attention.sinks = Some(format!("{prefix}self_attn.sinks"));
        }
        let (hidden, inner) = (draft.config.hidden, draft.config.shape(block).intermediate);
        let counts = draft.experts_of(block, counts)?;
        let mut moe = draft.mixture(block, &format!("{prefix}mlp."), counts, inner, false);
        moe.router = draft.router(&format!("{prefix}mlp.router"), counts.0).with_bias(true);
        moe.rule = Rule { chosen: counts.1, ..rule };
        let names = ["gate_up_proj", "down_proj"].map(|n| format!("{prefix}mlp.experts.{n}"));
        let expert = |index| {
            let inner = draft.expert_width(block, index, inner);
            let linear = |role, name: &String, shape| {
                stacked(role, name, Some(&format!("{name}_bias")), shape, index)
            };
            let both = linear(Role::GateUp, &names[0], [2 * inner, hidden]);
            MlpPlan {
                kind: MlpKind::Fused { both, alternating: true },
                down: linear(Role::Down, &names[1], [hidden, inner]),
                activation: draft.config.activation,
                clamp: Some(Clamp(limit)),
            }
        };
        moe.experts = (0..counts.0).map(expert).collect();
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok(plan)
    })
}
