//! The encoder of T5: a learned bias for each distance, scores that are not scaled, RMS norms.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, EmbeddingPlan, HeadPlan, MixerPlan, Plan, RelativePlan};
use super::row::{Draft, Row};
use crate::config::Activation;

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["t5"],
    decoder: false,
    activation: "relu",
    turns: false,
    plan: t5,
    ..Row::DECODER
}];

fn t5(draft: &Draft<'_>) -> Result<Plan> {
    let (keys, config) = (draft.keys, draft.config);
    let form = keys.or("feed_forward_proj", "relu".to_owned())?;
    let (gated, name) = match form.strip_prefix("gated-") {
        Some(name) => (true, name),
        None => (false, form.as_str()),
    };
    let activation = match name {
        "relu" => Activation::Relu,
        "silu" => Activation::Silu,
        // What T5 means by it is the tanh form, where there is a gate.
        "gelu" if gated => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        "gelu_new" => Activation::GeluTanh,
        other => return Err(keys.unsupported(format!("`feed_forward_proj` = `{other}`"))),
    };
    // The first layer's table serves all.
    let relative = RelativePlan {
        table: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".to_owned(),
        buckets: keys.or("relative_attention_num_buckets", 32)?,
        most: keys.or("relative_attention_max_distance", 128)?,
    };
    let block = |block: usize| {
        let prefix = format!("encoder.block.{block}.");
        let names = ["q", "k", "v", "o"];
        let inside = format!("{prefix}layer.0.SelfAttention.");
        let mut attention = draft.attention_in(block, &inside, names);
        attention.scale = 1.0;
        attention.relative = Some(relative.clone());
        let inside = format!("{prefix}layer.1.DenseReluDense.");
        let mut mlp = match gated {
            true => {
                let names = ["wi_0", "wi_1", "wo"].map(|name| format!("{inside}{name}.weight"));
                draft.gated_of(names, config.shape(block).intermediate, None)
            }
            false => draft.plain(block, &inside, "wi", "wo"),
        };
        mlp.activation = activation;
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}"));
        let (first, second) = (norm("layer.0.layer_norm"), norm("layer.1.layer_norm"));
        Ok(BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp)))
    };
    Ok(Plan {
        prefix: "encoder.",
        prefixes: &[],
        images: None,
        joint: None,
        embedding: EmbeddingPlan {
            table: "shared.weight".to_owned(),
            width: config.hidden,
            scale: 1.0,
            positions: None,
            types: None,
            norm: None,
            project: None,
        },
        layers: "encoder.block.".to_owned(),
        blocks: (0..config.blocks).map(block).collect::<Result<_>>()?,
        head: HeadPlan {
            norm: Some(draft.norm("encoder.final_layer_norm")),
            transform: None,
            project: None,
            matrix: "shared.weight".to_owned(),
            bias: None,
            scale: 1.0,
            softcap: None,
        },
    })
}
