//! Tokenizers of real models, on real texts.

use std::path::{Path, PathBuf};

use tensorpress_formats::gguf::tokenizer::{from_hugging_face, to_hugging_face};
use tensorpress_tensor::testing::data;

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
