use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tensorpress_entropy::PackedFile;
use tensorpress_entropy::container::MAGIC;
#[cfg(feature = "formats")]
use tensorpress_formats::{gguf::model as gguf, import};
use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::Files;
#[cfg(feature = "formats")]
use tensorpress_tensor::checkpoint::Folder;
use tensorpress_tensor::{Registry, Result};

/// Opens a model, compressed or not: a Hugging Face folder, a packed file of one, a GGUF file, or a safetensors file.
/// Where nothing says how a model computes it is taken as tensors: see [`Source::open_any`].
///
/// What others have quantised (GGUF; folders of GPTQ, AWQ, compressed-tensors, bitsandbytes, 8-bit floats in tiles) is read
/// as nodes straight over the mapped files: see [`Source::trees`].
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
    #[cfg(feature = "formats")]
    if let Some(seen) = seen_by_path(path)? {
        let source = Source::open_any_in(seen, registry)?;
        return Ok(if path.is_dir() { source.with_folder(path) } else { source });
    }
    let named = path.extension().is_some_and(|kind| kind == "safetensors");
    match path.is_file() && (!named || begins_packed(path)) {
        true => open_packed_model_with(PackedFile::open(path)?, registry),
        false => Source::open_any(path, registry),
    }
}

/// The folder that others' file or folder stands for, where it is one of theirs.
#[cfg(feature = "formats")]
fn seen_by_path(path: &Path) -> Result<Option<Arc<dyn Files>>> {
    if path.is_file() {
        let of_file = || gguf::GgufFolder::open(path).map(|seen| Arc::new(seen) as Arc<dyn Files>);
        return gguf::is_gguf(path).then(of_file).transpose();
    }
    if !path.is_dir() {
        return Ok(None);
    }
    let folder: Arc<dyn Files> = Arc::new(Folder::new(path));
    if let Some(file) = gguf::only_file(&*folder)? {
        return Ok(Some(Arc::new(gguf::GgufFolder::open(file)?)));
    }
    let seen = import::as_ours(folder.clone())?;
    Ok((!Arc::ptr_eq(&folder, &seen)).then_some(seen))
}

/// The same of a folder that lies anywhere.
fn seen(files: Arc<dyn Files>) -> Result<Arc<dyn Files>> {
    #[cfg(feature = "formats")]
    {
        if let Some(name) = gguf::only_name(&*files)? {
            let file = tensorpress_formats::gguf::Gguf::from_source(files.open(&name)?)?;
            return Ok(Arc::new(gguf::GgufFolder::of_file(&files.path(&name), file)?));
        }
        import::as_ours(files)
    }
    #[cfg(not(feature = "formats"))]
    Ok(files)
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
    Source::open_any_in(seen(Arc::new(packed))?, registry)
}
