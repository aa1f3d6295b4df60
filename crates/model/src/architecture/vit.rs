//! ViT: an encoder of images, whose patches are its tokens.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, EmbeddingPlan, HeadPlan, ImagePlan, MixerPlan, Plan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["vit"],
    decoder: false,
    images: true,
    biases: |keys| Ok([keys.or("qkv_bias", true)?, true, true]),
    activation: "gelu",
    eps: 1e-12,
    turns: false,
    defaults: &[
        ("hidden_size", 768),
        ("num_hidden_layers", 12),
        ("num_attention_heads", 12),
        ("intermediate_size", 3072),
        ("image_size", 224),
        ("patch_size", 16),
        ("num_channels", 3),
    ],
    plan: vit,
    ..Row::DECODER
}];

fn vit(draft: &Draft<'_>) -> Result<Plan> {
    let prefix = "vit.";
    let layers = format!("{prefix}encoder.layer.");
    let block = |block: usize| {
        let prefix = format!("{layers}{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
        ];
        let attention = draft.attention_in(block, &prefix, names);
        let mlp = draft.plain(block, &prefix, "intermediate.dense", "output.dense");
        let (first, second) = (norm("layernorm_before"), norm("layernorm_after"));
        Ok(BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp)))
    };
    let patches = format!("{prefix}embeddings.patch_embeddings.projection");
    let images = ImagePlan {
        class: format!("{prefix}embeddings.cls_token"),
        patches: format!("{patches}.weight"),
        bias: Some(format!("{patches}.bias")),
        positions: format!("{prefix}embeddings.position_embeddings"),
        before: None,
        last: Some(draft.norm(&format!("{prefix}layernorm")).layer(true)),
        pooled: None,
        pooler: Some(format!("{prefix}pooler.dense.weight")),
        classifier: Some("classifier.weight".to_owned()),
    };
    let blocks = (0..draft.config.blocks).map(block).collect::<Result<_>>()?;
    Ok(Plan::of_images(prefix, &[""], layers, blocks, images))
}

impl Plan {
    /// A model that reads images alone.
    pub(super) fn of_images(
        prefix: &'static str,
        prefixes: &'static [&'static str],
        layers: String,
        blocks: Vec<BlockPlan>,
        images: ImagePlan,
    ) -> Self {
        Self {
            prefix,
            prefixes,
            // Names are looked for by the patches.
            embedding: EmbeddingPlan::none(&images.patches),
            head: HeadPlan::none(&images.patches),
            layers,
            blocks,
            images: Some(images),
            joint: None,
        }
    }
}
