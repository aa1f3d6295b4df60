//! What a model is built of, as far as a rewrite needs to know.

use super::{HeadLayout, ScanLayout};
use crate::error::{Error, Result};

/// The inputs that the linear layers of a block read; layers that read the same one share its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SharedInput {
    /// Read by q, k and v, or by what compresses them to latents.
    Attention,
    /// The latent of the queries, read by what expands it.
    QueryLatent,
    /// The latent of keys and values, read by what expands it.
    KeyValueLatent,
    /// Read by the attention's output matrix.
    AttentionOutput,
    /// Read by gate and up, and by routers.
    Mlp,
    /// Read by down.
    MlpOutput,
    /// The tokens of a routed expert, read by its gate and up.
    Expert(usize),
    /// Read by the down of a routed expert.
    ExpertOutput(usize),
    /// Read by the down of a shared expert.
    SharedOutput,
    /// Read by what projects into a state-space layer.
    Scan,
    /// The channels behind the convolution of a state-space layer, read by what makes its steps, B and C of them.
    ScanChannels,
    /// The latent of the steps, read by what expands it.
    ScanStep,
    /// Read by the output matrix of a state-space layer.
    ScanOutput,
    /// Read by a matrix of which nothing is known, by its number in its block.
    Other(usize),
}

impl SharedInput {
    /// Those of a transformer block without experts and latents, in the order in which it meets them.
    pub const ALL: [Self; 4] = [Self::Attention, Self::AttentionOutput, Self::Mlp, Self::MlpOutput];
}

/// What a linear layer does in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output matrix.
    O,
    /// The gate of the feed-forward network.
    Gate,
    /// Into the feed-forward network.
    Up,
    /// Out of the feed-forward network.
    Down,
    /// Queries, keys and values in one matrix.
    Qkv,
    /// Gate and up in one matrix.
    GateUp,
    /// From hidden states to the latent of the queries.
    QueryDown,
    /// From the latent of the queries to queries.
    QueryUp,
    /// From hidden states to the latent of keys and values, and the part of the keys that is turned.
    KeyValueDown,
    /// From the latent to keys and values.
    KeyValueUp,
    /// Scores the experts.
    Router,
    /// Weighs a shared expert.
    SharedGate,
    /// From hidden states to the channels of a state-space layer, and what goes along with them.
    ScanIn,
    /// From its channels to the latent of the steps, B and C.
    ScanParameters,
    /// From the latent of the steps to steps.
    ScanStep,
    /// The output matrix of a state-space layer.
    ScanOut,
    /// Nothing is known.
    Other,
}

/// Which of several feed-forward networks side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expert {
    /// One of those that a router chooses from, by its index.
    Routed(usize),
    /// The one that sees every token.
    Shared,
}

/// Where a matrix lies in a checkpoint, if it is not a tensor of its own name and orientation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The stored tensor.
    pub tensor: String,
    /// The stored tensor of its bias, of the same stack.
    pub bias: Option<String>,
    /// Which matrix of a stack `[index, ..]` it is.
    pub index: Option<usize>,
    /// Stored as `[in, out]`.
    pub transposed: bool,
}

impl Role {
    /// The input that layers of this role read.
    #[must_use]
    pub fn input(self) -> SharedInput {
        match self {
            Self::Q | Self::K | Self::V | Self::Qkv | Self::QueryDown | Self::KeyValueDown => {
                SharedInput::Attention
            }
            Self::QueryUp => SharedInput::QueryLatent,
            Self::KeyValueUp => SharedInput::KeyValueLatent,
            Self::O => SharedInput::AttentionOutput,
            Self::Gate | Self::Up | Self::GateUp | Self::Router | Self::SharedGate => {
                SharedInput::Mlp
            }
            Self::Down => SharedInput::MlpOutput,
            Self::ScanIn => SharedInput::Scan,
            Self::ScanParameters => SharedInput::ScanChannels,
            Self::ScanStep => SharedInput::ScanStep,
            Self::ScanOut => SharedInput::ScanOutput,
            Self::Other => SharedInput::Other(0),
        }
    }
}

/// A linear layer of a block: what a compression pipeline needs to know about it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LinearSpec {
    /// What it does in its block.
    pub role: Role,
    /// Full name of the weight.
    pub name: String,
    /// Full name its bias has, or would have.
    pub bias: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The input it reads, shared with its siblings.
    pub input: SharedInput,
    /// Full name of the norm weight that feeds this input and nothing else, so that input scales fold into it.
    pub norm: Option<String>,
    /// What that norm multiplies by is its weight plus this.
    pub norm_offset: f32,
    /// The model does not work without the bias.
    pub needs_bias: bool,
    /// The expert it belongs to, of several.
    pub expert: Option<Expert>,
    /// Where it lies, if not under its name.
    pub place: Option<Place>,
}

impl LinearSpec {
    /// A layer without a norm of its own that works without a bias. The bias of `x.weight` is `x.bias`.
    #[must_use]
    pub fn new(role: Role, name: impl Into<String>, shape: [usize; 2]) -> Self {
        let name = name.into();
        let bias = format!("{}.bias", name.strip_suffix(".weight").unwrap_or(&name));
        Self {
            role,
            bias,
            shape,
            input: role.input(),
            norm: None,
            norm_offset: 0.0,
            needs_bias: false,
            expert: None,
            place: None,
            name,
        }
    }

    /// Sets whether the model works without the bias.
    #[must_use]
    pub fn with_bias(mut self, needs_bias: bool) -> Self {
        self.needs_bias = needs_bias;
        self
    }

    /// Makes it a layer of an expert.
    #[must_use]
    pub fn with_expert(mut self, expert: Expert) -> Self {
        self.expert = Some(expert);
        self.input = match (self.input, expert) {
            (SharedInput::Mlp, Expert::Routed(index)) => SharedInput::Expert(index),
            (SharedInput::MlpOutput, Expert::Routed(index)) => SharedInput::ExpertOutput(index),
            (SharedInput::MlpOutput, Expert::Shared) => SharedInput::SharedOutput,
            (input, _) => input,
        };
        self
    }

    /// Sets where it lies.
    #[must_use]
    pub fn with_place(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

/// What one block has; blocks of a pruned model may differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct BlockShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
    /// Experts that a router chooses from, where the config gives this block a number of its own; else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub experts: usize,
    /// To how many of them a token goes, where the block has a number of its own; else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub chosen: usize,
    /// Width inside each of them, where the block has widths of its own; else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_widths: Vec<usize>,
    /// Heads of a state-space layer, where an edit changes them; their channels are the intermediate ones. Else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scan_heads: usize,
}

impl BlockShape {
    /// A shape.
    #[must_use]
    pub fn new(heads: usize, kv_heads: usize, intermediate: usize) -> Self {
        Self { heads, kv_heads, intermediate, ..Self::default() }
    }

    /// The same without anything of its own about experts.
    #[must_use]
    pub fn without_experts(&self) -> Self {
        let Self { heads, kv_heads, intermediate, scan_heads, .. } = *self;
        Self { scan_heads, ..Self::new(heads, kv_heads, intermediate) }
    }

    /// Says to how many experts a token goes.
    #[must_use]
    pub fn with_chosen(mut self, chosen: usize) -> Self {
        self.chosen = chosen;
        self
    }

    /// Gives its experts widths of their own.
    #[must_use]
    pub fn with_expert_widths(mut self, widths: Vec<usize>) -> Self {
        self.expert_widths = widths;
        self
    }

    /// Gives the block a number of experts of its own.
    #[must_use]
    pub fn with_experts(mut self, experts: usize) -> Self {
        self.experts = experts;
        self
    }

    /// Gives the block so many heads of a state-space layer, and channels of all of them.
    #[must_use]
    pub fn with_scan(mut self, heads: usize, channels: usize) -> Self {
        (self.scan_heads, self.intermediate) = (heads, channels);
        self
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Experts that a router chooses from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// To how many of them a token goes; at least as many stay.
    pub chosen: usize,
    /// Groups of as many consecutive experts; each loses as many. 1 without.
    pub groups: usize,
    /// How many of the groups a token chooses first, and then among their experts.
    pub open_groups: usize,
    /// By how many of its experts a group is judged: as many stay of each.
    pub judged: usize,
    /// The matrix that scores them, an expert a row.
    pub router: String,
    /// Vectors with a number an expert.
    pub beside: Vec<String>,
    /// Where gate and up are one matrix, every other row is the gate's; else its rows come first.
    pub alternating: bool,
}

impl Experts {
    /// Experts in one group, with nothing beside the router.
    #[must_use]
    pub fn new(count: usize, chosen: usize, router: impl Into<String>) -> Self {
        Self {
            count,
            chosen,
            groups: 1,
            open_groups: 1,
            judged: 1,
            router: router.into(),
            beside: Vec::new(),
            alternating: false,
        }
    }

    /// Sets the groups, how many of them a token chooses, and by how many of its experts it judges one. Groups that do not
    /// divide the experts are none.
    #[must_use]
    pub fn with_groups(mut self, groups: usize, open: usize, judged: usize) -> Self {
        let divides = groups > 0 && self.count >= groups && self.count.is_multiple_of(groups);
        self.groups = if divides { groups } else { 1 };
        self.open_groups = open.clamp(1, self.groups);
        self.judged = judged.max(1);
        self
    }

    /// Sets the vectors beside the router.
    #[must_use]
    pub fn with_beside(mut self, beside: impl Into<Vec<String>>) -> Self {
        self.beside = beside.into();
        self
    }

    /// Sets where the rows of the gate are in a matrix of gate and up.
    #[must_use]
    pub fn with_alternating(mut self, alternating: bool) -> Self {
        self.alternating = alternating;
        self
    }

    /// The least that stay of each group, so that a token still finds as many as it goes to.
    #[must_use]
    pub fn least(&self) -> usize {
        let each = (self.count / self.groups).max(1);
        self.chosen.div_ceil(self.open_groups).max(self.judged).clamp(1, each)
    }
}

/// A block.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockLayout {
    /// Its number, from 0.
    pub block: usize,
    /// What the names of all its tensors begin with, and of no others.
    pub prefix: String,
    /// Its heads and width.
    pub shape: BlockShape,
    /// Its linear layers, in the order in which a token meets them.
    pub linears: Vec<LinearSpec>,
    /// Its experts, if a router chooses among any.
    pub experts: Option<Experts>,
    /// Its state-space layer, if that has heads.
    pub scan: Option<ScanLayout>,
}

impl BlockLayout {
    /// A block.
    #[must_use]
    pub fn new(
        block: usize,
        prefix: impl Into<String>,
        shape: BlockShape,
        linears: Vec<LinearSpec>,
    ) -> Self {
        Self { block, prefix: prefix.into(), shape, linears, experts: None, scan: None }
    }

    /// Sets its experts.
    #[must_use]
    pub fn with_experts(mut self, experts: Option<Experts>) -> Self {
        self.experts = experts;
        self
    }

    /// Sets its state-space layer.
    #[must_use]
    pub fn with_scan(mut self, scan: Option<ScanLayout>) -> Self {
        self.scan = scan;
        self
    }

    /// The layer of a role, if the block has one.
    #[must_use]
    pub fn linear(&self, role: Role) -> Option<&LinearSpec> {
        self.linears.iter().find(|spec| spec.role == role)
    }

    /// Weights of all its linear layers.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.linears.iter().map(|spec| spec.shape[0] * spec.shape[1]).sum()
    }
}

/// What the config of the result can say beside the sizes that every config has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sayable {
    /// How wide a head is, so that there may be any number of heads.
    pub head_dim: bool,
    /// That the attention's output matrix has a bias.
    pub output_bias: bool,
    /// That the feed-forward network has biases.
    pub mlp_bias: bool,
    /// How wide the experts that a router chooses from are, and nothing else along with it.
    pub expert_width: bool,
}

impl Sayable {
    /// All of it: a compressed folder, whose config records every block.
    pub const ALL: Self =
        Self { head_dim: true, output_bias: true, mlp_bias: true, expert_width: true };

    /// What a plain config can say.
    #[must_use]
    pub const fn new(head_dim: bool, output_bias: bool, mlp_bias: bool) -> Self {
        Self { head_dim, output_bias, mlp_bias, expert_width: false }
    }

    /// Sets whether it can say how wide experts are.
    #[must_use]
    pub const fn with_expert_width(mut self, expert_width: bool) -> Self {
        self.expert_width = expert_width;
        self
    }
}

/// A model, before a rewrite.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelLayout {
    /// Its architecture, for messages.
    pub architecture: String,
    /// Tokens see only what comes before them.
    pub decoder: bool,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Its blocks, in order.
    pub blocks: Vec<BlockLayout>,
    /// What makes logits, if it makes any.
    pub head: Option<HeadLayout>,
    /// What the config of the result can say.
    pub says: Sayable,
    /// Heads and channels of its blocks can be removed, and whole blocks.
    pub editable: bool,
}

impl ModelLayout {
    /// A decoder whose result can say everything.
    #[must_use]
    pub fn new(
        architecture: impl Into<String>,
        hidden: usize,
        head_dim: usize,
        blocks: Vec<BlockLayout>,
    ) -> Self {
        let (architecture, decoder, says) = (architecture.into(), true, Sayable::ALL);
        let (head, editable) = (None, true);
        Self { architecture, decoder, hidden, head_dim, blocks, head, says, editable }
    }

    /// Sets what makes logits.
    #[must_use]
    pub fn with_head(mut self, head: Option<HeadLayout>) -> Self {
        self.head = head;
        self
    }

    /// Sets whether it is a decoder.
    #[must_use]
    pub fn with_decoder(mut self, decoder: bool) -> Self {
        self.decoder = decoder;
        self
    }

    /// Sets whether blocks can be changed and removed.
    #[must_use]
    pub fn with_editable(mut self, editable: bool) -> Self {
        self.editable = editable;
        self
    }

    /// `Unsupported` for a model whose blocks cannot be changed; `what` asks for it.
    ///
    /// # Errors
    /// As said.
    pub fn check_editable(&self, what: &str) -> Result<()> {
        if self.editable {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "{what}: heads, channels and blocks of {} cannot be removed here",
            self.architecture
        )))
    }

    /// Sets what the config of the result can say.
    #[must_use]
    pub fn with_says(mut self, says: Sayable) -> Self {
        self.says = says;
        self
    }
}
