//! What begins a text, for tokenizers of every kind.

use serde_json::{Value, json};
use tensorpress_tensor::{ErrorKind, Registry};

use super::{Bos, Tokenizer};
use crate::config::Config;
use crate::source::Source;

/// A template with these tokens before a text.
fn template(before: &[&str]) -> Value {
    let special = |token: &&str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let mut single: Vec<Value> = before.iter().map(special).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.push(json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
    let ids = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
    json!({
        "type": "TemplateProcessing", "single": single, "pair": single,
        "special_tokens": {"<s>": ids("<s>", 1), "</s>": ids("</s>", 2), "[en]": ids("[en]", 3)},
    })
}

/// A tokenizer of single words.
fn tokenizer(
    processor: &Value,
    extra: &Value,
    bos: Option<u32>,
) -> tensorpress_tensor::Result<Tokenizer> {
    let special = |id: u32, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(1, "<s>"), special(2, "</s>"), special(3, "[en]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": processor,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "[en]": 3, "a": 4, "cat": 5}},
    });
    let mut config: Config = Source::demo(&Registry::default())?.config().clone();
    config.bos = bos;
    Tokenizer::new(json.to_string().as_bytes(), Some(extra.to_string().as_bytes()), &config)
}

/// The post-processor, tokenizer_config.json, config.json's id; the token, and whether it comes by itself.
type Case = (Value, Value, Option<u32>, Option<u32>, bool);

#[test]
fn auto_is_what_the_tokenizer_says() {
    let named = |adds: Value| json!({"bos_token": "<s>", "add_bos_token": adds});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
                         "trim_offsets": true, "add_prefix_space": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let both = json!({"type": "Sequence", "processors": [bytes, template(&["<s>"])]});
    let cases: &[Case] = &[
        (template(&["<s>"]), named(Value::Null), Some(1), Some(1), true),
        (template(&["<s>"]), json!({}), None, Some(1), true),
        (template(&["<s>"]), named(json!(false)), None, Some(1), true),
        (template(&["<s>"]), json!({"bos_token": null}), None, Some(1), true),
        (template(&["[en]", "<s>"]), named(Value::Null), None, Some(1), true),
        (template(&["[en]"]), json!({}), Some(1), Some(3), true),
        (roberta, json!({}), None, Some(1), true),
        (both, json!({}), None, Some(1), true),
        (template(&[]), named(Value::Null), Some(1), Some(1), false),
        (template(&[]), named(json!(false)), Some(1), Some(1), false),
        (template(&[]), named(json!(true)), None, Some(1), true),
        (bytes, named(Value::Null), Some(1), Some(1), false),
        (Value::Null, named(Value::Null), Some(1), Some(1), false),
        (Value::Null, named(json!(false)), None, Some(1), false),
        (Value::Null, named(json!(true)), None, Some(1), true),
        (
            Value::Null,
            json!({"bos_token": {"content": "<s>"}, "add_bos_token": true}),
            None,
            Some(1),
            true,
        ),
        (Value::Null, json!({"add_bos_token": true}), Some(2), Some(2), true),
        (Value::Null, json!({"bos_token": null, "add_bos_token": true}), Some(1), None, false),
        (Value::Null, json!({}), None, None, false),
        (template(&[]), json!({"add_bos_token": true}), None, None, false),
    ];
    for (processor, extra, id, token, begins) in cases {
        let case = format!("{processor} {extra} {id:?}");
        let made = tokenizer(processor, extra, *id).expect(&case);
        let plain = made.encode_plain("a cat").expect(&case);
        assert_eq!(plain, [4, 5], "{case}");
        let with = |token: Option<u32>| [token.as_slice(), &plain].concat();
        assert_eq!(made.bos(), token.filter(|_| *begins), "{case}");
        assert_eq!(made.encode("a cat").expect(&case), with(made.bos()), "{case}");

        let never = made.clone().with_bos(Bos::Never).expect(&case);
        assert_eq!(
            (never.bos(), never.encode("a cat").expect(&case)),
            (None, plain.clone()),
            "{case}"
        );
        // A choice can be taken back.
        let auto = never.with_bos(Bos::Auto).expect(&case);
        assert_eq!(auto.bos(), made.bos(), "{case}");
        match (made.with_bos(Bos::Always), token) {
            (Ok(always), Some(_)) => {
                assert_eq!(always.encode("a cat").expect(&case), with(*token), "{case}");
            }
            (Err(error), None) => {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{case}");
                assert!(error.to_string().contains("no token that begins a text"), "{error}");
            }
            (done, _) => panic!("{case}: {done:?}"),
        }
    }
}

#[test]
fn bos_in_the_text_is_not_doubled() {
    let made = tokenizer(&template(&["<s>"]), &json!({}), None).expect("a tokenizer");
    assert_eq!(made.encode("<s>a cat").expect("encodes"), [1, 4, 5]);
    assert_eq!(made.encode("a <s>cat").expect("encodes"), [1, 4, 1, 5]);
}

#[test]
fn what_is_no_answer_is_an_error() {
    let error =
        tokenizer(&Value::Null, &json!({"add_bos_token": "yes"}), None).expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(error.to_string().contains("add_bos_token"), "{error}");
}
