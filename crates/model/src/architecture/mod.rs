//! The architectures: each a row that says how its config reads and what its blocks are made of.

mod bert;
mod clip;
mod cohere;
mod deepseek;
mod falcon;
mod gemma;
mod glm;
mod gpt;
mod gpt_oss;
mod llama;
mod llama4;
mod mamba;
mod mixture;
mod modernbert;
mod olmo;
mod phi;
mod plan;
mod row;
mod stablelm;
mod t5;
mod vit;

use tensorpress_tensor::Result;

use crate::config::keys::Keys;
pub(crate) use plan::*;
pub(crate) use row::{Draft, Row};

/// Every architecture that has a forward pass here.
fn rows() -> impl Iterator<Item = &'static Row> {
    let all: [&'static [Row]; 19] = [
        llama::ROWS,
        gemma::ROWS,
        phi::ROWS,
        gpt::ROWS,
        gpt_oss::ROWS,
        falcon::ROWS,
        cohere::ROWS,
        glm::ROWS,
        olmo::ROWS,
        stablelm::ROWS,
        mixture::ROWS,
        deepseek::ROWS,
        llama4::ROWS,
        bert::ROWS,
        modernbert::ROWS,
        t5::ROWS,
        mamba::ROWS,
        vit::ROWS,
        clip::ROWS,
    ];
    all.into_iter().flatten()
}

/// An architecture that has a forward pass here.
#[derive(Clone, Copy)]
pub struct Architecture(&'static Row);

static UNKNOWN: Row = Row {
    kinds: &["tensors"],
    decoder: false,
    turns: false,
    plan: |draft| Err(draft.keys.unsupported("a plan of tensors alone")),
    ..Row::DECODER
};

impl Architecture {
    /// That of a model of which nothing is known but its tensors.
    pub(crate) const UNKNOWN: Self = Self(&UNKNOWN);

    /// The `model_type` of its configs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.kinds[0]
    }

    /// Whether tokens see only what comes before them, and there is a head over the vocabulary.
    #[must_use]
    pub fn is_decoder(&self) -> bool {
        self.0.decoder
    }

    /// Whether heads and channels of its blocks can be removed, and whole blocks.
    #[must_use]
    pub fn is_editable(&self) -> bool {
        self.0.editable
    }

    /// The architecture of this `model_type`.
    pub(crate) fn named(kind: &str) -> Option<Self> {
        rows().find(|row| row.kinds.contains(&kind)).map(Self)
    }

    pub(crate) fn row(&self) -> &'static Row {
        self.0
    }

    /// What a config says it is: its `model_type`, or in old checkpoints its class (LlamaForCausalLM).
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Self> {
        let named: Vec<String> = keys.or("architectures", Vec::new())?;
        let kind = match keys.get::<String>("model_type")? {
            Some(kind) => kind,
            None => match named.first().and_then(|class| class.split("For").next()) {
                Some(class) => class.trim_end_matches("Model").to_lowercase(),
                None => keys.require("model_type")?,
            },
        };
        Self::named(&kind).ok_or_else(|| {
            let known: Vec<&str> = rows().map(|row| row.kinds[0]).collect();
            keys.unsupported(format!("`model_type` = `{kind}`; known are {}", known.join(", ")))
        })
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Architecture {}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Architecture {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
