use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value as Json;
use tensorpress_tensor::{Context, Error, Result};

use super::keys::{self, SPECIAL, TokenType, cut, padding};
use super::special::{self, Around};
use super::write::{BLANK, can_merge};
use super::{merges, pre};
use crate::gguf::{Array, Kind, Value};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// Rows that an embedding may have: some times what the largest vocabularies in use take.
const MOST: usize = 1 << 22;

/// The keys of a tokenizer, in the order and of the types that llama.cpp's converter writes: from the texts of a
/// `tokenizer.json` and, where there is one, of a `tokenizer_config.json`. `vocab` is how many rows the model's
/// embedding has; ids that no token has are filled up with unused ones, `[PADn]`.
///
/// BPE with bytes to fall back to gets scores in the order of its merges; only if these say something else than the
/// scores do, they are written beside them (llama.cpp doesn't read them there). `tokenizer.ggml.token_type_count`
/// is a model's, not a tokenizer's.
///
/// # Errors
/// `Corruption` if a file is no JSON or contradicts itself; `ShapeMismatch` for more tokens than `vocab`;
/// `Unsupported` for what the keys cannot say: other models than byte-level BPE, BPE with bytes to fall back to and
/// WordPiece, pre-tokenisers without a name, normalisers of another kind, several special tokens around a text, and
/// more than 4 194 304 rows. Each names the file.
pub fn from_hugging_face(
    tokenizer: &[u8],
    config: Option<&[u8]>,
    vocab: usize,
) -> Result<Vec<(String, Value)>> {
    if vocab > MOST {
        let what = format!("`vocab` is {vocab}, where {MOST} rows are allowed");
        return Err(Error::unsupported(what));
    }
    let json = parse(tokenizer).in_file(Path::new(TOKENIZER))?;
    let config = config.map_or(Ok(Json::Null), parse).in_file(Path::new(CONFIG))?;
    keys_of(&json, &config, vocab).in_file(Path::new(TOKENIZER))
}

fn parse(text: &[u8]) -> Result<Json> {
    let json: Json = serde_json::from_slice(text)
        .map_err(|e| Error::corruption(format!("no valid JSON: {e}")))?;
    if json.is_object() { Ok(json) } else { Err(Error::corruption("no object of JSON")) }
}

fn keys_of(json: &Json, config: &Json, vocab: usize) -> Result<Vec<(String, Value)>> {
    let model = &json["model"];
    let plain =
        |name: &str| matches!(model.get(name).map(Json::as_str), None | Some(None | Some("")));
    if !plain("end_of_word_suffix") || model["dropout"].as_f64().is_some_and(|share| share > 0.0) {
        return Err(Error::unsupported("model: BPE with suffixes of words or dropout"));
    }
    let kind = match model["type"].as_str() {
        Some("WordPiece") => "bert",
        Some("BPE") if !plain("continuing_subword_prefix") => {
            return Err(Error::unsupported("model: BPE with prefixes of parts"));
        }
        Some("BPE") if has_bytes(&json["pre_tokenizer"]) => "gpt2",
        Some("BPE") if model["byte_fallback"] == true => "llama",
        Some("BPE") => {
            let what = "model: BPE that neither goes over to bytes nor falls back to them";
            return Err(Error::unsupported(what));
        }
        Some(other) => {
            return Err(Error::unsupported(format!("model: {} is not known", cut(other))));
        }
        None => return Err(Error::corruption("model: no type")),
    };
    let mut tokens = Tokens::read(json, vocab)?;
    let around = special::from_json(&json["post_processor"])?;
    let ends = Ends::of(&tokens, model, config, &around, kind)?;
    tokens.set_types(kind, ends.special[keys::UNK]);
    let mut out = Keys(vec![(keys::MODEL.to_owned(), Value::String(kind.to_owned()))]);
    // What comes last.
    let mut flags = Vec::new();
    match kind {
        "gpt2" => {
            let merges = tokens.merges(model)?;
            out.text(keys::PRE, pre_name(json)?);
            out.vocabulary(&tokens)?;
            out.merges(&tokens, &merges)?;
        }
        "llama" => {
            let merges = tokens.merges(model)?;
            let prefix = adds_blank(json)?;
            out.text(keys::PRE, "default");
            let said = out.scored(&mut tokens, &merges)?;
            if !said {
                out.merges(&tokens, &merges)?;
            }
            flags.push((keys::ADD_SPACE, prefix));
        }
        _ => {
            let (lowercase, accents) = case(json)?;
            if model["continuing_subword_prefix"] != "##" {
                return Err(Error::unsupported(
                    "model: WordPiece whose parts aren't marked by `##`",
                ));
            }
            // WordPiece has no pre-tokeniser to name; readers pass over it.
            out.text(keys::PRE, if lowercase { "bert-bge" } else { "default" });
            tokens.mark_words();
            out.vocabulary(&tokens)?;
            flags.push((keys::LOWERCASE, lowercase));
            let accents = accents.filter(|strips| *strips != lowercase);
            flags.extend(accents.map(|strips| (keys::STRIP_ACCENTS, strips)));
        }
    }
    ends.write(&mut out);
    chat_template(&config["chat_template"], &mut out)?;
    flags.into_iter().for_each(|(key, flag)| out.flag(key, flag));
    Ok(out.0)
}

/// The tokens by id.
struct Tokens {
    texts: Vec<String>,
    types: Vec<TokenType>,
    /// As `tokenizer.json` has them, without those that fill up.
    ids: HashMap<String, usize>,
    /// Of the added ones, whether they are special, and whether they are looked for in normalised texts.
    added: HashMap<usize, (bool, bool)>,
}

impl Tokens {
    fn read(json: &Json, vocab: usize) -> Result<Self> {
        let mut ids = HashMap::new();
        let mut owners: HashMap<usize, String> = HashMap::new();
        let mut add = |text: &str, id: &Json| {
            let id = id.as_u64().ok_or_else(|| {
                Error::corruption(format!("token `{}` has the id {id}", cut(text)))
            })?;
            if id >= vocab as u64 {
                let what = format!(
                    "token `{}` has the id {id}, where the model has {vocab} rows",
                    cut(text)
                );
                return Err(Error::shape(what));
            }
            let id = id as usize;
            let twice = |other: String| {
                Error::corruption(format!("token `{}` with the id {id} is {other}", cut(text)))
            };
            match ids.insert(text.to_owned(), id) {
                Some(other) if other != id => return Err(twice(format!("also token {other}"))),
                _ => {}
            }
            match owners.insert(id, text.to_owned()) {
                Some(other) if other != text => Err(twice(format!("also `{}`", cut(&other)))),
                _ => Ok(id),
            }
        };
        let model = json["model"]["vocab"].as_object();
        let model = model.ok_or_else(|| Error::corruption("model: no vocabulary"))?;
        for (text, id) in model {
            add(text, id)?;
        }
        let mut added = HashMap::new();
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str();
            let text =
                text.ok_or_else(|| Error::corruption("added_tokens: one without content"))?;
            let id = add(text, &token["id"])?;
            added.insert(id, (token["special"] == true, token["normalized"] == true));
        }
        if ids.is_empty() {
            return Err(Error::corruption("model: an empty vocabulary"));
        }
        let texts =
            (0..vocab).map(|id| owners.remove(&id).unwrap_or_else(|| padding(id))).collect();
        Ok(Self { texts, types: Vec::new(), ids, added })
    }

    fn id(&self, text: &str) -> Option<usize> {
        self.ids.get(text).copied()
    }

    /// Sorts tokens by what they are for.
    fn set_types(&mut self, kind: &str, unknown: Option<usize>) {
        let of = |(id, text): (usize, &String)| match self.added.get(&id) {
            _ if kind == "llama" && Some(id) == unknown => TokenType::Unknown,
            Some((special, _)) if *special || looks_special(text) => TokenType::Control,
            Some(_) => TokenType::UserDefined,
            None if self.ids.get(text) != Some(&id) => TokenType::Unused,
            None if kind == "llama" && is_byte(text) => TokenType::Byte,
            None => TokenType::Normal,
        };
        self.types = self.texts.iter().enumerate().map(of).collect();
    }

    /// Pairs of ids that are merged, in order, and what they make.
    fn merges(&self, model: &Json) -> Result<Vec<Merge>> {
        let merges = model["merges"].as_array();
        let merges = merges.ok_or_else(|| Error::corruption("model: no merges"))?;
        let read = |(at, merge): (usize, &Json)| {
            let pair = match merge {
                Json::String(text) => keys::pair(text),
                Json::Array(pair) => match &pair[..] {
                    [left, right] => left.as_str().zip(right.as_str()),
                    _ => None,
                },
                _ => None,
            };
            let wrong = |what: &str| Error::corruption(format!("model: merge {at} {what}"));
            let (left, right) = pair.ok_or_else(|| wrong("is no pair"))?;
            let id = |text: &str| {
                self.id(text)
                    .ok_or_else(|| wrong(&format!("has `{}`, which is no token", cut(text))))
            };
            Ok(Merge { pair: (id(left)?, id(right)?), made: id(&[left, right].concat())? })
        };
        merges.iter().enumerate().map(read).collect()
    }

    /// Words' first parts are marked in files, the others in `tokenizer.json`.
    fn mark_words(&mut self) {
        for (text, kind) in self.texts.iter_mut().zip(&self.types) {
            if *kind == TokenType::Control {
                continue;
            }
            *text = match text.strip_prefix("##") {
                Some(rest) => rest.to_owned(),
                None => format!("{BLANK}{text}"),
            };
        }
    }
}

/// A pair of ids, and the id of what they make.
struct Merge {
    pair: (usize, usize),
    made: usize,
}

/// Whether a token that isn't marked as special is so nevertheless. (Source: llama.cpp's converter.)
fn looks_special(text: &str) -> bool {
    let between = |start, end| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Whether a text stands for a byte.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a pre-tokeniser goes over to bytes.
fn has_bytes(pre_tokenizer: &Json) -> bool {
    let parts = pre_tokenizer["pretokenizers"].as_array();
    pre_tokenizer["type"] == "ByteLevel" || parts.into_iter().flatten().any(has_bytes)
}

/// The steps of a normaliser.
fn steps<'a>(normalizer: &'a Json, out: &mut Vec<&'a Json>) {
    match normalizer["normalizers"].as_array() {
        Some(parts) if normalizer["type"] == "Sequence" => parts.iter().for_each(|p| steps(p, out)),
        _ if normalizer.is_null() => {}
        _ => out.push(normalizer),
    }
}

fn unknown_normalizer(normalizer: &Json) -> Error {
    Error::unsupported(format!(
        "normalizer: GGUF has no words for {}",
        cut(&normalizer.to_string())
    ))
}

/// The name of what happens before merging.
fn pre_name(json: &Json) -> Result<&'static str> {
    let mut normalizers = Vec::new();
    steps(&json["normalizer"], &mut normalizers);
    if let Some(other) = normalizers.iter().find(|n| n["type"] != "NFC") {
        return Err(unknown_normalizer(other));
    }
    let ignore_merges = json["model"]["ignore_merges"] == true;
    let pre_tokenizer = &json["pre_tokenizer"];
    pre::recognise(pre_tokenizer, ignore_merges, !normalizers.is_empty()).ok_or_else(|| {
        let what = "pre_tokenizer: no name of llama.cpp's is known for it";
        Error::unsupported(format!("{what}: {}", cut(&pre_tokenizer.to_string())))
    })
}

/// Whether SentencePiece's BPE puts a blank before texts; that blanks are what it says they are.
fn adds_blank(json: &Json) -> Result<bool> {
    let mut normalizers = Vec::new();
    steps(&json["normalizer"], &mut normalizers);
    let (mut prefix, mut replaced) = (false, false);
    for step in normalizers {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == BLANK => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == BLANK => {
                replaced = true;
            }
            _ => return Err(unknown_normalizer(step)),
        }
    }
    let pre = &json["pre_tokenizer"];
    match pre["type"].as_str() {
        None => {}
        Some("Metaspace") if pre["replacement"] == BLANK && pre["split"] == false => {
            replaced = true;
            prefix |= match pre["prepend_scheme"].as_str() {
                Some(scheme) => scheme != "never",
                None => pre["add_prefix_space"] != false,
            };
        }
        // Blanks are gone when it comes.
        Some("Split") if replaced && pre["pattern"]["String"] == " " => {}
        Some(_) => {
            let what = "pre_tokenizer: SentencePiece's BPE has none, but here is one";
            return Err(Error::unsupported(format!("{what}: {}", cut(&pre.to_string()))));
        }
    }
    if !replaced {
        return Err(Error::unsupported("normalizer: blanks stay what they are"));
    }
    Ok(prefix)
}

/// Whether WordPiece's texts lose their capitals, and, where it is said, their accents.
fn case(json: &Json) -> Result<(bool, Option<bool>)> {
    let normalizer = &json["normalizer"];
    let flag = |name: &str| normalizer.get(name).and_then(Json::as_bool);
    let whole = flag("clean_text") != Some(false) && flag("handle_chinese_chars") != Some(false);
    if normalizer["type"] != "BertNormalizer" || !whole {
        return Err(unknown_normalizer(normalizer));
    }
    if json["pre_tokenizer"]["type"] != "BertPreTokenizer" {
        let found = cut(&json["pre_tokenizer"].to_string());
        return Err(Error::unsupported(format!("pre_tokenizer: not BERT's: {found}")));
    }
    Ok((flag("lowercase").unwrap_or(true), flag("strip_accents")))
}

/// Special tokens, and what comes around texts.
struct Ends {
    special: [Option<usize>; SPECIAL.len()],
    /// What ends texts for `tokenizer_config.json`, if the template says otherwise.
    turn: Option<usize>,
    adds: Vec<(&'static str, bool)>,
}

impl Ends {
    fn of(
        tokens: &Tokens,
        model: &Json,
        config: &Json,
        around: &Around,
        kind: &str,
    ) -> Result<Self> {
        let mut special = SPECIAL.map(|(name, _)| {
            let token = &config[name];
            token.as_str().or_else(|| token["content"].as_str()).and_then(|text| tokens.id(text))
        });
        special[keys::UNK] = special[keys::UNK]
            .or_else(|| model["unk_token"].as_str().and_then(|text| tokens.id(text)));
        let placed = |text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => tokens.id(text).map(Some).ok_or_else(|| {
                Error::corruption(format!("post_processor: `{}` is no token", cut(text)))
            }),
        };
        let (first, last) = (placed(&around.first)?, placed(&around.last)?);
        if kind == "bert" {
            special[keys::CLS] = special[keys::CLS].or(first);
            special[keys::SEP] = special[keys::SEP].or(last);
        }
        // What is put around texts is what the model knows, whatever it is called.
        special[keys::BOS] = first.or(special[keys::BOS]).or(special[keys::CLS]);
        let named = special[keys::EOS].or(special[keys::SEP]);
        special[keys::EOS] = last.or(named);
        let turn = named.filter(|id| last.is_some_and(|last| last != *id));
        let adds = |name: &str, which: usize| config[name] == true && special[which].is_some();
        let mut flags = vec![
            (keys::ADD_BOS, first.is_some() || adds("add_bos_token", keys::BOS)),
            (keys::ADD_EOS, last.is_some() || adds("add_eos_token", keys::EOS)),
        ];
        flags.extend(around.separated.map(|separated| (keys::ADD_SEP, separated)));
        Ok(Self { special, turn, adds: flags })
    }

    fn write(&self, out: &mut Keys) {
        let turn = [(keys::EOT, self.turn)];
        let ids = SPECIAL.iter().zip(self.special).map(|((_, key), id)| (*key, id)).chain(turn);
        for (key, id) in ids {
            if let Some(id) = id {
                out.0.push((key.to_owned(), Value::U32(id as u32)));
            }
        }
        self.adds.iter().for_each(|(key, adds)| out.flag(key, *adds));
    }
}

/// One template, or several with names, of which `default` is the one.
fn chat_template(template: &Json, out: &mut Keys) -> Result<()> {
    if let Some(text) = template.as_str() {
        out.text(keys::TEMPLATE, text);
    }
    let mut names: Vec<String> = Vec::new();
    let mut default = None;
    for choice in template.as_array().into_iter().flatten() {
        let (Some(name), Some(text)) = (choice["name"].as_str(), choice["template"].as_str())
        else {
            return Err(Error::corruption(format!(
                "{CONFIG}: a chat template without name or text"
            )));
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = name.chars().map(plain).collect();
        if name == "default" {
            default = Some(text);
        } else if !names.contains(&name) {
            out.text(&format!("{}.{name}", keys::TEMPLATE), text);
            names.push(name);
        }
    }
    if !names.is_empty() {
        let names = Array::new(Kind::String, names.into_iter().map(Value::String))?;
        out.0.push((keys::TEMPLATES.to_owned(), Value::Array(names)));
    }
    if let Some(text) = default {
        out.text(keys::TEMPLATE, text);
    }
    Ok(())
}

/// Keys in the order of writing.
struct Keys(Vec<(String, Value)>);

impl Keys {
    fn text(&mut self, key: &str, text: &str) {
        self.0.push((key.to_owned(), Value::String(text.to_owned())));
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.0.push((key.to_owned(), Value::Bool(flag)));
    }

    fn array(&mut self, key: &str, kind: Kind, values: impl Iterator<Item = Value>) -> Result<()> {
        self.0.push((key.to_owned(), Value::Array(Array::new(kind, values)?)));
        Ok(())
    }

    fn vocabulary(&mut self, tokens: &Tokens) -> Result<()> {
        let texts = tokens.texts.iter().map(|text| Value::String(text.clone()));
        self.array(keys::TOKENS, Kind::String, texts)?;
        self.types(tokens)
    }

    fn types(&mut self, tokens: &Tokens) -> Result<()> {
        let types = tokens.types.iter().map(|kind| Value::I32(*kind as i32));
        self.array(keys::TYPES, Kind::I32, types)
    }

    fn merges(&mut self, tokens: &Tokens, merges: &[Merge]) -> Result<()> {
        let mut pairs = Vec::with_capacity(merges.len());
        for (at, Merge { pair: (left, right), .. }) in merges.iter().enumerate() {
            let (left, right) = (tokens.texts[*left].as_str(), tokens.texts[*right].as_str());
            let pair = format!("{left} {right}");
            if keys::pair(&pair) != Some((left, right)) {
                let what = format!("model: merge {at} has a blank in `{}`", cut(left));
                return Err(Error::unsupported(what));
            }
            pairs.push(Value::String(pair));
        }
        self.array(keys::MERGES, Kind::String, pairs.into_iter())
    }

    /// The vocabulary with scores; whether these say all that the merges do.
    fn scored(&mut self, tokens: &mut Tokens, merges: &[Merge]) -> Result<bool> {
        let scores = merges::scores(
            merges.iter().map(|merge| merge.made),
            (0..tokens.texts.len()).filter(|id| tokens.types[*id] == TokenType::Normal),
        );
        let score = |id: usize| match (scores.get(&id), tokens.types[id]) {
            (Some(score), _) => *score,
            (None, TokenType::UserDefined) => -1000.0,
            (None, TokenType::Unused) => -10000.0,
            (None, _) => 0.0,
        };
        let longest = tokens.texts.iter().map(String::len).max().unwrap_or(0);
        let said = longest <= keys::LONGEST && {
            let in_order: Vec<_> = (0..tokens.texts.len())
                .filter(|id| {
                    can_merge(tokens.types[*id]) && tokens.id(&tokens.texts[*id]) == Some(*id)
                })
                .map(|id| (id, tokens.texts[id].as_str(), Some(f64::from(score(id)))))
                .collect();
            merges::from_scores(&in_order).into_iter().eq(merges.iter().map(|merge| merge.pair))
        };
        let scores: Vec<Value> = (0..tokens.texts.len()).map(|id| Value::F32(score(id))).collect();
        // Texts that are normalised before these are looked for have no blanks.
        let merged: HashSet<usize> =
            merges.iter().flat_map(|merge| [merge.pair.0, merge.pair.1, merge.made]).collect();
        let renamed = tokens.added.iter().filter(|(id, (special, normalized))| {
            *normalized && !*special && !merged.contains(*id)
        });
        for (id, _) in renamed {
            let text = tokens.texts[*id].replace(BLANK, " ");
            if !tokens.ids.contains_key(&text) {
                tokens.texts[*id] = text;
            }
        }
        let texts = tokens.texts.iter().map(|text| Value::String(text.clone()));
        self.array(keys::TOKENS, Kind::String, texts)?;
        self.array(keys::SCORES, Kind::F32, scores.into_iter())?;
        self.types(tokens)?;
        Ok(said)
    }
}
