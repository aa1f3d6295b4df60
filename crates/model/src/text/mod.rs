//! Texts: what files of them hold ([`Corpus`]), cut into token sequences for judging and for calibrating.

mod corpus;
mod cut;
mod images;
mod json;
mod kind;
mod tensors;
#[cfg(test)]
mod tests;

use std::path::Path;

use tensorpress_tensor::{Context, Error, Result};

pub use corpus::{Corpus, Document, Message};

use crate::tokenizer::Tokenizer;

/// How much of a text is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// At most this many sequences.
    pub max_segments: Option<usize>,
    /// At most this many tokens a sequence, BOS included; the model's context if absent.
    pub max_tokens: Option<usize>,
}

/// How a calibration text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Characters read from its beginning; token ids are none.
    pub chars: usize,
    /// Windows at most.
    pub windows: usize,
    /// Tokens a window, BOS included.
    pub length: usize,
}

impl Default for Windows {
    /// 120,000 characters, 64 windows of 256 tokens: enough for the Gram matrices of small models to settle.
    fn default() -> Self {
        Self { chars: 120_000, windows: 64, length: 256 }
    }
}

/// Reads a file as one text, whatever is in it: JSON too is text here, unlike in [`Corpus::read`].
///
/// # Errors
/// `Io`; those of [`from_bytes`].
pub fn read(file: &Path) -> Result<String> {
    from_bytes(bytes_of(file)?, file)
}

/// Takes bytes that were read from `file` as one text, without the byte order mark that may stand before it.
///
/// # Errors
/// `Corruption` if they are not UTF-8 (naming the first bad byte) or hold NUL; `Unsupported` for UTF-16, UTF-32, Parquet
/// and packed files, saying what to do. Each names the file.
pub fn from_bytes(bytes: Vec<u8>, file: &Path) -> Result<String> {
    kind::utf8(bytes).in_file(file)
}

fn bytes_of(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|e| Error::io("read the text", file, e))
}

/// [`Corpus::segments`] of a text that was read from `file`, by a tokenizer and a context of one's own.
///
/// # Errors
/// As there, and those of [`Corpus::from_text`].
pub fn segments(
    text: &str,
    file: &Path,
    tokenizer: &Tokenizer,
    context: usize,
    limits: Limits,
) -> Result<Vec<Vec<u32>>> {
    Corpus::from_text(text, file)?.segments_by(Some(tokenizer), context, limits)
}

/// [`Corpus::windows`] of plain text for decoders, by a tokenizer of one's own.
///
/// # Errors
/// As there.
pub fn calibration_windows(
    text: &str,
    tokenizer: &Tokenizer,
    cut: Windows,
) -> Result<Vec<Vec<u32>>> {
    Corpus::from(text).windows_by(Some(tokenizer), true, cut)
}
