//! Weights, blocks and whole models out of a checkpoint.

use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::rewrite::{BlockLayout, LinearSpec, ModelLayout, Role, Sayable};
use tensorpress_tensor::{Error, Node, Result, Tensor};

use super::names::bias_of;
use super::{Source, at};
use crate::block::Block;
use crate::decoder::{Decoder, Embedding, Head};
use crate::encoder::Encoder;
use crate::layers::{Attention, Linear, Mlp, Norm, Rope};

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

    fn linear(&self, spec: &LinearSpec) -> Result<Linear> {
        // A bias the config does not know may have been added by compression, as a correction.
        let stored = spec.needs_bias || self.checkpoint.contains(&spec.bias);
        Ok(Linear {
            name: spec.name.clone(),
            file: self.file_of(&spec.name),
            weight: self.weight_of(&spec.name, spec.shape)?.into(),
            bias: if stored { Some(self.vector(&spec.bias, spec.shape[0])?) } else { None },
        })
    }

    fn norm(&self, name: &str, channels: usize) -> Result<Norm> {
        let centred = !self.config.architecture.is_decoder();
        let bias = if centred { Some(self.vector(&bias_of(name), channels)?) } else { None };
        let weight = self.vector(name, channels)?;
        Ok(Norm { name: name.to_owned(), weight, bias, eps: self.config.norm_eps })
    }

    /// The linear layers of a block, in the order in which a token meets them.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn linears(&self, block: usize) -> Vec<LinearSpec> {
        assert!(block < self.config.blocks, "block {block} of {}", self.config.blocks);
        let roles = self.names.roles().iter();
        roles.map(|role| self.names.linear(&self.config, block, *role)).collect()
    }

    /// What all names of a block's tensors begin with, and no others.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn block_prefix(&self, block: usize) -> String {
        assert!(block < self.config.blocks, "block {block} of {}", self.config.blocks);
        self.names.block(block)
    }

    /// What a rewrite needs to know of this model. `plain`: the result is to have a config that every reader knows.
    #[must_use]
    pub fn layout(&self, plain: bool) -> ModelLayout {
        let (config, kind) = (&self.config, self.config.architecture);
        let block = |block| {
            let (prefix, shape) = (self.names.block(block), config.shape(block));
            BlockLayout::new(block, prefix, shape, self.linears(block))
        };
        let blocks = (0..config.blocks).map(block).collect();
        let says = Sayable::new(kind.has_head_dim(), kind.has_output_bias(), kind.has_mlp_bias());
        ModelLayout::new(format!("{kind:?}"), config.hidden, config.head_dim, blocks)
            .with_decoder(kind.is_decoder())
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
        let linear = |role| self.linear(&self.names.linear(config, block, role));
        let [q_norm, k_norm] = if config.qk_norm() {
            let [q, k] = self.names.head_norms(block);
            [Some(self.norm(&q, config.head_dim)?), Some(self.norm(&k, config.head_dim)?)]
        } else {
            [None, None]
        };
        let attention = Attention {
            q: linear(Role::Q)?,
            k: linear(Role::K)?,
            v: linear(Role::V)?,
            o: linear(Role::O)?,
            q_norm,
            k_norm,
            rope: self.rope(),
            head_dim: config.head_dim,
            window: config.windows[block],
        };
        let gated = self.names.roles().contains(&Role::Gate);
        let mlp = Mlp {
            gate: if gated { Some(linear(Role::Gate)?) } else { None },
            up: linear(Role::Up)?,
            down: linear(Role::Down)?,
            activation: config.activation,
        };
        let [first, second] = self.names.norms(block);
        let norms = [self.norm(&first, config.hidden)?, self.norm(&second, config.hidden)?];
        Ok(Block {
            index: block,
            attention,
            mlp,
            norms,
            norm_first: config.architecture.is_decoder(),
        })
    }

    fn rope(&self) -> Option<Arc<Rope>> {
        let config = self.config.rope.as_ref()?;
        let make = || Arc::new(Rope::new(config, self.config.head_dim, self.config.context));
        Some(self.rope.get_or_init(make).clone())
    }

    /// The embedding of a decoder's tokens.
    ///
    /// # Errors
    /// As [`Source::block`].
    pub fn embedding(&self) -> Result<Embedding> {
        Ok(Embedding { table: self.global_linear(self.names.embedding())? })
    }

    /// The final norm and the head of a decoder.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for encoders.
    pub fn head(&self) -> Result<Head> {
        self.need_kind(true)?;
        let tied = self.config.tied;
        let name = if tied { self.names.embedding() } else { self.names.head() };
        Ok(Head {
            norm: self.norm(&self.names.outer_norm(), self.config.hidden)?,
            linear: self.global_linear(name)?,
        })
    }

    fn global_linear(&self, name: String) -> Result<Linear> {
        let weight = self.weight_of(&name, [self.config.vocab, self.config.hidden])?;
        Ok(Linear { file: self.file_of(&name), name, weight: weight.into(), bias: None })
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
        Ok(Encoder {
            config: Arc::new(config.clone()),
            words: self.embedding()?,
            positions: self.table(&self.names.positions(), [config.context, hidden])?,
            token_types: self.table(&self.names.token_types(), [config.token_types, hidden])?,
            norm: self.norm(&self.names.outer_norm(), hidden)?,
            blocks: (0..config.blocks).map(|b| self.block(b)).collect::<Result<_>>()?,
        })
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

/// Whether a stored tensor is a part of the compressed weight `weight`.
pub(super) fn is_part(name: &str, weight: &str) -> bool {
    name.strip_prefix(weight).is_some_and(|rest| rest.starts_with('.'))
}

impl Source {
    /// Stored tensors that are no linear layer of a block, nor a part of one: embeddings, norms, biases, head. A
    /// pipeline copies them.
    #[must_use]
    pub fn extras(&self) -> Vec<String> {
        let linears: std::collections::BTreeSet<String> =
            (0..self.config.blocks).flat_map(|b| self.linears(b)).map(|l| l.name).collect();
        let belongs = |name: &&str| {
            // The weight's own name, or the one it is a part of: any prefix that ends before a dot.
            let dots = name.match_indices('.').map(|(i, _)| &name[..i]);
            dots.chain([*name]).any(|prefix| linears.contains(prefix))
        };
        self.checkpoint.names().filter(|n| !belongs(n)).map(str::to_owned).collect()
    }
}
