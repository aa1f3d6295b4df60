//! `tensorpress squeeze`

use std::io::Read;
use std::path::Path;

use serde::Serialize;
use tensorpress::model::{LanguageModel, SentenceSimilarity, Tokenizer, text};
use tensorpress::tokencomp::text::{Bm25, Fused, QuestionLikelihood, Squeeze, Squeezed, Surprise};
use tensorpress::{Error, Result};

use crate::args::Squeeze as Args;
use crate::eval::decoder;
use crate::failure::{Failure, Outcome};
use crate::open::open;
use crate::output::{print, print_json};

#[derive(Serialize)]
struct Short<'a> {
    text: &'a str,
    tokens: usize,
    tokens_before: usize,
    budget: usize,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let text = read(&args.file)?;
    let source = open(&args.model, args.base.as_deref())?.source;
    let own = source.tokenizer()?;
    let counter = match &args.tokenizer {
        Some(folder) => Tokenizer::open(folder)?,
        None => own.clone(),
    };
    let keep: Vec<&str> = args.keep.iter().map(String::as_str).collect();
    let squeeze =
        Squeeze::new(&counter).with_forced(&keep).map_err(|e| Failure::of_argument("--keep", e))?;
    let bm25 = Bm25::new();
    let short = if source.config().architecture.is_decoder() {
        let decoder = decoder(&source)?;
        let model = LanguageModel::new(&decoder, &own)?;
        let (likelihood, words) = (QuestionLikelihood::new(&model), Surprise::new(&model));
        let relevance = Fused::new().with(&likelihood, 1.0).with(&bm25, 1.0);
        run_with(squeeze.with_words(&words).with_relevance(&relevance), &text, args)?
    } else {
        let encoder = source.encoder()?.materialise()?;
        let similarity = SentenceSimilarity::new(&encoder, &own);
        let relevance = Fused::new().with(&similarity, 1.0).with(&bm25, 0.25);
        run_with(squeeze.with_relevance(&relevance), &text, args)?
    };
    let Squeezed { text, tokens, tokens_before, .. } = &short;
    if args.json {
        let (tokens, tokens_before, budget) = (*tokens, *tokens_before, args.budget);
        return print_json(&Short { text, tokens, tokens_before, budget });
    }
    // No newline after it: that could be one token too many.
    print(text)?;
    eprintln!("{tokens_before} tokens before, {tokens} after");
    Ok(())
}

fn run_with(squeeze: Squeeze<'_>, text: &str, args: &Args) -> Result<Squeezed> {
    squeeze.squeeze(text, args.question.as_deref(), args.budget)
}

/// A file, or standard input where it is `-`.
fn read(file: &Path) -> Result<String> {
    if file != Path::new("-") {
        return text::read(file);
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|e| Error::io("read the text", "standard input", e))?;
    text::from_bytes(bytes, Path::new("standard input"))
}
