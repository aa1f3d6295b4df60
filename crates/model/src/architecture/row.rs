//! What a row is, and what most rows have in common.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, LinearSpec, Role};

use super::plan::{
    AttentionPlan, Before, BlockPlan, EmbeddingPlan, HeadPlan, MixerPlan, MlpKind, MlpPlan,
    NormPlan, PartPlan, Plan, Project, RopePlan,
};
use crate::config::keys::Keys;
use crate::config::{Config, RopeConfig};

/// An architecture.
pub(crate) struct Row {
    /// Values of `model_type`.
    pub(crate) kinds: &'static [&'static str],
    pub(crate) decoder: bool,
    /// Heads, channels and blocks can be removed: the config can say so.
    pub(crate) editable: bool,
    /// The config can say, or implies, that these have biases: q, k and v; the attention's output; the feed-forward network.
    pub(crate) biases: fn(&Keys<'_>) -> Result<[bool; 3]>,
    /// The width of a head where no key says it; hidden / heads where this does not either.
    pub(crate) head_dim: Option<usize>,
    /// The head is the embedding where no key says it.
    pub(crate) tied: bool,
    pub(crate) activation: &'static str,
    pub(crate) eps: f64,
    /// The feed-forward network is four times as wide as the stream where no key says it.
    pub(crate) wide: bool,
    /// Positions are rotations.
    pub(crate) turns: bool,
    /// Blocks have heads; else the width inside them, out of the config and the width of the stream, is all there is to say.
    pub(crate) inner: Option<fn(&Keys<'_>, usize) -> Result<usize>>,
    /// Heads of keys and values, where another key than the usual one says it; asked with the query heads.
    pub(crate) kv_heads: fn(&Keys<'_>, usize) -> Result<usize>,
    /// Rows of the table of positions before the first, which the config counts among the positions.
    pub(crate) reserved: fn(&Keys<'_>) -> Result<usize>,
    /// The window of each block, if there is one; asked with the number of blocks.
    pub(crate) windows: fn(&Keys<'_>, usize) -> Result<Vec<Option<usize>>>,
    /// It reads images, not tokens.
    pub(crate) images: bool,
    /// Keys of its two towers, of texts and of images, and the architectures of these.
    pub(crate) towers: Option<[(&'static str, &'static str); 2]>,
    /// Numbers that its configs leave out where they are these.
    pub(crate) defaults: &'static [(&'static str, u64)],
    pub(crate) plan: fn(&Draft<'_>) -> Result<Plan>,
}

impl Row {
    /// What most decoders are.
    pub(crate) const DECODER: Self = Self {
        kinds: &[],
        decoder: true,
        editable: false,
        biases: |_| Ok([false; 3]),
        head_dim: None,
        tied: false,
        activation: "silu",
        eps: 1e-6,
        wide: false,
        turns: true,
        inner: None,
        reserved: |_| Ok(0),
        kv_heads: |keys, heads| keys.or("num_key_value_heads", heads),
        windows: |_, blocks| Ok(vec![None; blocks]),
        images: false,
        towers: None,
        defaults: &[],
        plan: |draft| draft.decoder(|block| draft.usual(block)),
    };
}

/// The window of every block: `sliding_window`, if it is there.
pub(super) fn everywhere(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    Ok(vec![keys.get::<usize>("sliding_window")?; blocks])
}

/// A config on its way to a plan.
pub(crate) struct Draft<'a> {
    pub(crate) keys: &'a Keys<'a>,
    pub(crate) config: &'a Config,
}

impl Draft<'_> {
    /// A decoder named as Llama is, of these blocks.
    pub(super) fn decoder(&self, block: impl Fn(usize) -> Result<BlockPlan>) -> Result<Plan> {
        self.decoder_in("model.", "layers.", "embed_tokens", "norm", block)
    }

    /// A decoder of these blocks, in checkpoints with these names.
    pub(super) fn decoder_in(
        &self,
        prefix: &'static str,
        layers: &str,
        table: &str,
        norm: &str,
        block: impl Fn(usize) -> Result<BlockPlan>,
    ) -> Result<Plan> {
        let table = format!("{prefix}{table}.weight");
        let embedding = EmbeddingPlan {
            width: self.config.hidden,
            scale: 1.0,
            positions: None,
            types: None,
            norm: None,
            project: None,
            table: table.clone(),
        };
        let head = HeadPlan {
            norm: Some(self.norm(&format!("{prefix}{norm}"))),
            transform: None,
            project: None,
            matrix: if self.config.tied { table } else { "lm_head.weight".to_owned() },
            bias: None,
            scale: 1.0,
            softcap: None,
        };
        Ok(Plan {
            prefix,
            prefixes: &["", "model.", "language_model.model.", "model.language_model."],
            images: None,
            joint: None,
            embedding,
            layers: format!("{prefix}{layers}"),
            blocks: (0..self.config.blocks).map(block).collect::<Result<_>>()?,
            head,
        })
    }

    /// What the names of a block named as in Llama begin with.
    pub(super) fn prefix(&self, block: usize) -> String {
        format!("model.layers.{block}.")
    }

    /// An RMS norm over the stream.
    pub(super) fn norm(&self, name: &str) -> NormPlan {
        NormPlan::new(name, self.config.hidden, self.config.norm_eps)
    }

    /// Attention and a gated feed-forward network, each behind a norm.
    pub(super) fn usual(&self, block: usize) -> Result<BlockPlan> {
        let prefix = self.prefix(block);
        let norm = |name: &str| self.norm(&format!("{prefix}{name}"));
        Ok(BlockPlan::pre_norm(
            &prefix,
            norm("input_layernorm"),
            self.attention(block),
            norm("post_attention_layernorm"),
            MixerPlan::Mlp(self.gated(block)),
        ))
    }

    /// Attention with names as in Llama, rotary embeddings over whole heads, and biases as the config says.
    pub(super) fn attention(&self, block: usize) -> AttentionPlan {
        self.attention_in(
            block,
            &format!("{}self_attn.", self.prefix(block)),
            ["q_proj", "k_proj", "v_proj", "o_proj"],
        )
    }

    /// The same with other names.
    pub(super) fn attention_in(
        &self,
        block: usize,
        prefix: &str,
        [q, k, v, o]: [&str; 4],
    ) -> AttentionPlan {
        let config = self.config;
        let (shape, dim, hidden) = (config.shape(block), config.head_dim, config.hidden);
        let (width, kv) = (shape.heads * dim, shape.kv_heads * dim);
        let linear = |role, name: &str, shape, bias| {
            LinearSpec::new(role, format!("{prefix}{name}.weight"), shape).with_bias(bias)
        };
        AttentionPlan {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: dim,
            value_dim: dim,
            project: Project::Separate {
                q: linear(Role::Q, q, [width, hidden], config.qkv_bias),
                k: linear(Role::K, k, [kv, hidden], config.qkv_bias),
                v: linear(Role::V, v, [kv, hidden], config.qkv_bias),
            },
            o: linear(Role::O, o, [hidden, width], config.output_bias),
            q_norm: None,
            k_norm: None,
            norm_last: false,
            rope: config.rope.clone().map(|rope| RopePlan::whole(rope, dim)),
            causal: config.architecture.is_decoder(),
            window: config.windows[block],
            chunk: None,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap: None,
            sinks: None,
            alibi: false,
            relative: None,
            temperature: None,
        }
    }

    /// A gated feed-forward network with names as in Llama.
    pub(super) fn gated(&self, block: usize) -> MlpPlan {
        let inner = self.config.shape(block).intermediate;
        self.gated_in(&format!("{}mlp.", self.prefix(block)), inner, None)
    }

    /// The same elsewhere, of this width; of an expert.
    pub(super) fn gated_in(&self, prefix: &str, inner: usize, expert: Option<Expert>) -> MlpPlan {
        let names = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("{prefix}{n}.weight"));
        self.gated_of(names, inner, expert)
    }

    /// The same of these matrices: gate, up, down.
    pub(super) fn gated_of(
        &self,
        [gate, up, down]: [String; 3],
        inner: usize,
        expert: Option<Expert>,
    ) -> MlpPlan {
        let (hidden, bias) = (self.config.hidden, self.config.mlp_bias);
        let linear = |role, name, shape| {
            let spec = LinearSpec::new(role, name, shape).with_bias(bias);
            expert.map_or(spec.clone(), |expert| spec.with_expert(expert))
        };
        MlpPlan {
            kind: MlpKind::Gated {
                gate: linear(Role::Gate, gate, [inner, hidden]),
                up: linear(Role::Up, up, [inner, hidden]),
            },
            down: linear(Role::Down, down, [hidden, inner]),
            activation: self.config.activation,
            clamp: None,
        }
    }

    /// A feed-forward network without a gate.
    pub(super) fn plain(&self, block: usize, prefix: &str, up: &str, down: &str) -> MlpPlan {
        let (hidden, inner) = (self.config.hidden, self.config.shape(block).intermediate);
        let linear = |role, name: &str, shape| {
            let name = format!("{prefix}{name}.weight");
            LinearSpec::new(role, name, shape).with_bias(self.config.mlp_bias)
        };
        MlpPlan {
            kind: MlpKind::Plain { up: linear(Role::Up, up, [inner, hidden]) },
            down: linear(Role::Down, down, [hidden, inner]),
            activation: self.config.activation,
            clamp: None,
        }
    }

    /// Rotary embeddings of the first part of a head, as large as the rotary parameters say, or one of these keys.
    pub(super) fn partial_rope(
        &self,
        names: &[&str],
        default: f64,
        interleaved: bool,
    ) -> Result<Option<RopePlan>> {
        let mut share = match self.keys.child("rope_parameters")? {
            Some(child) => child.get::<f64>(names[0])?,
            None => None,
        };
        for name in names {
            share = share.or(self.keys.get(name)?);
        }
        let (share, name) = (share.unwrap_or(default), names[0]);
        let dims = (self.config.head_dim as f64 * share) as usize;
        if !(share > 0.0 && share <= 1.0) || dims == 0 || !dims.is_multiple_of(2) {
            return Err(self.keys.bad(format!(
                "`{name}` = {share}: turns {dims} dimensions of a head; allowed are even numbers, 2 to all"
            )));
        }
        let plan = |config: RopeConfig| RopePlan { config, first: 0, dims, interleaved };
        Ok(self.config.rope.clone().map(plan))
    }
}

impl RopePlan {
    /// All of a head, in halves.
    pub(crate) fn whole(config: RopeConfig, dims: usize) -> Self {
        Self { config, first: 0, dims, interleaved: false }
    }
}

impl NormPlan {
    /// An RMS norm of rows of this width.
    pub(super) fn new(name: &str, width: usize, eps: f32) -> Self {
        Self {
            weights: vec![format!("{name}.weight")],
            len: width,
            width,
            centred: false,
            bias: false,
            offset: 0.0,
            eps,
        }
    }

    /// A layer norm: the mean goes, and there may be a bias.
    pub(super) fn layer(mut self, bias: bool) -> Self {
        (self.centred, self.bias) = (true, bias);
        self
    }

    /// Multiplies by 1 + weight.
    pub(super) fn plus_one(mut self) -> Self {
        self.offset = 1.0;
        self
    }
}

impl PartPlan {
    pub(super) fn new(norm: Before, mixer: MixerPlan) -> Self {
        Self { norm, mixer, after: None, scale: 1.0, then: None }
    }
}

impl BlockPlan {
    /// Attention and a feed-forward network, each behind a norm.
    pub(super) fn pre_norm(
        prefix: &str,
        first: NormPlan,
        attention: AttentionPlan,
        second: NormPlan,
        mlp: MixerPlan,
    ) -> Self {
        let attention = MixerPlan::Attention(Box::new(attention));
        let parts = vec![
            PartPlan::new(Before::Norm(first), attention),
            PartPlan::new(Before::Norm(second), mlp),
        ];
        Self { prefix: prefix.to_owned(), parts, parallel: false }
    }

    /// Attention and a feed-forward network side by side, behind one norm.
    pub(super) fn side_by_side(
        prefix: &str,
        norm: NormPlan,
        attention: AttentionPlan,
        mlp: MlpPlan,
    ) -> Self {
        let attention = MixerPlan::Attention(Box::new(attention));
        let parts = vec![
            PartPlan::new(Before::Norm(norm), attention),
            PartPlan::new(Before::Same, MixerPlan::Mlp(mlp)),
        ];
        Self { prefix: prefix.to_owned(), parts, parallel: true }
    }
}
