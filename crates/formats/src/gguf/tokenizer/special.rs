//! What `tokenizer.json` puts around texts.

use serde_json::{Map, Value, json};
use tensorpress_tensor::{Error, Result};

/// Special tokens around a text, by their texts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Around {
    /// Before it.
    pub(super) first: Option<String>,
    /// After it.
    pub(super) last: Option<String>,
    /// Between two texts beside these; nothing if it isn't said what comes there.
    pub(super) separated: Option<bool>,
}

/// A post-processor that puts these tokens and ids around texts; `between` comes between two texts beside them.
pub(super) fn to_json(
    first: Option<(&str, usize)>,
    last: Option<(&str, usize)>,
    between: Option<(&str, usize)>,
) -> Value {
    if first.is_none() && last.is_none() && between.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(&str, usize)>, kind: u32| {
        token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let text = |name: &str, kind: u32| Some(json!({"Sequence": {"id": name, "type_id": kind}}));
    // A text that ends by itself needs no second beginning.
    let again = if last.is_none() && between.is_none() { first } else { None };
    let single = [special(first, 0), text("A", 0), special(last, 0)];
    let pair = [special(between, 0), special(again, 1), text("B", 1), special(last, 1)];
    let single: Vec<Value> = single.into_iter().flatten().collect();
    let pair: Vec<Value> = single.iter().cloned().chain(pair.into_iter().flatten()).collect();
    let tokens: Map<String, Value> = [first, last, between]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// What a post-processor puts around texts.
///
/// # Errors
/// `Unsupported` for what isn't said by one token before and one after.
pub(super) fn from_json(processor: &Value) -> Result<Around> {
    let mut around = Around::default();
    collect(processor, &mut around)?;
    Ok(around)
}

fn collect(processor: &Value, around: &mut Around) -> Result<()> {
    let named = |name: &str| match processor[name][0].as_str() {
        Some(token) => Ok(Some(token.to_owned())),
        None => Err(Error::corruption(format!("post_processor: no `{name}`"))),
    };
    match processor["type"].as_str() {
        None if processor.is_null() => {}
        Some("ByteLevel") => {}
        Some("Sequence") => {
            for part in processor["processors"].as_array().into_iter().flatten() {
                collect(part, around)?;
            }
        }
        Some(kind @ ("RobertaProcessing" | "BertProcessing")) => {
            let separated = Some(kind == "RobertaProcessing");
            *around = Around { first: named("cls")?, last: named("sep")?, separated };
        }
        Some("TemplateProcessing") => {
            let (first, middle, last) = parts(&processor["single"])?;
            if !middle.is_empty() {
                return Err(Error::corruption("post_processor: two texts, where one belongs"));
            }
            *around = Around { first, last, separated: None };
            let (_, middle, _) = parts(&processor["pair"])?;
            if !middle.is_empty() {
                let ends = middle.iter().filter(|token| Some(**token) != around.first.as_deref());
                let separated = ends.count() > usize::from(around.last.is_some());
                around.separated = Some(separated);
            }
        }
        other => {
            let what =
                format!("post_processor: {} is not known", other.unwrap_or("one without type"));
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

/// The special tokens of a template: one before, those between, one after its texts.
fn parts(template: &Value) -> Result<(Option<String>, Vec<&str>, Option<String>)> {
    let pieces: Vec<Option<&str>> = template
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| p["SpecialToken"]["id"].as_str())
        .collect();
    let text = |piece: &Option<&str>| piece.is_none();
    let (Some(from), Some(to)) = (pieces.iter().position(text), pieces.iter().rposition(text))
    else {
        return Ok((None, Vec::new(), None));
    };
    let one = |tokens: &[Option<&str>], place: &str| match tokens {
        [] => Ok(None),
        [token] => Ok(token.map(str::to_owned)),
        more => {
            let what = format!("{} tokens {place} a text, where GGUF has one", more.len());
            Err(Error::unsupported(format!("post_processor: {what}")))
        }
    };
    let between = pieces[from..to].iter().flatten().copied().collect();
    Ok((one(&pieces[..from], "before")?, between, one(&pieces[to + 1..], "after")?))
}
