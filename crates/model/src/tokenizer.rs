//! Text to token ids and back.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tensorpress_tensor::checkpoint::{Files, refuse_lfs_pointer};
use tensorpress_tensor::{Context, Error, Result};
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, PostProcessor, Token, TokenizerImpl};

use crate::config::Config;

/// Where a tokenizer's files are.
#[derive(Debug, Clone)]
pub(crate) enum TokenizerFiles {
    Files(Arc<dyn Files>),
    Memory { tokenizer: Option<Vec<u8>>, config: Option<Vec<u8>> },
}

/// Whether texts begin with the begin-of-text token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Bos {
    /// As the tokenizer says: if `tokenizer.json`'s template puts a special token before a text, or else if
    /// `tokenizer_config.json` has `add_bos_token`.
    #[default]
    Auto,
    /// They do.
    Always,
    /// They do not.
    Never,
}

/// A tokenizer as models use it: the text's tokens, with the begin-of-text token before them exactly once, where texts
/// begin with it ([`Bos`]).
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The token that texts begin with.
    bos: Option<u32>,
    /// The token they could begin with.
    known: Option<u32>,
    /// Whether the tokenizer itself begins texts with it.
    begins: bool,
    /// Tokens that [`Tokenizer::encode_template`] gives at most.
    limit: usize,
}

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

impl Tokenizer {
    pub(crate) fn load(files: &TokenizerFiles, config: &Config) -> Result<Self> {
        match files {
            TokenizerFiles::Files(files) => {
                let read = |name: &str| {
                    let text = files.read(name)?;
                    let pointer = refuse_lfs_pointer(&text, text.len() as u64);
                    pointer.map_err(|e| e.in_file(files.path(name))).map(|()| text)
                };
                let text = read(TOKENIZER)?;
                let extra = match files.contains(TOKENIZER_CONFIG) {
                    true => Some(read(TOKENIZER_CONFIG)?),
                    false => None,
                };
                Self::new(&text, extra.as_deref(), config)
                    .map_err(|e| e.in_file(files.path(TOKENIZER)))
            }
            TokenizerFiles::Memory { tokenizer: Some(text), config: extra } => {
                Self::new(text, extra.as_deref(), config).map_err(|e| e.in_file(TOKENIZER))
            }
            TokenizerFiles::Memory { tokenizer: None, .. } => {
                Err(Error::insufficient("the model has no tokenizer").in_file(TOKENIZER))
            }
        }
    }

    /// From the text of a `tokenizer.json` and, where there is one, of a `tokenizer_config.json`.
    ///
    /// # Errors
    /// `Corruption` if one of them is invalid.
    pub fn new(json: &[u8], tokenizer_config: Option<&[u8]>, config: &Config) -> Result<Self> {
        let (inner, limit) = parse(json)?;
        let limit = limit.unwrap_or(config.context);
        let extra: Value = match tokenizer_config {
            None => Value::Null,
            Some(text) => serde_json::from_slice(text)
                .map_err(|e| Error::corruption(format!("invalid {TOKENIZER_CONFIG}: {e}")))?,
        };
        let named = match extra.get("bos_token") {
            // A model may say that its texts begin with nothing, whatever its config's id.
            Some(Value::Null) => None,
            Some(token) => {
                let text = token.as_str().or_else(|| token["content"].as_str());
                text.and_then(|text| inner.token_to_id(text)).or(config.bos)
            }
            None => config.bos,
        };
        let before = before_texts(&inner)?;
        // What the template puts before a text is what the model was trained behind, whatever it is called.
        let templated = before.iter().copied().find(|id| Some(*id) == named);
        let templated = templated.or(before.first().copied());
        let in_vocab = |id: &u32| (*id as usize) < config.vocab;
        let known = templated.or(named).filter(in_vocab);
        let begins = templated.is_some() || adds_bos(&extra)?;
        let bos = known.filter(|_| begins);
        Ok(Self { inner, bos, known, begins, limit: limit.min(config.context) })
    }

    /// Begins texts otherwise.
    ///
    /// # Errors
    /// `InvalidArgument` for `Always` if the model names no token that begins a text.
    pub fn with_bos(mut self, bos: Bos) -> Result<Self> {
        self.bos = match (bos, self.known) {
            (Bos::Auto, known) => known.filter(|_| self.begins),
            (Bos::Never, _) => None,
            (Bos::Always, Some(known)) => Some(known),
            (Bos::Always, None) => {
                let message = format!(
                    "BOS is to come always, but the model has no token that begins a text: none in {TOKENIZER}'s \
                     template, no `bos_token` in {TOKENIZER_CONFIG}, no `bos_token_id` in config.json"
                );
                return Err(Error::invalid(message));
            }
        };
        Ok(self)
    }

    /// The tokenizer of a folder, without its model: it counts and encodes, but begins texts with nothing.
    ///
    /// # Errors
    /// `Io` if the folder has no `tokenizer.json`, `Corruption` if it is invalid; each names the file.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let file = folder.as_ref().join(TOKENIZER);
        let json = std::fs::read(&file).map_err(|e| Error::io("read the tokenizer", &file, e))?;
        let (inner, limit) = parse(&json).in_file(&file)?;
        let limit = limit.unwrap_or(usize::MAX);
        Ok(Self { inner, bos: None, known: None, begins: false, limit })
    }

    /// The token that comes before every text, if one does.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The text's tokens after BOS, which is there exactly once, where texts begin with it; no other special tokens are
    /// added.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_plain(text)?;
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text's tokens and nothing else.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(text)?.get_ids().to_vec())
    }

    /// The text's tokens and the bytes of the text each stands for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.run(text)?;
        let offsets = encoding.get_offsets().iter().map(|(from, to)| *from..*to);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The text in the tokenizer's own template (for BERT, `[CLS] text [SEP]`), cut to the model's length.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>> {
        let mut encoding = self.run(text)?;
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        encoding.truncate(self.limit.saturating_sub(added), 0, TruncationDirection::Right);
        let inner: &TokenizerImpl<_, _, _, _, _> = &self.inner;
        let encoding = inner.post_process(encoding, None, true).map_err(|e| cannot_encode(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn run(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner.encode(text, false).map_err(|e| cannot_encode(&*e))
    }

    /// The text of some tokens, special tokens left out.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let decoded = self.inner.decode(ids, true);
        decoded.map_err(|e| Error::invalid(format!("the tokenizer cannot decode: {e}")))
    }

    /// Decodes tokens as they come.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0 }
    }
}

/// A tokenizer that neither pads nor truncates, and the length it would have truncated to.
fn parse(json: &[u8]) -> Result<(tokenizers::Tokenizer, Option<usize>)> {
    let mut inner = tokenizers::Tokenizer::from_bytes(json)
        .map_err(|e| Error::corruption(format!("invalid tokenizer: {e}")))?;
    let limit = inner.get_truncation().map(|t| t.max_length);
    inner.with_padding(None);
    inner
        .with_truncation(None)
        .map_err(|e| Error::corruption(format!("invalid tokenizer: {e}")))?;
    Ok((inner, limit))
}

/// The tokens that the template puts before a text. It is asked with one that stands for any.
fn before_texts(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    let Some(template) = inner.get_post_processor() else { return Ok(Vec::new()) };
    let any = Encoding::from_tokens(vec![Token::new(u32::MAX, "a".to_owned(), (0, 1))], 0);
    let around = template
        .process(any, None, true)
        .map_err(|e| Error::corruption(format!("invalid template of texts: {e}")))?;
    Ok(around.get_ids().iter().copied().take_while(|id| *id != u32::MAX).collect())
}

/// What a `tokenizer_config.json` says of BOS.
fn adds_bos(config: &Value) -> Result<bool> {
    match config.get("add_bos_token") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(adds)) => Ok(*adds),
        Some(other) => {
            let message = format!("{TOKENIZER_CONFIG}: `add_bos_token` is {other}: true or false");
            Err(Error::corruption(message))
        }
    }
}

fn cannot_encode(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::invalid(format!("the tokenizer cannot encode the text: {error}"))
}

/// Decodes tokens as they come, into pieces that are whole characters and join to the decoded text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens: those already shown give the context of the others.
    ids: Vec<u32>,
    shown: usize,
}

impl TextStream<'_> {
    /// Takes a token; gives the text that is complete now, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.shown])?;
        let all = self.tokenizer.decode(&self.ids)?;
        // A character whose bytes are not all there ends in U+FFFD.
        if all.ends_with('\u{FFFD}') && self.ids.len() - self.shown < 8 {
            return Ok(String::new());
        }
        let piece = all.strip_prefix(&before).unwrap_or(&all).to_owned();
        if !piece.is_empty() && self.shown > 0 {
            self.ids.drain(..self.shown);
        }
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// The text held back because its last character is not complete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(all.strip_prefix(&before).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests;
