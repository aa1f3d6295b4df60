use std::str::FromStr;

use tensorpress_model::text::{Corpus, Windows};
use tensorpress_model::tokenizer::Bos;
use tensorpress_model::{Reads, Source};
use tensorpress_tensor::ndarray::Array4;
use tensorpress_tensor::{Error, Result};

/// Characters of the text that are used by default.
pub const DEFAULT_CHARS: usize = 120_000;
/// Windows that are used by default.
pub const DEFAULT_WINDOWS: usize = 64;
/// Tokens of a window by default, BOS included.
pub const DEFAULT_LENGTH: usize = 256;

/// What blocks are calibrated on.
#[derive(Default)]
pub(super) struct Samples {
    /// Token ids.
    pub(super) windows: Vec<Vec<u32>>,
    /// `[images, channels, height, width]`.
    pub(super) images: Option<Array4<f32>>,
}

/// Whose inputs calibrate a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Inputs {
    /// What the blocks before it make once they are compressed, so that each block is fitted to what it will read.
    #[default]
    Compressed,
    /// What the blocks before it make in the model as it was, as importance matrices have it. A layer is then compressed
    /// as it would be if no other was, and [drift correction](tensorpress_quant::Drift) has nothing to correct.
    Original,
}

impl FromStr for Inputs {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "compressed" => Ok(Self::Compressed),
            "original" => Ok(Self::Original),
            _ => Err(Error::invalid(format!(
                "calibration inputs = `{name}`: allowed are compressed and original"
            ))),
        }
    }
}

/// A text to calibrate on: its first characters are encoded and cut into windows, each of which begins with BOS where
/// the tokenizer's texts do; see [`Corpus::windows`]. Models of images take the `pixel_values` of a safetensors file
/// ([`Corpus::images`]); of a model that reads both, what is given calibrates its side, and layers of the other side are
/// compressed without data, as their reports say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CalibrationText {
    /// The text: one, or documents, or token ids.
    pub text: Corpus,
    /// Characters used. Default 120,000.
    pub chars: usize,
    /// Windows used, and images. Default 64.
    pub windows: usize,
    /// Tokens of a window, BOS included. Default 256, or the model's context if that is shorter.
    pub length: Option<usize>,
    /// Whether windows begin with BOS. Default: as the tokenizer says.
    pub bos: Bos,
}

impl CalibrationText {
    /// A text with the defaults. Strings are plain texts, whatever they look like; [`Corpus::read`] reads files.
    #[must_use]
    pub fn new(text: impl Into<Corpus>) -> Self {
        let (chars, windows) = (DEFAULT_CHARS, DEFAULT_WINDOWS);
        Self { text: text.into(), chars, windows, length: None, bos: Bos::default() }
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

    /// Sets whether windows begin with BOS. Default: as the tokenizer says.
    #[must_use]
    pub fn with_bos(mut self, bos: Bos) -> Self {
        self.bos = bos;
        self
    }

    /// What the model reads of it.
    pub(super) fn samples(&self, source: &Source) -> Result<Samples> {
        let stacks = source.config().stacks();
        let reads = |what: Reads| stacks.iter().any(|(_, reads)| *reads == what);
        let (tokens, images) = (reads(Reads::Tokens), reads(Reads::Images));
        let mut samples = Samples::default();
        // Of a model that reads both, blocks of what is not there see nothing, and say so.
        if images && (self.text.pixels().is_some() || (!tokens && self.text.documents().is_empty()))
        {
            samples.images = Some(self.text.images(source, self.windows)?);
        }
        if samples.images.is_none() || !self.text.documents().is_empty() {
            samples.windows = self.windows(source)?;
        }
        Ok(samples)
    }

    /// Token ids of every window.
    fn windows(&self, source: &Source) -> Result<Vec<Vec<u32>>> {
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
        let cut = Windows { chars: self.chars, windows: self.windows, length };
        self.text.windows(source, self.bos, cut)
    }
}
