use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tensorpress_tensor::{Context, Error, RawTensor, Result};

use super::{bytes_of, json, kind, tensors};

/// What somebody says in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who: `system`, `user`, `assistant` ...
    pub role: String,
    /// What.
    pub content: String,
}

/// One of the texts of a [`Corpus`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document {
    /// A text.
    Text(String),
    /// A chat.
    Chat(Vec<Message>),
    /// A text that is encoded already; it is taken as it is, no token is added.
    Ids(Vec<u32>),
}

impl Document {
    /// The text to encode, if this is not encoded already. A chat is written as lines `role: content`: templates of chats
    /// are programs (Jinja), which are not run here.
    #[must_use]
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Chat(messages) => {
                let line = |m: &Message| format!("{}: {}\n", m.role, m.content);
                Some(Cow::Owned(messages.iter().map(line).collect()))
            }
            Self::Ids(_) => None,
        }
    }
}

/// Texts to judge or to calibrate on, told by their content:
///
/// - JSON lines (objects one after the other) and JSON arrays: one document each. An object has `text`, `content`,
///   `prompt` and `completion` (joined), `messages` (`[{"role": ..., "content": ...}]`), or `ids` or `input_ids`, with or
///   without `attention_mask`; in arrays strings are texts too. Other keys are passed over.
/// - Safetensors: `ids` or `input_ids` `[documents, tokens]` or `[tokens]`, integers of any type, and an
///   `attention_mask` of the same shape, whose zeros are padding and left out; or `pixel_values`, see
///   [`Corpus::pixels`].
/// - Any other UTF-8: one plain text, its CRLF as LF. What begins with `{` or `[`, or is named `.json`, `.jsonl` or
///   `.ndjson`, is never taken for that.
///
/// A byte order mark is passed over.
///
/// ```
/// use tensorpress_model::text::{Corpus, Document};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let lines = b"{\"text\": \"A cat.\"}\r\n{\"ids\": [1, 5, 9]}\r\n";
/// let corpus = Corpus::from_bytes(lines.to_vec(), "texts.txt".as_ref())?;
/// let [text, ids] = corpus.documents() else { panic!("two") };
/// assert_eq!((text, ids), (&Document::Text("A cat.".into()), &Document::Ids(vec![1, 5, 9])));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Corpus {
    file: Option<PathBuf>,
    documents: Vec<Document>,
    /// One text without ends, to be cut anywhere.
    plain: bool,
    pixels: Option<RawTensor>,
}

impl From<String> for Corpus {
    /// A plain text, whatever it looks like.
    fn from(text: String) -> Self {
        Self { file: None, documents: vec![Document::Text(text)], plain: true, pixels: None }
    }
}

impl From<&str> for Corpus {
    /// A plain text, whatever it looks like.
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Corpus {
    /// Reads a file.
    ///
    /// # Errors
    /// `Io`; those of [`Corpus::from_bytes`].
    pub fn read(file: &Path) -> Result<Self> {
        Self::from_bytes(bytes_of(file)?, file)
    }

    /// Takes bytes that were read from `file`.
    ///
    /// # Errors
    /// `Corruption` for what begins as JSON or safetensors do and is not one of the forms above (naming line or tensor,
    /// and what is wrong); those of [`super::from_bytes`]. Each names the file.
    pub fn from_bytes(bytes: Vec<u8>, file: &Path) -> Result<Self> {
        if !kind::is_safetensors(&bytes) {
            return Self::of(kind::utf8(bytes).in_file(file)?, file);
        }
        let (documents, pixels) = tensors::read(bytes, file).in_file(file)?;
        Ok(Self { file: Some(file.to_path_buf()), documents, plain: false, pixels })
    }

    /// Takes a text that was read from `file`, as [`Corpus::from_bytes`] does.
    ///
    /// # Errors
    /// As there.
    pub fn from_text(text: &str, file: &Path) -> Result<Self> {
        Self::of(text.to_owned(), file)
    }

    fn of(text: String, file: &Path) -> Result<Self> {
        if kind::is_json(&text) {
            let documents = json::documents(&text).in_file(file)?;
            return Ok(Self { documents, plain: false, ..Self::named(String::new(), file) });
        }
        if named_as_json(file) && !text.trim().is_empty() {
            let what = "is named as JSON and is none: it begins with neither { nor [";
            return Err(Error::corruption(what).in_file(file));
        }
        Ok(Self::named(if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }, file))
    }

    fn named(text: String, file: &Path) -> Self {
        Self { file: Some(file.to_path_buf()), ..Self::from(text) }
    }

    /// The file they were read from, if they were.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The texts; of a plain text one.
    #[must_use]
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Whether this is one plain text, which is cut into windows, and not documents that are read one by one.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether every document is encoded already, so that no tokenizer is needed.
    #[must_use]
    pub fn is_encoded(&self) -> bool {
        self.documents.iter().all(|document| matches!(document, Document::Ids(_)))
    }

    /// `pixel_values` of a safetensors file: images for models that read such. What cuts into tokens refuses them.
    #[must_use]
    pub fn pixels(&self) -> Option<&RawTensor> {
        self.pixels.as_ref()
    }

    /// What a person should know of how this is read, if there is something.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        let chat = self.documents.iter().any(|document| matches!(document, Document::Chat(_)));
        chat.then_some(
            "messages are read as lines `role: content`, not by the model's chat template",
        )
    }

    /// Names the file in an error.
    pub(super) fn located(&self, error: Error) -> Error {
        match &self.file {
            Some(file) => error.in_file(file),
            None => error,
        }
    }
}

fn named_as_json(file: &Path) -> bool {
    let ending = file.extension().map(|e| e.to_ascii_lowercase());
    ending.is_some_and(|e| ["json", "jsonl", "ndjson"].iter().any(|known| e == *known))
}
