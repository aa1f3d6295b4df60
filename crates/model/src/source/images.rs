//! Encoders of images, alone or beside one of texts.

use std::sync::Arc;

use tensorpress_tensor::{Error, Result};

use super::Source;
use super::names::bias_of;
use crate::architecture::ImagePlan;
use crate::block::Block;
use crate::config::{Config, Reads};
use crate::encoder::{Encoder, ImageHead, Patches, Reading, TwoTowers};
use crate::layers::Linear;

impl Source {
    /// The encoder of one of the stacks of blocks ([`Config::stacks`]) of a model that is no decoder.
    ///
    /// # Errors
    /// As [`Source::encoder`]; `InvalidArgument` if there is no such stack.
    pub fn stack(&self, stack: usize) -> Result<Encoder> {
        self.need_kind(false)?;
        let Some((blocks, reads)) = self.config.stacks().into_iter().nth(stack) else {
            return Err(Error::invalid(format!("there is no stack {stack} of blocks")));
        };
        let blocks = blocks.map(|block| self.block(block)).collect::<Result<_>>()?;
        let config = self.config.stack(stack);
        match (reads, &self.plan.images) {
            (Reads::Images, Some(plan)) => self.image_encoder(config, plan, blocks),
            _ => self.text_encoder(config, blocks),
        }
    }

    /// Loads a model of two encoders; their matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// As [`Source::block`]; `Unsupported` for other models.
    pub fn towers(&self) -> Result<TwoTowers> {
        let (Some([texts, images]), Some(joint)) =
            (self.config.towers.as_deref(), &self.plan.joint)
        else {
            let message = format!("{:?} as two encoders", self.config.architecture);
            return Err(Error::unsupported(message).in_file(self.config_file()));
        };
        let [of_texts, of_images] = &joint.project;
        let project = [
            self.global_linear(of_texts.clone(), [joint.width, texts.hidden])?,
            self.global_linear(of_images.clone(), [joint.width, images.hidden])?,
        ];
        let scale = self.squeezed(&joint.scale, &[])?[0].exp();
        Ok(TwoTowers { texts: self.stack(0)?, images: self.stack(1)?, project, scale })
    }

    fn image_encoder(
        &self,
        config: &Config,
        plan: &ImagePlan,
        blocks: Vec<Block>,
    ) -> Result<Encoder> {
        let Some(images) = config.images else {
            return Err(Error::invalid("an encoder of images without images"));
        };
        let (hidden, inputs) = (config.hidden, images.channels * images.patch.pow(2));
        let mut project = self.global_linear(plan.patches.clone(), [hidden, inputs])?;
        project.bias = plan.bias.as_ref().map(|name| self.vector(name, hidden)).transpose()?;
        let tokens = images.patches() + 1;
        let positions = self.squeezed(&plan.positions, &[tokens, hidden])?;
        let reads = Reading::Images(Patches {
            images,
            class: self.squeezed(&plan.class, &[hidden])?,
            project,
            positions: ndarray::Array2::from_shape_vec((tokens, hidden), positions)
                .expect("shape was checked"),
            norm: self.norm_if(plan.before.as_ref())?,
        });
        let image_head = ImageHead {
            norm: self.norm_if(plan.pooled.as_ref())?,
            pooler: self.if_there(plan.pooler.as_ref(), Some(hidden), hidden)?,
            classifier: self.if_there(plan.classifier.as_ref(), None, hidden)?,
        };
        Ok(Encoder {
            config: Arc::new(config.clone()),
            reads,
            blocks,
            last_norm: self.norm_if(plan.last.as_ref())?,
            head: None,
            image_head,
        })
    }

    /// A matrix with a bias that only some checkpoints have, of any number of outputs if that is not given.
    fn if_there(
        &self,
        name: Option<&String>,
        outputs: Option<usize>,
        inputs: usize,
    ) -> Result<Option<Linear>> {
        let there = |name: &&String| {
            self.checkpoint.contains(name) || self.trees.contains_key(name.as_str())
        };
        let Some(name) = name.filter(there) else { return Ok(None) };
        let outputs = match outputs {
            Some(outputs) => outputs,
            None => self.weight(name)?.shape()[0],
        };
        let mut linear = self.global_linear(name.clone(), [outputs, inputs])?;
        let bias = bias_of(name);
        if self.checkpoint.contains(&bias) {
            linear.bias = Some(self.vector(&bias, outputs)?);
        }
        Ok(Some(linear))
    }

    /// All finite values of a tensor of this shape, before which ones may stand.
    fn squeezed(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.checkpoint.shape(name).unwrap_or_default();
        let ones = stored.len().saturating_sub(shape.len());
        let leading = stored[..ones].iter().all(|n| *n == 1) && stored[ones..] == *shape;
        self.array(name, if leading { stored } else { shape })
    }
}
