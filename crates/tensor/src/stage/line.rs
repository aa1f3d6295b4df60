//! The line form: `stage ('|' stage)*`.

use crate::error::{Error, Result};

use super::value::Value;

/// A stage as written: names and keys are not looked up yet.
#[derive(Debug, Clone, PartialEq)]
pub struct RawStage {
    /// Its name.
    pub name: String,
    /// Keys and values, in order.
    pub args: Vec<(String, Value)>,
    /// A stage in the place of a key: `residual(eora(rank=16))`.
    pub inner: Vec<RawStage>,
}

/// Characters of names and of values that need no quotes.
pub(super) fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.:+-".contains(c)
}

/// Reads a line of stages; names and keys are not looked up.
///
/// # Errors
/// `InvalidArgument`, naming the column.
pub fn parse(text: &str) -> Result<Vec<RawStage>> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let mut stages = vec![parser.stage()?];
    while parser.eat('|') {
        stages.push(parser.stage()?);
    }
    match parser.peek() {
        None => Ok(stages),
        Some(_) => Err(parser.expected("`|` or the end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// Stages inside stages beyond this are a mistake, or hostile.
const MAX_DEPTH: usize = 8;

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.rest().chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn expected(&self, what: &str) -> Error {
        let column = self.text[..self.at].chars().count() + 1;
        let found = match self.rest().chars().next() {
            None => "the end".to_owned(),
            Some(c) => format!("`{c}`"),
        };
        Error::invalid(format!(
            "recipe `{}`: expected {what} at column {column}, found {found}",
            self.text
        ))
    }

    fn bare(&mut self, what: &str) -> Result<&'a str> {
        self.peek();
        let rest = self.rest();
        let len = rest.find(|c| !is_bare(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.expected(what));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    fn stage(&mut self) -> Result<RawStage> {
        let name = self.bare("the name of a stage")?;
        self.stage_named(name)
    }

    fn stage_named(&mut self, name: &str) -> Result<RawStage> {
        let mut stage = RawStage { name: name.to_owned(), args: Vec::new(), inner: Vec::new() };
        if !self.eat('(') || self.eat(')') {
            return Ok(stage);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.expected(&format!("stages nested at most {MAX_DEPTH} deep")));
        }
        loop {
            let word = self.bare("a key")?;
            if self.eat('=') {
                stage.args.push((word.to_owned(), self.value()?));
            } else {
                stage.inner.push(self.stage_named(word)?);
            }
            if self.eat(')') {
                self.depth -= 1;
                return Ok(stage);
            }
            if !self.eat(',') {
                return Err(self.expected("`,` or `)`"));
            }
        }
    }

    fn value(&mut self) -> Result<Value> {
        if !self.eat('"') {
            return Ok(bare_value(self.bare("a value")?));
        }
        let rest = self.rest();
        let Some(end) = rest.find('"') else {
            self.at = self.text.len();
            return Err(self.expected("a closing `\"`"));
        };
        self.at += end + 1;
        Ok(Value::Word(rest[..end].to_owned().into()))
    }
}

fn bare_value(word: &str) -> Value {
    if let Ok(value) = word.parse() {
        return Value::Bool(value);
    }
    if let Ok(value) = word.parse() {
        return Value::Int(value);
    }
    // `inf` and `nan` are words.
    match word.parse::<f64>() {
        Ok(value) if value.is_finite() => Value::Float(value),
        _ => Value::Word(word.to_owned().into()),
    }
}
