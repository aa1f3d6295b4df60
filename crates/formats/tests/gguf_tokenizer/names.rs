//! What keys say, and what tokenizers do for it.

use serde_json::Value as Json;
use tensorpress_formats::gguf::Value;

use super::made::*;
use super::*;

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
