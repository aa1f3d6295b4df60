//! What a pipeline asks of a model beside its weights.

use tensorpress_tensor::{Node, Result};

use super::Source;
use crate::decoder::Embedding;
use crate::tokenizer::TokenizerFiles;

impl Source {
    /// Names and contents of the tokenizer's files, of a model that is not a folder.
    #[must_use]
    pub fn tokenizer_files(&self) -> Vec<(&'static str, &[u8])> {
        let TokenizerFiles::Memory { tokenizer, config } = &self.tokenizer else {
            return Vec::new();
        };
        let named = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
        named.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))).collect()
    }
}

impl Embedding {
    /// Replaces the table by a node of the same shape.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn replace(&mut self, node: Box<dyn Node>) -> Result<()> {
        self.table.replace(node)
    }
}
