//! GPT-2, GPT-NeoX, OPT and StarCoder 2: layer norms with biases, and networks without gates.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{LinearSpec, Place, Role};

use super::phi::fused;
use super::plan::{
    Before, BlockPlan, Fused, MixerPlan, MlpKind, NormPlan, PartPlan, Plan, PositionsPlan, Project,
};
use super::row::{Draft, Row, everywhere};

pub(super) const ROWS: &[Row] = &[
    Row {
        kinds: &["gpt2"],
        biases: |_| Ok([true; 3]),
        activation: "gelu_new",
        eps: 1e-5,
        tied: true,
        wide: true,
        turns: false,
        plan: gpt2,
        ..Row::DECODER
    },
    Row {
        kinds: &["gpt_neox"],
        biases: |keys| {
            let bias = keys.or("attention_bias", true)?;
            Ok([bias, bias, true])
        },
        activation: "gelu",
        eps: 1e-5,
        plan: gpt_neox,
        ..Row::DECODER
    },
    Row {
        kinds: &["opt"],
        biases: |keys| Ok([keys.or("enable_bias", true)?; 3]),
        activation: "relu",
        eps: 1e-5,
        tied: true,
        turns: false,
        plan: opt,
        ..Row::DECODER
    },
    Row {
        kinds: &["starcoder2"],
        biases: |keys| Ok([keys.or("use_bias", true)?; 3]),
        activation: "gelu_pytorch_tanh",
        eps: 1e-5,
        tied: true,
        windows: everywhere,
        plan: starcoder2,
        ..Row::DECODER
    },
];

/// Stored as `[in, out]`.
fn transposed(spec: &mut LinearSpec) {
    spec.place =
        Some(Place { tensor: spec.name.clone(), bias: None, index: None, transposed: true });
}

fn gpt2(draft: &Draft<'_>) -> Result<Plan> {
    let by_layer = draft.keys.or("scale_attn_by_inverse_layer_idx", false)?;
    let scaled = draft.keys.or("scale_attn_weights", true)?;
    let block = |block: usize| {
        let prefix = format!("transformer.h.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["c_attn", "c_proj"];
        let mut attention = fused(draft, block, &format!("{prefix}attn."), names, Fused::Blocks);
        attention.scale = if scaled { attention.scale } else { 1.0 };
        if by_layer {
            attention.scale /= (block + 1) as f32;
        }
        let mut mlp = draft.plain(block, &format!("{prefix}mlp."), "c_fc", "c_proj");
        if let (Project::Fused { qkv, .. }, MlpKind::Plain { up }) =
            (&mut attention.project, &mut mlp.kind)
        {
            [qkv, up, &mut attention.o, &mut mlp.down].into_iter().for_each(transposed);
        }
        let (first, second) = (norm("ln_1"), norm("ln_2"));
        Ok(BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp)))
    };
    let mut plan = draft.decoder_in("transformer.", "h.", "wte", "ln_f", block)?;
    plan.prefixes = &["", "transformer."];
    plan.embedding.positions = Some(PositionsPlan {
        table: "transformer.wpe.weight".to_owned(),
        rows: draft.config.context,
        first: 0,
        pad: None,
    });
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    Ok(plan)
}

fn gpt_neox(draft: &Draft<'_>) -> Result<Plan> {
    let parallel = draft.keys.or("use_parallel_residual", true)?;
    let block = |block: usize| {
        let prefix = format!("gpt_neox.layers.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["query_key_value", "dense"];
        let mut attention =
            fused(draft, block, &format!("{prefix}attention."), names, Fused::Groups);
        attention.rope =
            draft.partial_rope(&["partial_rotary_factor", "rotary_pct"], 0.25, false)?;
        let mlp = draft.plain(block, &format!("{prefix}mlp."), "dense_h_to_4h", "dense_4h_to_h");
        let (first, second) = (norm("input_layernorm"), norm("post_attention_layernorm"));
        let mut plan = BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp));
        plan.parallel = parallel;
        Ok(plan)
    };
    let mut plan =
        draft.decoder_in("gpt_neox.", "layers.", "embed_in", "final_layer_norm", block)?;
    plan.prefixes = &["", "gpt_neox."];
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    if !draft.config.tied {
        plan.head.matrix = "embed_out.weight".to_owned();
    }
    Ok(plan)
}

fn opt(draft: &Draft<'_>) -> Result<Plan> {
    let (keys, hidden) = (draft.keys, draft.config.hidden);
    let before = keys.or("do_layer_norm_before", true)?;
    let width = keys.or("word_embed_proj_dim", hidden)?;
    let block = |block: usize| {
        let prefix = format!("model.decoder.layers.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let attention = draft.attention_in(block, &format!("{prefix}self_attn."), names);
        let mlp = draft.plain(block, &prefix, "fc1", "fc2");
        Ok(BlockPlan::around(
            &prefix,
            before,
            norm("self_attn_layer_norm"),
            attention,
            norm("final_layer_norm"),
            mlp,
        ))
    };
    let prefix = "model.decoder.";
    let mut plan =
        draft.decoder_in(prefix, "layers.", "embed_tokens", "final_layer_norm", block)?;
    plan.prefixes = &["decoder.", "model.decoder."];
    plan.embedding.width = width;
    plan.embedding.positions = Some(PositionsPlan {
        table: format!("{prefix}embed_positions.weight"),
        rows: draft.config.context + 2,
        first: 2,
        pad: None,
    });
    let normed = before && !keys.or("_remove_final_layer_norm", false)?;
    plan.head.norm = plan.head.norm.filter(|_| normed).map(|norm| norm.layer(true));
    if width != hidden {
        let project = |name: &str, shape| {
            Some(LinearSpec::new(Role::Up, format!("{prefix}{name}.weight"), shape))
        };
        plan.embedding.project = project("project_in", [hidden, width]);
        plan.head.project = project("project_out", [width, hidden]);
    }
    Ok(plan)
}

fn starcoder2(draft: &Draft<'_>) -> Result<Plan> {
    let mut plan = draft.decoder(|block| {
        let prefix = draft.prefix(block);
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let mlp = draft.plain(block, &format!("{prefix}mlp."), "c_fc", "c_proj");
        Ok(BlockPlan::pre_norm(
            &prefix,
            norm("input_layernorm"),
            draft.attention(block),
            norm("post_attention_layernorm"),
            MixerPlan::Mlp(mlp),
        ))
    })?;
    plan.head.norm = plan.head.norm.map(|norm| norm.layer(true));
    Ok(plan)
}

impl BlockPlan {
    /// Attention and a feed-forward network, their norms before them or behind the sums with the stream.
    pub(super) fn around(
        prefix: &str,
        before: bool,
        first: NormPlan,
        attention: super::plan::AttentionPlan,
        second: NormPlan,
        mlp: super::plan::MlpPlan,
    ) -> Self {
        let (attention, mlp) = (MixerPlan::Attention(Box::new(attention)), MixerPlan::Mlp(mlp));
        let part = |norm, mixer| match before {
            true => PartPlan::new(Before::Norm(norm), mixer),
            false => PartPlan { then: Some(norm), ..PartPlan::new(Before::Nothing, mixer) },
        };
        let parts = vec![part(first, attention), part(second, mlp)];
        Self { prefix: prefix.to_owned(), parts, parallel: false }
    }
}
