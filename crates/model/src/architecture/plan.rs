//! What a model is made of, as data: a list of blocks, each a list of parts around the residual stream.

use tensorpress_tensor::rewrite::{LinearSpec, Role, SharedInput};

use crate::config::{Activation, RopeConfig};

/// A model. Names are full ones, as most checkpoints have them; `Names` finds what a checkpoint calls them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// What names begin with that are not global.
    pub(crate) prefix: &'static str,
    /// What they begin with in other checkpoints.
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) embedding: EmbeddingPlan,
    /// What the names of all blocks begin with; their numbers follow.
    pub(crate) layers: String,
    pub(crate) blocks: Vec<BlockPlan>,
    pub(crate) head: HeadPlan,
    /// Of a model that reads images, alone or in a second tower. Where there is no other, `embedding` and `head` are those
    /// of nothing.
    pub(crate) images: Option<ImagePlan>,
    /// Of a model with two towers.
    pub(crate) joint: Option<JointPlan>,
}

/// What stands around the blocks of images.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImagePlan {
    /// The token that stands before the patches.
    pub(crate) class: String,
    /// Weight `[hidden, channels, side, side]` and bias of what makes tokens of patches.
    pub(crate) patches: String,
    pub(crate) bias: Option<String>,
    /// A position for each token.
    pub(crate) positions: String,
    /// Before the first block.
    pub(crate) before: Option<NormPlan>,
    /// Behind the last.
    pub(crate) last: Option<NormPlan>,
    /// Of the class token alone, behind that.
    pub(crate) pooled: Option<NormPlan>,
    /// Makes one vector of the class token, with tanh behind it, where the checkpoint has it.
    pub(crate) pooler: Option<String>,
    /// Makes logits of the class token, where the checkpoint has it.
    pub(crate) classifier: Option<String>,
}

/// From two towers into one space.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JointPlan {
    pub(crate) width: usize,
    /// Matrices of texts and of images.
    pub(crate) project: [String; 2],
    /// The logarithm of what similarities are multiplied by.
    pub(crate) scale: String,
}

/// From tokens to hidden states.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingPlan {
    pub(crate) table: String,
    /// Columns of the table.
    pub(crate) width: usize,
    pub(crate) scale: f32,
    pub(crate) positions: Option<PositionsPlan>,
    pub(crate) types: Option<String>,
    pub(crate) norm: Option<NormPlan>,
    /// From the table's width to that of the stream.
    pub(crate) project: Option<LinearSpec>,
}

impl EmbeddingPlan {
    /// Of a model that reads no tokens; `table` is what the names of its checkpoint are looked for by.
    pub(crate) fn none(table: &str) -> Self {
        let table = table.to_owned();
        Self {
            table,
            width: 0,
            scale: 1.0,
            positions: None,
            types: None,
            norm: None,
            project: None,
        }
    }
}

/// A table of positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PositionsPlan {
    pub(crate) table: String,
    pub(crate) rows: usize,
    /// The row of the first position.
    pub(crate) first: usize,
    /// This token has no position: it gets the row before the first, and is not counted.
    pub(crate) pad: Option<u32>,
}

/// What lies between an encoder's states and its matrix over the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TransformPlan {
    pub(crate) dense: LinearSpec,
    pub(crate) activation: Activation,
    pub(crate) norm: NormPlan,
}

/// From hidden states to logits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadPlan {
    /// The norm behind the last block.
    pub(crate) norm: Option<NormPlan>,
    pub(crate) transform: Option<TransformPlan>,
    pub(crate) project: Option<LinearSpec>,
    pub(crate) matrix: String,
    pub(crate) bias: Option<String>,
    /// Logits are multiplied by this.
    pub(crate) scale: f32,
    /// And squeezed into this, by tanh.
    pub(crate) softcap: Option<f32>,
}

impl HeadPlan {
    /// Of a model that predicts no tokens; `matrix` as in [`EmbeddingPlan::none`].
    pub(crate) fn none(matrix: &str) -> Self {
        Self {
            norm: None,
            transform: None,
            project: None,
            matrix: matrix.to_owned(),
            bias: None,
            scale: 1.0,
            softcap: None,
        }
    }
}

/// A block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BlockPlan {
    /// What the names of its tensors begin with.
    pub(crate) prefix: String,
    pub(crate) parts: Vec<PartPlan>,
    /// All parts read what the block reads; else each reads what those before it made of that.
    pub(crate) parallel: bool,
}

/// stream = then(stream + scale x after(mixer(norm(stream))))
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartPlan {
    pub(crate) norm: Before,
    pub(crate) mixer: MixerPlan,
    pub(crate) after: Option<NormPlan>,
    pub(crate) scale: f32,
    pub(crate) then: Option<NormPlan>,
}

/// What a part reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Before {
    /// The stream.
    Nothing,
    /// The stream, normalised.
    Norm(NormPlan),
    /// What the part before it read.
    Same,
}

#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one a layer, moved once")]
pub(crate) enum MixerPlan {
    Attention(Box<AttentionPlan>),
    Mlp(MlpPlan),
    Moe(Box<MoePlan>),
    Scan(Box<ScanPlan>),
    /// Matrices of which nothing is known.
    Other(Vec<LinearSpec>),
}

/// Rows of `width` values are normalised; weights that are longer serve as many of them in turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NormPlan {
    /// Tensors of the weight; several are joined. None: all ones.
    pub(crate) weights: Vec<String>,
    /// Values of the weight.
    pub(crate) len: usize,
    pub(crate) width: usize,
    /// The mean goes as well.
    pub(crate) centred: bool,
    pub(crate) bias: bool,
    /// What is multiplied by is the weight plus this.
    pub(crate) offset: f32,
    pub(crate) eps: f32,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttentionPlan {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) project: Project,
    pub(crate) o: LinearSpec,
    pub(crate) q_norm: Option<NormPlan>,
    pub(crate) k_norm: Option<NormPlan>,
    /// The norms come behind the rotation.
    pub(crate) norm_last: bool,
    pub(crate) rope: Option<RopePlan>,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    /// A query sees no key before the last multiple of this.
    pub(crate) chunk: Option<usize>,
    /// Scores are multiplied by this.
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// A tensor of one more logit a head, without a value.
    pub(crate) sinks: Option<String>,
    /// Attention with linear biases.
    pub(crate) alibi: bool,
    /// A learned bias for each distance.
    pub(crate) relative: Option<RelativePlan>,
    /// Queries at position p are multiplied by 1 + b ln(1 + floor((p + 1) / a)).
    pub(crate) temperature: Option<(f32, f32)>,
}

/// Biases of scores by distance (T5): a table `[buckets, heads]`; half of the buckets are for keys to the right.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RelativePlan {
    pub(crate) table: String,
    pub(crate) buckets: usize,
    /// Distances from here on share a bucket.
    pub(crate) most: usize,
}

/// Where queries, keys and values come from.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one a layer, moved once")]
pub(crate) enum Project {
    Separate { q: LinearSpec, k: LinearSpec, v: LinearSpec },
    Fused { qkv: LinearSpec, order: Fused },
    Latent(Box<LatentPlan>),
}

/// The order of the rows of a fused matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fused {
    /// All queries, then all keys, then all values.
    Blocks,
    /// For each head of keys and values: its queries, its keys, its values.
    Groups,
}

/// Multi-head latent attention (DeepSeek-V2): keys and values out of one short vector a token, beside a part of the key that
/// is turned and that all heads share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LatentPlan {
    /// Down, norm and up of the queries; up alone where they are not compressed.
    pub(crate) q_down: Option<(LinearSpec, NormPlan)>,
    pub(crate) q_up: LinearSpec,
    pub(crate) kv_down: LinearSpec,
    pub(crate) kv_norm: NormPlan,
    pub(crate) kv_up: LinearSpec,
    pub(crate) latent: usize,
    /// Dimensions of a head that are turned; they come last.
    pub(crate) turned: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopePlan {
    pub(crate) config: RopeConfig,
    /// The first dimension of a head that is turned, and how many are.
    pub(crate) first: usize,
    pub(crate) dims: usize,
    /// Pairs are neighbours; else they are half of the turned dimensions apart.
    pub(crate) interleaved: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MlpPlan {
    pub(crate) kind: MlpKind,
    pub(crate) down: LinearSpec,
    pub(crate) activation: Activation,
    /// gpt-oss: see [`Clamp`].
    pub(crate) clamp: Option<Clamp>,
}

/// The gate is cut from above, the other from both sides; gate x sigmoid(1.702 gate) x (other + 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Clamp(pub(crate) f32);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MlpKind {
    Plain {
        up: LinearSpec,
    },
    Gated {
        gate: LinearSpec,
        up: LinearSpec,
    },
    /// One matrix: all rows of the gate before the others, or every other row.
    Fused {
        both: LinearSpec,
        alternating: bool,
    },
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MoePlan {
    pub(crate) router: LinearSpec,
    /// A tensor that is added to the scores for the choice alone.
    pub(crate) correction: Option<String>,
    pub(crate) rule: Rule,
    pub(crate) experts: Vec<MlpPlan>,
    /// An expert that every token goes through, and the gate that weighs it.
    pub(crate) shared: Option<(MlpPlan, Option<LinearSpec>)>,
    /// The factor is put on what an expert reads, not on what it makes.
    pub(crate) weighs_input: bool,
}

/// Which experts a token goes to, and with what factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    pub(crate) score: Score,
    pub(crate) chosen: usize,
    /// Factors are divided by their sum.
    pub(crate) renormalised: bool,
    pub(crate) scale: f32,
    pub(crate) groups: Option<Groups>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over those that are chosen by their logits.
    SoftmaxOfChosen,
    Sigmoid,
}

/// Experts lie in groups, of which the best are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) of: usize,
    pub(crate) kept: usize,
    /// A group is as good as the sum of its best so many.
    pub(crate) best: usize,
}

/// A state-space layer (Mamba): a convolution over time and a scan, between two matrices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScanPlan {
    pub(crate) input: LinearSpec,
    /// Weight `[channels, 1, kernel]` and bias of the convolution.
    pub(crate) conv: String,
    pub(crate) conv_bias: Option<String>,
    pub(crate) kernel: usize,
    /// Channels of the scan.
    pub(crate) inner: usize,
    /// Values each of them remembers.
    pub(crate) state: usize,
    pub(crate) kind: ScanKind,
    /// The logarithm of how fast it forgets, one a channel and value or one a head.
    pub(crate) decay: String,
    /// How much of a channel goes past the scan, one a channel or one a head.
    pub(crate) past: String,
    pub(crate) activation: Activation,
    pub(crate) output: LinearSpec,
}

#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one a layer, moved once")]
pub(crate) enum ScanKind {
    /// Mamba (Gu and Dao 2023): steps, B and C out of the channels, through a latent of this rank.
    Selective { parameters: LinearSpec, step: LinearSpec, rank: usize },
    /// Mamba 2 (Dao and Gu 2024): all out of the first matrix; heads forget as one, and share B and C in groups.
    Heads { heads: usize, groups: usize, step_bias: String, limits: (f32, f32), norm: NormPlan },
}

impl ScanPlan {
    /// Channels of the convolution.
    pub(crate) fn channels(&self) -> usize {
        match self.kind {
            ScanKind::Selective { .. } => self.inner,
            ScanKind::Heads { groups, .. } => self.inner + 2 * groups * self.state,
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut LinearSpec> {
        let mut all = vec![&mut self.input];
        if let ScanKind::Selective { parameters, step, .. } = &mut self.kind {
            all.extend([parameters, step]);
        }
        all.push(&mut self.output);
        all
    }

    /// Names of the tensors that are neither matrices nor norms.
    fn names_mut(&mut self) -> Vec<&mut String> {
        let mut all = vec![&mut self.conv, &mut self.decay, &mut self.past];
        all.extend(self.conv_bias.as_mut());
        if let ScanKind::Heads { step_bias, .. } = &mut self.kind {
            all.push(step_bias);
        }
        all
    }
}

impl MlpPlan {
    fn linears_mut(&mut self) -> Vec<&mut LinearSpec> {
        let mut all = match &mut self.kind {
            MlpKind::Plain { up } => vec![up],
            MlpKind::Gated { gate, up } => vec![gate, up],
            MlpKind::Fused { both, .. } => vec![both],
        };
        all.push(&mut self.down);
        all
    }
}

impl AttentionPlan {
    fn linears_mut(&mut self) -> Vec<&mut LinearSpec> {
        let mut all = match &mut self.project {
            Project::Separate { q, k, v } => vec![q, k, v],
            Project::Fused { qkv, .. } => vec![qkv],
            Project::Latent(latent) => {
                let latent = &mut **latent;
                let down = latent.q_down.as_mut().map(|(down, _)| down);
                let mut all: Vec<&mut LinearSpec> = down.into_iter().collect();
                all.extend([&mut latent.q_up, &mut latent.kv_down, &mut latent.kv_up]);
                all
            }
        };
        all.push(&mut self.o);
        all
    }

    fn norms_mut(&mut self) -> Vec<&mut NormPlan> {
        let mut all: Vec<&mut NormPlan> = Vec::new();
        if let Project::Latent(latent) = &mut self.project {
            all.extend(latent.q_down.as_mut().map(|(_, norm)| norm));
            all.push(&mut latent.kv_norm);
        }
        all.extend(self.q_norm.as_mut());
        all.extend(self.k_norm.as_mut());
        all
    }
}

impl MixerPlan {
    fn linears_mut(&mut self) -> Vec<&mut LinearSpec> {
        match self {
            Self::Attention(attention) => attention.linears_mut(),
            Self::Mlp(mlp) => mlp.linears_mut(),
            Self::Moe(moe) => {
                let moe = &mut **moe;
                let mut all = vec![&mut moe.router];
                if let Some((shared, gate)) = &mut moe.shared {
                    all.extend(gate.as_mut());
                    all.extend(shared.linears_mut());
                }
                all.extend(moe.experts.iter_mut().flat_map(MlpPlan::linears_mut));
                all
            }
            Self::Scan(scan) => scan.linears_mut(),
            Self::Other(specs) => specs.iter_mut().collect(),
        }
    }
}

impl BlockPlan {
    /// The linear layers, in the order in which a token meets their inputs.
    pub(crate) fn linears(&self) -> Vec<LinearSpec> {
        let mut all = Vec::new();
        let mut copy = self.clone();
        for (at, part) in copy.parts.iter_mut().enumerate() {
            let norm = match &part.norm {
                // What a norm feeds beside this part's own inputs: nothing, unless the next part reads the same.
                Before::Norm(norm) if !self.shares(at) => Some(norm.clone()),
                _ => None,
            };
            for spec in part.mixer.linears_mut() {
                let inputs = [SharedInput::Attention, SharedInput::Mlp, SharedInput::Scan];
                let first = inputs.contains(&spec.input);
                let alone =
                    !matches!(spec.role, Role::Router | Role::SharedGate) && spec.expert.is_none();
                if let Some(norm) = norm.as_ref().filter(|_| first && alone) {
                    spec.norm = norm.weights.first().cloned();
                    spec.norm_offset = norm.offset;
                }
                all.push(spec.clone());
            }
        }
        all
    }

    /// Whether another part reads what this one does.
    fn shares(&self, at: usize) -> bool {
        let next = self.parts.get(at + 1);
        next.is_some_and(|next| next.norm == Before::Same)
    }
}

impl Plan {
    /// Gives every tensor the name that this checkpoint has for it.
    pub(crate) fn rename(&mut self, name: &dyn Fn(&str) -> String) {
        let norm = |norm: &mut NormPlan| norm.weights.iter_mut().for_each(|w| *w = name(w));
        let linear = |spec: &mut LinearSpec| {
            spec.name = name(&spec.name);
            spec.bias = name(&spec.bias);
            if let Some(place) = &mut spec.place {
                place.tensor = name(&place.tensor);
                place.bias.iter_mut().for_each(|bias| *bias = name(bias));
            }
        };
        let embedding = &mut self.embedding;
        embedding.table = name(&embedding.table);
        embedding
            .positions
            .iter_mut()
            .for_each(|positions| positions.table = name(&positions.table));
        embedding.types.iter_mut().for_each(|types| *types = name(types));
        embedding.norm.iter_mut().for_each(norm);
        embedding.project.iter_mut().for_each(linear);
        let head = &mut self.head;
        head.norm.iter_mut().for_each(norm);
        head.project.iter_mut().for_each(linear);
        if let Some(transform) = &mut head.transform {
            linear(&mut transform.dense);
            norm(&mut transform.norm);
        }
        head.matrix = name(&head.matrix);
        head.bias.iter_mut().for_each(|bias| *bias = name(bias));
        if let Some(images) = &mut self.images {
            let ImagePlan { class, patches, positions, .. } = images;
            [class, patches, positions].into_iter().for_each(|tensor| *tensor = name(tensor));
            let ImagePlan { bias, pooler, classifier, .. } = images;
            let others = [bias, pooler, classifier].into_iter().flatten();
            others.for_each(|tensor| *tensor = name(tensor));
            let norms = [&mut images.before, &mut images.last, &mut images.pooled];
            norms.into_iter().flatten().for_each(norm);
        }
        if let Some(joint) = &mut self.joint {
            let [texts, images] = &mut joint.project;
            [texts, images, &mut joint.scale].into_iter().for_each(|tensor| *tensor = name(tensor));
        }
        self.layers = name(&self.layers);
        for block in &mut self.blocks {
            block.prefix = name(&block.prefix);
            for part in &mut block.parts {
                if let Before::Norm(before) = &mut part.norm {
                    norm(before);
                }
                part.after.iter_mut().for_each(norm);
                part.then.iter_mut().for_each(norm);
                part.mixer.linears_mut().into_iter().for_each(linear);
                match &mut part.mixer {
                    MixerPlan::Attention(attention) => {
                        attention.norms_mut().into_iter().for_each(norm);
                        attention.sinks.iter_mut().for_each(|sinks| *sinks = name(sinks));
                        let tables = attention.relative.iter_mut();
                        tables.for_each(|relative| relative.table = name(&relative.table));
                    }
                    MixerPlan::Moe(moe) => {
                        moe.correction.iter_mut().for_each(|tensor| *tensor = name(tensor));
                    }
                    MixerPlan::Scan(scan) => {
                        scan.names_mut().into_iter().for_each(|tensor| *tensor = name(tensor));
                        if let ScanKind::Heads { norm: inside, .. } = &mut scan.kind {
                            norm(inside);
                        }
                    }
                    MixerPlan::Mlp(_) | MixerPlan::Other(_) => {}
                }
            }
        }
    }
}
