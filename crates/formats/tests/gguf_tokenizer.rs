//! Tokenizers of GGUF files and of Hugging Face folders: each made of the other gives the same tokens, and what
//! contradicts itself is refused by name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tensorpress_formats::gguf::tokenizer::{TokenizerFiles, from_hugging_face, to_hugging_face};
use tensorpress_formats::gguf::{Array, Header, Kind, Value};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::testing::data;
use tokenizers::Tokenizer;

type Keys = Vec<(String, Value)>;

const HARD: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    " \n\t \r\n\n  x",
    "Hello, world!",
    "  two before, two after  ",
    "I've been 'told he's there, 'RE you sure? WE'LL see.",
    "1 12 123 1234 3.14159 0x1F 100,000 \u{bd} \u{664}",
    "caf\u{e9} na\u{ef}ve cafe\u{301} \u{1e9b}\u{323}",
    "\u{6211}\u{60f3}\u{5728}apple\u{5de5}\u{4f5c}1314151\u{5929}\u{ff5e} \u{3072}\u{3089} \u{d55c}\u{ae00}",
    "\u{1f680} (normal) \u{1f636}\u{200d}\u{1f32b}\u{fe0f} \u{2705} \u{1f999}\u{1f999}",
    "<s>one</s> <unk><s> two <0x41> <|endoftext|>x<|im_start|>",
    "[CLS] the [MASK] [SEP] ##ing [PAD300]",
    "\u{2581}the \u{2581}\u{2581} \u{0} \u{7f} \u{ad} \u{a0}.",
    "------======= ''''''```````\"\"\"\"......!!!!!!?????? $+<=>^~|",
    "fn main() {\n    println!(\"{}\", 1 << 4);\n}\n",
    "\u{43d}\u{435}\u{449}\u{43e} \u{43d}\u{430} \u{411}\u{44a}\u{43b}\u{433}\u{430}\u{440}\u{441}\u{43a}\u{438} \u{643}\u{62a}\u{627}\u{628}\u{60c} \u{915}\u{94d}\u{937}",
];

fn load(json: &[u8]) -> Tokenizer {
    Tokenizer::from_bytes(json).unwrap_or_else(|e| panic!("a tokenizer: {e}"))
}

fn ids(tokenizer: &Tokenizer, text: &str, around: bool) -> Vec<u32> {
    tokenizer.encode(text, around).expect("encodes").get_ids().to_vec()
}

fn header(keys: &[(String, Value)]) -> Header {
    Header::new(keys.to_vec(), []).expect("a header")
}

fn get<'a>(keys: &'a Keys, key: &str) -> &'a Value {
    let found = keys.iter().find(|(name, _)| name == key);
    &found.unwrap_or_else(|| panic!("no key {key}")).1
}

fn texts(keys: &Keys, key: &str) -> Vec<String> {
    get(keys, key).as_array().expect("an array").texts().map(str::to_owned).collect()
}

/// Folders below one that have a tokenizer.
fn folders(below: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(below)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    if entries.iter().any(|entry| entry.ends_with("tokenizer.json")) {
        found.push(below.to_owned());
    }
    entries.iter().filter(|entry| entry.is_dir()).for_each(|folder| folders(folder, found));
}

/// Beginnings of the texts that there are.
fn corpus() -> Option<Vec<String>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(data::find("data/text")?).expect("a folder") {
        let text = std::fs::read(entry.expect("an entry").path()).expect("a text");
        let text = String::from_utf8_lossy(&text[..text.len().min(200_000)]).into_owned();
        texts.extend(text.lines().take(200).map(str::to_owned));
        texts.push(text);
    }
    assert!(texts.len() > 300, "texts are missing");
    Some(texts)
}

#[test]
fn folders_come_back_with_the_same_tokens() {
    let (Some(models), Some(golden)) = (data::find("data/models"), data::find("golden")) else {
        return;
    };
    let Some(corpus) = corpus() else { return };
    let mut found = Vec::new();
    folders(&models, &mut found);
    folders(&golden, &mut found);
    let mut tokens = 0;
    for folder in &found {
        let name = folder.display();
        let json = std::fs::read(folder.join("tokenizer.json")).expect("a tokenizer");
        let config = std::fs::read(folder.join("tokenizer_config.json")).ok();
        let original = load(&json);
        let vocab = original.get_vocab_size(true) + 3;
        let keys = from_hugging_face(&json, config.as_deref(), vocab).expect("keys");
        assert_eq!(texts(&keys, "tokenizer.ggml.tokens").len(), vocab, "{name}");
        let files = to_hugging_face(&header(&keys)).expect("files");
        let back = load(&files.tokenizer);
        for text in corpus.iter().map(String::as_str).chain(HARD.iter().copied()) {
            let expected = ids(&original, text, false);
            assert_eq!(ids(&back, text, false), expected, "{name}: {text:?}");
            assert_eq!(ids(&back, text, true), ids(&original, text, true), "{name}: {text:?}");
            tokens += expected.len();
        }
        let some = ids(&original, &corpus[0], false);
        assert_eq!(back.decode(&some, true).ok(), original.decode(&some, true).ok(), "{name}");
        let again = from_hugging_face(&files.tokenizer, Some(&files.config), vocab).expect("keys");
        assert_eq!(again, keys, "{name}: keys of what was made of them");
    }
    println!("checked: tokenizers {}, tokens {tokens}", found.len());
    assert!(found.len() >= 2, "models are missing");
}

/// What llama.cpp makes of a text: pairs are merged that make the token of the highest score, the first of equals.
fn by_scores(tokens: &HashMap<String, (u32, f64)>, text: &str) -> Vec<u32> {
    let text = format!("\u{2581}{}", text.replace(' ', "\u{2581}"));
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let made = |pair: &[String]| tokens.get(&pair.concat()).map(|(_, score)| *score);
        let mut best: Option<(usize, f64)> = None;
        for (at, pair) in parts.windows(2).enumerate() {
            if let Some(score) = made(pair).filter(|score| best.is_none_or(|(_, b)| *score > b)) {
                best = Some((at, score));
            }
        }
        let Some((at, _)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at] += &right;
    }
    let bytes = |part: &String| -> Vec<u32> {
        part.bytes().map(|byte| tokens[&format!("<0x{byte:02X}>")].0).collect()
    };
    let id = |part: &String| tokens.get(part).map(|(id, _)| vec![*id]);
    parts.iter().flat_map(|part| id(part).unwrap_or_else(|| bytes(part))).collect()
}

fn scored(keys: &Keys) -> HashMap<String, (u32, f64)> {
    let scores = get(keys, "tokenizer.ggml.scores").as_array().expect("an array").iter();
    let scores = scores.map(|score| score.as_f64().expect("a score"));
    let tokens = texts(keys, "tokenizer.ggml.tokens").into_iter().zip(scores).enumerate();
    tokens.map(|(id, (text, score))| (text, (id as u32, score))).collect()
}

#[test]
fn scores_say_what_merges_do() {
    let (Some(folder), Some(corpus)) = (data::find("data/models/stories3m"), corpus()) else {
        return;
    };
    let json = std::fs::read(folder.join("tokenizer.json")).expect("a tokenizer");
    let keys = from_hugging_face(&json, None, 4096).expect("keys");
    // The merges are those of the scores, and so are not there.
    assert!(keys.iter().all(|(key, _)| key != "tokenizer.ggml.merges"));
    let (original, scores) = (load(&json), scored(&keys));
    let mut checked = 0;
    // Tokens that are found in texts before the merges are not what is asked here.
    let plain = |text: &&String| !text.is_empty() && text.len() < 400 && !text.contains("<unk>");
    for text in corpus.iter().filter(plain) {
        assert_eq!(by_scores(&scores, text), ids(&original, text, false), "{text:?}");
        checked += 1;
    }
    println!("checked: lines {checked}");
    assert!(checked > 100, "lines are missing");
}

fn strings(texts: impl IntoIterator<Item = impl Into<String>>) -> Value {
    let texts = texts.into_iter().map(|text| Value::String(text.into()));
    Value::Array(Array::new(Kind::String, texts).expect("of one kind"))
}

fn ints(values: impl IntoIterator<Item = i32>) -> Value {
    Value::Array(Array::new(Kind::I32, values.into_iter().map(Value::I32)).expect("of one kind"))
}

fn floats(values: impl IntoIterator<Item = f32>) -> Value {
    Value::Array(Array::new(Kind::F32, values.into_iter().map(Value::F32)).expect("of one kind"))
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Keys after `tokenizer.ggml.`.
fn named(keys: Vec<(&str, Value)>) -> Keys {
    keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

/// The characters that stand for bytes: those that can be printed for themselves, the others from U+0100 on.
fn byte_characters() -> Vec<String> {
    let printed = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let character = |b: u32| {
        let code = if printed(b) { b } else { next };
        next += u32::from(!printed(b));
        char::from_u32(code).expect("a character").to_string()
    };
    (0..256).map(character).collect()
}

/// 256 bytes, merges, a word that no merges make, a control token and one that is looked for in texts.
fn byte_level(pre: &str) -> Keys {
    let merges =
        ["1 2", "h e", "l l", "he ll", "hell o", "\u{120} hello", "i s", "\u{120} \u{120}"];
    let made = merges.iter().map(|merge| merge.replace(' ', ""));
    let more = ["Xyz".to_owned(), "<|end|>".to_owned(), "@user@".to_owned()];
    let tokens: Vec<String> = byte_characters().into_iter().chain(made).chain(more).collect();
    let count = tokens.len();
    let kinds = (0..count).map(|id| match count - id {
        1 => 4,
        2 => 3,
        _ => 1,
    });
    let kinds: Vec<i32> = kinds.collect();
    named(vec![
        ("model", text("gpt2")),
        ("pre", text(pre)),
        ("tokens", strings(tokens)),
        ("token_type", ints(kinds)),
        ("merges", strings(merges)),
        ("bos_token_id", Value::U32(count as u32 - 2)),
        ("eos_token_id", Value::U32(count as u32 - 2)),
        ("add_bos_token", Value::Bool(false)),
        ("add_eos_token", Value::Bool(false)),
    ])
}

/// `<unk>`, `<s>`, `</s>`, 256 bytes, pieces and letters.
fn sentence_piece() -> Keys {
    let pieces = [
        "\u{2581}t",
        "he",
        "in",
        "\u{2581}the",
        "er",
        "\u{2581}a",
        "nd",
        "\u{2581}and",
        "ing",
        "th",
        "\u{2581}\u{2581}",
    ];
    let letters = "\u{2581}abdeghinrt".chars().map(String::from);
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.map(str::to_owned));
    tokens.extend(letters);
    let count = tokens.len();
    let kinds = (0..count).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    let score = |id: usize| if id < 259 { 0.0 } else { 259.0 - id as f32 };
    named(vec![
        ("model", text("llama")),
        ("pre", text("default")),
        ("tokens", strings(tokens)),
        ("scores", floats((0..count).map(score))),
        ("token_type", ints(kinds)),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("unknown_token_id", Value::U32(0)),
        ("add_bos_token", Value::Bool(true)),
        ("add_eos_token", Value::Bool(false)),
        ("add_sep_token", Value::Bool(false)),
        ("add_space_prefix", Value::Bool(true)),
    ])
}

fn word_piece() -> Keys {
    let tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "\u{2581}the",
        "\u{2581}un",
        "aff",
        "able",
        "\u{2581},",
    ];
    let kinds = [3, 3, 3, 3, 3, 1, 1, 1, 1, 1];
    named(vec![
        ("model", text("bert")),
        ("pre", text("bert-bge")),
        ("tokens", strings(tokens)),
        ("token_type", ints(kinds)),
        ("bos_token_id", Value::U32(2)),
        ("eos_token_id", Value::U32(3)),
        ("unknown_token_id", Value::U32(1)),
        ("seperator_token_id", Value::U32(3)),
        ("padding_token_id", Value::U32(0)),
        ("cls_token_id", Value::U32(2)),
        ("mask_token_id", Value::U32(4)),
        ("add_bos_token", Value::Bool(true)),
        ("add_eos_token", Value::Bool(true)),
        ("add_sep_token", Value::Bool(false)),
        ("normalizer.lowercase", Value::Bool(true)),
    ])
}

fn files(keys: &[(String, Value)]) -> TokenizerFiles {
    to_hugging_face(&header(keys)).expect("files")
}

/// Keys made of the files that were made of them.
fn again(keys: &Keys) -> Keys {
    let files = files(keys);
    let vocab = texts(keys, "tokenizer.ggml.tokens").len();
    from_hugging_face(&files.tokenizer, Some(&files.config), vocab).expect("keys")
}

const PRES: &[&str] = &[
    "default",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "deepseek-r1-qwen",
    "qwen35",
    "gpt-2",
    "olmo",
    "smollm",
    "command-r",
    "falcon",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
    "tiny_aya",
    "bloom",
    "viking",
    "bailingmoe",
    "seed-coder",
    "jais-2",
    "minicpm5",
    "exaone-moe",
];
const OTHERS: &[&str] = &[
    "llama3",
    "smaug-bpe",
    "chatglm-bpe",
    "stablelm2",
    "starcoder",
    "refact",
    "codeshell",
    "exaone",
    "mpt",
    "phi-2",
    "roberta-bpe",
    "jais",
    "llama4",
    "hunyuan-dense",
    "poro-chat",
    "gpt3-finnish",
    "bailingmoe2",
    "lfm2",
    "pixtral",
];

#[test]
fn every_name_splits_and_is_found_again() {
    for name in PRES {
        let keys = byte_level(name);
        let tokenizer = load(&files(&keys).tokenizer);
        for text in HARD {
            // Composed forms are what some bring texts to.
            let back = tokenizer.decode(&ids(&tokenizer, text, false), false).expect("decodes");
            let composed = !["qwen2", "qwen35", "olmo", "command-r"].contains(name);
            assert!(
                back == *text || !composed && text.contains("cafe"),
                "{name}: {text:?}: {back:?}"
            );
        }
        assert_eq!(again(&keys), keys, "{name}");
    }
    for name in OTHERS {
        let keys = byte_level(name);
        let found = again(&keys);
        let pre = get(&found, "tokenizer.ggml.pre").as_str().expect("a name").to_owned();
        assert!(PRES.contains(&pre.as_str()), "{name}: {pre}");
        assert_eq!(files(&found), files(&keys), "{name} is {pre}");
    }
    println!("checked: names {}", PRES.len() + OTHERS.len());
}

#[test]
fn byte_level_tokens_are_those_of_the_name() {
    let encode = |pre: &str, text: &str| {
        let tokenizer = load(&files(&byte_level(pre)).tokenizer);
        let encoding = tokenizer.encode(text, false).expect("encodes");
        encoding.get_tokens().to_vec()
    };
    assert_eq!(encode("gpt-2", "hello hello12"), ["hello", "\u{120}hello", "12"]);
    assert_eq!(encode("smollm", "hello hello12"), ["hello", "\u{120}hello", "1", "2"]);
    assert_eq!(encode("qwen2", "12"), ["1", "2"]);
    assert_eq!(encode("llama-bpe", "12Xyz"), ["12", "Xyz"]);
    // What no merges make is made where words aren't merged anew.
    assert_eq!(encode("dbrx", "12Xyz"), ["12", "X", "y", "z"]);
    assert_eq!(encode("gpt-2", "is@user@is<|end|>"), ["is", "@user@", "is", "<|end|>"]);
    assert_eq!(encode("falcon", "121212"), ["12", "1", "2", "12"]);
    assert_eq!(encode("default", "12."), ["12", "."]);
    assert_eq!(encode("deepseek-coder", "12\nis"), ["1", "2", "\u{10a}", "is"]);
}

/// What the tokenizer of a model does: a template, and the words for it.
#[test]
fn texts_begin_and_end_as_keys_say() {
    let flags = |keys: Keys, bos: Option<bool>, eos: Option<bool>| -> Keys {
        let adds = |key: &str| key.contains(".add_bos") || key.contains(".add_eos");
        let mut keys: Keys = keys.into_iter().filter(|(key, _)| !adds(key)).collect();
        for (key, flag) in [("add_bos_token", bos), ("add_eos_token", eos)] {
            keys.extend(flag.map(|flag| (format!("tokenizer.ggml.{key}"), Value::Bool(flag))));
        }
        keys
    };
    let some = |bos: Option<u32>, eos: Option<u32>| (bos, eos);
    let cases = [
        (flags(sentence_piece(), Some(true), Some(true)), some(Some(1), Some(2))),
        (flags(sentence_piece(), Some(false), None), some(None, None)),
        (flags(sentence_piece(), None, None), some(Some(1), None)),
        (flags(byte_level("gpt-2"), None, None), some(None, None)),
        (flags(byte_level("gpt-2"), Some(true), None), some(Some(265), None)),
        (flags(byte_level("llama-bpe"), None, None), some(Some(265), None)),
        (flags(byte_level("llama-bpe"), Some(false), None), some(None, None)),
        (flags(word_piece(), None, None), some(Some(2), Some(3))),
    ];
    for (keys, (bos, eos)) in cases {
        let files = files(&keys);
        let tokenizer = load(&files.tokenizer);
        let plain = ids(&tokenizer, "the", false);
        let expected = [bos.as_slice(), &plain, eos.as_slice()].concat();
        assert_eq!(ids(&tokenizer, "the", true), expected, "{keys:?}");
        let config: Json = serde_json::from_slice(&files.config).expect("JSON");
        assert_eq!(config["add_bos_token"], bos.is_some());
        assert_eq!(config["add_eos_token"], eos.is_some());
        let named = config["bos_token"].as_str().and_then(|token| tokenizer.token_to_id(token));
        assert!(bos.is_none() || named == bos, "{config}");
        let found = again(&keys);
        assert_eq!(*get(&found, "tokenizer.ggml.add_bos_token"), Value::Bool(bos.is_some()));
        assert_eq!(*get(&found, "tokenizer.ggml.add_eos_token"), Value::Bool(eos.is_some()));
    }
}

#[test]
fn scores_give_the_tokens_that_llama_cpp_gives() {
    let keys = sentence_piece();
    let (tokenizer, scores) = (load(&files(&keys).tokenizer), scored(&keys));
    let mut state = 7u32;
    for round in 0..2000 {
        let letters: Vec<char> = "  abdeghinrtthe\u{e9}z".chars().collect();
        let text: String = (0..round % 40 + 1)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                letters[(state >> 16) as usize % letters.len()]
            })
            .collect();
        assert_eq!(ids(&tokenizer, &text, false), by_scores(&scores, &text), "{text:?}");
        assert_eq!(tokenizer.decode(&by_scores(&scores, &text), true).expect("decodes"), text);
    }
    assert_eq!(again(&keys), keys);
}

#[test]
fn words_have_no_blank_before_them_there() {
    let keys = word_piece();
    let tokenizer = load(&files(&keys).tokenizer);
    let encode = |text: &str| tokenizer.encode(text, true).expect("encodes").get_tokens().to_vec();
    assert_eq!(
        encode("The UNAFFABLE, x"),
        ["[CLS]", "the", "un", "##aff", "##able", ",", "[UNK]", "[SEP]"]
    );
    assert_eq!(encode("[MASK]"), ["[CLS]", "[MASK]", "[SEP]"]);
    assert_eq!(again(&keys), keys);
}

#[test]
fn unused_tokens_are_left_out_and_filled_up() {
    let mut keys = word_piece();
    keys[2].1 = strings(
        texts(&keys, "tokenizer.ggml.tokens").into_iter().chain(["\u{2581}[PAD10]".into()]),
    );
    keys[3].1 = ints([3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 5]);
    let json: Json = serde_json::from_slice(&files(&keys).tokenizer).expect("JSON");
    assert_eq!(json["model"]["vocab"].as_object().expect("a vocabulary").len(), 10);
    assert_eq!(again(&keys), keys);
}

#[test]
fn templates_of_chats_go_along() {
    let mut keys = byte_level("gpt-2");
    keys.push(("tokenizer.chat_template.tool".into(), text("{{ tool }}")));
    keys.push(("tokenizer.chat_templates".into(), strings(["tool"])));
    keys.push(("tokenizer.chat_template".into(), text("{{ \"\u{e9}\n\" }}")));
    assert_eq!(again(&keys), keys);
    keys.drain(keys.len() - 3..keys.len() - 1);
    let config: Json = serde_json::from_slice(&files(&keys).config).expect("JSON");
    assert_eq!(config["chat_template"], "{{ \"\u{e9}\n\" }}");
    assert_eq!(again(&keys), keys);
}

/// One key in place of another, or none.
fn with(mut keys: Keys, key: &str, value: Option<Value>) -> Keys {
    let key = format!("tokenizer.{key}");
    keys.retain(|(name, _)| *name != key);
    keys.extend(value.map(|value| (key, value)));
    keys
}

#[test]
fn contradictions_are_errors_that_name_the_key() {
    use ErrorKind::{Corruption, InsufficientData, Unsupported};
    let (bytes, pieces, words) = (|| byte_level("gpt-2"), sentence_piece, word_piece);
    let some = |value| Some(value);
    let long = "a".repeat(2000);
    let cases: Vec<(Keys, &str, Option<Value>, ErrorKind)> = vec![
        (bytes(), "ggml.model", None, InsufficientData),
        (bytes(), "ggml.model", some(Value::U8(1)), Corruption),
        (bytes(), "ggml.model", some(text("t5")), Unsupported),
        (bytes(), "ggml.model", some(text("")), Unsupported),
        (bytes(), "ggml.pre", some(text("no-such-name")), Unsupported),
        (bytes(), "ggml.pre", some(Value::Bool(true)), Corruption),
        (bytes(), "ggml.tokens", None, InsufficientData),
        (bytes(), "ggml.tokens", some(strings([""; 0])), Corruption),
        (bytes(), "ggml.tokens", some(ints([1, 2])), Corruption),
        (bytes(), "ggml.tokens", some(text("a")), Corruption),
        (bytes(), "ggml.tokens", some(strings(vec!["a"; 267])), Corruption),
        (pieces(), "ggml.tokens", some(strings(vec!["a"; 281])), Corruption),
        (words(), "ggml.tokens", some(strings(vec!["a"; 10])), Corruption),
        (bytes(), "ggml.token_type", some(ints([1, 2])), Corruption),
        (bytes(), "ggml.token_type", some(ints(vec![9; 267])), Corruption),
        (bytes(), "ggml.token_type", some(ints(vec![-1; 267])), Corruption),
        (bytes(), "ggml.token_type", some(floats(vec![1.0; 267])), Corruption),
        (bytes(), "ggml.merges", None, InsufficientData),
        (bytes(), "ggml.merges", some(strings(["no such"])), Corruption),
        (bytes(), "ggml.merges", some(strings(["a b"])), Corruption),
        (bytes(), "ggml.merges", some(strings(["ab"])), Corruption),
        (bytes(), "ggml.merges", some(strings([""])), Corruption),
        (bytes(), "ggml.merges", some(ints([1])), Corruption),
        (bytes(), "ggml.bos_token_id", some(Value::U32(267)), Corruption),
        (bytes(), "ggml.eos_token_id", some(Value::U64(u64::MAX)), Corruption),
        (bytes(), "ggml.mask_token_id", some(Value::I32(-1)), Corruption),
        (bytes(), "ggml.padding_token_id", some(text("0")), Corruption),
        (bytes(), "ggml.add_bos_token", some(Value::U8(1)), Corruption),
        (
            with(bytes(), "ggml.bos_token_id", None),
            "ggml.add_bos_token",
            some(Value::Bool(true)),
            Corruption,
        ),
        (bytes(), "chat_template", some(Value::F32(0.0)), Corruption),
        (bytes(), "chat_templates", some(strings(["gone"])), Corruption),
        (pieces(), "ggml.scores", None, InsufficientData),
        (pieces(), "ggml.scores", some(floats([0.0])), Corruption),
        (pieces(), "ggml.scores", some(floats(vec![f32::NAN; 281])), Corruption),
        (pieces(), "ggml.scores", some(ints(vec![0; 281])), Corruption),
        (pieces(), "ggml.add_space_prefix", some(Value::U32(1)), Corruption),
        (words(), "ggml.unknown_token_id", None, InsufficientData),
        (words(), "ggml.normalizer.lowercase", some(text("yes")), Corruption),
        (
            named(vec![("model", text("llama")), ("scores", floats([0.0]))]),
            "ggml.tokens",
            some(strings([long])),
            Unsupported,
        ),
    ];
    for (keys, key, value, kind) in cases {
        let case = format!("{key} {value:?}").chars().take(100).collect::<String>();
        let error = to_hugging_face(&header(&with(keys, key, value))).map(drop).expect_err(&case);
        assert_eq!(error.kind(), kind, "{case}: {error}");
        assert!(error.to_string().contains(&format!("tokenizer.{key}")), "{case}: {error}");
    }
}

/// A small `tokenizer.json` of bytes.
fn small() -> Json {
    serde_json::from_slice(&files(&byte_level("gpt-2")).tokenizer).expect("JSON")
}

#[test]
fn what_keys_cannot_say_is_an_error_that_names_the_file() {
    use ErrorKind::{Corruption, ShapeMismatch, Unsupported};
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]});
    let prefix = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let two = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [special("<|end|>"), special("<|end|>"), {"Sequence": {"id": "A", "type_id": 0}}]});
    let gone = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [special("<|gone|>"), {"Sequence": {"id": "A", "type_id": 0}}]});
    let cases: Vec<(&str, Json, ErrorKind, &str)> = vec![
        ("/pre_tokenizer", split, Unsupported, "pre_tokenizer"),
        ("/pre_tokenizer", prefix, Unsupported, "pre_tokenizer"),
        ("/pre_tokenizer", Json::Null, Unsupported, "model"),
        ("/normalizer", json!({"type": "Lowercase"}), Unsupported, "normalizer"),
        ("/post_processor", two, Unsupported, "post_processor"),
        ("/post_processor", gone, Corruption, "post_processor"),
        ("/post_processor", json!({"type": "Other"}), Unsupported, "post_processor"),
        ("/model", Json::Null, Corruption, "model"),
        ("/model/type", json!("Unigram"), Unsupported, "Unigram"),
        ("/model/dropout", json!(0.5), Unsupported, "dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), Unsupported, "suffixes"),
        ("/model/vocab", json!({}), Corruption, "merge"),
        ("/model/vocab", json!([]), Corruption, "vocabulary"),
        ("/model/vocab/a", json!(-1), Corruption, "`a`"),
        ("/model/vocab/a", json!(1), Corruption, "id 1"),
        ("/model/vocab/a", json!(1_000_000), ShapeMismatch, "267 rows"),
        ("/model/merges", json!(["a"]), Corruption, "merge 0"),
        ("/model/merges", json!([["h", "e", "l"]]), Corruption, "merge 0"),
        ("/model/merges", json!(["a zz"]), Corruption, "merge 0"),
        ("/model/merges", Json::Null, Corruption, "merges"),
        ("/added_tokens/0/content", Json::Null, Corruption, "added_tokens"),
        ("/added_tokens/0/id", json!(3), Corruption, "id 3"),
    ];
    for (place, value, kind, named) in cases {
        let mut json = small();
        *json.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = value;
        let error =
            from_hugging_face(json.to_string().as_bytes(), None, 267).map(drop).expect_err(place);
        assert_eq!(error.kind(), kind, "{place}: {error}");
        assert!(error.to_string().contains(named), "{place}: {error}");
        assert!(
            error.file().is_some_and(|file| file.ends_with("tokenizer.json")),
            "{place}: {error}"
        );
    }
    let text = small().to_string();
    for (json, config) in [("", "{}"), ("[]", "{}"), ("{\"model\"", "{}"), (text.as_str(), "[]")] {
        from_hugging_face(json.as_bytes(), Some(config.as_bytes()), 267).expect_err("no JSON");
    }
    let error = from_hugging_face(text.as_bytes(), None, usize::MAX).expect_err("too many rows");
    assert_eq!(error.kind(), Unsupported);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u32>().prop_map(Value::U32),
        (0u32..300).prop_map(Value::U32),
        any::<bool>().prop_map(Value::Bool),
        any::<f32>().prop_map(Value::F32),
        "[a-z ]{0,6}".prop_map(Value::String),
        proptest::collection::vec("[a-c\u{2581} ]{0,3}", 0..12).prop_map(strings),
        proptest::collection::vec(-1i32..8, 0..12).prop_map(ints),
        proptest::collection::vec(any::<f32>(), 0..12).prop_map(floats),
    ]
}

proptest! {
    #[test]
    fn no_keys_panic(kind in 0usize..3, changes in proptest::collection::vec((0usize..14, any_value()), 1..4)) {
        let mut keys = [byte_level("smollm"), sentence_piece(), word_piece()][kind].clone();
        for (at, value) in changes {
            let at = at % keys.len();
            keys[at].1 = value;
        }
        if let Ok(files) = to_hugging_face(&header(&keys)) {
            load(&files.tokenizer);
        }
    }

    #[test]
    fn small_vocabularies_panic_nowhere(
        tokens in proptest::collection::vec("[a-c\u{2581}]{1,3}", 1..12),
        kinds in proptest::collection::vec(0i32..7, 12),
        scores in proptest::collection::vec(-9f32..9.0, 12),
        model in prop_oneof![Just("llama"), Just("bert")],
        unknown in 0u32..12,
    ) {
        let count = tokens.len();
        let keys = named(vec![
            ("model", text(model)),
            ("tokens", strings(tokens)),
            ("token_type", ints(kinds.into_iter().take(count))),
            ("scores", floats(scores.into_iter().take(count))),
            ("unknown_token_id", Value::U32(unknown)),
        ]);
        if let Ok(files) = to_hugging_face(&header(&keys)) {
            load(&files.tokenizer);
            from_hugging_face(&files.tokenizer, Some(&files.config), count).ok();
        }
    }

    #[test]
    fn no_bytes_of_a_tokenizer_panic(at in 0.0f64..1.0, byte in any::<u8>(), cut in any::<bool>()) {
        let mut json = files(&sentence_piece()).tokenizer;
        let at = (at * json.len() as f64) as usize;
        json[at] = byte;
        json.truncate(if cut { at } else { json.len() });
        from_hugging_face(&json, None, 281).map(drop).unwrap_or_default();
    }
}
