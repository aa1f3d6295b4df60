//! LLMLingua's own answers: labels of words, and log-likelihoods of a small model.

use std::ops::Range;

use serde_json::Value;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Error, Result, Tensor};
use tensorpress_tokencomp::text::{
    ClassifiedWord, Labelling, Piece, Squeeze, Surprise, TokenCount, TokenLogProbs,
    WordProbability, WordScore,
};

fn read(name: &str) -> Option<(Value, Checkpoint)> {
    let json = data::find(&format!("golden/kv/{name}.json"))?;
    let values = data::find(&format!("golden/kv/{name}.safetensors"))?;
    let text = std::fs::read_to_string(json).expect("a file");
    Some((
        serde_json::from_str(&text).expect("JSON"),
        Checkpoint::open(values).expect("a golden file"),
    ))
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    file.tensor(name).expect("a tensor").to_matrix().expect("floats").into_raw_vec_and_offset().0
}

/// WordPiece tokens as words.
fn words(tokens: &Value, probabilities: &[f32]) -> Vec<ClassifiedWord> {
    let mut words: Vec<ClassifiedWord> = Vec::new();
    for (token, probability) in tokens.as_array().expect("tokens").iter().zip(probabilities) {
        let token = token.as_str().expect("a token");
        match (token, token.strip_prefix("##")) {
            ("[CLS]" | "[SEP]", _) => {}
            (_, Some(rest)) => {
                let word = words.last_mut().expect("a word begins first");
                word.text += rest;
                word.pieces.push((rest.to_owned(), *probability));
            }
            _ => words.push(ClassifiedWord {
                text: token.to_owned(),
                pieces: vec![(token.to_owned(), *probability)],
                tokens: 1,
            }),
        }
    }
    words
}

#[test]
fn llmlingua2_labels_are_the_official_ones() {
    let Some((json, file)) = read("llmlingua2") else { return };
    let mut cases = Vec::new();
    for case in json["cases"].as_array().expect("cases") {
        let options = &case["kw"];
        let mut labelling =
            Labelling::new(options["rate"].as_f64().expect("a rate")).expect("a rate");
        for forced in options["force_tokens"].as_array().into_iter().flatten() {
            labelling.forced.push(forced.as_str().expect("a token").to_owned());
        }
        labelling.digits = options["force_reserve_digit"] == true;
        labelling.drop_consecutive = options["drop_consecutive"] == true;
        if options["token_to_word"] == "first" {
            labelling.probability = WordProbability::First;
        }
        let words = words(&case["tokens"], &floats(&file, &format!("{}.keep_prob", case["i"])));
        let labels = labelling.label(&words).expect("labels");
        let official = case["word_labels"].as_str().expect("labels").split("\t\t|\t\t");
        let official: Vec<(&str, &str)> =
            official.map(|w| w.rsplit_once(' ').expect("a label")).collect();
        assert_eq!(official.len(), words.len());
        for ((word, label), (text, stays)) in words.iter().zip(&labels).zip(official) {
            assert_eq!((word.text.as_str(), *label), (text, stays == "1"), "{options}");
        }
        // The official text is what stays, spaced by its tokenizer.
        let kept = words.iter().zip(&labels).filter(|(_, stays)| **stays);
        let kept: String = kept.map(|(word, _)| word.text.as_str()).collect();
        let compressed = case["compressed"].as_str().expect("a text");
        assert_eq!(compressed.split_whitespace().collect::<String>(), kept, "{options}");
        cases.push((labelling, words, labels));
    }
    assert_eq!(cases.len(), 10);
    // One text after the other, cut where the first ends: each has its own threshold.
    let (first, second) = cases.split_at(5);
    for ((labelling, words, labels), (_, more, more_labels)) in first.iter().zip(second) {
        let (both, pieces) = ([&words[..], more].concat(), 292);
        let chunked = labelling.label_chunks(&both, pieces).expect("labels");
        assert_eq!(chunked, [&labels[..], more_labels].concat(), "{labelling:?}");
        assert_ne!(chunked, labelling.label(&both).expect("labels"), "{labelling:?}");
        assert_eq!(labelling.label_chunks(words, 510).expect("labels"), *labels);
    }
    println!("checked: llmlingua2, {} cases, 5 pairs in chunks", cases.len());
}

#[test]
fn chunks_end_at_sentences() {
    // As many words stay as there are chunks: in each the one of the highest probability.
    let word = |text: &str, pieces: usize, p: f32| ClassifiedWord {
        text: text.into(),
        pieces: vec![(text.into(), p); pieces],
        tokens: 1,
    };
    let labelling = Labelling::new(0.02).expect("a rate");
    let chunks = |words: &[ClassifiedWord], pieces: usize| {
        let labels = labelling.label_chunks(words, pieces).expect("labels");
        labels.iter().enumerate().filter(|(_, l)| **l).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let rising = |texts: &[(&str, usize)]| {
        let p = |i: usize| 0.1 + i as f32 / 1e3;
        texts.iter().enumerate().map(|(i, (t, n))| word(t, *n, p(i))).collect::<Vec<_>>()
    };
    let text = [("a", 1), ("b", 1), (".", 1), ("c", 2), ("d", 1), ("\n", 1), ("e", 1), ("f", 1)];
    let last_of = |pieces: usize| chunks(&rising(&text), pieces);
    assert_eq!(last_of(510), [7]);
    // a b . | c d newline | e f
    assert_eq!(last_of(5), [2, 5, 7]);
    // a b . c d newline | e f
    assert_eq!(last_of(8), [5, 7]);
    // Nothing to end at: as many words as fit, or one that does not.
    assert_eq!(chunks(&rising(&[("a", 2), ("b", 2), ("c", 2)]), 4), [1]);
    assert_eq!(chunks(&rising(&[("a", 9), ("b", 2), ("c", 2)]), 4), [2]);
    assert!(labelling.label_chunks(&rising(&text), 0).is_err());
    assert_eq!(labelling.label_chunks(&[], 510).expect("nothing"), [false; 0]);
}

#[test]
fn impossible_labellings_are_refused() {
    assert!(Labelling::new(1.5).is_err() && Labelling::new(f64::NAN).is_err());
    let word =
        |p: f32| ClassifiedWord { text: "a".into(), pieces: vec![("a".into(), p)], tokens: 1 };
    let labelling = Labelling::new(0.5).expect("a rate");
    assert_eq!(labelling.label(&[]).expect("nothing"), [false; 0]);
    assert!(labelling.label(&[word(f32::NAN)]).is_err());
    let empty = ClassifiedWord { text: "a".into(), pieces: Vec::new(), tokens: 1 };
    assert!(labelling.label(&[empty]).is_err());
    assert_eq!(labelling.label(&[word(0.1), word(0.9)]).expect("labels"), [false, true]);
}

/// A language model that says what the stored one said.
#[derive(Debug)]
struct Stored(Vec<Piece>);

impl TokenLogProbs for Stored {
    fn log_probs(&self, _: &str, _: &str) -> Result<Vec<Piece>> {
        Ok(self.0.clone())
    }
}

#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

/// The stored tokens are those of a model that is not here: only their number and values are used, laid out evenly.
#[test]
fn surprising_words_stay() {
    let Some((json, file)) = read("llmlingua1") else { return };
    let text = json["cases"][1]["context"].as_str().expect("a text");
    let nll = floats(&file, "0.token_nll");
    let at = |i: usize| text.len() * i / nll.len();
    let pieces = nll.iter().enumerate().map(|(i, nll)| (at(i)..at(i + 1), -nll)).collect();
    let model = Stored(pieces);
    let surprise = Surprise::new(&model).with_segment(1000).expect("a segment");
    let ranges: Vec<Range<usize>> = text
        .split_whitespace()
        .map(|w| {
            let from = w.as_ptr() as usize - text.as_ptr() as usize;
            from..from + w.len()
        })
        .collect();
    let scores = surprise.score(text, &ranges).expect("scores");
    // The slow way: each word's mean over all pieces that touch it.
    for (range, score) in ranges.iter().zip(&scores) {
        let touching: Vec<f64> = (0..nll.len())
            .filter(|i| at(*i) < range.end && at(i + 1) > range.start)
            .map(|i| f64::from(nll[i]))
            .collect();
        let mean = touching.iter().sum::<f64>() / touching.len() as f64;
        assert!((mean - f64::from(*score)).abs() < 1e-5);
    }
    // One sentence, so that only words are chosen: the most surprising ones, as many as fit.
    let line = text.replace('.', ",");
    let squeezed =
        Squeeze::new(&Words).with_words(&surprise).squeeze(&line, None, 20).expect("fits");
    assert_eq!(squeezed.tokens, 20);
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(20);
    order.sort_unstable();
    let expected: Vec<&str> = order.iter().map(|i| &line[ranges[*i].clone()]).collect();
    assert_eq!(squeezed.text.split_whitespace().collect::<Vec<_>>(), expected);
    println!("checked: llmlingua1, {} stored log-likelihoods", nll.len());
}

#[derive(Debug)]
struct Broken;

impl TokenLogProbs for Broken {
    fn log_probs(&self, _: &str, text: &str) -> Result<Vec<Piece>> {
        if text.contains("stop") {
            return Err(Error::unsupported("this text"));
        }
        Ok(vec![(0..text.len(), f32::NAN)])
    }
}

#[test]
fn models_that_fail_are_heard() {
    let surprise = Surprise::new(&Broken);
    let squeeze = Squeeze::new(&Words).with_words(&surprise);
    let error = squeeze.squeeze("one two three", None, 2).expect_err("NaN");
    assert!(error.to_string().contains("log-probability of `one` is NaN"), "{error}");
    assert!(squeeze.squeeze("one stop three", None, 2).is_err());
    assert!(surprise.with_segment(0).is_err() && surprise.with_rate(2.0).is_err());
}
