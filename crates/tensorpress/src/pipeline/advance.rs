//! Hidden states of the calibration windows on their way through the compressed model.

use std::path::Path;

use tensorpress_model::{Calibrations, SharedInput, calibrate};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Checkpoint, Context as _, Error, Result, Scratch, Tensor};

use super::Context;

/// What the next block reads.
pub(super) struct Stream {
    hidden: Array2<f32>,
    lengths: Vec<usize>,
}

impl Stream {
    /// The embeddings of the windows; `outer` is the shard that has the table, if it is compressed.
    pub(super) fn begin(context: &Context<'_>, outer: &Path, windows: &[Vec<u32>]) -> Result<Self> {
        let source = context.source;
        let mut scratch = Scratch::new(Par::Rayon);
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        let hidden = if source.config().architecture.is_decoder() {
            let mut embedding = source.embedding()?;
            let name = embedding.table().name().to_owned();
            if context.plan.index(&name).is_some() {
                let shard = Checkpoint::open(outer)?;
                if let Some(tree) = shard.trees()?.get(&name) {
                    embedding.replace(context.registry.read(tree, &name, &shard)?)?;
                }
            }
            embedding.embed(&windows.concat(), &mut scratch)?
        } else {
            let encoder = source.encoder()?;
            let embed = |ids: &Vec<u32>| encoder.embeddings(ids, &vec![0; ids.len()], &mut scratch);
            let parts = windows.iter().map(embed).collect::<Result<Vec<_>>>()?;
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).expect("parts of one width")
        };
        source.checkpoint().release();
        Ok(Self { hidden, lengths })
    }

    /// Statistics of the inputs of a block of the source.
    pub(super) fn calibrate(
        &self,
        context: &Context<'_>,
        block: usize,
        needs: &dyn Fn(SharedInput) -> Needs,
    ) -> Result<Calibrations> {
        let source = context.source;
        let loaded = source.block(block)?;
        let (hidden, seed) = (self.hidden.view(), context.seed);
        let found = calibrate(&loaded, hidden, &self.lengths, needs, seed, Par::Rayon);
        source.checkpoint().release();
        found
    }

    /// Runs the hidden states through a compressed block, as it is read from its shard: what is not in the shard as
    /// it was in memory cannot go unnoticed, and a resumed run does the same.
    pub(super) fn advance(
        &mut self,
        context: &Context<'_>,
        block: usize,
        path: &Path,
    ) -> Result<()> {
        let source = context.source;
        let shard = Checkpoint::open(path)?;
        let mut loaded = source.block(block)?;
        for (name, tree) in &shard.trees()? {
            loaded.replace(name, context.registry.read(tree, name, &shard).in_file(path)?)?;
        }
        let vector = |name: &str| -> Result<Vec<f32>> {
            Ok(shard.tensor(name)?.to_matrix()?.into_raw_vec_and_offset().0)
        };
        for spec in source.linears(block) {
            if shard.contains(&spec.bias) {
                loaded.linear_mut(&spec.name)?.set_bias(Some(vector(&spec.bias)?))?;
            }
            if let Some(norm) = spec.norm.as_ref() {
                loaded.norm_mut(norm)?.set_weight(vector(norm)?)?;
            }
        }
        let mut scratch = Scratch::new(Par::Rayon);
        loaded.forward_sequences(self.hidden.view_mut(), &self.lengths, None, &mut scratch).map_err(
            |e| match e.tensor() {
                Some(_) => e,
                None => Error::new(e.kind(), format!("compressed block {block}: {}", e.message())),
            },
        )
    }
}
