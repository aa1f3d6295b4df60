//! Keys and files that contradict themselves, or are no tokenizer's.

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tensorpress_formats::gguf::Value;
use tensorpress_formats::gguf::tokenizer::{from_hugging_face, to_hugging_face};
use tensorpress_tensor::ErrorKind;

use super::made::*;
use super::*;

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
