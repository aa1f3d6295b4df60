//! Names of the weights in a checkpoint.

use tensorpress_tensor::rewrite::{BlockShape, LinearSpec, Role, SharedInput};

use crate::config::{Architecture, Config};

/// Names in one checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    bert: bool,
    /// Before every name except the head's: `model.`, `bert.` or nothing.
    prefix: &'static str,
}

impl Names {
    /// Finds the prefix this checkpoint uses; `contains` asks for a weight.
    pub(crate) fn new(architecture: Architecture, contains: impl Fn(&str) -> bool) -> Self {
        let bert = architecture == Architecture::Bert;
        let prefix = if bert { "bert." } else { "model." };
        let bare = Self { bert, prefix: "" };
        let full = Self { bert, prefix };
        // Without either, errors name the usual one.
        let usual = if bert { &bare } else { &full };
        [&full, &bare].into_iter().find(|n| contains(&n.embedding())).unwrap_or(usual).clone()
    }

    fn global(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn embedding(&self) -> String {
        self.global(if self.bert {
            "embeddings.word_embeddings.weight"
        } else {
            "embed_tokens.weight"
        })
    }

    pub(crate) fn positions(&self) -> String {
        self.global("embeddings.position_embeddings.weight")
    }

    pub(crate) fn token_types(&self) -> String {
        self.global("embeddings.token_type_embeddings.weight")
    }

    /// The norm before the first block of an encoder, or after the last of a decoder.
    pub(crate) fn outer_norm(&self) -> String {
        self.global(if self.bert { "embeddings.LayerNorm.weight" } else { "norm.weight" })
    }

    pub(crate) fn head(&self) -> String {
        "lm_head.weight".to_owned()
    }

    /// What all names of a block begin with.
    pub(crate) fn block(&self, block: usize) -> String {
        let layers = if self.bert { "encoder.layer" } else { "layers" };
        format!("{}{layers}.{block}.", self.prefix)
    }

    /// The number of the block a name belongs to, and the rest of the name.
    pub(crate) fn block_of<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        let layers = if self.bert { "encoder.layer." } else { "layers." };
        let (number, rest) =
            name.strip_prefix(self.prefix)?.strip_prefix(layers)?.split_once('.')?;
        Some((number.parse().ok()?, rest))
    }

    fn in_block(&self, block: usize, name: &str) -> String {
        format!("{}{name}.weight", self.block(block))
    }

    /// The two norms of a block.
    pub(crate) fn norms(&self, block: usize) -> [String; 2] {
        let names = if self.bert {
            ["attention.output.LayerNorm", "output.LayerNorm"]
        } else {
            ["input_layernorm", "post_attention_layernorm"]
        };
        names.map(|name| self.in_block(block, name))
    }

    /// The norms of the heads of q and k.
    pub(crate) fn head_norms(&self, block: usize) -> [String; 2] {
        ["self_attn.q_norm", "self_attn.k_norm"].map(|name| self.in_block(block, name))
    }

    fn weight(&self, block: usize, role: Role) -> String {
        let name = match (self.bert, role) {
            (false, Role::Q) => "self_attn.q_proj",
            (false, Role::K) => "self_attn.k_proj",
            (false, Role::V) => "self_attn.v_proj",
            (false, Role::O) => "self_attn.o_proj",
            (false, Role::Gate) => "mlp.gate_proj",
            (false, Role::Up) => "mlp.up_proj",
            (false, Role::Down) => "mlp.down_proj",
            (true, Role::Q) => "attention.self.query",
            (true, Role::K) => "attention.self.key",
            (true, Role::V) => "attention.self.value",
            (true, Role::O) => "attention.output.dense",
            (true, Role::Gate | Role::Up) => "intermediate.dense",
            (true, Role::Down) => "output.dense",
        };
        self.in_block(block, name)
    }

    /// The linear layer of a role.
    pub(crate) fn linear(&self, config: &Config, block: usize, role: Role) -> LinearSpec {
        let (hidden, dim) = (config.hidden, config.head_dim);
        let BlockShape { heads, kv_heads, intermediate: inner, .. } = config.shape(block);
        let (width, kv) = (heads * dim, kv_heads * dim);
        let (shape, needs_bias) = match role {
            Role::Q => ([width, hidden], config.qkv_bias),
            Role::K | Role::V => ([kv, hidden], config.qkv_bias),
            Role::O => ([hidden, width], config.output_bias),
            Role::Gate | Role::Up => ([inner, hidden], config.mlp_bias),
            Role::Down => ([hidden, inner], config.mlp_bias),
        };
        let [first, second] = self.norms(block);
        let mut spec = LinearSpec::new(role, self.weight(block, role), shape);
        spec.needs_bias = needs_bias;
        spec.norm = match spec.input {
            // An encoder's norms feed the residual stream too.
            _ if self.bert => None,
            SharedInput::Attention => Some(first),
            SharedInput::Mlp => Some(second),
            _ => None,
        };
        spec
    }

    /// The matrices of a block, in the order in which a token meets them.
    pub(crate) fn roles(&self) -> &'static [Role] {
        match self.bert {
            false => &[Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down],
            true => &[Role::Q, Role::K, Role::V, Role::O, Role::Up, Role::Down],
        }
    }
}

/// `x.weight` to `x.bias`.
pub(crate) fn bias_of(weight: &str) -> String {
    format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
}
