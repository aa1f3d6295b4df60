//! Tokenizers of real models, on real texts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tensorpress_formats::gguf::tokenizer::{from_hugging_face, to_hugging_face};
use tensorpress_formats::gguf::{Array, Value};
use tensorpress_tensor::testing::data;
use tokenizers::Tokenizer;

use super::*;

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
