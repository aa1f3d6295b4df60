//! The demo model's tokenizer: byte-pair encoding in the layout of Llama's (a space becomes `▁`,
//! one is put before the text, unknown characters fall back to bytes).

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokenizers::Trainer;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedToken, Tokenizer};

/// Characters that get a token of their own; rarer ones are spelled in bytes.
const ALPHABET: usize = 80;

/// Trains a tokenizer of `vocab_size` tokens; returns its `tokenizer.json`.
pub fn train(texts: &[String], vocab_size: usize) -> Result<Value> {
    let bytes = (0..=255).map(|b| format!("<0x{b:02X}>"));
    let fixed = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .limit_alphabet(ALPHABET)
        .show_progress(false)
        .special_tokens(fixed.map(|token| AddedToken::from(token, true)).collect())
        .build();
    trainer.feed(texts.iter(), |text| Ok(pieces(text))).map_err(|e| anyhow!(e))?;
    let mut bpe = BPE::default();
    trainer.train(&mut bpe).map_err(|e| anyhow!(e))?;
    let trained = serde_json::to_value(&bpe)?;
    Ok(assemble(trained["vocab"].clone(), trained["merges"].clone()))
}

/// Loads a tokenizer from its JSON text.
pub fn load(json: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_bytes(json).map_err(|e| anyhow!(e))
}

/// Cuts a text where merges may not reach over: a word with the space before it, or a run of
/// anything else. The finished tokenizer needs no such rule, as no merge joins two pieces.
fn pieces(text: &str) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    let mut last_kind = None;
    for ch in "▁".chars().chain(text.chars().map(|c| if c == ' ' { '▁' } else { c })) {
        let kind = match ch {
            '▁' => None,
            c => Some(c.is_alphabetic() || c == '\''),
        };
        // A space begins a piece, and whatever follows it belongs to it.
        let joins = kind.is_some() && (last_kind.is_none() || last_kind == Some(kind));
        match out.last_mut() {
            Some(piece) if joins => piece.push(ch),
            _ => out.push(ch.into()),
        }
        last_kind = kind.map(Some);
    }
    out
}

/// The whole `tokenizer.json` around a trained vocabulary.
fn assemble(vocab: Value, merges: Value) -> Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text("A")],
            "pair": [bos, text("A"), bos, text("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// The `tokenizer_config.json` that goes with it.
pub fn config(max_length: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_words_apart() {
        let found = pieces("One day, \"Hi!\" didn't\n\nThe");
        assert_eq!(found, ["▁One", "▁day", ",", "▁\"", "Hi", "!\"", "▁didn't", "\n\n", "The"]);
    }

    #[test]
    fn any_text_survives() {
        let story = "Once upon a time, a cat sat on a mat. The cat was happy.\n\nThe end.";
        let json = train(&vec![story.to_string(); 3], 300).unwrap();
        let tokenizer = load(json.to_string().as_bytes()).unwrap();
        for text in [story, "naïve 猫 🐈\t0x\r\n  end ", "▁"] {
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded.get_ids()[0], 1);
            assert!(!encoded.get_ids()[1..].contains(&0));
            let back = tokenizer.decode(encoded.get_ids(), true).unwrap();
            assert_eq!(back, text.replace('▁', " "));
        }
    }
}
