//! Small vocabularies of each kind.

use tensorpress_formats::gguf::tokenizer::{TokenizerFiles, from_hugging_face, to_hugging_face};
use tensorpress_formats::gguf::{Array, Kind, Value};

use super::*;

pub fn strings(texts: impl IntoIterator<Item = impl Into<String>>) -> Value {
    let texts = texts.into_iter().map(|text| Value::String(text.into()));
    Value::Array(Array::new(Kind::String, texts).expect("of one kind"))
}

pub fn ints(values: impl IntoIterator<Item = i32>) -> Value {
    Value::Array(Array::new(Kind::I32, values.into_iter().map(Value::I32)).expect("of one kind"))
}

pub fn floats(values: impl IntoIterator<Item = f32>) -> Value {
    Value::Array(Array::new(Kind::F32, values.into_iter().map(Value::F32)).expect("of one kind"))
}

pub fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Keys after `tokenizer.ggml.`.
pub fn named(keys: Vec<(&str, Value)>) -> Keys {
    keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

/// The characters that stand for bytes: those that can be printed for themselves, the others from U+0100 on.
pub fn byte_characters() -> Vec<String> {
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
pub fn byte_level(pre: &str) -> Keys {
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
pub fn sentence_piece() -> Keys {
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

pub fn word_piece() -> Keys {
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

pub fn files(keys: &[(String, Value)]) -> TokenizerFiles {
    to_hugging_face(&header(keys)).expect("files")
}

/// Keys made of the files that were made of them.
pub fn again(keys: &Keys) -> Keys {
    let files = files(keys);
    let vocab = texts(keys, "tokenizer.ggml.tokens").len();
    from_hugging_face(&files.tokenizer, Some(&files.config), vocab).expect("keys")
}
