use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tensorpress_entropy::PackedFile;
use tensorpress_entropy::container::MAGIC;
use tensorpress_model::Source;
use tensorpress_tensor::{Registry, Result};

/// Opens a model, compressed or not: a Hugging Face folder, a packed file of one, or a safetensors file. Where nothing
/// says how a model computes it is taken as tensors: see [`Source::open_any`].
///
/// ```
/// use tensorpress::open_model;
///
/// let error = open_model("no/such/model").unwrap_err();
/// assert!(error.to_string().contains("no/such/model"));
/// ```
///
/// # Errors
/// Those of [`Source::open`] and [`PackedFile::open`].
pub fn open_model(path: impl AsRef<Path>) -> Result<Source> {
    open_model_with(path, &crate::registry())
}

/// [`open_model`] with nodes of your own in the registry.
///
/// # Errors
/// As there.
pub fn open_model_with(path: impl AsRef<Path>, registry: &Registry) -> Result<Source> {
    let path = path.as_ref();
    let named = path.extension().is_some_and(|kind| kind == "safetensors");
    match path.is_file() && (!named || begins_packed(path)) {
        true => open_packed_model_with(PackedFile::open(path)?, registry),
        false => Source::open_any(path, registry),
    }
}

/// Whatever it is called.
fn begins_packed(path: &Path) -> bool {
    let mut bytes = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.is_ok() && bytes == MAGIC
}

/// Opens the model in a packed folder: weights are decoded when they are asked for, and again when they were dropped.
/// A delta must have [its base](PackedFile::with_base).
///
/// # Errors
/// As [`Source::open_in`]; `Corruption` for damage, `MissingBase` or `InvalidArgument` for a missing or wrong base, naming
/// the tensor.
pub fn open_packed_model(packed: PackedFile) -> Result<Source> {
    open_packed_model_with(packed, &crate::registry())
}

/// [`open_packed_model`] with nodes of your own in the registry.
///
/// # Errors
/// As there.
pub fn open_packed_model_with(packed: PackedFile, registry: &Registry) -> Result<Source> {
    Source::open_any_in(Arc::new(packed), registry)
}
