//! Texts cut into token sequences.

use tensorpress_tensor::{Error, Result};

use super::corpus::{Corpus, Document};
use super::{Limits, Windows};
use crate::source::Source;
use crate::tokenizer::{Bos, Tokenizer};

/// Tokens of windows for a model that takes any number.
const UNLIMITED: usize = 2048;

impl Corpus {
    /// Cuts for judging: a plain text into windows that do not overlap, BOS first in each (of 2048 tokens, if nothing limits
    /// what the model reads); documents to the limit, one
    /// sequence each, BOS first in those that are not ids already. Whether there is BOS, `bos` says.
    ///
    /// # Errors
    /// `InsufficientData` if there is nothing to predict, `InvalidArgument` for a limit of fewer than 2 tokens and for
    /// ids beyond the vocabulary, `Unsupported` for images; those of the tokenizer, if one is needed.
    pub fn segments(&self, source: &Source, bos: Bos, limits: Limits) -> Result<Vec<Vec<u32>>> {
        let tokenizer = self.tokenizer(source, bos)?;
        let usual =
            if self.is_plain() && limits.max_tokens.is_none() { UNLIMITED } else { usize::MAX };
        let config = source.config();
        let context = config.limit().unwrap_or(config.context.min(usual));
        self.segments_by(tokenizer.as_ref(), context, limits)
    }

    /// Cuts the beginning into windows for calibration. For decoders, a plain text and every document into windows of one
    /// length, BOS first in each (but for ids), and what is left over at the end of a text is dropped, unless it is all
    /// there is. For encoders, into pieces of about that length, each in the tokenizer's template. Ids are cut alone.
    ///
    /// # Errors
    /// `InsufficientData` for an empty text, `InvalidArgument` for windows of fewer than 2 tokens or none at all, for ids
    /// beyond the vocabulary, and for a `bos` other than `Auto` where texts are in a template; `Unsupported` for images;
    /// those of the tokenizer, if one is needed.
    pub fn windows(&self, source: &Source, bos: Bos, cut: Windows) -> Result<Vec<Vec<u32>>> {
        let decoder = source.config().architecture.is_decoder();
        if !decoder && bos != Bos::Auto {
            let message = "an encoder reads texts in its tokenizer's template: BOS is auto";
            return Err(Error::invalid(message));
        }
        let tokenizer = self.tokenizer(source, bos)?;
        self.windows_by(tokenizer.as_ref(), decoder, cut)
    }

    /// What encodes, if something is to be encoded; what is not, fits the model.
    fn tokenizer(&self, source: &Source, bos: Bos) -> Result<Option<Tokenizer>> {
        let (images, vocab) = (source.config().images, source.config().vocab);
        if self.pixels().is_some() && images.is_none() {
            let message = "has `pixel_values`: images, and the model reads tokens";
            return Err(self.located(Error::unsupported(message)));
        }
        if vocab == 0 {
            let message = "texts, and the model reads images: a safetensors file with \
                           `pixel_values` is needed";
            return Err(self.located(Error::unsupported(message)));
        }
        for (number, document) in self.documents().iter().enumerate() {
            let Document::Ids(ids) = document else { continue };
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                let number = number + 1;
                let message = format!("text {number}: token {id}: allowed are 0 to {}", vocab - 1);
                return Err(self.located(Error::invalid(message)));
            }
        }
        match self.is_encoded() {
            true => Ok(None),
            false => source.tokenizer()?.with_bos(bos).map(Some),
        }
    }

    /// [`Corpus::segments`] by a tokenizer; `None` where all is encoded.
    pub(super) fn segments_by(
        &self,
        tokenizer: Option<&Tokenizer>,
        context: usize,
        limits: Limits,
    ) -> Result<Vec<Vec<u32>>> {
        let length = limits.max_tokens.unwrap_or(context).min(context);
        check_length(length)?;
        let count = limits.max_segments.unwrap_or(usize::MAX);
        let mut segments = Vec::new();
        for document in self.documents().iter().take(count) {
            match (document.text(), document, tokenizer) {
                (Some(text), ..) if self.is_plain() && text.trim().is_empty() => {}
                (Some(text), _, Some(by)) if self.is_plain() => {
                    segments
                        .extend(windows(&by.encode_plain(&text)?, by.bos(), length).take(count));
                }
                (Some(text), _, Some(by)) => segments.push(by.encode(&text)?),
                (None, Document::Ids(ids), _) => segments.push(ids.clone()),
                _ => return Err(self.located(no_tokenizer())),
            }
        }
        segments.iter_mut().for_each(|ids| ids.truncate(length));
        segments.retain(|ids| ids.len() > 1);
        if segments.is_empty() {
            return Err(self.located(Error::insufficient("the text has no token to predict")));
        }
        Ok(segments)
    }

    /// [`Corpus::windows`] by a tokenizer; `None` where all is encoded.
    pub(super) fn windows_by(
        &self,
        tokenizer: Option<&Tokenizer>,
        decoder: bool,
        cut: Windows,
    ) -> Result<Vec<Vec<u32>>> {
        check_length(cut.length)?;
        if cut.windows == 0 {
            return Err(Error::invalid("calibration with 0 windows; at least 1 is needed"));
        }
        let mut all: Vec<Vec<u32>> = Vec::new();
        let mut chars = cut.chars;
        for document in self.documents() {
            let left = cut.windows - all.len();
            if left == 0 {
                break;
            }
            let new = match (document.text(), document, tokenizer) {
                (Some(text), _, Some(by)) => {
                    let text = beginning(&text, &mut chars);
                    match decoder {
                        _ if text.trim().is_empty() => Vec::new(),
                        true => whole(windows(&by.encode_plain(text)?, by.bos(), cut.length), cut),
                        false => pieces(by, text, cut.length, left)?,
                    }
                }
                (None, Document::Ids(ids), _) => whole(windows(ids, None, cut.length), cut),
                _ => return Err(self.located(no_tokenizer())),
            };
            all.extend(new.into_iter().take(left));
        }
        if all.is_empty() {
            return Err(self.located(Error::insufficient("the calibration text is empty")));
        }
        Ok(all)
    }
}

fn no_tokenizer() -> Error {
    Error::insufficient("has texts to encode, and there is no tokenizer")
}

/// At most as many characters as are left.
fn beginning<'t>(text: &'t str, chars: &mut usize) -> &'t str {
    let end = text.char_indices().nth(*chars).map_or(text.len(), |(at, _)| at);
    *chars -= text[..end].chars().count();
    &text[..end]
}

/// Windows of `length` tokens that do not overlap, BOS first in each and never twice.
fn windows(ids: &[u32], bos: Option<u32>, length: usize) -> impl Iterator<Item = Vec<u32>> {
    let ids = bos.and_then(|bos| ids.strip_prefix(&[bos])).unwrap_or(ids);
    let body = length - usize::from(bos.is_some());
    ids.chunks(body).map(move |ids| bos.iter().chain(ids).copied().collect())
}

/// Windows of the full length, or the only one.
fn whole(windows: impl Iterator<Item = Vec<u32>>, cut: Windows) -> Vec<Vec<u32>> {
    let mut windows: Vec<Vec<u32>> = windows.take(cut.windows).collect();
    if windows.len() > 1 {
        windows.retain(|ids| ids.len() == cut.length);
    }
    windows
}

/// At most `count` pieces of a text, each in the tokenizer's template and of at most `length` tokens.
fn pieces(tokenizer: &Tokenizer, text: &str, length: usize, count: usize) -> Result<Vec<Vec<u32>>> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() && pieces.len() < count {
        // About four characters a token, cut where a word ends.
        let cut = rest.char_indices().skip(4 * length).find(|(_, c)| c.is_whitespace());
        let (piece, later) = rest.split_at(cut.map_or(rest.len(), |(at, _)| at));
        let mut ids = tokenizer.encode_template(piece)?;
        ids.truncate(length);
        pieces.push(ids);
        rest = later.trim_start();
    }
    Ok(pieces)
}

fn check_length(length: usize) -> Result<()> {
    if length >= 2 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "sequences of {length} tokens, BOS included; at least 2 are needed"
    )))
}
