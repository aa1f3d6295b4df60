//! Whole models out of a checkpoint, and what their blocks are called.

use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::rewrite::{
    BlockLayout, Experts, HeadLayout, LinearSpec, ModelLayout, Role, Sayable, ScanLayout,
};
use tensorpress_tensor::{Error, Result};

use super::tensors::part_of;
use super::{Source, at};
use crate::architecture::{
    EmbeddingPlan, HeadPlan, MixerPlan, MlpKind, MlpPlan, PositionsPlan, ScanKind, TransformPlan,
};
use crate::block::Block;
use crate::config::Config;
use crate::decoder::{Decoder, Embedding, Head};
use crate::encoder::{Encoder, ImageHead, MaskedHead, Positions, Reading, TokenEmbedding};
use crate::layers::Linear;
use crate::repeat::RepeatPrompts;

impl Source {
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

    /// The block whose tensors a stored one lies among, if it is in one; where nothing is known but the tensors, only
    /// matrices are in blocks.
    #[must_use]
    pub fn block_of(&self, name: &str) -> Option<usize> {
        if let Some(unknown) = &self.unknown {
            return unknown.blocks.get(self.compressed_of(name).unwrap_or(name)).copied();
        }
        self.plan.blocks.iter().position(|block| name.starts_with(&block.prefix))
    }

    /// What a rewrite needs to know of this model. `plain`: the result is to have a config that every reader knows.
    #[must_use]
    pub fn layout(&self, plain: bool) -> ModelLayout {
        let (config, kind) = (&self.config, self.config.architecture);
        let block = |block| {
            let (prefix, shape) = (self.block_prefix(block), config.shape(block));
            BlockLayout::new(block, prefix, shape, self.linears(block))
                .with_experts(self.experts(block))
                .with_scan(self.scan_layout(block))
        };
        let blocks = (0..config.blocks).map(block).collect();
        let says = Sayable::new(kind.has_head_dim(), kind.has_output_bias(), kind.has_mlp_bias())
            .with_expert_width(kind.has_expert_width());
        // As a sentence has it.
        let mut name = kind.name().to_owned();
        name[..1].make_ascii_uppercase();
        ModelLayout::new(name, config.hidden, config.head_dim, blocks)
            .with_decoder(kind.is_decoder())
            .with_head(self.has_head().then(|| self.head_layout()))
            .with_editable(kind.is_editable())
            .with_says(if plain { says } else { Sayable::ALL })
    }

    fn head_layout(&self) -> HeadLayout {
        let (matrix, embedding) = (&self.plan.head.matrix, &self.plan.embedding);
        HeadLayout::new(matrix, [self.config.vocab, embedding.width])
            .with_tied(*matrix == embedding.table)
    }

    /// The experts that a router chooses from in a block.
    pub(super) fn experts(&self, block: usize) -> Option<Experts> {
        let moe = self.plan.blocks[block].parts.iter().find_map(|part| match &part.mixer {
            MixerPlan::Moe(moe) => Some(moe),
            _ => None,
        })?;
        let beside =
            [moe.router.needs_bias.then(|| moe.router.bias.clone()), moe.correction.clone()];
        let alternating = |expert: &MlpPlan| match expert.kind {
            MlpKind::Fused { alternating, .. } => alternating,
            _ => false,
        };
        let groups =
            moe.rule.groups.map_or((1, 1, 1), |groups| (groups.of, groups.kept, groups.best));
        Some(
            Experts::new(moe.experts.len(), moe.rule.chosen, &moe.router.name)
                .with_groups(groups.0, groups.1, groups.2)
                .with_beside(beside.into_iter().flatten().collect::<Vec<_>>())
                .with_alternating(moe.experts.first().is_some_and(alternating)),
        )
    }

    /// The state-space layer of a block, if it has heads.
    fn scan_layout(&self, block: usize) -> Option<ScanLayout> {
        let scan = self.plan.blocks[block].parts.iter().find_map(|part| match &part.mixer {
            MixerPlan::Scan(scan) => Some(scan),
            _ => None,
        })?;
        let ScanKind::Heads { heads, groups, step_bias, norm, .. } = &scan.kind else {
            return None;
        };
        let convolution = [Some(scan.conv.clone()), scan.conv_bias.clone()];
        let per_head = vec![scan.decay.clone(), scan.past.clone(), step_bias.clone()];
        let (width, state) = (scan.inner / heads, scan.state);
        let (input, output) = (&scan.input.name, &scan.output.name);
        Some(ScanLayout::new(*heads, width, *groups, state, input, output).with_tensors(
            convolution.into_iter().flatten().collect(),
            per_head,
            norm.weights.first().cloned(),
        ))
    }

    /// The embedding of tokens.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for a model that reads images alone.
    pub fn embedding(&self) -> Result<Embedding> {
        self.need_forward()?;
        if self.config.vocab == 0 {
            let kind = self.config.architecture;
            let message = format!("an embedding of tokens in {kind:?}, which reads images");
            return Err(Error::unsupported(message).in_file(self.config_file()));
        }
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

    /// Whether the checkpoint has a head over the vocabulary: the embedding's matrix, where the two are one.
    #[must_use]
    pub fn has_head(&self) -> bool {
        let matrix = &self.plan.head.matrix;
        self.config.architecture.is_decoder()
            && (self.checkpoint.contains(matrix) || self.trees.contains_key(matrix))
    }

    /// That there is a head over the vocabulary.
    ///
    /// # Errors
    /// `InsufficientData`, naming its tensor, if the checkpoint of a decoder has none; `Unsupported` for encoders.
    pub fn need_head(&self) -> Result<()> {
        self.need_kind(true)?;
        if self.has_head() {
            return Ok(());
        }
        let matrix = &self.plan.head.matrix;
        let missing = self.checkpoint.missing().any(|name| name == matrix.as_str());
        if missing {
            return self.checkpoint.bytes(matrix).map(drop);
        }
        let others = ["score.", "classifier.", "v_head.", "regression_head.", "qa_outputs."];
        let other = self.checkpoint.names().find(|name| others.iter().any(|o| name.starts_with(o)));
        let message = match other {
            Some(other) => format!(
                "there is no language head: the model's head is `{other}`, which predicts no tokens"
            ),
            None => "there is no language head: the model predicts no tokens".to_owned(),
        };
        let file = self.checkpoint.files().next().map(Into::into);
        at(Err(Error::insufficient(message)), matrix, file.or(self.folder.clone()).as_deref())
    }

    /// The final norm and the head of a decoder.
    ///
    /// # Errors
    /// As [`Source::block`] and [`Source::need_head`].
    pub fn head(&self) -> Result<Head> {
        self.need_head()?;
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

    pub(super) fn global_linear(&self, name: String, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.weight_of(&name, shape)?;
        let file = self.file_of(&name);
        Ok(Linear { file, name, weight: weight.into(), bias: None, input: None })
    }

    /// Loads a whole decoder; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// As [`Source::block`] and [`Source::need_head`].
    pub fn decoder(&self) -> Result<Decoder> {
        self.need_head()?;
        Ok(Decoder {
            config: Arc::new(self.config.clone()),
            embedding: self.embedding()?,
            blocks: (0..self.config.blocks).map(|b| self.block(b)).collect::<Result<_>>()?,
            head: self.head()?,
            prompts: RepeatPrompts::default(),
        })
    }

    /// Loads a whole encoder; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for decoders, and for a model with two towers.
    pub fn encoder(&self) -> Result<Encoder> {
        self.need_kind(false)?;
        if self.config.towers.is_some() {
            let message = format!("{:?} as one encoder: it has two", self.config.architecture);
            return Err(Error::unsupported(message).in_file(self.config_file()));
        }
        self.stack(0)
    }

    /// An encoder's part that reads tokens: what stands before its blocks, and these.
    pub(super) fn text_encoder(&self, config: &Config, blocks: Vec<Block>) -> Result<Encoder> {
        let hidden = config.hidden;
        let EmbeddingPlan { positions, types, norm, .. } = &self.plan.embedding;
        let positions_of = |plan: &PositionsPlan| -> Result<Positions> {
            let table = self.table(&plan.table, [plan.rows, hidden])?;
            Ok(Positions { table, first: plan.first, pad: plan.pad })
        };
        let types_of = |name: &String| self.table(name, [config.token_types, hidden]);
        Ok(Encoder {
            config: Arc::new(config.clone()),
            reads: Reading::Tokens(TokenEmbedding {
                words: self.embedding()?,
                positions: positions.as_ref().map(positions_of).transpose()?,
                types: types.as_ref().map(types_of).transpose()?,
                norm: self.norm_if(norm.as_ref())?,
            }),
            blocks,
            last_norm: self.norm_if(self.plan.head.norm.as_ref())?,
            head: self.masked_head()?,
            image_head: ImageHead::default(),
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

    pub(super) fn need_kind(&self, decoder: bool) -> Result<()> {
        self.need_forward()?;
        let architecture = self.config.architecture;
        if architecture.is_decoder() == decoder {
            return Ok(());
        }
        let kind = if decoder { "a decoder" } else { "an encoder" };
        Err(Error::unsupported(format!("{architecture:?} as {kind}")).in_file(self.config_file()))
    }
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
            linears.contains(*name)
                || self.compressed_of(name).is_some_and(|of| linears.contains(of))
        };
        self.checkpoint.names().filter(|n| !belongs(n)).map(str::to_owned).collect()
    }

    /// The compressed weight that a stored tensor is a part of.
    pub(super) fn compressed_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        part_of(&self.trees, name)
    }
}
