//! What a result takes that is to be one file of another format.

use std::collections::BTreeMap;

use tensorpress_tensor::{Node, Result};

/// A file as it would be with every matrix as it is in the source.
pub(in crate::pipeline) struct Outline {
    /// Its length.
    pub(in crate::pipeline) bytes: u64,
    /// Its tensors: names of the matrices that each is made of, and its length, filled up.
    pub(in crate::pipeline) tensors: Vec<(Vec<String>, u64)>,
    /// Tensors are filled up to a multiple of this.
    pub(in crate::pipeline) alignment: u64,
    /// Bytes of a matrix there; `Unsupported` where the format cannot hold it.
    pub(in crate::pipeline) takes: fn(&dyn Node) -> Result<u64>,
}

impl Outline {
    /// Bytes of a matrix, filled up as if it were a tensor by itself.
    ///
    /// # Errors
    /// `Unsupported` where the format cannot hold it.
    pub(in crate::pipeline) fn filled(&self, node: &dyn Node) -> Result<u64> {
        (self.takes)(node).map(|bytes| bytes.next_multiple_of(self.alignment))
    }

    /// Bytes beside these matrices.
    pub(super) fn beside(&self, is_matrix: impl Fn(&str) -> bool) -> u64 {
        let made = |names: &[String]| names.iter().any(|name| is_matrix(name));
        let matrices = self.tensors.iter().filter(|(names, _)| made(names));
        self.bytes.saturating_sub(matrices.map(|(_, bytes)| bytes).sum())
    }

    /// Of each matrix the first that is in one tensor with it, and so of one type.
    pub(super) fn firsts(&self) -> BTreeMap<&str, &str> {
        let tensors = self.tensors.iter().filter_map(|(names, _)| Some((names, names.first()?)));
        tensors
            .flat_map(|(names, first)| names.iter().map(|name| (name.as_str(), first.as_str())))
            .collect()
    }
}
