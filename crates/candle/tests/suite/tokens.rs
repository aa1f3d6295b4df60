//! A Llama in candle gives the tokens that the reference decoder gives, whatever its weights lie in.

use std::path::Path;

use tensorpress::model::{Decoder, Generation, Source, generate};
use tensorpress::prelude::*;
use tensorpress_tensor::Scratch;
use tensorpress_tensor::testing::data;

use crate::common::{compressed, converted, golden};
use crate::llama::Llama;

const PROMPTS: [&str; 2] =
    ["Once upon a time", "Lily and Tom went to the park. They saw a big dog"];

/// Where two texts part, if they do.
fn parted(tokens: &[u32], expected: &[u32]) -> Option<usize> {
    let at = tokens.iter().zip(expected).position(|(a, b)| a != b);
    at.or((tokens.len() != expected.len()).then(|| tokens.len().min(expected.len())))
}

/// By how much the reference prefers its own next token to that of the other.
fn lead(reference: &Decoder, so_far: &[u32], tokens: &[u32], at: usize) -> f32 {
    let mut scratch = Scratch::default();
    let hidden = reference.hidden(so_far, &mut scratch).unwrap();
    let logits = reference.head().logits(hidden.view(), &mut scratch).unwrap();
    let last = logits.row(logits.nrows() - 1);
    let best = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    tokens.get(at).map_or(f32::INFINITY, |token| best - last[*token as usize])
}

/// So many of the reference's tokens, not counting where a text ends.
fn check(what: &str, source: &Source, most: usize) -> usize {
    let tokenizer = source.tokenizer().unwrap();
    let mut reached = 0;
    for prepack in [false, true] {
        let reference = source.decoder().unwrap();
        let reference = if prepack { reference.prepack().unwrap() } else { reference };
        let llama = Llama::load(source, prepack).unwrap_or_else(|e| panic!("{what}: {e}"));
        for prompt in PROMPTS {
            let ids = tokenizer.encode(prompt).unwrap();
            let how = Generation { max_tokens: most, ..Generation::default() };
            let mut cache = reference.cache();
            let expected = generate(&reference, &ids, how, &mut cache, &mut |_| Ok(true)).unwrap();
            let tokens = llama.greedy(&ids, most, &source.config().eos).unwrap();
            reached = reached.max(tokens.len());
            let what = format!("{what}, prepacked: {prepack}, {prompt:?}");
            let Some(at) = parted(&tokens, &expected) else { continue };
            // Prepacked products round their inputs, so that the last bit of what candle computes between them may turn
            // a near tie; nothing else may.
            assert!(prepack, "{what}: parts at {at}");
            let lead = lead(&reference, &[&ids[..], &expected[..at]].concat(), &tokens, at);
            assert!(lead < 0.02, "{what}: parts at {at}, where the reference leads by {lead}");
            println!("{what}: a tie at {at}, {lead}");
        }
    }
    reached
}

/// The model as it is, and in the formats of everybody; `words`: its codes fill the words that GPTQ and AWQ pack them in.
fn check_all(model: &str, folder: &Path, words: bool) {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let dense = open_model(folder).unwrap();
    let symmetric = "rtn(bits=4, group=32, symmetric=true)";
    // Coded ones are decoded for every token: of the small model alone.
    let gptq =
        ["gptq(bits=4, group=32) | coded(rans)", "gptq(bits=4, group=32)"][usize::from(words)];
    let mut forms = vec![
        ("as it is", open_model(folder).unwrap()),
        ("4 bits", compressed(&dense, "rtn(bits=4, group=32)", &path("w4"))),
        ("gptq", compressed(&dense, gptq, &path("gptq"))),
        ("pruned, corrected", compressed(&dense, PRUNED, &path("pruned"))),
        ("GGUF Q4_1", converted(&dense, "gguf(Q4_1)", &path("q4_1.gguf"))),
        ("GGUF Q8_0", converted(&dense, "gguf(Q8_0)", &path("q8_0.gguf"))),
    ];
    if words {
        let four = compressed(&dense, symmetric, &path("w4s"));
        forms.push(("a folder of GPTQ", converted(&four, "gptq", &path("theirs"))));
        forms.push(("a folder of AWQ", converted(&four, "awq", &path("awq"))));
    }
    let packed = path("model.tpk");
    let _ = Packer::new().pack(&path("w4"), &packed).unwrap();
    let packed = ("packed", open_model(&packed).unwrap());
    for (form, source) in forms.iter().chain([&packed]) {
        let reached = check(&format!("{model}, {form}"), source, 64);
        assert!(reached >= 48, "{model}, {form}: the longest text has {reached} tokens");
        println!("checked: {model}, {form}: {reached} tokens");
    }
}

const PRUNED: &str = "magnitude(sparsity=0.3) | rtn(bits=4, group=32) | residual(svd(rank=4))";

#[test]
fn stories260k() {
    let Some(folder) = data::find("data/models/stories260k") else { return };
    // 172 codes of 4 bits do not.
    check_all("stories260k", &folder, false);
}

#[test]
fn stories3m() {
    let Some(folder) = data::find("data/models/stories3m") else { return };
    check_all("stories3m", &folder, true);
}

/// Golden models: other rotations, a table that is stored under the head's name.
#[test]
fn golden_llamas() {
    let mut checked = 0;
    for name in ["llama-tied-lmhead", "llama3-rope", "llama-linear-rope"] {
        let Some(folder) = golden(name) else { continue };
        let source = open_model(folder).unwrap();
        let reference = source.decoder().unwrap();
        let llama = Llama::load(&source, false).unwrap();
        for prompt in [vec![1, 5, 7, 11], vec![3], (1..60).collect()] {
            let how = Generation { max_tokens: 48, ..Generation::default() };
            let mut cache = reference.cache();
            let expected =
                generate(&reference, &prompt, how, &mut cache, &mut |_| Ok(true)).unwrap();
            let tokens = llama.greedy(&prompt, 48, &source.config().eos).unwrap();
            assert_eq!(tokens, expected, "{name}");
            checked += tokens.len();
        }
    }
    println!("checked: tokens of golden models {checked}");
}

/// A model that the example does not compute is refused.
#[test]
fn other_models_are_refused() {
    for (name, word) in [("gpt2", "gpt2"), ("llama-dynamic-ntk", "rotary")] {
        let Some(folder) = golden(name) else { continue };
        let error = match Llama::load(&open_model(folder).unwrap(), false) {
            Ok(_) => panic!("{name} is taken for a plain Llama"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(word), "{error}");
    }
}
