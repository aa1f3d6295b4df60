//! What our engine computes, for others to compare with: `logits MODEL OUT COUNT TEXT ...` continues each text greedily by
//! COUNT tokens. OUT gets the logits of every token but the last, f32, little-endian, text after text; standard output the
//! length of the vocabulary, and the ids of each text and of what follows it, as JSON.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use serde_json::json;
use tensorpress::model::Decoder;
use tensorpress::tensor::Scratch;
use tensorpress::tensor::linalg::Par;
use tensorpress::{Error, Result, open_model};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, count, texts @ ..] = arguments.as_slice() else {
        eprintln!("usage: logits MODEL OUT COUNT TEXT ...");
        return ExitCode::FAILURE;
    };
    match run(model, out, count, texts) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("logits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &str, out: &str, count: &str, texts: &[String]) -> Result<serde_json::Value> {
    let count = count.parse().map_err(|e| Error::invalid(format!("COUNT = {count}: {e}")))?;
    let source = open_model(model)?;
    source.need_head()?;
    let tokenizer = source.tokenizer()?;
    let decoder = source.decoder()?.prepack()?;
    let fail = |e| Error::io("write the file", out, e);
    let mut file = BufWriter::new(File::create(out).map_err(fail)?);
    let mut said = Vec::new();
    for text in texts {
        let prompt = tokenizer.encode(text)?;
        let new = continued(&decoder, &prompt, count, &mut |row| {
            row.iter().try_for_each(|value| file.write_all(&value.to_le_bytes())).map_err(fail)
        })?;
        said.push(json!({"prompt": prompt, "new": new}));
    }
    file.flush().map_err(fail)?;
    Ok(json!({"vocab": decoder.head().vocab(), "texts": said}))
}

/// The most probable `count` tokens after `prompt`, whatever they mean; gives the logits of each token to `row`.
fn continued(
    decoder: &Decoder,
    prompt: &[u32],
    count: usize,
    row: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<Vec<u32>> {
    let mut cache = decoder.cache();
    let mut scratch = Scratch::new(Par::Rayon);
    let (mut new, mut tokens) = (Vec::new(), prompt.to_vec());
    while new.len() < count {
        let logits = decoder.forward(&tokens, &mut cache, &mut scratch)?;
        for one in logits.rows() {
            row(&one.to_vec())?;
        }
        let Some(last) = logits.rows().into_iter().next_back() else {
            return Err(Error::invalid("a text of no tokens"));
        };
        let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let best = best.map_or(0, |(token, _)| token as u32);
        new.push(best);
        tokens = vec![best];
    }
    Ok(new)
}
