use std::borrow::Cow;
use std::fmt;

use tensorpress_tensor::{Error, Result};

use super::stage::Stage;

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// A word or a quoted text.
    Word(Cow<'static, str>),
}

impl Value {
    /// A word known at compile time.
    pub(super) const fn word(word: &'static str) -> Self {
        Self::Word(Cow::Borrowed(word))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            // Keeps the point, so that it is read as a float again.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Word(word) if !word.is_empty() && word.chars().all(super::line::is_bare) => {
                f.write_str(word)
            }
            Self::Word(word) => write!(f, "\"{word}\""),
        }
    }
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Type {
    /// An integer in this range, ends included.
    Int(i64, i64),
    /// A finite number in this range, ends included.
    Float(f64, f64),
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `any`; `n:m`: n of every m consecutive inputs stay; or `RxC`: blocks of R outputs and C inputs.
    Support,
}

impl Type {
    /// The value in this type, if it is allowed.
    fn accept(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Int(least, most), Value::Int(v)) => {
                (least..=most).contains(v).then(|| value.clone())
            }
            (Self::Float(least, most), Value::Float(v)) => {
                (*v >= least && *v <= most).then(|| value.clone())
            }
            (Self::Float(..), Value::Int(v)) => self.accept(&Value::Float(*v as f64)),
            (Self::Bool, Value::Bool(_)) => Some(value.clone()),
            (Self::Choice(words), Value::Word(word)) => {
                words.contains(&word.as_ref()).then(|| value.clone())
            }
            (Self::Support, Value::Word(word)) => {
                let known = word == "any" || n_of_m(word).is_some() || block(word).is_some();
                known.then(|| value.clone())
            }
            _ => None,
        }
    }
}

/// The numbers of `n:m`.
pub(super) fn n_of_m(word: &str) -> Option<(usize, usize)> {
    let (n, m) = word.split_once(':')?;
    let (n, m) = (n.parse().ok()?, m.parse().ok()?);
    (n <= m && m > 0).then_some((n, m))
}

/// The sides of a block `RxC`: outputs, inputs.
pub(super) fn block(word: &str) -> Option<(usize, usize)> {
    let (rows, cols) = word.split_once('x')?;
    let (rows, cols) = (rows.parse().ok()?, cols.parse().ok()?);
    (rows > 0 && cols > 0).then_some((rows, cols))
}

/// What is allowed, for errors and documentation.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(least, most) => write!(f, "integers from {least} to {most}"),
            Self::Float(least, most) => write!(f, "numbers from {least} to {most}"),
            Self::Bool => f.write_str("true and false"),
            Self::Choice(words) => f.write_str(&words.join(", ")),
            Self::Support => f.write_str("any, n:m with n <= m, and blocks like 16x1 or 4x4"),
        }
    }
}

/// A key of a stage.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeySpec {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub takes: Type,
    /// The value where none is given.
    pub default: Value,
    /// What it does.
    pub about: &'static str,
    /// The default where that depends on other keys.
    pub(super) derived: Option<fn(&Stage) -> Value>,
    /// Whether it may have this value where a quantiser follows, whose own keys then say what this one says alone.
    pub(super) before_quantiser: fn(&Value) -> bool,
}

impl KeySpec {
    pub(super) const fn new(
        name: &'static str,
        takes: Type,
        default: Value,
        about: &'static str,
    ) -> Self {
        Self { name, takes, default, about, derived: None, before_quantiser: |_| true }
    }

    pub(super) const fn derived(mut self, derived: fn(&Stage) -> Value) -> Self {
        self.derived = Some(derived);
        self
    }

    pub(super) const fn before_quantiser(mut self, allowed: fn(&Value) -> bool) -> Self {
        self.before_quantiser = allowed;
        self
    }

    /// The value in the key's type.
    pub(super) fn check(&self, stage: &str, value: &Value) -> Result<Value> {
        self.takes.accept(value).ok_or_else(|| {
            Error::invalid(format!("{stage}: {} = {value}: allowed are {}", self.name, self.takes))
        })
    }
}
