use tensorpress_model::Source;
use tensorpress_model::text::{self, Windows};
use tensorpress_tensor::{Error, Result};

/// Characters of the text that are used by default.
pub const DEFAULT_CHARS: usize = 120_000;
/// Windows that are used by default.
pub const DEFAULT_WINDOWS: usize = 64;
/// Tokens of a window by default, BOS included.
pub const DEFAULT_LENGTH: usize = 256;

/// A text to calibrate on: its first characters are encoded and cut into windows, each of which begins with BOS.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CalibrationText {
    /// The text.
    pub text: String,
    /// Characters used. Default 120,000.
    pub chars: usize,
    /// Windows used. Default 64.
    pub windows: usize,
    /// Tokens of a window, BOS included. Default 256, or the model's context if that is shorter.
    pub length: Option<usize>,
}

impl CalibrationText {
    /// A text with the defaults.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let (chars, windows) = (DEFAULT_CHARS, DEFAULT_WINDOWS);
        Self { text: text.into(), chars, windows, length: None }
    }

    /// Sets how many characters of the text are used.
    #[must_use]
    pub fn with_chars(mut self, chars: usize) -> Self {
        self.chars = chars;
        self
    }

    /// Sets how many windows are used at most.
    #[must_use]
    pub fn with_windows(mut self, windows: usize) -> Self {
        self.windows = windows;
        self
    }

    /// Sets the tokens of a window, BOS included.
    #[must_use]
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    /// Token ids of every window.
    pub(super) fn windows(&self, source: &Source) -> Result<Vec<Vec<u32>>> {
        let context = source.config().context;
        let length = self.length.unwrap_or(DEFAULT_LENGTH.min(context));
        if length < 2 || length > context {
            return Err(Error::invalid(format!(
                "calibration length = {length}: allowed are 2 to {context}, the model's context"
            )));
        }
        if self.windows == 0 || self.chars == 0 {
            let (windows, chars) = (self.windows, self.chars);
            return Err(Error::invalid(format!(
                "calibration windows = {windows}, characters = {chars}: allowed are 1 and more"
            )));
        }
        let windows = if source.config().architecture.is_decoder() {
            let cut = Windows { chars: self.chars, windows: self.windows, length };
            text::calibration_windows(&self.text, &source.tokenizer()?, cut)?
        } else {
            self.sentences(source, length)?
        };
        if windows.is_empty() {
            return Err(Error::insufficient("the calibration text is empty"));
        }
        Ok(windows)
    }

    /// For encoders: pieces of the text, each in the model's template.
    fn sentences(&self, source: &Source, length: usize) -> Result<Vec<Vec<u32>>> {
        let tokenizer = source.tokenizer()?;
        let end = self.text.char_indices().nth(self.chars).map_or(self.text.len(), |(at, _)| at);
        let mut windows = Vec::new();
        let mut rest = self.text[..end].trim();
        while !rest.is_empty() && windows.len() < self.windows {
            // About four characters a token, cut where a word ends.
            let cut = rest.char_indices().skip(4 * length).find(|(_, c)| c.is_whitespace());
            let (piece, later) = rest.split_at(cut.map_or(rest.len(), |(at, _)| at));
            let mut ids = tokenizer.encode_template(piece)?;
            ids.truncate(length);
            windows.push(ids);
            rest = later.trim_start();
        }
        Ok(windows)
    }
}
