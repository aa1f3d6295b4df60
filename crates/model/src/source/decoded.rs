//! A compressed model as floats: what its weights are, so that they can be compressed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{Content, Made, View};
use tensorpress_tensor::node::{Json, decode};
use tensorpress_tensor::{Bytes, Checkpoint, DType, Registry, Result};

use super::Source;

/// A weight that is decoded when it is asked for.
#[derive(Debug)]
struct Decoded {
    of: Checkpoint,
    registry: Arc<Registry>,
    name: String,
    tree: Json,
}

impl Content for Decoded {
    fn bytes(&self) -> Result<Bytes> {
        let node = self.registry.read(&self.tree, &self.name, &self.of)?;
        let weight = decode(&*node)?;
        let mut bytes = Vec::new();
        DType::F32.write_f32(weight.as_slice().expect("standard layout"), &mut bytes)?;
        Ok(bytes.into())
    }
}

impl Source {
    /// This model, whose compressed matrices of blocks are the f32 values that they decode to, made when they are asked
    /// for; what is compressed outside the blocks, embedding and head, stays as it is. The same model where nothing of its
    /// blocks is compressed.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn decoded(&self) -> Result<Self> {
        let (within, outside): (Vec<_>, Vec<_>) =
            self.trees.iter().partition(|(name, _)| self.block_of(name).is_some());
        let checkpoint = &self.checkpoint;
        let registry = Arc::new(self.registry.clone());
        let mut tensors: BTreeMap<String, Made> = BTreeMap::new();
        for (name, tree) in &within {
            let shape = self.weight(name)?.shape().to_vec();
            let len = (shape.iter().product::<usize>() * DType::F32.size()) as u64;
            let content = Arc::new(Decoded {
                of: checkpoint.clone(),
                registry: registry.clone(),
                name: (*name).clone(),
                tree: (*tree).clone(),
            });
            let dtype = DType::F32.name().to_owned();
            tensors.insert((*name).clone(), Made { dtype, shape, len, content });
        }
        let is_part =
            |name: &str| within.iter().any(|(weight, _)| super::tensors::is_part(name, weight));
        for name in checkpoint.names().filter(|name| !is_part(name)) {
            let content = Arc::new(Stored { of: checkpoint.clone(), name: name.to_owned() });
            let dtype = checkpoint.dtype_name(name).unwrap_or_default().to_owned();
            let shape = checkpoint.shape(name).unwrap_or_default().to_vec();
            let len = checkpoint.stored_bytes(name).unwrap_or(0);
            tensors.insert(name.to_owned(), Made { dtype, shape, len, content });
        }
        let mut metadata: BTreeMap<String, String> = checkpoint
            .metadata()
            .flatten()
            .filter(|(key, _)| *key != "tensorpress")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !outside.is_empty() {
            let trees: BTreeMap<_, _> = outside.into_iter().collect();
            let text = serde_json::to_string(&trees).expect("descriptions are JSON");
            metadata.insert("tensorpress".to_owned(), text);
        }
        let behind = checkpoint.sources().cloned().collect();
        let path = checkpoint.files().next().map_or_else(|| "model".into(), Into::into);
        let view = View::new(&metadata, tensors, behind).whole();
        let made = Checkpoint::from_source(path, Arc::new(view))?;
        let mut source = Self::new(
            self.raw.clone(),
            made,
            self.files.clone(),
            self.tokenizer.clone(),
            &registry,
        )?;
        source.folder = self.folder.clone();
        source.notes = self.notes.clone();
        Ok(source)
    }
}

/// A stored tensor as it is.
#[derive(Debug)]
struct Stored {
    of: Checkpoint,
    name: String,
}

impl Content for Stored {
    fn bytes(&self) -> Result<Bytes> {
        self.of.bytes(&self.name)
    }
}
