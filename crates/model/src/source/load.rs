//! Weights, blocks and whole models out of a checkpoint.

use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::rewrite::{BlockLayout, LinearSpec, ModelLayout, Role, Sayable};
use tensorpress_tensor::{DType, Error, Node, RawTensor, Result, Tensor};

use super::names::bias_of;
use super::{Source, at};
use crate::architecture::{
    AttentionPlan, Before, EmbeddingPlan, HeadPlan, MixerPlan, MlpKind, MlpPlan, MoePlan, NormPlan,
    PartPlan, PositionsPlan, Project, RelativePlan, RopePlan, TransformPlan,
};
use crate::block::{Block, Mixer, Part};
use crate::config::RopeScaling;
use crate::decoder::{Decoder, Embedding, Head};
use crate::encoder::{Encoder, MaskedHead, Positions};
use crate::layers::{
    Attention, Latent, Linear, Mlp, MlpLinears, Moe, Norm, Projection, Relative, Rope, Scoring,
    alibi_slopes,
};

impl Source {
    /// A weight as a node: read through the registry if it is compressed, otherwise a view of the memory map in the
    /// stored type; nothing is copied.
    ///
    /// # Errors
    /// `InsufficientData` if there is no such weight; those of reading a compressed one; each names tensor and file.
    pub fn weight(&self, name: &str) -> Result<Box<dyn Node>> {
        let file = self.file_of(name);
        let read = || -> Result<Box<dyn Node>> {
            match self.trees.get(name) {
                Some(tree) => self.registry.read(tree, name, &self.checkpoint),
                None => Ok(Box::new(Dense::new(&self.checkpoint.tensor(name)?)?)),
            }
        };
        at(read(), name, file.as_deref())
    }

    /// [`Source::weight`] of a shape that the config implies.
    fn weight_of(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn Node>> {
        let node = self.weight(name)?;
        self.check_shape(name, &shape, &node.shape())?;
        Ok(node)
    }

    fn check_shape(&self, name: &str, config: &[usize], stored: &[usize]) -> Result<()> {
        if config == stored {
            return Ok(());
        }
        let message = format!("stored as {stored:?}, but config.json implies {config:?}");
        at(Err(Error::shape(message)), name, self.file_of(name).as_deref())
    }

    /// A vector of finite values.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        self.check_shape(name, &[len], tensor.shape())?;
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        self.finite(name, values)
    }

    /// So many finite values, of a vector, or of a matrix with a row a head.
    fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        if tensor.shape().len() != 2 || tensor.shape().iter().product::<usize>() != len {
            return self.vector(name, len);
        }
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        self.finite(name, values)
    }

    /// A small matrix of finite values.
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        self.check_shape(name, &shape, tensor.shape())?;
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        Ok(Array2::from_shape_vec(shape, self.finite(name, values)?).expect("shape was checked"))
    }

    fn finite(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let message = format!("entry {i} is {}", values[i]);
                at(Err(Error::numerical(message)), name, self.file_of(name).as_deref())
            }
        }
    }

    /// The stored values `[out, in]` of a linear layer that is not compressed, in the stored type.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn stored(&self, spec: &LinearSpec) -> Result<RawTensor> {
        let Some(place) = spec.place.as_ref().filter(|_| !self.is_moved(spec)) else {
            let file = self.file_of(&spec.name);
            return at(self.checkpoint.tensor(&spec.name), &spec.name, file.as_deref());
        };
        let read = || -> Result<RawTensor> {
            let tensor = self.checkpoint.tensor(&place.tensor)?;
            let tensor = match place.index {
                None => tensor,
                Some(index) => part_of(&tensor, index)?,
            };
            if place.transposed { transposed(&tensor) } else { Ok(tensor) }
        };
        at(read(), &spec.name, self.file_of(&place.tensor).as_deref())
    }

    /// The stored type of a linear layer that is not compressed.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn dtype_of(&self, spec: &LinearSpec) -> Result<DType> {
        match spec.place.as_ref().filter(|_| !self.is_moved(spec)) {
            Some(place) => self.checkpoint.dtype(&place.tensor),
            None => self.checkpoint.dtype(&spec.name),
        }
    }

    /// The stored bias of a linear layer, if it has one, and its type.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn stored_bias(&self, spec: &LinearSpec) -> Result<Option<(DType, Vec<f32>)>> {
        let place = spec.place.as_ref();
        let stacked = place.and_then(|place| Some((place.bias.as_ref()?, place.index?)));
        match stacked {
            _ if self.checkpoint.contains(&spec.bias) => {
                let values = self.vector(&spec.bias, spec.shape[0])?;
                Ok(Some((self.checkpoint.dtype(&spec.bias)?, values)))
            }
            Some((tensor, index)) => {
                let values = self.stacked_vector(tensor, index, spec.shape[0])?;
                Ok(Some((self.checkpoint.dtype(tensor)?, values)))
            }
            None => Ok(None),
        }
    }

    /// A layer of a stack, or one that was turned, lies under its own name once it is compressed or written by us.
    fn is_moved(&self, spec: &LinearSpec) -> bool {
        let place = spec.place.as_ref();
        let elsewhere = place.is_some_and(|place| place.tensor != spec.name);
        self.trees.contains_key(&spec.name) || elsewhere && self.checkpoint.contains(&spec.name)
    }

    /// The weight of a linear layer as a node.
    pub(super) fn node(&self, spec: &LinearSpec) -> Result<Box<dyn Node>> {
        if spec.place.is_none() || self.is_moved(spec) {
            return self.weight_of(&spec.name, spec.shape);
        }
        let stored = self.stored(spec)?;
        self.check_shape(&spec.name, &spec.shape, stored.shape())?;
        Ok(Box::new(Dense::new(&stored)?))
    }

    fn linear(&self, spec: &LinearSpec) -> Result<Linear> {
        // A bias the config does not know may have been added by compression, as a correction.
        let bias = match self.stored_bias(spec)? {
            Some((_, bias)) => Some(bias),
            None if spec.needs_bias => Some(self.vector(&spec.bias, spec.shape[0])?),
            None => None,
        };
        let file = self.file_of(spec.place.as_ref().map_or(&spec.name, |place| &place.tensor));
        let (name, weight) = (spec.name.clone(), self.node(spec)?.into());
        Ok(Linear { name, file, weight, bias, input: Some(spec.input) })
    }

    /// A vector of a stack of them.
    fn stacked_vector(&self, name: &str, index: usize, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let read = || -> Result<Vec<f32>> {
            let tensor = part_of(&self.checkpoint.tensor(name)?, index)?;
            self.check_shape(name, &[len], tensor.shape())?;
            Ok(tensor.to_matrix()?.into_raw_vec_and_offset().0)
        };
        self.finite(name, at(read(), name, file.as_deref())?)
    }

    fn norm(&self, plan: &NormPlan) -> Result<Norm> {
        let NormPlan { weights, len, width, centred, bias, offset, eps } = plan;
        let mut weight = Vec::new();
        for name in weights {
            weight.extend(self.values(name, len / weights.len())?);
        }
        let name = weights.first().cloned().unwrap_or_default();
        let bias = if *bias { Some(self.vector(&bias_of(&name), *len)?) } else { None };
        let (width, centred, offset, eps) = (*width, *centred, *offset, *eps);
        Ok(Norm { name, weight, bias, width, centred, offset, eps })
    }

    fn norm_if(&self, plan: Option<&NormPlan>) -> Result<Option<Norm>> {
        plan.map(|plan| self.norm(plan)).transpose()
    }

    /// The linear layers of a block, in the order in which a token meets their inputs; without those that choose and weigh
    /// experts.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn linears(&self, block: usize) -> Vec<LinearSpec> {
        assert!(block < self.config.blocks, "block {block} of {}", self.config.blocks);
        let all = self.plan.blocks[block].linears().into_iter();
        all.filter(|spec| !matches!(spec.role, Role::Router | Role::SharedGate)).collect()
    }

    /// What all names of a block's tensors begin with, and no others.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn block_prefix(&self, block: usize) -> String {
        assert!(block < self.config.blocks, "block {block} of {}", self.config.blocks);
        self.plan.blocks[block].prefix.clone()
    }

    /// What a rewrite needs to know of this model. `plain`: the result is to have a config that every reader knows.
    #[must_use]
    pub fn layout(&self, plain: bool) -> ModelLayout {
        let (config, kind) = (&self.config, self.config.architecture);
        let block = |block| {
            let (prefix, shape) = (self.block_prefix(block), config.shape(block));
            BlockLayout::new(block, prefix, shape, self.linears(block))
        };
        let blocks = (0..config.blocks).map(block).collect();
        let says = Sayable::new(kind.has_head_dim(), kind.has_output_bias(), kind.has_mlp_bias());
        ModelLayout::new(format!("{kind:?}"), config.hidden, config.head_dim, blocks)
            .with_decoder(kind.is_decoder())
            .with_editable(kind.is_editable())
            .with_says(if plain { says } else { Sayable::ALL })
    }

    /// Loads a block; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// `InsufficientData` for a missing weight, `ShapeMismatch` with the config, `Numerical` for NaN in a norm or
    /// bias; those of reading compressed weights; each names tensor and file.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Result<Block> {
        let config = &self.config;
        assert!(block < config.blocks, "block {block} of {}", config.blocks);
        let plan = &self.plan.blocks[block];
        let part = |part: &PartPlan| -> Result<Part> {
            let mixer = match &part.mixer {
                MixerPlan::Attention(plan) => Mixer::Attention(Box::new(self.attention(plan)?)),
                MixerPlan::Mlp(plan) => Mixer::Mlp(Box::new(self.mlp(plan)?)),
                MixerPlan::Moe(plan) => Mixer::Moe(Box::new(self.moe(plan)?)),
            };
            let norm = match &part.norm {
                Before::Norm(norm) => Some(self.norm(norm)?),
                Before::Nothing | Before::Same => None,
            };
            Ok(Part {
                norm,
                same: part.norm == Before::Same,
                mixer,
                after: self.norm_if(part.after.as_ref())?,
                scale: part.scale,
                then: self.norm_if(part.then.as_ref())?,
            })
        };
        let parts = plan.parts.iter().map(part).collect::<Result<_>>()?;
        Ok(Block { index: block, parts, parallel: plan.parallel })
    }

    fn attention(&self, plan: &AttentionPlan) -> Result<Attention> {
        let project = match &plan.project {
            Project::Separate { q, k, v } => {
                Projection::Separate { q: self.linear(q)?, k: self.linear(k)?, v: self.linear(v)? }
            }
            Project::Fused { qkv, order } => {
                Projection::Fused { qkv: self.linear(qkv)?, order: *order }
            }
            Project::Latent(plan) => Projection::Latent(Box::new(Latent {
                q_down: match &plan.q_down {
                    Some((down, norm)) => Some((self.linear(down)?, self.norm(norm)?)),
                    None => None,
                },
                q_up: self.linear(&plan.q_up)?,
                kv_down: self.linear(&plan.kv_down)?,
                kv_norm: self.norm(&plan.kv_norm)?,
                kv_up: self.linear(&plan.kv_up)?,
                rank: plan.latent,
                turned: plan.turned,
            })),
        };
        let sinks = plan.sinks.as_ref().map(|name| self.vector(name, plan.heads)).transpose()?;
        let slopes = if plan.alibi { alibi_slopes(plan.heads) } else { Vec::new() };
        let relative = |plan: &RelativePlan| -> Result<Relative> {
            let table = self.table(&plan.table, [plan.buckets, self.config.heads])?;
            Ok(Relative { table, most: plan.most })
        };
        let scoring = Scoring {
            causal: plan.causal,
            window: plan.window,
            chunk: plan.chunk,
            scale: plan.scale,
            softcap: plan.softcap,
            sinks: sinks.unwrap_or_default(),
            slopes: slopes.into_iter().map(|slope| slope * plan.scale).collect(),
            relative: plan.relative.as_ref().map(relative).transpose()?,
        };
        let rope = plan.rope.as_ref().map(|rope| self.rope(rope, plan.head_dim)).transpose()?;
        Ok(Attention {
            project,
            o: self.linear(&plan.o)?,
            q_norm: self.norm_if(plan.q_norm.as_ref())?,
            k_norm: self.norm_if(plan.k_norm.as_ref())?,
            norm_last: plan.norm_last,
            rope,
            temperature: plan.temperature,
            heads: plan.heads,
            kv_heads: plan.kv_heads,
            head_dim: plan.head_dim,
            value_dim: plan.value_dim,
            scoring: Arc::new(scoring),
        })
    }

    fn mlp(&self, plan: &MlpPlan) -> Result<Mlp> {
        let kind = match &plan.kind {
            MlpKind::Plain { up } => MlpLinears::Plain { up: self.linear(up)? },
            MlpKind::Gated { gate, up } => {
                MlpLinears::Gated { gate: self.linear(gate)?, up: self.linear(up)? }
            }
            MlpKind::Fused { both, alternating } => {
                MlpLinears::Fused { both: self.linear(both)?, alternating: *alternating }
            }
        };
        let (activation, clamp) = (plan.activation, plan.clamp);
        Ok(Mlp { kind, down: self.linear(&plan.down)?, activation, clamp })
    }

    fn moe(&self, plan: &MoePlan) -> Result<Moe> {
        let experts = plan.experts.len();
        let correction = plan.correction.as_ref();
        let shared = match &plan.shared {
            None => None,
            Some((mlp, gate)) => {
                Some((self.mlp(mlp)?, gate.as_ref().map(|gate| self.linear(gate)).transpose()?))
            }
        };
        Ok(Moe {
            router: self.linear(&plan.router)?,
            correction: correction.map(|name| self.vector(name, experts)).transpose()?,
            rule: plan.rule,
            experts: plan.experts.iter().map(|mlp| self.mlp(mlp)).collect::<Result<_>>()?,
            shared,
            weighs_input: plan.weighs_input,
        })
    }

    fn rope(&self, plan: &RopePlan, head_dim: usize) -> Result<Arc<Rope>> {
        if let RopeScaling::Unknown { name } = &plan.config.scaling {
            let message = format!("rope scaling `{name}` is unknown: the model cannot be run here");
            return Err(Error::unsupported(message).in_file(self.config_file()));
        }
        let mut ropes = self.ropes.lock().expect("nothing panics while it is held");
        if let Some((_, rope)) = ropes.iter().find(|(known, _)| known == plan) {
            return Ok(rope.clone());
        }
        let rope = Arc::new(Rope::of(plan, head_dim, self.config.context));
        ropes.push((plan.clone(), rope.clone()));
        Ok(rope)
    }

    /// The embedding of tokens.
    ///
    /// # Errors
    /// As [`Source::block`].
    pub fn embedding(&self) -> Result<Embedding> {
        let EmbeddingPlan { table, width, scale, positions, project, .. } = &self.plan.embedding;
        // An encoder adds them itself, beside the types of its tokens.
        let positions = positions.as_ref().filter(|_| self.config.architecture.is_decoder());
        let table_of = |plan: &PositionsPlan| -> Result<(Array2<f32>, usize)> {
            Ok((self.table(&plan.table, [plan.rows, self.config.hidden])?, plan.first))
        };
        Ok(Embedding {
            table: self.global_linear(table.clone(), [self.config.vocab, *width])?,
            scale: *scale,
            positions: positions.map(table_of).transpose()?,
            project: project.as_ref().map(|project| self.linear(project)).transpose()?,
        })
    }

    /// The final norm and the head of a decoder.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for encoders.
    pub fn head(&self) -> Result<Head> {
        self.need_kind(true)?;
        let HeadPlan { norm, project, matrix, bias, scale, softcap, .. } = &self.plan.head;
        let shape = [self.config.vocab, self.plan.embedding.width];
        let mut linear = self.global_linear(matrix.clone(), shape)?;
        linear.bias = bias.as_ref().map(|name| self.vector(name, self.config.vocab)).transpose()?;
        Ok(Head {
            norm: self.norm_if(norm.as_ref())?,
            project: project.as_ref().map(|project| self.linear(project)).transpose()?,
            linear,
            scale: *scale,
            softcap: *softcap,
        })
    }

    fn global_linear(&self, name: String, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.weight_of(&name, shape)?;
        let file = self.file_of(&name);
        Ok(Linear { file, name, weight: weight.into(), bias: None, input: None })
    }

    /// Loads a whole decoder; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for encoders.
    pub fn decoder(&self) -> Result<Decoder> {
        self.need_kind(true)?;
        Ok(Decoder {
            config: Arc::new(self.config.clone()),
            embedding: self.embedding()?,
            blocks: (0..self.config.blocks).map(|b| self.block(b)).collect::<Result<_>>()?,
            head: self.head()?,
        })
    }

    /// Loads a whole encoder; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for decoders.
    pub fn encoder(&self) -> Result<Encoder> {
        self.need_kind(false)?;
        let (config, hidden) = (&self.config, self.config.hidden);
        let EmbeddingPlan { positions, types, norm, .. } = &self.plan.embedding;
        let positions_of = |plan: &PositionsPlan| -> Result<Positions> {
            let table = self.table(&plan.table, [plan.rows, hidden])?;
            Ok(Positions { table, first: plan.first, pad: plan.pad })
        };
        let types_of = |name: &String| self.table(name, [config.token_types, hidden]);
        Ok(Encoder {
            config: Arc::new(config.clone()),
            words: self.embedding()?,
            positions: positions.as_ref().map(positions_of).transpose()?,
            token_types: types.as_ref().map(types_of).transpose()?,
            norm: self.norm_if(norm.as_ref())?,
            blocks: (0..config.blocks).map(|b| self.block(b)).collect::<Result<_>>()?,
            last_norm: self.norm_if(self.plan.head.norm.as_ref())?,
            head: self.masked_head()?,
        })
    }

    /// The head of an encoder for masked tokens, if the checkpoint has one.
    fn masked_head(&self) -> Result<Option<MaskedHead>> {
        let HeadPlan { transform, matrix, bias, .. } = &self.plan.head;
        let there = |transform: &&TransformPlan| self.checkpoint.contains(&transform.dense.name);
        let Some(transform) = transform.as_ref().filter(there) else { return Ok(None) };
        let shape = [self.config.vocab, self.plan.embedding.width];
        let mut linear = self.global_linear(matrix.clone(), shape)?;
        linear.bias = bias.as_ref().map(|name| self.vector(name, self.config.vocab)).transpose()?;
        Ok(Some(MaskedHead {
            dense: self.linear(&transform.dense)?,
            activation: transform.activation,
            norm: self.norm(&transform.norm)?,
            matrix: linear,
        }))
    }

    fn need_kind(&self, decoder: bool) -> Result<()> {
        let architecture = self.config.architecture;
        if architecture.is_decoder() == decoder {
            return Ok(());
        }
        let kind = if decoder { "a decoder" } else { "an encoder" };
        Err(Error::unsupported(format!("{architecture:?} as {kind}")).in_file(self.config_file()))
    }

    /// The file a weight is in, or the folder for one that is spread over parts.
    pub(super) fn file_of(&self, name: &str) -> Option<std::path::PathBuf> {
        let direct = self.checkpoint.file_of(name);
        let parts = || {
            let part = self.checkpoint.names().find(|n| is_part(n, name))?;
            self.checkpoint.file_of(part)
        };
        direct.or_else(parts).map(Into::into)
    }
}

/// One tensor of a stack.
fn part_of(stack: &RawTensor, index: usize) -> Result<RawTensor> {
    let [count, rest @ ..] = stack.shape() else {
        return Err(Error::shape("a scalar where a stack is needed"));
    };
    if index >= *count {
        return Err(Error::shape(format!("a stack of {count}, number {index} is needed")));
    }
    let len = rest.iter().product::<usize>() * stack.dtype().size();
    RawTensor::new(
        stack.dtype(),
        rest.to_vec(),
        stack.bytes().slice(index * len..(index + 1) * len),
    )
}

/// A matrix with rows for columns.
fn transposed(matrix: &RawTensor) -> Result<RawTensor> {
    let [rows, cols] = *matrix.shape() else {
        return Err(Error::shape(format!("{:?} where a matrix is needed", matrix.shape())));
    };
    let size = matrix.dtype().size();
    let mut bytes = Vec::with_capacity(matrix.bytes().len());
    for col in 0..cols {
        for row in 0..rows {
            let from = (row * cols + col) * size;
            bytes.extend_from_slice(&matrix.bytes()[from..from + size]);
        }
    }
    RawTensor::new(matrix.dtype(), vec![cols, rows], bytes.into())
}

/// Whether a stored tensor is a part of the compressed weight `weight`.
pub(super) fn is_part(name: &str, weight: &str) -> bool {
    name.strip_prefix(weight).is_some_and(|rest| rest.starts_with('.'))
}

impl Source {
    /// Stored tensors that are no linear layer of a block, nor a part of one: embeddings, norms, biases, head. A
    /// pipeline copies them.
    #[must_use]
    pub fn extras(&self) -> Vec<String> {
        let linears = (0..self.config.blocks).flat_map(|block| self.linears(block));
        let linears: std::collections::BTreeSet<String> = linears
            .flat_map(|l| l.place.map(|place| place.tensor).into_iter().chain([l.name]))
            .collect();
        let belongs = |name: &&str| {
            // The weight's own name, or the one it is a part of: any prefix that ends before a dot.
            let dots = name.match_indices('.').map(|(i, _)| &name[..i]);
            dots.chain([*name]).any(|prefix| linears.contains(prefix))
        };
        self.checkpoint.names().filter(|n| !belongs(n)).map(str::to_owned).collect()
    }
}
