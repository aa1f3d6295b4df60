//! What a model is made of, to the byte.

use serde::Serialize;
use tensorpress_model::Source;
use tensorpress_tensor::node::{Json, Multiply};
use tensorpress_tensor::{Context, Result, Storage};

/// What a model is made of: compressed matrices by kind of part, everything else, and the container around it.
///
/// `storage + uncompressed_bytes + container_bytes = file_bytes`, always.
///
/// ```
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let bill = Bill::of(&Source::demo(&registry())?)?;
/// assert_eq!(bill.storage.bytes() + bill.uncompressed_bytes + bill.container_bytes, bill.file_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[must_use]
pub struct Bill {
    /// Parts of the compressed matrices, or nothing if there are none.
    pub storage: Storage,
    /// Weights of the compressed matrices.
    pub weights: u64,
    /// Bytes of all other tensors.
    pub uncompressed_bytes: u64,
    /// Bytes of headers and descriptions in the weight files.
    pub container_bytes: u64,
    /// Length of the weight files.
    pub file_bytes: u64,
    /// 8 x bytes of all parts of the compressed matrices over the number of their weights; of a model without
    /// compressed matrices, the same of the linear layers of its blocks.
    pub bits_per_weight: f64,
    /// The compressed matrices.
    pub layers: Vec<LayerBill>,
}

/// What one compressed matrix is made of.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LayerBill {
    /// Name of the weight.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Its parts.
    pub storage: Storage,
    /// 8 x bytes of its parts over the number of its weights.
    pub bits_per_weight: f64,
    /// How it multiplies.
    pub multiply: Multiply,
    /// Its tree.
    pub tree: Json,
}

impl Bill {
    /// Counts the parts of every compressed matrix of a model.
    ///
    /// # Errors
    /// Those of reading compressed weights, naming tensor and file.
    pub fn of(source: &Source) -> Result<Self> {
        let checkpoint = source.checkpoint();
        let mut storage = Storage::default();
        let mut layers = Vec::with_capacity(source.trees().len());
        let mut weights = 0;
        for (name, tree) in source.trees() {
            let node = source.weight(name)?;
            let parts = Storage::of(node.as_ref()).in_tensor(name)?;
            let shape = node.shape();
            storage.add(&parts);
            weights += (shape[0] * shape[1]) as u64;
            layers.push(LayerBill {
                name: name.clone(),
                shape,
                bits_per_weight: parts.bits_per_weight(shape),
                storage: parts,
                multiply: node.multiply(),
                tree: tree.clone(),
            });
            checkpoint.release();
        }
        let tensors: u64 = checkpoint.names().filter_map(|n| checkpoint.stored_bytes(n)).sum();
        let bits_per_weight =
            if weights > 0 { storage.bits() as f64 / weights as f64 } else { plain_bits(source) };
        let file_bytes = checkpoint.file_bytes();
        Ok(Self {
            uncompressed_bytes: tensors - storage.bytes(),
            // Others may store less than what their weights are here.
            container_bytes: file_bytes.saturating_sub(tensors),
            storage,
            weights,
            file_bytes,
            bits_per_weight,
            layers,
        })
    }
}

/// Bits of the linear layers as stored, over the number of their weights.
fn plain_bits(source: &Source) -> f64 {
    let (mut bytes, mut weights) = (0, 0);
    for spec in (0..source.blocks()).flat_map(|block| source.linears(block)) {
        bytes += source.checkpoint().stored_bytes(&spec.name).unwrap_or(0);
        weights += (spec.shape[0] * spec.shape[1]) as u64;
    }
    8.0 * bytes as f64 / weights.max(1) as f64
}
