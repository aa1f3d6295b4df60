//! Exact bit accounting: what a node is made of, itemised, in bytes that will really be written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::dtype::DType;
use crate::error::Result;
use crate::node::Node;

/// What a stored part is for; the rows of a storage bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PartKind {
    /// Integer codes of quantised weights.
    Codes,
    /// Scales of a grid.
    Scales,
    /// Zero points or minima of a grid.
    Zeros,
    /// Floating-point values: dense matrices, factors, outliers.
    Values,
    /// Supports (which entries are stored).
    Masks,
    /// Permutations and index maps.
    Indices,
    /// Channel scales and signs of a transform.
    Transforms,
    /// Codebooks and probability tables.
    Tables,
}

/// One named array of a node, as it goes into a file.
#[derive(Debug, Clone)]
#[must_use]
pub struct Part<'a> {
    /// Full name: weight name, path in the tree, part.
    pub name: String,
    /// What it is for.
    pub kind: PartKind,
    /// Element type.
    pub dtype: DType,
    /// Shape in elements.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major.
    pub bytes: Cow<'a, [u8]>,
}

/// Receives the parts of a node: a file writer, or a counter.
pub trait PartSink {
    /// Takes one part.
    ///
    /// # Errors
    /// Whatever the sink cannot do (write, name twice).
    fn part(&mut self, part: Part<'_>) -> Result<()>;
}

/// Bytes of a node by kind of part. Law 2: equals what the writer writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[must_use]
pub struct Storage {
    items: BTreeMap<PartKind, u64>,
}

impl Storage {
    /// Counts the parts of `node`.
    ///
    /// # Errors
    /// As [`Node::parts`].
    pub fn of(node: &dyn Node) -> Result<Self> {
        let mut storage = Self::default();
        node.parts("", &mut storage)?;
        Ok(storage)
    }

    /// Bytes of one kind.
    #[must_use]
    pub fn bytes_of(&self, kind: PartKind) -> u64 {
        self.items.get(&kind).copied().unwrap_or(0)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.items.values().sum()
    }

    /// All bits: 8 x bytes, padding included.
    #[must_use]
    pub fn bits(&self) -> u64 {
        8 * self.bytes()
    }

    /// [`Storage::bits`] over the weights of a matrix of this shape.
    #[must_use]
    pub fn bits_per_weight(&self, shape: [usize; 2]) -> f64 {
        self.bits() as f64 / (shape[0] * shape[1]).max(1) as f64
    }

    /// Kinds and their bytes.
    pub fn items(&self) -> impl Iterator<Item = (PartKind, u64)> + '_ {
        self.items.iter().map(|(k, v)| (*k, *v))
    }

    /// Counts a part.
    pub fn count(&mut self, part: &Part<'_>) {
        *self.items.entry(part.kind).or_default() += part.bytes.len() as u64;
    }

    /// Adds another bill to this one.
    pub fn add(&mut self, other: &Self) {
        for (kind, bytes) in other.items() {
            *self.items.entry(kind).or_default() += bytes;
        }
    }
}

impl PartSink for Storage {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        self.count(&part);
        Ok(())
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (kind, bytes)) in self.items().enumerate() {
            let sep = if i == 0 { "" } else { ", " };
            write!(f, "{sep}{} {bytes} B", format!("{kind:?}").to_lowercase())?;
        }
        Ok(())
    }
}
