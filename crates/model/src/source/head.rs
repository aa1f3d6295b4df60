//! Models whose head a rewrite has changed.

use tensorpress_tensor::rewrite::{Change, Edit};
use tensorpress_tensor::{Error, Result, Tensor};

use super::Source;
use super::edit::values;
use super::view::{Content, Piece, view};
use crate::config::Config;

impl Source {
    /// This model with an edit to its head: a view. Where the table of embeddings makes the logits too, the head gets a
    /// matrix of its own, and the config says so.
    ///
    /// # Errors
    /// `InvalidArgument` for changes of anything but the head's matrix, or other changes than new values; `ShapeMismatch`
    /// for another shape; `Unsupported` for a compressed head, and where the config cannot say what is left; those of
    /// [`Source::need_head`].
    pub fn edited_head(&self, edit: &Edit) -> Result<Self> {
        self.need_head()?;
        if edit.changes().is_empty() && !edit.is_dropped() {
            return self.rebuilt(self.raw.clone(), self.checkpoint.clone());
        }
        let (matrix, table) = (&self.plan.head.matrix, &self.plan.embedding.table);
        let [(name, Change::New(tensor))] = edit.changes().iter().collect::<Vec<_>>()[..] else {
            let message = "an edit of a head: allowed are new values of its matrix";
            return Err(Error::invalid(message).in_tensor(matrix));
        };
        let shape = [self.config.vocab, self.plan.embedding.width];
        if name != matrix || edit.is_dropped() || edit.shape().is_some() {
            let message = "an edit of a head: allowed are new values of its matrix";
            return Err(Error::invalid(message).in_tensor(name));
        }
        if self.trees.contains_key(matrix) {
            let message = "is compressed: a head is changed before that";
            return Err(Error::unsupported(message).in_tensor(matrix));
        }
        if tensor.shape() != shape {
            let message = format!("edited to {:?}, the head is {shape:?}", tensor.shape());
            return Err(Error::shape(message).in_tensor(matrix));
        }
        let mut tensors = self.moved(&(0..self.config.blocks).collect::<Vec<_>>());
        let mut raw = self.raw.clone();
        let mut own = matrix.clone();
        if matrix == table {
            raw["tie_word_embeddings"] = false.into();
            let apart = Config::from_json(&raw, &self.config_file())?;
            let apart = apart.plan(&raw, &self.config_file())?;
            own = apart.head.matrix;
            if own == *table {
                // The one matrix was stored under the head's name.
                let piece = Piece { from: table.clone(), content: Content::Whole };
                tensors.insert(apart.embedding.table, piece);
            }
        }
        let content = values(tensor);
        tensors.insert(own, Piece { from: matrix.clone(), content });
        let path = self.folder.clone().unwrap_or_else(|| "model".into());
        let source = self.rebuilt(raw, view(&self.checkpoint, tensors, path)?)?;
        if source.plan.head.matrix == source.plan.embedding.table {
            let kind = self.config.architecture;
            let message = format!("config.json has no key for a head of its own in {kind:?}");
            return Err(Error::unsupported(message).in_tensor(matrix));
        }
        Ok(source)
    }
}
