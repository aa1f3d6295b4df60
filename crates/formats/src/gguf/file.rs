use std::path::Path;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, FileReader};
use tensorpress_tensor::{Bytes, Context, Error, Result};

use super::header::Header;

/// A file: its header, and the bytes behind it, which are read when asked for.
///
/// ```
/// use tensorpress_formats::gguf::{Gguf, Header, Value};
/// use tensorpress_tensor::Bytes;
///
/// let metadata = vec![("general.architecture".to_owned(), Value::String("llama".into()))];
/// let header = Header::new(metadata, [("output.weight".to_owned(), vec![2, 1], 0)])?;
/// let mut file = Vec::new();
/// header.write(&mut file, &mut |_| Ok(Bytes::from(vec![0; 8])))?;
///
/// let file = Gguf::from_bytes(file)?;
/// assert_eq!(file.header().get("general.architecture").unwrap().as_str(), Some("llama"));
/// assert_eq!(file.bytes("output.weight")?.len(), 8);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gguf {
    header: Header,
    source: Arc<dyn ByteSource>,
}

impl Gguf {
    /// Opens a file on disk.
    ///
    /// # Errors
    /// `Io`, and those of [`Header::read`]; names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_source(Arc::new(FileReader::open(path)?)).in_file(path)
    }

    /// Opens a file wherever it is.
    ///
    /// # Errors
    /// Those of [`Header::read`].
    pub fn from_source(source: Arc<dyn ByteSource>) -> Result<Self> {
        Ok(Self { header: Header::read(&*source)?, source })
    }

    /// Opens a file in memory.
    ///
    /// # Errors
    /// Those of [`Header::read`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self> {
        Self::from_source(Arc::new(bytes.into()))
    }

    /// What the file says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All bytes of the file.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn ByteSource> {
        &self.source
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// `InsufficientData` if there is none of this name; those of reading.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let missing = || Error::insufficient("is not in the file").in_tensor(name);
        let info = self.header.tensor(name).ok_or_else(missing)?;
        self.source.read(self.header.range(info)).in_tensor(name)
    }
}
