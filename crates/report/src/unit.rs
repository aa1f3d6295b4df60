//! A matrix, and what became of it.

use serde::{Deserialize, Serialize};

use crate::text::nan_for_null;

/// One matrix: its level, what that costs and loses, and why it got it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unit {
    /// Name of the matrix.
    pub name: String,
    /// Number of the block it is of, if it is of any.
    #[serde(default)]
    pub block: Option<u32>,
    /// What it is in every block: its name without numbers.
    pub kind: String,
    /// How it is stored: a method, a recipe.
    pub method: String,
    /// Bits a weight; NaN where unknown.
    #[serde(deserialize_with = "nan_for_null")]
    pub bits: f64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Error relative to what it was, if measured.
    #[serde(default)]
    pub relative_error: Option<f64>,
    /// What the model is expected to lose by it, if known.
    #[serde(default)]
    pub expected_loss: Option<f64>,
    /// Why it got this level.
    #[serde(default)]
    pub why: String,
    /// Why it is not stored as was asked for, if it is not.
    #[serde(default)]
    pub fallback: Option<String>,
}

impl Unit {
    /// A matrix. Its block is the first number among the parts of its name, its kind what is left without numbers.
    #[must_use]
    pub fn new(name: impl Into<String>, method: impl Into<String>, bits: f64, bytes: u64) -> Self {
        let name = name.into();
        let (block, kind) = block_and_kind(&name);
        Self {
            name,
            block,
            kind,
            method: method.into(),
            bits,
            bytes,
            relative_error: None,
            expected_loss: None,
            why: String::new(),
            fallback: None,
        }
    }

    /// The block it is of, or none, where its name does not say it.
    #[must_use]
    pub fn with_block(mut self, block: impl Into<Option<u32>>) -> Self {
        self.block = block.into();
        self
    }

    /// What it is in every block, where its name does not say it.
    #[must_use]
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Error relative to what it was.
    #[must_use]
    pub fn with_relative_error(mut self, error: f64) -> Self {
        self.relative_error = Some(error);
        self
    }

    /// What the model is expected to lose by it.
    #[must_use]
    pub fn with_expected_loss(mut self, loss: f64) -> Self {
        self.expected_loss = Some(loss);
        self
    }

    /// Why it got this level.
    #[must_use]
    pub fn with_why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// Why it is not stored as was asked for.
    #[must_use]
    pub fn with_fallback(mut self, reason: impl Into<String>) -> Self {
        self.fallback = Some(reason.into());
        self
    }
}

fn block_and_kind(name: &str) -> (Option<u32>, String) {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let block = name.split('.').find(is_number).and_then(|part| part.parse().ok());
    let words: Vec<&str> = name.split('.').filter(|part| !is_number(part)).collect();
    let kind = if words.is_empty() { name.to_owned() } else { words.join(".") };
    (block, kind)
}
