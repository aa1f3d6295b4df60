//! Gemma 1 to 3: scaled embeddings, norms that multiply by 1 + weight, soft caps, two rotary tables.

use tensorpress_tensor::Result;

use super::llama::{every_other, head_norms, typed};
use super::plan::{BlockPlan, MixerPlan, Plan, RopePlan};
use super::row::{Draft, Row};
use crate::config::keys::Keys;
use crate::config::{Activation, RopeConfig};

const GEMMA: Row = Row {
    tied: true,
    activation: "gelu_pytorch_tanh",
    head_dim: Some(256),
    biases: |keys| {
        let bias = keys.or("attention_bias", false)?;
        Ok([bias, bias, false])
    },
    ..Row::DECODER
};

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["gemma"], plan: |draft| gemma(draft, one), ..GEMMA },
    Row {
        kinds: &["gemma2"],
        windows: |keys, blocks| every_other(keys, blocks, 4096),
        plan: |draft| gemma(draft, two),
        ..GEMMA
    },
    Row {
        kinds: &["gemma3_text"],
        windows: by_pattern,
        plan: |draft| gemma(draft, three),
        ..GEMMA
    },
];

fn by_pattern(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = Some(keys.or("sliding_window", 4096)?);
    let pattern = match keys.get::<usize>("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => keys.or("_sliding_window_pattern", 6)?,
    };
    let local = |block: usize| !(block + 1).is_multiple_of(pattern.max(1));
    let by_number = || (0..blocks).map(|block| window.filter(|_| local(block))).collect();
    Ok(typed(keys, blocks, window)?.unwrap_or_else(by_number))
}

fn gemma(draft: &Draft<'_>, block: fn(&Draft<'_>, usize) -> Result<BlockPlan>) -> Result<Plan> {
    let mut plan = draft.decoder(|number| {
        let mut plan = block(draft, number)?;
        for part in &mut plan.parts {
            if let MixerPlan::Mlp(mlp) = &mut part.mixer
                && mlp.activation == Activation::Gelu
            {
                // Old configs say `gelu` and mean this.
                mlp.activation = Activation::GeluTanh;
            }
        }
        Ok(plan)
    })?;
    plan.embedding.scale = (draft.config.hidden as f32).sqrt();
    plan.head.norm = plan.head.norm.map(|norm| norm.plus_one());
    plan.head.softcap = softcap(draft, "final_logit_softcapping")?;
    Ok(plan)
}

fn softcap(draft: &Draft<'_>, key: &str) -> Result<Option<f32>> {
    let present = draft.keys.present(key).is_some();
    present.then(|| Ok(draft.keys.positive(key, None)? as f32)).transpose()
}

fn one(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let prefix = draft.prefix(block);
    let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).plus_one();
    Ok(BlockPlan::pre_norm(
        &prefix,
        norm("input_layernorm"),
        draft.attention(block),
        norm("post_attention_layernorm"),
        MixerPlan::Mlp(draft.gated(block)),
    ))
}

fn two(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let prefix = draft.prefix(block);
    let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).plus_one();
    let mut attention = draft.attention(block);
    attention.scale =
        (draft.keys.positive("query_pre_attn_scalar", Some(256.0))? as f32).powf(-0.5);
    attention.softcap = softcap(draft, "attn_logit_softcapping")?;
    let mut plan = BlockPlan::pre_norm(
        &prefix,
        norm("input_layernorm"),
        attention,
        norm("pre_feedforward_layernorm"),
        MixerPlan::Mlp(draft.gated(block)),
    );
    plan.parts[0].after = Some(norm("post_attention_layernorm"));
    plan.parts[1].after = Some(norm("post_feedforward_layernorm"));
    Ok(plan)
}

fn three(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let mut plan = two(draft, block)?;
    if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer {
        let [q, k] = head_norms(draft, block).map(|norm| norm.plus_one());
        (attention.q_norm, attention.k_norm) = (Some(q), Some(k));
        if attention.window.is_some() {
            let local = RopeConfig::read_local(draft.keys, draft.config.context)?;
            attention.rope = Some(RopePlan::whole(local, draft.config.head_dim));
        }
    }
    Ok(plan)
}
