//! `tensorpress run`

use std::time::Instant;

use serde::Serialize;
use tensorpress::model::{Generation, RepeatPrompts, generate};
use tensorpress::tensor::linalg::Par;

use crate::args::Run;
use crate::eval::kv_recipe;
use crate::failure::{Failure, Outcome};
use crate::open::{Opened, open};
use crate::output::{print, print_json, say};

#[derive(Serialize)]
struct Generated {
    text: String,
    /// Ids of the new tokens.
    ids: Vec<u32>,
    tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
}

pub(crate) fn run(args: &Run) -> Outcome {
    let opened = open(&args.model, args.base.as_deref())?;
    opened.unmoved(run_opened(args, &opened))
}

fn run_opened(args: &Run, opened: &Opened) -> Outcome {
    let source = &opened.source;
    source.need_head()?;
    let tokenizer = source.tokenizer()?.with_bos(args.bos.into())?;
    let model = source.decoder()?.prepack()?;
    let model = model.with_repeat_prompts(RepeatPrompts::of(&tokenizer)?);
    let mut caches = match &args.kv {
        None => model.cache(),
        Some(kv) => {
            let recipe = kv_recipe(kv)?;
            model.caches(&recipe).map_err(|e| Failure::of_argument("--kv", e))?
        }
    };
    let prompt = tokenizer.encode(&args.prompt)?;
    let mut stream = tokenizer.stream();
    // The last tokens of the prompt decide how the first new one is spelt.
    for id in &prompt[prompt.len().saturating_sub(4)..] {
        stream.push(*id)?;
    }
    let how = Generation {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        seed: args.seed,
        par: Par::Rayon,
    };
    let mut text = String::new();
    let mut closed = None;
    let mut show = |piece: &str| {
        text.push_str(piece);
        if !args.json && closed.is_none() {
            closed = print(piece).err();
        }
        closed.is_none()
    };
    // The first token pays for the prompt: the clock starts after it.
    let mut first = None;
    let new = generate(&model, &prompt, how, &mut caches, &mut |token| {
        first.get_or_insert_with(Instant::now);
        Ok(show(&stream.push(token)?))
    })?;
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    show(&stream.finish()?);
    if let Some(failure) = closed {
        return Err::<(), Failure>(failure);
    }
    let tokens = new.len();
    let tokens_per_second =
        if seconds > 0.0 { tokens.saturating_sub(1) as f64 / seconds } else { 0.0 };
    if args.json {
        let ids = new;
        return print_json(&Generated { text, ids, tokens, seconds, tokens_per_second });
    }
    print("\n")?;
    say!("{tokens} tokens, {tokens_per_second:.1} tokens/s");
    Ok(())
}
