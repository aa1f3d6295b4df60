use std::path::Path;
use std::sync::Arc;

use tensorpress_entropy::PackedFile;
use tensorpress_model::Source;
use tensorpress_tensor::Result;

use crate::registry;

/// Opens a model, compressed or not: a Hugging Face folder, or a packed file of one.
///
/// # Errors
/// Those of [`Source::open`] and [`PackedFile::open`].
///
/// ```
/// use tensorpress::open_model;
///
/// let error = open_model("no/such/model").unwrap_err();
/// assert!(error.to_string().contains("no/such/model"));
/// ```
pub fn open_model(path: impl AsRef<Path>) -> Result<Source> {
    let path = path.as_ref();
    match path.is_file() {
        true => open_packed_model(PackedFile::open(path)?),
        false => Source::open(path, &registry()),
    }
}

/// Opens the model in a packed folder: weights are decoded when they are asked for, and again when they were dropped.
/// A delta must have [its base](PackedFile::with_base).
///
/// # Errors
/// As [`Source::open_in`]; `Corruption` for damage, `InvalidArgument` for a missing or wrong base, naming the tensor.
pub fn open_packed_model(packed: PackedFile) -> Result<Source> {
    Source::open_in(Arc::new(packed), &registry())
}
