//! Llama, and what differs from it by a number or two.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, MixerPlan, NormPlan, Plan};
use super::row::{Draft, Row, everywhere};
use crate::config::keys::Keys;

pub(super) const ROWS: &[Row] = &[
    // Llama 2 and 3, and models with their layout.
    Row {
        kinds: &["llama"],
        editable: true,
        biases: |keys| {
            let bias = keys.or("attention_bias", false)?;
            Ok([bias, bias, keys.or("mlp_bias", false)?])
        },
        ..Row::DECODER
    },
    // Llama with a sliding window.
    Row { kinds: &["mistral"], editable: true, windows: everywhere, ..Row::DECODER },
    // Qwen 2 and 2.5: Llama with biases on q, k and v.
    Row {
        kinds: &["qwen2"],
        editable: true,
        biases: |_| Ok([true, false, false]),
        windows: qwen_windows,
        ..Row::DECODER
    },
    // Qwen 3: Llama with norms on the heads of q and k.
    Row {
        kinds: &["qwen3"],
        editable: true,
        biases: qwen3_biases,
        head_dim: Some(128),
        windows: qwen_windows,
        plan: |draft| draft.decoder(|block| qwen3(draft, block)),
        ..Row::DECODER
    },
    // SmolLM 3: some layers without positions.
    Row {
        kinds: &["smollm3"],
        tied: true,
        biases: |keys| {
            let bias = keys.or("attention_bias", false)?;
            Ok([bias, bias, keys.or("mlp_bias", false)?])
        },
        windows: qwen_windows,
        plan: smollm3,
        ..Row::DECODER
    },
    // Granite: four multipliers.
    Row {
        kinds: &["granite"],
        tied: true,
        biases: |keys| {
            let bias = keys.or("attention_bias", false)?;
            Ok([bias, bias, keys.or("mlp_bias", false)?])
        },
        plan: granite,
        ..Row::DECODER
    },
];

pub(super) fn qwen3_biases(keys: &Keys<'_>) -> Result<[bool; 3]> {
    let bias = keys.or("attention_bias", false)?;
    Ok([bias, bias, false])
}

/// `layer_types` says it in today's configs; older ones give windows to the blocks from `max_window_layers` on; both if
/// `use_sliding_window`.
pub(super) fn qwen_windows(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.get::<usize>("sliding_window")?;
    let Some(window) = window.filter(|_| keys.or("use_sliding_window", false).unwrap_or(false))
    else {
        return Ok(vec![None; blocks]);
    };
    if let Some(windows) = typed(keys, blocks, Some(window))? {
        return Ok(windows);
    }
    let from = keys.or("max_window_layers", 28)?;
    Ok((0..blocks).map(|block| (block >= from).then_some(window)).collect())
}

/// What `layer_types` says of windows, if it is there.
pub(super) fn typed(
    keys: &Keys<'_>,
    blocks: usize,
    window: Option<usize>,
) -> Result<Option<Vec<Option<usize>>>> {
    let Some(types) = keys.get::<Vec<String>>("layer_types")? else { return Ok(None) };
    if types.len() != blocks {
        return Err(keys.bad(format!("{} `layer_types` for {blocks} layers", types.len())));
    }
    let one = |kind: &String| match kind.as_str() {
        "full_attention" | "chunked_attention" => Ok(None),
        "sliding_attention" => Ok(window),
        other => Err(keys.unsupported(format!("`layer_types` has `{other}`"))),
    };
    types.iter().map(one).collect::<Result<_>>().map(Some)
}

/// A window for every other block, beginning with the first, unless `layer_types` says another thing.
pub(super) fn every_other(
    keys: &Keys<'_>,
    blocks: usize,
    default: usize,
) -> Result<Vec<Option<usize>>> {
    let window = Some(keys.or("sliding_window", default)?);
    let alternating = || (0..blocks).map(|block| window.filter(|_| block % 2 == 0)).collect();
    Ok(typed(keys, blocks, window)?.unwrap_or_else(alternating))
}

/// Norms of the heads of q and k.
pub(super) fn head_norms(draft: &Draft<'_>, block: usize) -> [NormPlan; 2] {
    let prefix = draft.prefix(block);
    ["q_norm", "k_norm"].map(|name| {
        let (dim, eps) = (draft.config.head_dim, draft.config.norm_eps);
        NormPlan::new(&format!("{prefix}self_attn.{name}"), dim, eps)
    })
}

fn qwen3(draft: &Draft<'_>, block: usize) -> Result<BlockPlan> {
    let mut plan = draft.usual(block)?;
    if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer {
        let [q, k] = head_norms(draft, block);
        (attention.q_norm, attention.k_norm) = (Some(q), Some(k));
    }
    Ok(plan)
}

fn smollm3(draft: &Draft<'_>) -> Result<Plan> {
    let (keys, blocks) = (draft.keys, draft.config.blocks);
    let turned: Vec<usize> = match keys.get("no_rope_layers")? {
        Some(list) => list,
        None => {
            let interval = keys.or("no_rope_layer_interval", 4usize)?.max(1);
            (0..blocks).map(|block| usize::from((block + 1) % interval != 0)).collect()
        }
    };
    if turned.len() != blocks {
        return Err(keys.bad(format!("{} `no_rope_layers` for {blocks} layers", turned.len())));
    }
    draft.decoder(|block| {
        let mut plan = draft.usual(block)?;
        if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer
            && turned[block] == 0
        {
            attention.rope = None;
        }
        Ok(plan)
    })
}

fn granite(draft: &Draft<'_>) -> Result<Plan> {
    let number = |key| Ok(draft.keys.positive(key, Some(1.0))? as f32);
    let (attention_scale, residual) =
        (number("attention_multiplier")?, number("residual_multiplier")?);
    let mut plan = draft.decoder(|block| {
        let mut plan = draft.usual(block)?;
        plan.parts.iter_mut().for_each(|part| part.scale = residual);
        if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer {
            attention.scale = attention_scale;
        }
        Ok(plan)
    })?;
    plan.embedding.scale = number("embedding_multiplier")?;
    plan.head.scale = 1.0 / number("logits_scaling")?;
    Ok(plan)
}
