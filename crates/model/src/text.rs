//! Texts cut into token sequences: for judging, and for calibrating.

use std::path::Path;

use tensorpress_tensor::{Context, Error, Result};

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
    /// Characters read from its beginning.
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

/// Reads a text file.
///
/// # Errors
/// `Io`, or `Corruption` if it is not UTF-8.
pub fn read(file: &Path) -> Result<String> {
    from_bytes(std::fs::read(file).map_err(|e| Error::io("read the text", file, e))?, file)
}

/// Takes bytes that were read from `file` as a text.
///
/// # Errors
/// `Corruption` if they are not UTF-8, naming the file and the first bad byte.
pub fn from_bytes(bytes: Vec<u8>, file: &Path) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|e| {
            Error::corruption(format!("not UTF-8 after byte {}", e.utf8_error().valid_up_to()))
        })
        .in_file(file)
}

/// Cuts a text for judging. The lines of a `.jsonl` file (`{"text": ...}`) are cut to the limit, one sequence each;
/// any other text is cut into windows that do not overlap. BOS comes first in each.
///
/// # Errors
/// `Corruption` for a line that is not such an object (naming file and line), `InsufficientData` if there is nothing
/// to predict, `InvalidArgument` for a limit of fewer than 2 tokens; those of the tokenizer.
pub fn segments(
    text: &str,
    file: &Path,
    tokenizer: &Tokenizer,
    context: usize,
    limits: Limits,
) -> Result<Vec<Vec<u32>>> {
    let length = limits.max_tokens.unwrap_or(context).min(context);
    check_length(length)?;
    let count = limits.max_segments.unwrap_or(usize::MAX);
    let mut segments = if file.extension().is_some_and(|e| e == "jsonl") {
        let mut segments = Vec::new();
        for text in lines(text).take(count) {
            let mut ids = tokenizer.encode(&text.in_file(file)?)?;
            ids.truncate(length);
            segments.push(ids);
        }
        segments
    } else {
        windows(&tokenizer.encode_plain(text)?, tokenizer, length, count)
    };
    segments.retain(|ids| ids.len() > 1);
    if segments.is_empty() {
        return Err(Error::insufficient("the text has no token to predict").in_file(file));
    }
    Ok(segments)
}

/// The texts of a `.jsonl` file; blank lines are passed over.
fn lines(text: &str) -> impl Iterator<Item = Result<String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    numbered.map(|(i, line)| match serde_json::from_str::<Line>(line) {
        Ok(line) => Ok(line.text),
        Err(e) => Err(Error::corruption(format!("line {}: {e}", i + 1))),
    })
}

/// Cuts the beginning of a text into windows for calibration, of one length, BOS first in each. What is left over at
/// the end is dropped, unless it is all there is.
///
/// # Errors
/// `InsufficientData` for an empty text, `InvalidArgument` for windows of fewer than 2 tokens or none at all; those of
/// the tokenizer.
pub fn calibration_windows(
    text: &str,
    tokenizer: &Tokenizer,
    cut: Windows,
) -> Result<Vec<Vec<u32>>> {
    check_length(cut.length)?;
    if cut.windows == 0 {
        return Err(Error::invalid("calibration with 0 windows; at least 1 is needed"));
    }
    let end = text.char_indices().nth(cut.chars).map_or(text.len(), |(at, _)| at);
    let ids = tokenizer.encode_plain(&text[..end])?;
    if text[..end].trim().is_empty() || ids.is_empty() {
        return Err(Error::insufficient("the calibration text is empty"));
    }
    let mut windows = windows(&ids, tokenizer, cut.length, cut.windows);
    if windows.len() > 1 {
        windows.retain(|ids| ids.len() == cut.length);
    }
    Ok(windows)
}

/// Windows of `length` tokens that do not overlap, BOS first in each where the model has one.
fn windows(ids: &[u32], tokenizer: &Tokenizer, length: usize, count: usize) -> Vec<Vec<u32>> {
    let bos = tokenizer.bos();
    let body = length - usize::from(bos.is_some());
    ids.chunks(body).take(count).map(|ids| bos.iter().chain(ids).copied().collect()).collect()
}

fn check_length(length: usize) -> Result<()> {
    if length >= 2 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "sequences of {length} tokens, BOS included; at least 2 are needed"
    )))
}
