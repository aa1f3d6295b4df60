//! BERT: an encoder whose norms come behind the sums with the stream.

use tensorpress_tensor::Result;

use super::plan::{BlockPlan, EmbeddingPlan, HeadPlan, Plan};
use super::row::{Draft, Row};

pub(super) const ROWS: &[Row] = &[Row {
    kinds: &["bert"],
    decoder: false,
    editable: true,
    biases: |_| Ok([true; 3]),
    activation: "gelu",
    eps: 1e-12,
    turns: false,
    plan: bert,
    ..Row::DECODER
}];

fn bert(draft: &Draft<'_>) -> Result<Plan> {
    let word = |name: &str| format!("bert.embeddings.{name}_embeddings.weight");
    let block = |block: usize| {
        let prefix = format!("bert.encoder.layer.{block}.");
        let norm = |name: &str| draft.norm(&format!("{prefix}{name}")).layer(true);
        let names = ["self.query", "self.key", "self.value", "output.dense"];
        Ok(BlockPlan::around(
            &prefix,
            false,
            norm("attention.output.LayerNorm"),
            draft.attention_in(block, &format!("{prefix}attention."), names),
            norm("output.LayerNorm"),
            draft.plain(block, &prefix, "intermediate.dense", "output.dense"),
        ))
    };
    Ok(Plan {
        prefix: "bert.",
        prefixes: &["bert.", ""],
        embedding: EmbeddingPlan {
            table: word("word"),
            width: draft.config.hidden,
            scale: 1.0,
            positions: Some((word("position"), 0)),
            types: Some(word("token_type")),
            norm: Some(draft.norm("bert.embeddings.LayerNorm").layer(true)),
            project: None,
        },
        layers: "bert.encoder.layer.".to_owned(),
        blocks: (0..draft.config.blocks).map(block).collect::<Result<_>>()?,
        head: HeadPlan {
            norm: None,
            project: None,
            matrix: word("word"),
            bias: None,
            scale: 1.0,
            softcap: None,
        },
    })
}
