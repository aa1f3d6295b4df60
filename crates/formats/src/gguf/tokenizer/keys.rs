//! The keys of a tokenizer, checked against each other.

use std::collections::{HashMap, HashSet};

use tensorpress_tensor::{Error, Result};

use crate::gguf::{Array, Header, Kind, Value};

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const ADD_SEP: &str = "tokenizer.ggml.add_sep_token";
pub(super) const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
pub(super) const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";
pub(super) const EOT: &str = "tokenizer.ggml.eot_token_id";
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";
pub(super) const TEMPLATES: &str = "tokenizer.chat_templates";

/// Special tokens in the order of `tokenizer_config.json`'s names and of keys.
pub(super) const SPECIAL: [(&str, &str); 7] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];
pub(super) const BOS: usize = 0;
pub(super) const EOS: usize = 1;
pub(super) const UNK: usize = 2;
pub(super) const SEP: usize = 3;
pub(super) const PAD: usize = 4;
pub(super) const CLS: usize = 5;
pub(super) const MASK: usize = 6;

/// The longest token that is taken apart: work on one grows with the square of its length, and those in use have some
/// hundreds of bytes.
pub(super) const LONGEST: usize = 1 << 10;

/// What a token is for, by its number in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    fn from_id(id: u64) -> Option<Self> {
        Some(match id {
            // 0 says nothing.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether it is found in texts as it stands, before anything else is.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// That a key contradicts itself or others.
pub(super) fn wrong(key: &str, what: impl std::fmt::Display) -> Error {
    Error::corruption(format!("key `{key}`: {what}"))
}

/// That a key is not there.
fn absent(key: &str, what: &str) -> Error {
    Error::insufficient(format!("no key `{key}`: {what}"))
}

/// The text that stands for no token, where a model's embedding has more rows than there are tokens.
pub(super) fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The keys of a tokenizer.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    header: &'a Header,
    pub(super) tokens: Vec<&'a str>,
    pub(super) types: Vec<TokenType>,
    /// Ids of [`SPECIAL`].
    pub(super) special: [Option<usize>; SPECIAL.len()],
}

impl<'a> Keys<'a> {
    pub(super) fn read(header: &'a Header) -> Result<Self> {
        let tokens = array(header, TOKENS, Kind::String)?;
        let tokens = tokens.ok_or_else(|| absent(TOKENS, "the file has no vocabulary"))?;
        let tokens: Vec<&str> = tokens.texts().collect();
        if tokens.is_empty() {
            return Err(wrong(TOKENS, "no tokens"));
        }
        let types = match numbers(header, TYPES, tokens.len())? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(values) => {
                let kind = |(at, value): (usize, Value)| {
                    let id = value.as_u64().and_then(TokenType::from_id);
                    id.ok_or_else(|| {
                        wrong(TYPES, format!("{value:?} at {at} is no type of tokens"))
                    })
                };
                values.iter().enumerate().map(kind).collect::<Result<_>>()?
            }
        };
        let mut special = [None; SPECIAL.len()];
        for ((_, key), id) in SPECIAL.iter().zip(&mut special) {
            let Some(value) = header.get(key) else { continue };
            let value = value.as_u64().ok_or_else(|| wrong_kind(key, value, "an id"))?;
            if value >= tokens.len() as u64 {
                return Err(wrong(key, format!("{value}, of {} tokens", tokens.len())));
            }
            *id = Some(value as usize);
        }
        Ok(Self { header, tokens, types, special })
    }

    /// Ids that llama.cpp assumes where no key says any, if they are there and for something of the sort.
    pub(super) fn assume(&mut self, ids: &[(usize, usize)]) {
        for (which, id) in ids {
            let fits = matches!(self.types.get(*id), Some(TokenType::Unknown | TokenType::Control));
            if self.special[*which].is_none() && fits {
                self.special[*which] = Some(*id);
            }
        }
    }

    /// A text; none if the key is not there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        text(self.header, key)
    }

    /// Yes or no; none if the key is not there.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.header.get(key) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| wrong_kind(key, value, "Bool")),
        }
    }

    /// An array of texts; none if the key is not there.
    pub(super) fn texts(&self, key: &str) -> Result<Option<&'a Array>> {
        array(self.header, key, Kind::String)
    }

    /// A score for each token; none if the key is not there.
    pub(super) fn scores(&self) -> Result<Option<Vec<f64>>> {
        let Some(values) = numbers(self.header, SCORES, self.tokens.len())? else {
            return Ok(None);
        };
        let score = |(at, value): (usize, Value)| {
            let score = value.as_f64().filter(|score| !score.is_nan());
            score.ok_or_else(|| wrong(SCORES, format!("{value:?} at {at} is no score")))
        };
        values.iter().enumerate().map(score).collect::<Result<_>>().map(Some)
    }

    /// Pairs of ids that are merged, the first ones first; none if the key is not there.
    pub(super) fn merges(&self) -> Result<Option<Vec<(usize, usize)>>> {
        let Some(merges) = self.texts(MERGES)? else { return Ok(None) };
        let ids = self.ids()?;
        let read = |(at, merge): (usize, &str)| {
            let (left, right) = pair(merge)
                .ok_or_else(|| wrong(MERGES, format!("`{}` at {at} is no pair", cut(merge))))?;
            let id = |token: &str| {
                let what = || format!("`{}` at {at}: `{}` is no token", cut(merge), cut(token));
                ids.get(token).copied().ok_or_else(|| wrong(MERGES, what()))
            };
            id(&[left, right].concat())?;
            Ok((id(left)?, id(right)?))
        };
        merges.texts().enumerate().map(read).collect::<Result<_>>().map(Some)
    }

    /// What each text's id is, without those that only fill up the vocabulary.
    pub(super) fn ids(&self) -> Result<HashMap<&'a str, usize>> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for id in self.real() {
            if let Some(other) = ids.insert(self.tokens[id], id) {
                let what = format!("`{}` is token {other} and token {id}", cut(self.tokens[id]));
                return Err(wrong(TOKENS, what));
            }
        }
        Ok(ids)
    }

    /// The ids of tokens that texts can have, and of those that keys name.
    pub(super) fn real(&self) -> impl Iterator<Item = usize> {
        let named: HashSet<usize> = self.special.iter().flatten().copied().collect();
        (0..self.tokens.len()).filter(move |id| {
            // Old writers gave these another type.
            let unused = matches!(self.types[*id], TokenType::Unused | TokenType::UserDefined);
            let text = self.tokens[*id];
            let text = text.strip_prefix('\u{2581}').unwrap_or(text);
            !unused || text != padding(*id) || named.contains(id)
        })
    }
}

/// The two sides of a merge, with a blank between them; the left one may be a blank, or begin with one.
pub(super) fn pair(merge: &str) -> Option<(&str, &str)> {
    let (blank, _) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?;
    Some((&merge[..blank], &merge[blank + 1..]))
}

/// A text that a message can have.
pub(super) fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

fn wrong_kind(key: &str, value: &Value, wanted: &str) -> Error {
    wrong(key, format!("is {:?}, where {wanted} belongs", value.kind()))
}

/// A text; none if the key is not there.
pub(super) fn text<'a>(header: &'a Header, key: &str) -> Result<Option<&'a str>> {
    match header.get(key) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| wrong_kind(key, value, "String")),
    }
}

/// What kind of tokenizer it is.
pub(super) fn model(header: &Header) -> Result<&str> {
    text(header, MODEL)?.ok_or_else(|| absent(MODEL, "the file has no tokenizer"))
}

/// An array of one kind; none if the key is not there.
fn array<'a>(header: &'a Header, key: &str, kind: Kind) -> Result<Option<&'a Array>> {
    let Some(value) = header.get(key) else { return Ok(None) };
    let array = value.as_array().ok_or_else(|| wrong_kind(key, value, "Array"))?;
    if array.kind() != kind {
        return Err(wrong(key, format!("an array of {:?}, where {kind:?} belongs", array.kind())));
    }
    Ok(Some(array))
}

/// An array with an element for each token; none if the key is not there.
fn numbers<'a>(header: &'a Header, key: &str, tokens: usize) -> Result<Option<&'a Array>> {
    let Some(value) = header.get(key) else { return Ok(None) };
    let array = value.as_array().ok_or_else(|| wrong_kind(key, value, "Array"))?;
    if array.len() != tokens {
        return Err(wrong(key, format!("{} elements, for {tokens} tokens", array.len())));
    }
    Ok(Some(array))
}
