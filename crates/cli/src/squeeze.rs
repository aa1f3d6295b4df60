//! `tensorpress squeeze`

use std::io::Read;
use std::path::Path;

use serde::Serialize;
use tensorpress::model::{LanguageModel, SentenceSimilarity, Source, Tokenizer, text};
use tensorpress::tokencomp::PromptModels;
use tensorpress::tokencomp::text::{PromptRecipe, Squeeze, Squeezed};
use tensorpress::{Error, Result};

use crate::args::Squeeze as Args;
use crate::eval::decoder;
use crate::failure::{Failure, Outcome};
use crate::open::open;
use crate::output::{print, print_json, say};

#[derive(Serialize)]
struct Short<'a> {
    text: &'a str,
    tokens: usize,
    tokens_before: usize,
    budget: usize,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let text = read(&args.file)?;
    let opened = open(&args.model, args.base.as_deref())?;
    let short = opened.unmoved(squeeze(args, &text, &opened.source))?;
    let Squeezed { text, tokens, tokens_before, .. } = &short;
    if args.json {
        let (tokens, tokens_before, budget) = (*tokens, *tokens_before, args.budget);
        return print_json(&Short { text, tokens, tokens_before, budget });
    }
    // No newline after it: that could be one token too many.
    print(text)?;
    say!("{tokens_before} tokens before, {tokens} after");
    Ok(())
}

fn squeeze(args: &Args, text: &str, source: &Source) -> Outcome<Squeezed> {
    let own = source.tokenizer()?;
    let counter = match &args.tokenizer {
        Some(folder) => Tokenizer::open(folder)?,
        None => own.clone(),
    };
    let keep: Vec<&str> = args.keep.iter().map(String::as_str).collect();
    Squeeze::new(&counter).with_forced(&keep).map_err(|e| Failure::of_argument("--keep", e))?;
    let recipe = |default: &str| {
        let line = args.recipe.as_deref().unwrap_or(default);
        line.parse::<PromptRecipe>().map_err(|e| Failure::of_argument("--recipe", e))
    };
    let asked = (text, args.question.as_deref());
    let short = if source.config().architecture.is_decoder() {
        let recipe = recipe(BY_DECODER)?;
        let decoder = decoder(source)?;
        let model = LanguageModel::new(&decoder, &own)?;
        let models = PromptModels::default().with_language(&model).with_attends(&model);
        match &args.encoder {
            None => recipe.squeeze((&counter, &models), &keep, asked, args.budget)?,
            Some(folder) => {
                let beside = Source::open(folder, &tensorpress::registry())?;
                let (encoder, words) = (beside.encoder()?.materialise()?, beside.tokenizer()?);
                let similarity = SentenceSimilarity::new(&encoder, &words);
                let models = models.with_similarity(&similarity);
                recipe.squeeze((&counter, &models), &keep, asked, args.budget)?
            }
        }
    } else {
        let recipe = recipe(BY_ENCODER)?;
        let encoder = source.encoder()?.materialise()?;
        let similarity = SentenceSimilarity::new(&encoder, &own);
        let models = PromptModels::default().with_similarity(&similarity);
        recipe.squeeze((&counter, &models), &keep, asked, args.budget)?
    };
    Ok(short)
}

/// Words that surprise a language model; with a question, sentences come first.
const BY_DECODER: &str = "likelihood | bm25 | surprise";
/// Whole sentences.
const BY_ENCODER: &str = "similarity | bm25(weight=0.25)";

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
