//! Documents in JSON: objects one after the other, or an array.

use serde_json::{Map, Value};
use tensorpress_tensor::{Error, Result};

use super::corpus::{Document, Message};

/// What an object may have, of which it has one.
const KINDS: [&str; 6] = ["text", "content", "completion", "messages", "ids", "input_ids"];
const FORMS: &str = "`text`, `content`, `prompt` and `completion`, `messages`, or `ids`";

/// Reads documents; what is wrong is told with its line.
pub(super) fn documents(text: &str) -> Result<Vec<Document>> {
    let mut cursor = Cursor { text, at: 0, line: 1, found: Vec::new() };
    match cursor.next() {
        Some('[') => cursor.array()?,
        _ => cursor.objects()?,
    }
    Ok(cursor.found)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Of `at`, from 1.
    line: usize,
    found: Vec<Document>,
}

impl Cursor<'_> {
    /// The next character that is not blank; it is not passed.
    fn next(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.pass(rest.len() - rest.trim_start().len());
        self.text[self.at..].chars().next()
    }

    fn pass(&mut self, bytes: usize) {
        let passed = &self.text.as_bytes()[self.at..self.at + bytes];
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at += bytes;
    }

    fn objects(&mut self) -> Result<()> {
        while let Some(c) = self.next() {
            if c != '{' {
                return Err(self.not_json(format!("`{c}` where the brace of an object is due"), 0));
            }
            self.document()?;
        }
        Ok(())
    }

    fn array(&mut self) -> Result<()> {
        self.pass(1);
        let mut next = self.next();
        while next != Some(']') {
            self.document()?;
            next = self.next();
            match next {
                // Another value follows, whatever comes.
                Some(',') => self.pass(1),
                Some(']') => {}
                _ => return Err(self.not_json("`,` or `]` is due", 0)),
            }
        }
        self.pass(1);
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.not_json("the array is not all there is", 0)),
        }
    }

    /// Reads one value as a document.
    fn document(&mut self) -> Result<()> {
        self.next();
        let mut values =
            serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(e)) => {
                let what = e.to_string();
                let what = what.split(" at line ").next().unwrap_or_default().to_owned();
                return Err(self.not_json(what, e.line().saturating_sub(1)));
            }
            None => return Err(self.not_json("ends where a value is due", 0)),
        };
        let read = values.byte_offset();
        let document = document(value)
            .map_err(|what| Error::corruption(format!("line {}: {what}", self.line)))?;
        self.found.push(document);
        self.pass(read);
        Ok(())
    }

    /// An error so many lines below where the cursor is.
    fn not_json(&self, what: impl std::fmt::Display, below: usize) -> Error {
        let hint = match self.found.is_empty() {
            true => "; a plain text that begins with { or [ is taken as {\"text\": \"...\"}",
            false => "",
        };
        Error::corruption(format!("line {}: not JSON: {what}{hint}", self.line + below))
    }
}

fn document(value: Value) -> Result<Document, String> {
    let mut object = match value {
        Value::String(text) => return Ok(Document::Text(text)),
        Value::Object(object) => object,
        other => return Err(format!("{}; allowed are objects with {FORMS}", kind(&other))),
    };
    let found: Vec<&str> = KINDS.into_iter().filter(|key| has(&object, key)).collect();
    match found.as_slice() {
        [] => Err(format!("has no {FORMS}; it has {}", keys(&object))),
        ["content"] if has(&object, "role") => {
            Err("is a message by itself; allowed is {\"messages\": [...]}".to_owned())
        }
        ["completion"] => {
            let prompt = take_text(&mut object, "prompt")?;
            Ok(Document::Text(prompt + &take_text(&mut object, "completion")?))
        }
        ["messages"] => messages(&object["messages"]).map(Document::Chat),
        [key @ ("ids" | "input_ids")] => {
            let ids = numbers(key, &object[*key])?;
            if !has(&object, "attention_mask") {
                return Ok(Document::Ids(ids));
            }
            let mask = numbers("attention_mask", &object["attention_mask"])?;
            unmasked(&ids, &mask).map(Document::Ids)
        }
        [key] => take_text(&mut object, key).map(Document::Text),
        [one, other, ..] => Err(format!("has `{one}` and `{other}`, of which one is allowed")),
    }
}

fn has(object: &Map<String, Value>, key: &str) -> bool {
    object.get(key).is_some_and(|value| !value.is_null())
}

fn keys(object: &Map<String, Value>) -> String {
    let keys: Vec<String> = object.keys().take(8).map(|key| format!("`{key}`")).collect();
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn take_text(object: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}; allowed is a string", kind(&other))),
        None => Err(format!("has no `{key}`")),
    }
}

fn messages(value: &Value) -> Result<Vec<Message>, String> {
    let all = value.as_array().filter(|all| !all.is_empty());
    let all = all.ok_or("`messages` is no array with messages in it")?;
    let message = |(i, message): (usize, &Value)| {
        let field = |key: &str| {
            let text = message.get(key).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| format!("message {} has no `{key}` that is a string", i + 1))
        };
        Ok(Message { role: field("role")?, content: field("content")? })
    };
    all.iter().enumerate().map(message).collect()
}

fn numbers(key: &str, value: &Value) -> Result<Vec<u32>, String> {
    let all = value.as_array();
    let all = all.ok_or_else(|| format!("`{key}` is {}; allowed is an array", kind(value)))?;
    let number = |(i, value): (usize, &Value)| {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| format!("`{key}`[{i}] = {value}: allowed are 0 to {}", u32::MAX))
    };
    all.iter().enumerate().map(number).collect()
}

/// The tokens that a mask does not hide. What it hides is padding: at either end, never between.
pub(super) fn unmasked(ids: &[u32], mask: &[u32]) -> Result<Vec<u32>, String> {
    if ids.len() != mask.len() {
        return Err(format!("an attention mask of {} of {} tokens", mask.len(), ids.len()));
    }
    let first = mask.iter().position(|m| *m != 0).unwrap_or(mask.len());
    let last = mask.iter().rposition(|m| *m != 0).map_or(first, |last| last + 1);
    match mask[first..last].iter().position(|m| *m == 0) {
        None => Ok(ids[first..last].to_vec()),
        Some(at) => Err(format!("the attention mask hides token {} between others", first + at)),
    }
}
