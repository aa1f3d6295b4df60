use std::borrow::Cow;
use std::fmt;

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
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Takes {
    /// An integer in this range, ends included.
    Int(i64, i64),
    /// One of these integers.
    Ints(Vec<i64>),
    /// A finite number in this range, ends included.
    Float(f64, f64),
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Choice(Vec<&'static str>),
    /// A text; what is allowed, in words.
    Text(&'static str),
}

impl Takes {
    /// The value in this type, if it is allowed.
    pub(super) fn accept(&self, value: &Value) -> Option<Value> {
        let allowed = match (self, value) {
            (Self::Int(least, most), Value::Int(v)) => (least..=most).contains(&v),
            (Self::Ints(allowed), Value::Int(v)) => allowed.contains(v),
            (Self::Float(least, most), Value::Float(v)) => *v >= *least && *v <= *most,
            (Self::Float(..), Value::Int(v)) => return self.accept(&Value::Float(*v as f64)),
            (Self::Bool, Value::Bool(_)) => true,
            (Self::Choice(words), Value::Word(word)) => words.contains(&word.as_ref()),
            (Self::Text(_), Value::Word(_)) => true,
            (Self::Text(_), other) => return Some(Value::Word(other.to_string().into())),
            _ => false,
        };
        allowed.then(|| value.clone())
    }
}

/// What is allowed, for errors and documentation.
impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(least, most) => write!(f, "integers from {least} to {most}"),
            Self::Ints(allowed) => {
                let words: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                match words.split_last() {
                    Some((last, [])) => f.write_str(last),
                    Some((last, rest)) => write!(f, "{} and {last}", rest.join(", ")),
                    None => Ok(()),
                }
            }
            Self::Float(least, most) => write!(f, "numbers from {least} to {most}"),
            Self::Bool => f.write_str("true and false"),
            Self::Choice(words) => f.write_str(&words.join(", ")),
            Self::Text(allowed) => f.write_str(allowed),
        }
    }
}
