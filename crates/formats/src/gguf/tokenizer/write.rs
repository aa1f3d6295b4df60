use std::collections::HashMap;

use serde_json::{Value, json};
use tensorpress_tensor::{Error, Result};

use super::keys::{self, Keys, TokenType, wrong};
use super::{merges, pre, special};
use crate::gguf::Header;

/// The two files by which folders of Hugging Face say what their tokenizer is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerFiles {
    /// The content of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The content of `tokenizer_config.json`.
    pub config: Vec<u8>,
}

/// The tokenizer of a file, as folders of Hugging Face have it. Tokens of `[PADn]`, which only fill up the vocabulary,
/// are left out.
///
/// # Errors
/// `InsufficientData` if a key is absent that the kind of tokenizer needs; `Corruption` if one is of another kind than
/// belongs, or contradicts another (lengths, ids, merges of no token, a text that two tokens have); `Unsupported` for
/// kinds of tokenizers and names of pre-tokenisers that are not known, and for tokens of more than 1024 bytes where
/// merges come from scores. Each names the key.
pub fn to_hugging_face(header: &Header) -> Result<TokenizerFiles> {
    match keys::model(header)? {
        "gpt2" => byte_level(Keys::read(header)?),
        "llama" => sentence_piece(Keys::read(header)?),
        "bert" => word_piece(Keys::read(header)?),
        other => {
            let what = format!("key `{}`: tokenizers of kind `{}`", keys::MODEL, keys::cut(other));
            Err(Error::unsupported(what))
        }
    }
}

/// What the kinds differ in.
struct Document {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// What the model is, but for its vocabulary and merges.
    model: Value,
    /// Texts and ids.
    vocab: Vec<(String, usize)>,
    /// Pairs of texts.
    merges: Option<Vec<(String, String)>>,
    /// Whether texts begin and end with special tokens if no key says so.
    adds: (bool, bool),
    /// The tokens that they begin and end with: places in [`keys::SPECIAL`].
    ends: (usize, usize),
    /// More of `tokenizer_config.json`.
    config: Value,
}

fn byte_level(keys: Keys<'_>) -> Result<TokenizerFiles> {
    let name = keys.text(keys::PRE)?.unwrap_or("default");
    let pre = pre::by_name(name).ok_or_else(|| {
        let what =
            format!("key `{}`: the pre-tokeniser `{}` is not known", keys::PRE, keys::cut(name));
        Error::unsupported(what)
    })?;
    let merges = keys.merges()?.ok_or_else(|| {
        Error::insufficient(format!("no key `{}`: byte-level BPE needs it", keys::MERGES))
    })?;
    let document = Document {
        normalizer: if pre.composed { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: pre.to_json(),
        decoder: pre::bytes(true),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
        }),
        vocab: vocab(&keys),
        merges: Some(texts(&keys, &merges)),
        adds: (pre.add_bos, false),
        ends: (keys::BOS, keys::EOS),
        config: json!({"clean_up_tokenization_spaces": false}),
    };
    document.write(&keys)
}

fn sentence_piece(mut keys: Keys<'_>) -> Result<TokenizerFiles> {
    keys.assume(&[(keys::BOS, 1), (keys::EOS, 2), (keys::UNK, 0)]);
    let merges = match keys.merges()? {
        Some(merges) => merges,
        None => from_scores(&keys)?,
    };
    let prefix = keys.flag(keys::ADD_SPACE)?.unwrap_or(true);
    let blank = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![blank(" ", BLANK)];
    let mut decoders =
        vec![blank(BLANK, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": BLANK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = keys.special[keys::UNK].map(|id| keys.tokens[id]);
    let document = Document {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": keys.types.contains(&TokenType::Byte), "ignore_merges": false,
        }),
        vocab: vocab(&keys),
        merges: Some(texts(&keys, &merges)),
        adds: (true, false),
        ends: (keys::BOS, keys::EOS),
        config: json!({"clean_up_tokenization_spaces": false, "add_prefix_space": prefix}),
    };
    document.write(&keys)
}

/// What stands for blanks.
pub(super) const BLANK: &str = "\u{2581}";

fn from_scores(keys: &Keys<'_>) -> Result<Vec<(usize, usize)>> {
    let scores = keys.scores()?.ok_or_else(|| {
        let what =
            format!("no key `{}`, and no `{}`: tokens have no order", keys::SCORES, keys::MERGES);
        Error::insufficient(what)
    })?;
    let mut tokens = Vec::new();
    for id in keys.real() {
        if keys.tokens[id].len() > keys::LONGEST {
            let what = format!("token {id} has {} bytes", keys.tokens[id].len());
            return Err(Error::unsupported(format!("key `{}`: {what}", keys::TOKENS)));
        }
        if can_merge(keys.types[id]) {
            tokens.push((id, keys.tokens[id], Some(scores[id])));
        }
    }
    Ok(merges::from_scores(&tokens))
}

/// Whether merges make such tokens.
pub(super) fn can_merge(kind: TokenType) -> bool {
    matches!(kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
}

fn word_piece(mut keys: Keys<'_>) -> Result<TokenizerFiles> {
    keys.assume(&[(keys::PAD, 0), (keys::UNK, 100), (keys::CLS, 101), (keys::SEP, 102)]);
    keys.assume(&[(keys::MASK, 103)]);
    let unknown = keys.special[keys::UNK].ok_or_else(|| {
        let key = keys::SPECIAL[keys::UNK].1;
        Error::insufficient(format!("no key `{key}`: WordPiece needs it"))
    })?;
    // Words' first parts are marked there, the others here.
    let marked = |id: usize| match keys.tokens[id].strip_prefix(BLANK) {
        _ if keys.types[id] == TokenType::Control => keys.tokens[id].to_owned(),
        Some(first) => first.to_owned(),
        None if keys.types[id] == TokenType::Unknown => keys.tokens[id].to_owned(),
        None => format!("##{}", keys.tokens[id]),
    };
    keys.ids()?;
    let vocab: Vec<(String, usize)> = keys.real().map(|id| (marked(id), id)).collect();
    let mut seen = HashMap::new();
    for (text, id) in &vocab {
        if let Some(other) = seen.insert(text.as_str(), id) {
            let what = format!("tokens {other} and {id} are both `{}`", keys::cut(text));
            return Err(wrong(keys::TOKENS, what));
        }
    }
    let unknown = marked(unknown);
    let lowercase = keys.flag(keys::LOWERCASE)?.unwrap_or(true);
    // Where an older writer names no other, these are what texts begin and end with.
    let either = |one: usize, other: usize| if keys.special[one].is_some() { one } else { other };
    let document = Document {
        normalizer: json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": keys.flag(keys::STRIP_ACCENTS)?, "lowercase": lowercase,
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        model: json!({
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }),
        vocab,
        merges: None,
        adds: (true, true),
        ends: (either(keys::CLS, keys::BOS), either(keys::SEP, keys::EOS)),
        config: json!({"clean_up_tokenization_spaces": true, "do_lower_case": lowercase}),
    };
    document.write(&keys)
}

fn vocab(keys: &Keys<'_>) -> Vec<(String, usize)> {
    keys.real().map(|id| (keys.tokens[id].to_owned(), id)).collect()
}

fn texts(keys: &Keys<'_>, merges: &[(usize, usize)]) -> Vec<(String, String)> {
    let text = |id: usize| keys.tokens[id].to_owned();
    merges.iter().map(|(left, right)| (text(*left), text(*right))).collect()
}

impl Document {
    fn write(self, keys: &Keys<'_>) -> Result<TokenizerFiles> {
        // Texts by id, as this document has them.
        keys.ids()?;
        let texts: HashMap<usize, &str> =
            self.vocab.iter().map(|(text, id)| (*id, text.as_str())).collect();
        let token = |which: usize| keys.special[which].map(|id| (texts[&id], id));
        // What a key asks for must be there; what is only customary need not be.
        let added = |key: &str, default: bool, which: usize| match (keys.flag(key)?, token(which)) {
            (Some(true), None) => {
                Err(wrong(key, format!("true, without a key `{}`", keys::SPECIAL[which].1)))
            }
            (flag, token) => Ok(token.filter(|_| flag.unwrap_or(default))),
        };
        let first = added(keys::ADD_BOS, self.adds.0, self.ends.0)?;
        let last = added(keys::ADD_EOS, self.adds.1, self.ends.1)?;
        let separated = keys.flag(keys::ADD_SEP)?.unwrap_or(false);
        let between = token(keys::SEP).or(token(keys::EOS)).filter(|_| separated);
        // Two texts have an end between them anyway.
        let between = if last.is_some() || first.is_some() { between } else { None };

        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": first.is_some(),
            "add_eos_token": last.is_some(),
        });
        let more = self.config.as_object().into_iter().flatten();
        more.for_each(|(name, value)| config[name] = value.clone());
        for (which, (name, _)) in keys::SPECIAL.iter().enumerate() {
            if let Some((text, _)) = token(which) {
                config[*name] = text.into();
            }
        }
        if let Some(template) = chat_template(keys)? {
            config["chat_template"] = template;
        }
        let special = |id: usize| keys.types[id] != TokenType::UserDefined;
        let added = keys.real().filter(|id| keys.types[*id].is_added()).map(|id| {
            json!({
                "id": id, "content": texts[&id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special(id),
            })
        });
        let around = special::to_json(first, last, between);
        let tokenizer = self.to_json(&added.collect(), &around).into_bytes();
        Ok(TokenizerFiles { tokenizer, config: format!("{config:#}\n").into_bytes() })
    }

    /// Piece by piece, so that the vocabulary is in order of ids and never there as a tree.
    fn to_json(&self, added: &Value, around: &Value) -> String {
        let mut out = format!(
            "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":{added},\
             \"normalizer\":{},\"pre_tokenizer\":{},\"post_processor\":{around},\"decoder\":{},\
             \"model\":{{",
            self.normalizer, self.pre_tokenizer, self.decoder
        );
        for (name, value) in self.model.as_object().into_iter().flatten() {
            out += &format!("\"{name}\":{value},");
        }
        let quoted = |text: &str| Value::from(text).to_string();
        let pairs = self.vocab.iter().map(|(text, id)| format!("{}:{id}", quoted(text)));
        join(&mut out, "\"vocab\":{", pairs, "}");
        if let Some(merges) = &self.merges {
            let pair = |(l, r): &(String, String)| format!("[{},{}]", quoted(l), quoted(r));
            join(&mut out, ",\"merges\":[", merges.iter().map(pair), "]");
        }
        out + "}}\n"
    }
}

/// Appends pieces with commas between them.
fn join(out: &mut String, start: &str, pieces: impl Iterator<Item = String>, end: &str) {
    *out += start;
    for (at, piece) in pieces.enumerate() {
        if at > 0 {
            out.push(',');
        }
        *out += &piece;
    }
    *out += end;
}

/// One template, or several by their names.
fn chat_template(keys: &Keys<'_>) -> Result<Option<Value>> {
    let default = keys.text(keys::TEMPLATE)?;
    let Some(names) = keys.texts(keys::TEMPLATES)? else { return Ok(default.map(Value::from)) };
    let named = |name: &str, text: &str| json!({"name": name, "template": text});
    let mut templates: Vec<Value> =
        default.into_iter().map(|text| named("default", text)).collect();
    for name in names.texts() {
        let key = format!("{}.{name}", keys::TEMPLATE);
        let text = keys.text(&key)?;
        let text =
            text.ok_or_else(|| wrong(keys::TEMPLATES, format!("no key `{}`", keys::cut(&key))))?;
        templates.push(named(name, text));
    }
    Ok(Some(templates.into()))
}
