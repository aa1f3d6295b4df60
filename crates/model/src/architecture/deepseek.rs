//! DeepSeek-V2 and V3, and MiniCPM 3: attention through latents, and mixtures in groups.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, LinearSpec, Role};

use super::plan::{
    AttentionPlan, Groups, LatentPlan, MixerPlan, NormPlan, Plan, Project, RopePlan, Rule, Score,
};
use super::row::{Draft, Row};
use crate::config::{RopeScaling, mscale};

const DEEPSEEK: Row = Row {
    biases: |keys| {
        let bias = keys.or("attention_bias", false)?;
        Ok([bias, bias, false])
    },
    // What is turned; the plan says how wide heads are.
    head_dim: Some(64),
    ..Row::DECODER
};

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["deepseek_v2"], plan: |draft| deepseek(draft, false), ..DEEPSEEK },
    Row { kinds: &["deepseek_v3"], plan: |draft| deepseek(draft, true), ..DEEPSEEK },
    Row { kinds: &["minicpm3"], tied: true, eps: 1e-5, plan: minicpm3, ..DEEPSEEK },
];

/// Multi-head latent attention.
fn latent(draft: &Draft<'_>, block: usize, interleaved: bool) -> Result<AttentionPlan> {
    let (keys, config) = (draft.keys, draft.config);
    let size = |key| keys.size(key, 1 << 20);
    let (nope, turned) = (size("qk_nope_head_dim")?, size("qk_rope_head_dim")?);
    let (values, rank) = (size("v_head_dim")?, size("kv_lora_rank")?);
    let (dim, hidden, heads) = (nope + turned, config.hidden, config.heads);
    let prefix = format!("{}self_attn.", draft.prefix(block));
    let linear = |role, name: &str, shape, bias| {
        LinearSpec::new(role, format!("{prefix}{name}.weight"), shape).with_bias(bias)
    };
    // Whatever the config's epsilon is.
    let norm = |name: &str, width| NormPlan::new(&format!("{prefix}{name}"), width, 1e-6);
    let (q_down, q_up) = match keys.get::<usize>("q_lora_rank")? {
        None => (None, linear(Role::Q, "q_proj", [heads * dim, hidden], false)),
        Some(rank) => {
            let down = linear(Role::QueryDown, "q_a_proj", [rank, hidden], config.qkv_bias);
            let up = linear(Role::QueryUp, "q_b_proj", [heads * dim, rank], false);
            (Some((down, norm("q_a_layernorm", rank))), up)
        }
    };
    let down = [rank + turned, hidden];
    let plan = LatentPlan {
        q_down,
        q_up,
        kv_down: linear(Role::KeyValueDown, "kv_a_proj_with_mqa", down, config.qkv_bias),
        kv_norm: norm("kv_a_layernorm", rank),
        kv_up: linear(Role::KeyValueUp, "kv_b_proj", [heads * (nope + values), rank], false),
        latent: rank,
        turned,
    };
    let rope = config.rope.clone();
    let usual = draft.attention(block);
    Ok(AttentionPlan {
        heads,
        kv_heads: heads,
        head_dim: dim,
        value_dim: values,
        project: Project::Latent(Box::new(plan)),
        o: linear(Role::O, "o_proj", [hidden, heads * values], config.output_bias),
        rope: rope.map(|config| RopePlan { config, first: nope, dims: turned, interleaved }),
        scale: 1.0 / (dim as f32).sqrt(),
        ..usual
    })
}

fn deepseek(draft: &Draft<'_>, three: bool) -> Result<Plan> {
    let keys = draft.keys;
    let interleaved = !three || keys.or("rope_interleave", true)?;
    let counts = draft.experts(&["n_routed_experts"])?;
    let inner = keys.size("moe_intermediate_size", 1 << 28)?;
    let dense = keys.or("first_k_dense_replace", 0usize)?;
    let every = keys.or("moe_layer_freq", 1usize)?.max(1);
    let shared: Option<usize> = keys.get("n_shared_experts")?;
    let method = keys.or("topk_method", "greedy".to_owned())?;
    let grouped = three || method == "group_limited_greedy";
    let groups = match keys.get::<usize>("n_group")?.filter(|_| grouped) {
        None => None,
        Some(of) => {
            let kept = keys.size("topk_group", of)?;
            if of == 0 || !counts.0.is_multiple_of(of) {
                return Err(keys.bad(format!("`n_group` = {of} for {} experts", counts.0)));
            }
            Some(Groups { of, kept, best: if three { 2 } else { 1 } })
        }
    };
    let rule = Rule {
        score: if three { Score::Sigmoid } else { Score::Softmax },
        chosen: counts.1,
        // The second version's flag has no effect.
        renormalised: three && keys.or("norm_topk_prob", true)?,
        scale: keys.positive("routed_scaling_factor", Some(1.0))? as f32,
        groups,
    };
    draft.decoder(|block| {
        let (mut plan, prefix) = (draft.usual(block)?, format!("{}mlp.", draft.prefix(block)));
        let mut attention = latent(draft, block, interleaved)?;
        if let Some(RopeScaling::Yarn { factor, mscale_all_dim: Some(all), .. }) =
            draft.config.rope.as_ref().map(|rope| &rope.scaling)
        {
            attention.scale *= mscale(*factor, *all).powi(2) as f32;
        }
        plan.parts[0].mixer = MixerPlan::Attention(Box::new(attention));
        if block < dense || block % every != 0 {
            return Ok(plan);
        }
        let counts = draft.experts_of(block, counts)?;
        if let Some(groups) = groups.filter(|groups| !counts.0.is_multiple_of(groups.of)) {
            return Err(keys.bad(format!("`n_group` = {} for {} experts", groups.of, counts.0)));
        }
        if let Some(groups) = groups.filter(|all| all.kept * (counts.0 / all.of) < counts.1) {
            return Err(keys.bad(format!(
                "a token goes to {} experts, of {} of {} groups of {} each",
                counts.1,
                groups.kept,
                groups.of,
                counts.0 / groups.of
            )));
        }
        let mut moe = draft.mixture(block, &prefix, counts, inner, false);
        moe.rule = Rule { chosen: counts.1, ..rule };
        moe.correction = three.then(|| format!("{prefix}gate.e_score_correction_bias"));
        moe.shared = shared.map(|count| {
            let shared = format!("{prefix}shared_experts.");
            (draft.gated_in(&shared, count * inner, Some(Expert::Shared)), None)
        });
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok(plan)
    })
}

fn minicpm3(draft: &Draft<'_>) -> Result<Plan> {
    let number = |key| draft.keys.positive(key, Some(1.0));
    let scale = number("scale_depth")? / (draft.config.blocks as f64).sqrt();
    let mut plan = draft.decoder(|block| {
        let mut plan = draft.usual(block)?;
        plan.parts[0].mixer = MixerPlan::Attention(Box::new(latent(draft, block, false)?));
        plan.parts.iter_mut().for_each(|part| part.scale = scale as f32);
        Ok(plan)
    })?;
    plan.embedding.scale = number("scale_emb")? as f32;
    let hidden = draft.config.hidden as f64;
    plan.head.scale = (draft.keys.positive("dim_model_base", Some(hidden))? / hidden) as f32;
    Ok(plan)
}
