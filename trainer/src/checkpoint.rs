//! A run's state on disk.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::llama::{Config, Layout, Llama};
use crate::optim::AdamW;

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub steps: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Rounds of the documents.
    pub epoch: u64,
    /// Place in the round.
    pub position: usize,
}

/// Writes `bytes` beside `path`, then renames, so that a reader never sees half a file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes)?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// Saves model, optimiser and progress.
pub fn save(path: &Path, model: &Llama, optimiser: &AdamW, progress: &Progress) -> Result<()> {
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let parts = [("params", &model.params), ("m", &optimiser.m), ("v", &optimiser.v)]
        .map(|(name, values)| (name, bytes(values)));
    let mut views = HashMap::new();
    for (name, data) in &parts {
        views.insert(*name, TensorView::new(Dtype::F32, vec![data.len() / 4], data)?);
    }
    let metadata = HashMap::from([
        ("config".to_string(), serde_json::to_string(&model.config)?),
        ("progress".to_string(), serde_json::to_string(progress)?),
    ]);
    write_atomically(path, &safetensors::serialize(views, Some(metadata))?)
}

/// Loads what [`save`] wrote.
pub fn load(path: &Path, weight_decay: f32) -> Result<(Llama, AdamW, Progress)> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the checkpoint {}", path.display()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().as_ref().context("a checkpoint without metadata")?;
    let config: Config = serde_json::from_str(&metadata["config"])?;
    let progress: Progress = serde_json::from_str(&metadata["progress"])?;
    let file = SafeTensors::deserialize(&bytes)?;
    let values = |name: &str| -> Result<Vec<f32>> {
        let chunks = file.tensor(name)?.data().as_chunks().0;
        Ok(chunks.iter().map(|&b| f32::from_le_bytes(b)).collect())
    };
    let layout = Layout::new(&config);
    let model = Llama { config, layout, params: values("params")? };
    let mut optimiser = AdamW::new(&model, weight_decay);
    (optimiser.m, optimiser.v, optimiser.steps) = (values("m")?, values("v")?, progress.steps);
    Ok((model, optimiser, progress))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::Experts;

    #[test]
    fn a_run_goes_on_as_it_was_saved() {
        let path = std::env::temp_dir().join(format!("checkpoint-{}", std::process::id()));
        let experts = Experts { count: 4, chosen: 2, balance: 0.01 };
        for config in [Config::demo(12), Config::mixture(12, experts)] {
            let model = Llama::init(config, 1);
            let mut optimiser = AdamW::new(&model, 0.1);
            let mut moved = model.clone();
            optimiser.step(&mut moved.params, &model.params, 0.1);
            let progress = Progress { steps: 1, tokens: 2, seconds: 0.3, epoch: 4, position: 5 };
            save(&path, &moved, &optimiser, &progress).unwrap();
            let (found, state, how_far) = load(&path, 0.1).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!((found.config, found.params), (moved.config, moved.params));
            assert_eq!((state.m, state.v, state.steps), (optimiser.m, optimiser.v, 1));
            assert_eq!(how_far, progress);
        }
    }
}
