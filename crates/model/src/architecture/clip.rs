//! CLIP: a causal tower of texts and a tower of images, together or each by itself, and the space they share.

use tensorpress_tensor::Result;

use super::plan::{
    BlockPlan, EmbeddingPlan, HeadPlan, ImagePlan, JointPlan, MixerPlan, Plan, PositionsPlan,
};
use super::row::{Draft, Row};
use crate::config::{MAX_SIZE, tower};

const TOWERS: [(&str, &str); 2] =
    [("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")];

const TOWER: Row = Row {
    decoder: false,
    biases: |_| Ok([true; 3]),
    activation: "quick_gelu",
    eps: 1e-5,
    turns: false,
    ..Row::DECODER
};

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["clip"], towers: Some(TOWERS), plan: both, ..TOWER },
    Row {
        kinds: &["clip_text_model"],
        defaults: &[
            ("vocab_size", 49_408),
            ("hidden_size", 512),
            ("intermediate_size", 2048),
            ("num_hidden_layers", 12),
            ("num_attention_heads", 8),
            ("max_position_embeddings", 77),
            ("bos_token_id", 49_406),
            ("eos_token_id", 49_407),
        ],
        plan: texts,
        ..TOWER
    },
    Row {
        kinds: &["clip_vision_model"],
        images: true,
        defaults: &[
            ("hidden_size", 768),
            ("intermediate_size", 3072),
            ("num_hidden_layers", 12),
            ("num_attention_heads", 12),
            ("image_size", 224),
            ("patch_size", 32),
            ("num_channels", 3),
        ],
        plan: images,
        ..TOWER
    },
];

/// The blocks of a tower, which differ in what sees what.
fn blocks(draft: &Draft<'_>, prefix: &str, causal: bool) -> Result<Vec<BlockPlan>> {
    let block = |block: usize| {
        let prefix = format!("{prefix}encoder.layers.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let mut attention = draft.attention_in(block, &format!("{prefix}self_attn."), names);
        attention.causal = causal;
        let mlp = draft.plain(block, &format!("{prefix}mlp."), "fc1", "fc2");
        let (first, second) = (norm("layer_norm1"), norm("layer_norm2"));
        Ok(BlockPlan::pre_norm(&prefix, first, attention, second, MixerPlan::Mlp(mlp)))
    };
    (0..draft.config.blocks).map(block).collect()
}

fn texts(draft: &Draft<'_>) -> Result<Plan> {
    let (prefix, config) = ("text_model.", draft.config);
    let embeddings = |name: &str| format!("{prefix}embeddings.{name}_embedding.weight");
    Ok(Plan {
        prefix,
        prefixes: &[""],
        embedding: EmbeddingPlan {
            table: embeddings("token"),
            width: config.hidden,
            scale: 1.0,
            positions: Some(PositionsPlan {
                table: embeddings("position"),
                rows: config.context,
                first: 0,
                pad: None,
            }),
            types: None,
            norm: None,
            project: None,
        },
        layers: format!("{prefix}encoder.layers."),
        blocks: blocks(draft, prefix, true)?,
        head: HeadPlan {
            norm: Some(draft.norm(&format!("{prefix}final_layer_norm")).layer(true)),
            transform: None,
            project: None,
            matrix: embeddings("token"),
            bias: None,
            scale: 1.0,
            softcap: None,
        },
        images: None,
        joint: None,
    })
}

fn images(draft: &Draft<'_>) -> Result<Plan> {
    let prefix = "vision_model.";
    let norm = |name: &str| Some(draft.norm(&format!("{prefix}{name}")).layer(true));
    let images = ImagePlan {
        class: format!("{prefix}embeddings.class_embedding"),
        patches: format!("{prefix}embeddings.patch_embedding.weight"),
        bias: None,
        positions: format!("{prefix}embeddings.position_embedding.weight"),
        // Spelt so in every checkpoint.
        before: norm("pre_layrnorm"),
        last: None,
        pooled: norm("post_layernorm"),
        pooler: None,
        classifier: None,
    };
    let layers = format!("{prefix}encoder.layers.");
    Ok(Plan::of_images(prefix, &[""], layers, blocks(draft, prefix, false)?, images))
}

/// The blocks of the texts, then those of the images.
fn both(draft: &Draft<'_>) -> Result<Plan> {
    let keys = draft.keys;
    let plan = |(which, (key, kind)): (usize, (&str, &str))| {
        tower(keys, key, kind, |keys, architecture| {
            let config = draft.config.towers.as_ref().map_or(draft.config, |towers| &towers[which]);
            (architecture.row().plan)(&Draft { keys, config })
        })
    };
    let [mut texts, images] = [plan((0, TOWERS[0]))?, plan((1, TOWERS[1]))?];
    texts.blocks.extend(images.blocks);
    texts.images = images.images;
    let width = keys.or("projection_dim", 512)?;
    texts.joint = Some(JointPlan {
        width: keys.check_size("projection_dim", width, MAX_SIZE)?,
        project: ["text_projection.weight".to_owned(), "visual_projection.weight".to_owned()],
        scale: "logit_scale".to_owned(),
    });
    Ok(Plan { prefix: "", prefixes: &[], ..texts })
}
