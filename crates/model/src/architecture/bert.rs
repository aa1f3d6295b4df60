//! BERT and its kin: encoders whose norms come behind the sums with the stream.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{LinearSpec, Role};

use super::plan::{BlockPlan, EmbeddingPlan, HeadPlan, Plan, PositionsPlan, TransformPlan};
use super::row::{Draft, Row};

const BERT: Row = Row {
    decoder: false,
    biases: |_| Ok([true; 3]),
    activation: "gelu",
    eps: 1e-12,
    turns: false,
    ..Row::DECODER
};

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["bert"], editable: true, plan: |draft| bert(draft, &BERT_NAMES), ..BERT },
    Row {
        kinds: &["roberta", "xlm-roberta"],
        eps: 1e-5,
        reserved: |keys| Ok(keys.or("pad_token_id", 1usize)? + 1),
        plan: |draft| bert(draft, &ROBERTA_NAMES),
        ..BERT
    },
    Row { kinds: &["distilbert"], plan: |draft| bert(draft, &DISTIL_NAMES), ..BERT },
];

/// What the kinds call their tensors.
struct Names {
    prefix: &'static str,
    prefixes: &'static [&'static str],
    layers: &'static str,
    types: bool,
    /// q, k, v, output; their norm; into and out of the feed-forward network; its norm.
    block: [&'static str; 8],
    /// Dense, norm and bias of the head.
    head: [&'static str; 3],
}

const BERT_BLOCK: [&str; 8] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];

const BERT_NAMES: Names = Names {
    prefix: "bert.",
    prefixes: &[""],
    layers: "encoder.layer.",
    types: true,
    block: BERT_BLOCK,
    head: [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ],
};

const ROBERTA_NAMES: Names = Names {
    prefix: "roberta.",
    prefixes: &[""],
    head: ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias"],
    ..BERT_NAMES
};

const DISTIL_NAMES: Names = Names {
    prefix: "distilbert.",
    prefixes: &[""],
    layers: "transformer.layer.",
    types: false,
    block: [
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ],
    head: ["vocab_transform", "vocab_layer_norm", "vocab_projector.bias"],
};

fn bert(draft: &Draft<'_>, names: &Names) -> Result<Plan> {
    let Names {
        prefix,
        prefixes,
        layers,
        types,
        block: [q, k, v, o, first, up, down, second],
        head,
    } = *names;
    let config = draft.config;
    let embeddings = |name: &str| format!("{prefix}embeddings.{name}_embeddings.weight");
    let layers = format!("{prefix}{layers}");
    let block = |block: usize| {
        let prefix = format!("{layers}{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let attention = draft.attention_in(block, &prefix, [q, k, v, o]);
        let mlp = draft.plain(block, &prefix, up, down);
        Ok(BlockPlan::around(&prefix, false, norm(first), attention, norm(second), mlp))
    };
    let first = (config.architecture.row().reserved)(draft.keys)?;
    let pad = draft.keys.get("pad_token_id")?.filter(|_| first > 0);
    Ok(Plan {
        prefix,
        prefixes,
        images: None,
        joint: None,
        embedding: EmbeddingPlan {
            table: embeddings("word"),
            width: config.hidden,
            scale: 1.0,
            positions: Some(PositionsPlan {
                table: embeddings("position"),
                rows: config.context + first,
                first,
                pad,
            }),
            types: types.then(|| embeddings("token_type")),
            norm: Some(draft.norm(&format!("{prefix}embeddings.LayerNorm")).layer(true)),
            project: None,
        },
        blocks: (0..config.blocks).map(block).collect::<Result<_>>()?,
        layers,
        head: HeadPlan {
            norm: None,
            transform: Some(transform(draft, head[0], head[1], true)),
            project: None,
            matrix: embeddings("word"),
            bias: Some(head[2].to_owned()),
            scale: 1.0,
            softcap: None,
        },
    })
}

/// A matrix, an activation and a norm before the logits.
pub(super) fn transform(draft: &Draft<'_>, dense: &str, norm: &str, bias: bool) -> TransformPlan {
    let hidden = draft.config.hidden;
    let dense = LinearSpec::new(Role::Up, format!("{dense}.weight"), [hidden, hidden]);
    TransformPlan {
        dense: dense.with_bias(bias),
        activation: draft.config.activation,
        norm: draft.norm(norm).layer(bias),
    }
}
