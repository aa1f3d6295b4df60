//! What a rewrite remembers of a block, and what it decides for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::source::{RawTensor, Tensor};

/// One of the states a block can be brought to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// What is left of it, in a unit that is the same for all blocks (weights, bytes, time).
    pub cost: f64,
    /// What is lost, in a unit that is the same for all blocks.
    pub error: f64,
}

/// What a rewrite remembers of a block: named tensors, the levels it offers, and notes. All of it is stored, to the bit,
/// so that no block is judged twice; tensors read back lie in a memory map, however large they are.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    levels: Vec<Level>,
    tensors: BTreeMap<String, RawTensor>,
    notes: BTreeMap<String, String>,
}

impl Judgement {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the levels the block can be brought to.
    #[must_use]
    pub fn with_levels(mut self, levels: Vec<Level>) -> Self {
        self.levels = levels;
        self
    }

    /// Remembers numbers under a name.
    #[must_use]
    pub fn with_values(self, name: &str, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = RawTensor::new(DType::F64, vec![values.len()], bytes.into());
        self.with_tensor(name, tensor.expect("eight bytes a value"))
    }

    /// Remembers a tensor under a name.
    #[must_use]
    pub fn with_tensor(mut self, name: &str, tensor: RawTensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }

    /// Says why less was done for a weight than asked.
    #[must_use]
    pub fn with_note(mut self, weight: &str, text: &str) -> Self {
        super::note(&mut self.notes, weight, text);
        self
    }

    /// The levels the block can be brought to.
    #[must_use]
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Whether there is something under a name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Numbers that were remembered with [`Judgement::with_values`].
    ///
    /// # Errors
    /// `InsufficientData` if there are none of this name, `Unsupported` for another type.
    pub fn values(&self, name: &str) -> Result<Vec<f64>> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() != DType::F64 {
            let message = format!("`{name}` is {:?}, numbers are F64", tensor.dtype());
            return Err(Error::unsupported(message));
        }
        Ok(tensor.bytes().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    /// A tensor that was remembered.
    ///
    /// # Errors
    /// `InsufficientData` if there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<&RawTensor> {
        let missing = || Error::insufficient(format!("the judgement of a block has no `{name}`"));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// All tensors, by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, RawTensor> {
        &self.tensors
    }

    /// Why less was done than asked, by weight.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }
}

/// What becomes of a block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Decision {
    /// It goes as a whole.
    pub dropped: bool,
    /// The level it is brought to, of those that were offered.
    pub level: Option<usize>,
    /// Numbers of what stays (heads, channels, experts ...), under names of the rewrite's choice.
    pub kept: BTreeMap<String, Vec<usize>>,
}

impl Decision {
    /// Nothing is to be done.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the block goes.
    #[must_use]
    pub fn with_dropped(mut self, dropped: bool) -> Self {
        self.dropped = dropped;
        self
    }

    /// Sets the level.
    #[must_use]
    pub fn with_level(mut self, level: usize) -> Self {
        self.level = Some(level);
        self
    }

    /// Says what stays.
    #[must_use]
    pub fn with_kept(mut self, name: &str, kept: Vec<usize>) -> Self {
        self.kept.insert(name.to_owned(), kept);
        self
    }

    /// What stays of this name.
    ///
    /// # Errors
    /// `InsufficientData` if nothing was said.
    pub fn kept(&self, name: &str) -> Result<&[usize]> {
        let missing = || Error::insufficient(format!("the decision on a block has no `{name}`"));
        self.kept.get(name).map(Vec::as_slice).ok_or_else(missing)
    }
}
