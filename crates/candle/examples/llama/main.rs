//! A Llama in candle over compressed weights, beside the reference decoder: the same tokens.
//!
//! `cargo run --release -p tensorpress-candle --example llama -- [MODEL [PROMPT]]`: MODEL is whatever tensorpress opens, a
//! folder, compressed or not, a packed file, a GGUF, ...; without one it is the demo model, as it is and at 4 bits.

mod model;

use std::error::Error;
use std::time::Instant;

use model::Llama;
use tensorpress::model::{Generation, Source, generate};
use tensorpress::prelude::*;

const TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next();
    let prompt = arguments.next().unwrap_or_else(|| "Once upon a time".to_owned());
    if let Some(path) = path {
        return check(&path, &open_model(&path)?, &prompt);
    }
    let demo = Source::demo(&registry())?;
    check("demo model", &demo, &prompt)?;

    let folder = tempfile::tempdir()?;
    let out = folder.path().join("w4");
    let report = Compressor::new(Recipe::parse("rtn(bits=4, group=32)")?).run(&demo, &out)?;
    let bits = report.bill.bits_per_weight;
    check(&format!("demo model at {bits:.2} bits a weight"), &open_model(&out)?, &prompt)
}

/// Continues the prompt here and by the reference.
fn check(title: &str, source: &Source, prompt: &str) -> Result<(), Box<dyn Error>> {
    let tokenizer = source.tokenizer()?;
    let ids = tokenizer.encode(prompt)?;

    let llama = Llama::load(source, true)?;
    let begin = Instant::now();
    let tokens = llama.greedy(&ids, TOKENS, &source.config().eos)?;
    let seconds = begin.elapsed().as_secs_f64();

    let reference = source.decoder()?.prepack()?;
    let how = Generation { max_tokens: TOKENS, ..Generation::default() };
    let expected = generate(&reference, &ids, how, &mut reference.cache(), &mut |_| Ok(true))?;
    assert_eq!(tokens, expected, "candle and the reference go apart");

    let text = tokenizer.decode(&[ids, tokens.clone()].concat())?;
    println!("{title}: {} tokens, as the reference has them, in {seconds:.2} s", tokens.len());
    println!("{text}\n");
    Ok(())
}
