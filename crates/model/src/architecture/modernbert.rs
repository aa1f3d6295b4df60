//! ModernBERT: norms before the branches, local layers, rotary embeddings, fused matrices.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{LinearSpec, Role};

use super::bert::transform;
use super::llama::typed;
use super::phi::fused;
use super::plan::{
    Before, BlockPlan, EmbeddingPlan, Fused, HeadPlan, MixerPlan, MlpKind, Plan, RopePlan,
};
use super::row::{Draft, Row};
use crate::config::keys::Keys;
use crate::config::{RopeConfig, RopeScaling};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["modernbert"],
    decoder: false,
    biases: |keys| {
        let bias = keys.or("attention_bias", false)?;
        Ok([bias, bias, keys.or("mlp_bias", false)?])
    },
    activation: "gelu",
    eps: 1e-5,
    windows: local,
    plan: modernbert,
    ..Row::DECODER
}];

fn local(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = Some(keys.or("local_attention", 128)?);
    let every = keys.or("global_attn_every_n_layers", 3usize)?.max(1);
    let by_number = || (0..blocks).map(|b| window.filter(|_| !b.is_multiple_of(every))).collect();
    Ok(typed(keys, blocks, window)?.unwrap_or_else(by_number))
}

fn modernbert(draft: &Draft<'_>) -> Result<Plan> {
    let (keys, config) = (draft.keys, draft.config);
    let bias = keys.or("norm_bias", false)?;
    let norm = |name: &str| draft.norm(name).layer(bias);
    let rope = |old: &str, theta: f64, new: RopeConfig| -> Result<RopeConfig> {
        match keys.child("rope_parameters")? {
            Some(_) => Ok(new),
            None => Ok(RopeConfig {
                theta: keys.positive(old, Some(theta))?,
                scaling: RopeScaling::Default,
            }),
        }
    };
    let whole = rope("global_rope_theta", 160_000.0, RopeConfig::read(keys, config.context)?)?;
    let near = rope("local_rope_theta", 10_000.0, RopeConfig::read_local(keys, config.context)?)?;
    let block = |block: usize| {
        let prefix = format!("model.layers.{block}.");
        let mut attention =
            fused(draft, block, &format!("{prefix}attn."), ["Wqkv", "Wo"], Fused::Blocks);
        let theta = if attention.window.is_some() { &near } else { &whole };
        attention.rope = Some(RopePlan::whole(theta.clone(), config.head_dim));
        let mut mlp = draft.plain(block, &format!("{prefix}mlp."), "Wi", "Wo");
        let rows = [2 * config.shape(block).intermediate, config.hidden];
        let both = LinearSpec::new(Role::GateUp, format!("{prefix}mlp.Wi.weight"), rows);
        mlp.kind = MlpKind::Fused { both: both.with_bias(config.mlp_bias), alternating: false };
        let (first, second) =
            (norm(&format!("{prefix}attn_norm")), norm(&format!("{prefix}mlp_norm")));
        let mut plan = BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp));
        if block == 0 {
            // The embedding's norm is there already.
            plan.parts[0].norm = Before::Nothing;
        }
        Ok(plan)
    };
    Ok(Plan {
        prefix: "model.",
        prefixes: &[""],
        images: None,
        joint: None,
        embedding: EmbeddingPlan {
            table: "model.embeddings.tok_embeddings.weight".to_owned(),
            width: config.hidden,
            scale: 1.0,
            positions: None,
            types: None,
            norm: Some(norm("model.embeddings.norm")),
            project: None,
        },
        layers: "model.layers.".to_owned(),
        blocks: (0..config.blocks).map(block).collect::<Result<_>>()?,
        head: HeadPlan {
            norm: Some(norm("model.final_norm")),
            transform: Some(transform(draft, "head.dense", "head.norm", bias)),
            project: None,
            matrix: "model.embeddings.tok_embeddings.weight".to_owned(),
            bias: keys.or("decoder_bias", true)?.then(|| "decoder.bias".to_owned()),
            scale: 1.0,
            softcap: None,
        },
    })
}
